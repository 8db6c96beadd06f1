"""An output folder that no run wrote, for tests of the report.

It holds a ledger with a handful of verdicts, a figure, tables and a manifest.
"""

import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

from analysis.experiments.registry import EXPERIMENTS
from analysis.results import ledger
from analysis.results.claims import Claim
from analysis.results.folder import write_tables
from analysis.results.verdict import (
    REFUTED,
    SUPPORTED,
    UNDECIDED,
    Case,
    Decision,
    SeedPlan,
    Verdict,
)
from figures.report.gather import MADE_UP
from figures.report.tables import BENCHMARKS, ENTRY
from figures.style import finish, save, stamp, style

DATA = "Data: Omniglot, 1,623 characters × 20 drawings · profile: quick"
GLYPHS = (
    f"Data: {MADE_UP}: glyphs, made-up characters, 30 characters × 20 drawings · profile: quick"
)
CIFAR_FS = "Data: CIFAR-FS · profile: quick"
FINDING = "It rises from 1 to 2 with $\\bar g_1$"
AMENDED = "The old band [0, 1] held every value. It is one end now."
MANIFEST = {
    "status": "finished",
    "started": "2018-03-08T00:00:00+00:00",
    "finished": "2018-03-08T00:20:00+00:00",
    "command": ["reproduce.py"],
    "profile": "quick",
    "commit": {"sha": "0" * 40, "modified": True},
    "versions": {"python": "3.11.7"},
    "machine": {
        "processor": "A & B",
        "cores": 2,
        "workers": 2,
        "device": "cpu",
        "platform": "Linux",
    },
    "wall_seconds": {"theory": 53.0},
}
SEEDS = tuple(range(1000, 1005))
CLAIMS = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
RUN = ("theory", "ablation", "few_shot")  # the experiments that the folder holds something of
CLAIMS_RUN = [claim for name in RUN for claim in EXPERIMENTS[name].claims]
EXPERIMENTAL = [claim for claim in CLAIMS if claim.kind == "experiment"]
THEOREM = next(
    claim.id for claim in CLAIMS if claim.kind == "theorem" and claim.band[0] < 0 < claim.band[1]
)
REFUTES, WIDE, PILOT = (claim.id for claim in EXPERIMENTAL[:3])
SHOWN_ONLY = EXPERIMENTAL[3].id
MEASURED = (THEOREM, REFUTES, WIDE, PILOT, SHOWN_ONLY)
VERDICTS = {"supported": 1, "refuted": 1, "undecided": len(CLAIMS_RUN) - 2}


def exact(
    name: str, value: float, decision: Decision, role: str = "check", data: str = DATA
) -> Case:
    """Return a theorem's case, whose value stands for itself."""
    return Case(name, role, decision, value, value, value, data=data)


def case(
    name: str, mean: float, low: float, high: float, decision: Decision = UNDECIDED,
    role: str = "check", data: str = DATA, seeds: tuple[int, ...] = SEEDS,
) -> Case:  # fmt: skip
    """Return an experiment's case."""
    return Case(name, role, decision, mean, low, high, 0.016, 0.004, 600, 1, seeds, data)


def verdicts(data: str = DATA) -> list[Verdict]:
    """Return a verdict of every claim.

    One is supported and one refuted. The others are undecided, for four reasons.
    """
    common: dict[str, Any] = {"epochs": (1,), "profile": "quick", "data": (data,), "look": 1}
    found: dict[str, dict[str, Any]] = {
        THEOREM: {
            "decision": SUPPORTED,
            "why": "",
            "cases": (
                exact("i = 2", 0.001, SUPPORTED, data=data),
                exact("i = 3", -2e-5, SUPPORTED, data=data),
                *(exact(f"k = {k}", 0.0, SUPPORTED, data=data) for k in range(2, 8)),
            ),
            "controls": tuple(
                exact(f"i = {i}", -float(i), REFUTED, "control", data) for i in range(6, 1, -1)
            ),
            "control": "failed",
        },
        REFUTES: {
            "decision": REFUTED,
            "why": "",
            "cases": (
                case("5-way", 0.9876, 0.9866, 0.9886, SUPPORTED, data=data),
                case("20-way", -0.1, -0.12, -0.08, REFUTED, data=CIFAR_FS),
            ),
            "controls": (case("5-way", 0.3, 0.2, 0.4, role="control", data=data),),
            "control": "failed",
            "data": (data, CIFAR_FS),
        },
        WIDE: {
            "why": "too wide",
            "cases": tuple(case(f"k = {k}", k, k - 0.5, k + 0.5, data=data) for k in range(1, 7)),
            "controls": (case("k = 1", 0.1, 0.0, 0.2, role="control", data=data),),
            "control": "uninformative",
            "plan": SeedPlan(4, 180.0),
        },
        PILOT: {
            "why": "the control does not fail",
            "cases": (case("", 0.25, float("nan"), float("nan"), data=data, seeds=(1000,)),),
            "controls": (case("", 0.5, 0.375, 0.625, role="control", data=data),),
            "control": "passed",
            "plan": SeedPlan(None),
        },
        SHOWN_ONLY: {
            "why": "shown only",
            "shown": (case("", 2.0, 1.0, 3.0, role="shown", data=data),),
        },
    }
    every = [Verdict(claim, UNDECIDED) for claim in CLAIMS]
    return [
        replace(verdict, claim=_amended(verdict.claim), **common | found[verdict.claim.id])
        if verdict.claim.id in found
        else verdict
        for verdict in every
    ]


def write(out: Path, *, data: str = DATA) -> Path:
    """Fill a folder as a run does, except for its runs and figures."""
    summary = {
        "variant": ["g1", "g1+g2"],
        "mean": [0.6, 0.9],
        "low": [0.5, 0.8],
        "high": [0.7, 1.0],
        "seeds": [3, 3],
    }
    cells = []
    for benchmark in BENCHMARKS:
        interval = (60.1, 59.6, 60.6, nan) if benchmark == "cifar-fs" else (nan, nan, nan, 97.68)
        place = [(benchmark, "Reptile", shots, *interval, 0.04) for shots in (1, 5)]
        cells += [dict(zip(ENTRY, cell, strict=True)) for cell in place]
    tables = {"ablation_summary": pd.DataFrame(summary), "few_shot_summary": pd.DataFrame(cells)}
    write_tables(out, tables)
    ledger.write(verdicts(data), out)
    (out / "manifest.json").write_text(json.dumps(MANIFEST))
    return out


def draw(out: Path) -> None:
    """Draw the figure of the ablation into the folder."""
    with style():
        figure, ax = plt.subplots(figsize=(6, 3))
        ax.plot([1, 2])
        finish(figure, FINDING, "A caption with $\\alpha$ = 0.1.")
        stamp(figure, DATA, real=True)
        save(figure, out / "figures", "ablation", experiment="ablation")


def _amended(claim: Claim) -> Claim:
    """Return the claim; one of an experiment gets words on what was changed."""
    return replace(claim, amended=AMENDED) if claim.kind == "experiment" else claim
