"""The report on an output folder: its verdicts, figures and tables.

It is a page that needs no network, Markdown for GitHub and LaTeX tables. It computes nothing: what
is there is shown, and what is missing is left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import plugins, program
from analysis.ending import FAILURE
from analysis.results.claims import PROFILES
from analysis.results.tables import ResultsError
from reptile_core.files import write_atomically


def main(arguments: Sequence[str]) -> int:
    """Run `python reproduce.py report` and return its exit code.

    That is 0, or 1 with one line on what in the folder is missing or broken.
    """
    parser = argparse.ArgumentParser(
        prog=f"{program.name()} report",
        description="Write report.html, report.md and tables.tex from what has been run.",
    )
    parser.add_argument(
        "--profile", choices=PROFILES, default="quick", help="whose results (default: quick)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results are (default: results/PROFILE)"
    )
    parser.add_argument(
        "--plugin", type=Path, action="append", metavar="FILE", help="as of the run that wrote them"
    )
    options = parser.parse_args(arguments)
    try:
        with plugins.loaded(options.plugin or ()):
            paths = write(options.out or Path("results") / options.profile)
    except (ResultsError, OSError) as error:
        print(f"{program.name()}: error: {program.as_called(str(error))}", file=sys.stderr)
        return FAILURE
    print("\n".join(f"wrote {path}" for path in paths))
    return 0


def write(out: Path) -> list[Path]:
    """Write report.html, report.md and tables.tex in an output folder, from what is in it.

    Raises ResultsError where that is broken, OSError where they cannot be written.
    """
    # Template engine and imaging load while nothing waits for them.
    from figures.report import gather, render

    report = gather.gather(out)
    contents = {
        "report.html": render.html(report),
        "report.md": render.markdown(report),
        "tables.tex": render.latex(report),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode())
    return [out / name for name in contents]
