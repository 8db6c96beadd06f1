"""How a process of the script ends: an exit code, and one line for whatever went wrong."""

import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import NoReturn

from analysis import program
from analysis.results.folder import InUse
from analysis.results.manifest import ManifestError
from analysis.results.tables import ResultsError
from analysis.runs.workers import ClusterError
from reptile_core import datasets
from reptile_core.checkpoints import CheckpointError

USAGE_ERROR, FAILURE, INTERRUPTED = 2, 1, 130  # as in shells and argparse


class UsageError(ValueError):
    """A mistake that the user can put right, reported in one line before any work."""


def _warning_line(message: Warning | str, *_: object, **__: object) -> str:
    in_one_line = " ".join(str(message).split())
    return f"{program.name()}: warning: {in_one_line}\n"


def guarded(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run main(arguments) and return its exit code.

    Reports any failure in one line, with a traceback only where --debug is given.
    """
    warnings.formatwarning = _warning_line
    debug = "--debug" in arguments
    try:
        with _printable(), _terminable():
            return main(arguments)
    except KeyboardInterrupt:
        command = shlex.join([*program.command().split(), *arguments])
        again = " (--fresh starts over)" * ("--fresh" in arguments)
        print(
            f"\nInterrupted. Finished work is kept. Resume with: {command}{again}", file=sys.stderr
        )
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has seen enough
        # Otherwise the interpreter would complain once more as it ends.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return FAILURE
    except Exception as error:
        if debug:
            traceback.print_exc()
        code, line = _described(error)
        in_one_line = " ".join(program.as_called(line).split())
        print(f"{program.name()}: error: {in_one_line}", file=sys.stderr)
        return code


def _described(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error."""
    goes_on = "what is done is kept; the same command goes on"
    match error:
        case UsageError() | ManifestError() | InUse():
            return USAGE_ERROR, str(error)
        case datasets.DataError():
            return FAILURE, str(error)
        case CheckpointError() | ResultsError():
            advice = "It is left as it is; move it away, and the same command redoes it"
            return FAILURE, f"{error}. {advice}"
        case BrokenProcessPool():
            return FAILURE, f"a worker process died (out of memory, or killed); {goes_on}"
        case ClusterError():
            return FAILURE, f"{error}; {goes_on}"
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            return FAILURE, f"{name}{error.strerror or error}; {goes_on} once that is put right"
        case MemoryError():
            return FAILURE, f"out of memory; {goes_on}, with fewer --workers"
    return FAILURE, f"unexpected {type(error).__name__}: {error}; --debug shows where ({goes_on})"


@contextmanager
def _printable() -> Iterator[None]:
    """Replace characters that stdout cannot encode (cp1252, ascii).

    Otherwise one such character would end a run and lose its work. stderr escapes them by itself.
    """
    stream = sys.stdout
    if not isinstance(stream, TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
            stream.reconfigure(errors=before)


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn a request to end (kill, a batch system's limit) into an interrupt like Ctrl-C.

    It raises KeyboardInterrupt as usual. Python lets only the main thread handle signals. In
    another thread, such as a web server's, they stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    # Leave signals that are ignored, as by nohup. Leave handlers of another language too, which
    # Python could not restore.
    left = signal.SIG_IGN, None
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in left]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
