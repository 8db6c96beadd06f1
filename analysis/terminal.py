"""What people see at the end: aligned columns, in colour on a terminal alone."""

import os
from typing import TextIO

import pandas as pd

from analysis.claims import NOT_JUDGED, REFUTED, SUPPORTED, span

GREEN, RED, YELLOW, FAINT = 32, 31, 33, 2  # as terminals number them
COLOURS = {SUPPORTED: GREEN, REFUTED: RED, NOT_JUDGED: FAINT}


def in_colour(stream: TextIO) -> bool:
    """Is it a terminal that shows colours, and does the user want them (https://no-color.org)?"""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def verdicts(ledger: pd.DataFrame, *, colour: bool) -> list[str]:
    """The ledger's claims as a table: verdict last, since it may be long."""
    rows = [("claim", "measured", "band", "control", "verdict")]
    for row in ledger.itertuples():
        measured, control = span(row.measured_low, row.measured_high), span(row.control_low, row.control_high)
        rows.append((row.id, measured, f"[{row.low:g}, {row.high:g}]", control, row.verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for number, row in enumerate(rows):
        code = 1 if number == 0 else COLOURS.get(row[4], YELLOW)  # 1: bold
        last = f"\033[{code}m{row[4]}\033[0m" if colour else row[4]
        lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), last]))
    return lines
