"""The verdicts on a terminal: aligned, a line for each case, in colour only where it is wanted."""

import re

from analysis.results import terminal
from tests.helpers.folder import (
    CLAIMS,
    PILOT,
    REFUTES,
    SHOWN_ONLY,
    THEOREM,
    WIDE,
    verdicts,
)


def _of(claim: str) -> list[str]:
    return terminal.verdicts(
        [verdict for verdict in verdicts() if verdict.claim.id == claim], colour=False
    )[1:]


def test_a_line_a_case_with_its_interval() -> None:
    first, second = _of(REFUTES)
    assert re.match(
        rf"{REFUTES} +5-way +0.9876 \[0.9866, 0.9886\] .* inside +failed +refuted$", first
    )
    assert re.match(r" +20-way +-0.1 \[-0.12, -0.08\] +outside$", second)


def test_of_a_theorem_the_worst_case() -> None:
    (line,) = _of(THEOREM)
    assert re.match(
        rf"{THEOREM} +i = 2, and 7 more inside +0.001 .* inside +failed +supported$", line
    )


def test_undecided_says_why_and_what_would_decide() -> None:
    assert len(_of(WIDE)) == 6
    assert _of(WIDE)[0].endswith(
        "uninformative  undecided: the intervals are too wide; 4 more seeds, about 3 minutes"
    )
    assert (
        "passed" in _of(PILOT)[0]
        and "undecided: the control does not fail; more than 200 seeds" in _of(PILOT)[0]
    )
    assert "2 [1, 3]" in _of(SHOWN_ONLY)[0] and "only shown" in _of(SHOWN_ONLY)[0]
    assert _of(CLAIMS[-1].id)[0].endswith("undecided: not measured")


def test_columns_are_aligned_and_colour_changes_nothing_else() -> None:
    plain, coloured = (terminal.verdicts(verdicts(), colour=colour) for colour in (False, True))
    assert [re.sub(r"\x1b\[[0-9]+m", "", line).rstrip() for line in coloured] == plain
    at = plain[0].index("verdict")
    assert all(line[at - 1] == " " and line[at] != " " for line in plain if len(line) > at)
    codes = [re.search(r"\x1b\[([0-9]+)m", line) for line in coloured]
    # The head, a supported claim, and one that is not measured.
    assert [int(code[1]) for code in codes[:3] if code] == [1, 32, 2]


def test_tally_counts_what_it_is_given() -> None:
    tally = f"1 supported, 1 refuted, {len(CLAIMS) - 2} undecided"
    assert terminal.tally(verdicts()) == tally
    assert terminal.tally([]) == "0 supported, 0 refuted, 0 undecided"
    assert len(terminal.verdicts([], colour=True)) == 1
