"""The claims as people see them at the end: aligned columns, in colour on a terminal only."""

import os
from collections.abc import Sequence
from typing import TextIO

from analysis.results import ledger, wording
from analysis.results.verdict import REFUTED, SUPPORTED, UNDECIDED, Decision, Verdict

BOLD, GREEN, RED, YELLOW, FAINT = 1, 32, 31, 33, 2  # as terminals number them
COLOURS: dict[Decision, int] = {SUPPORTED: GREEN, REFUTED: RED, UNDECIDED: YELLOW}
HEAD = ("claim", "case", "measured", "band", "by itself", "control", "verdict")


def in_colour(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows colours, and the user wants them.

    The user can refuse them by NO_COLOR (https://no-color.org).
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def verdicts(verdicts: Sequence[Verdict], *, colour: bool) -> list[str]:
    """Return the claims as a table, a line for each case, with the worst case only for a theorem.

    The verdict comes last, since with its reason it may be long.
    """
    rows: list[tuple[str, ...]] = [HEAD]
    codes = [BOLD]
    for verdict in verdicts:
        mine = _rows(verdict)
        rows += mine
        codes += [FAINT if verdict.why == "not measured" else COLOURS[verdict.decision]] * len(mine)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    if not colour:
        return [_line(row, widths, None) for row in rows]
    return [_line(row, widths, code) for row, code in zip(rows, codes, strict=True)]


def tally(verdicts: Sequence[Verdict]) -> str:
    """Return how many claims got which verdict: "17 supported, 3 refuted, 9 undecided"."""
    return ", ".join(f"{number} {decision}" for decision, number in ledger.count(verdicts).items())


def _rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """Return a claim's rows; the first has its name, band, control and verdict."""
    cases, others = wording.foremost(verdict)
    measured = []
    for case in cases:
        place = wording.PLACES[case.decision] if verdict.cases else "only shown"
        measured.append((case.name, wording.interval(case), place))
    measured = measured or [("", "–", "")]
    measured[-1] = (", ".join(filter(None, (measured[-1][0], others))), *measured[-1][1:])
    control = verdict.control if verdict.controls else "–"
    first = (verdict.claim.id, wording.band(verdict.claim.band), control, wording.whole(verdict))
    firsts = [first, *[("",) * 4] * (len(measured) - 1)]
    return [
        (name, case, value, band, place, control, last)
        for (case, value, place), (name, band, control, last) in zip(measured, firsts, strict=True)
    ]


def _line(row: Sequence[str], widths: Sequence[int], code: int | None) -> str:
    last = f"\033[{code}m{row[-1]}\033[0m" if code is not None and row[-1] else row[-1]
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*cells, last]).rstrip()
