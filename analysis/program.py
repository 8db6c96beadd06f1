"""Name of the program as the user calls it: a checkout's script, or an installation's command."""

import sys
from pathlib import Path

SCRIPT, INSTALLED = "reproduce.py", "reptile-verify"


def name() -> str:
    """Return the program's name, which begins its messages."""
    return INSTALLED if Path(sys.argv[0]).stem == INSTALLED else SCRIPT


def command() -> str:
    """Return the words that begin a command line of the program."""
    return INSTALLED if name() == INSTALLED else f"python {SCRIPT}"


def as_called(text: str) -> str:
    """Return the text with each command line of the script as the user would call it."""
    return text.replace(f"python {SCRIPT}", command())
