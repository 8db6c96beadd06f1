"""An output folder that nobody ran: a handful of measurements, the ledger on them, a figure, a table and a manifest."""

import json

import matplotlib.pyplot as plt
import pandas as pd

from analysis import claims, comparison
from analysis.experiments import EXPERIMENTS
from analysis.runs import NUMERICS_VERSION
from analysis.tables import write_csv
from figures.style import finish, save, stamp, style

DATA = "Data: Omniglot, 1,623 characters × 20 drawings · profile: quick"
GLYPHS = f"Data: {claims.MADE_UP}: glyphs, made-up characters, 30 characters × 20 drawings · profile: quick"
FINDING = "It rises from 1 to 2 with $\\bar g_1$"
MANIFEST = {
    "status": "finished",
    "started": "2018-03-08T00:00:00+00:00",
    "finished": "2018-03-08T00:20:00+00:00",
    "command": ["reproduce.py"],
    "profile": "quick",
    "commit": {"sha": "0" * 40, "modified": True},
    "versions": {"python": "3.11.7"},
    "machine": {"processor": "A & B", "cores": 2, "workers": 2, "device": "cpu", "platform": "Linux"},
    "wall_seconds": {"theory": 53.0},
}
# Of each claim: experiment, checks and controls, as value, low and high.
NO = float("nan")
MEASURED = {
    "taylor-gradient": ("theory", [(0.001, NO, NO), (-2e-5, NO, NO)], [(-1.0, NO, NO)]),
    "ablation-g1": ("ablation", [(0.1, 0.08, 0.12)], [(0.3, 0.2, 0.4)]),
    "ablation-more-is-better": ("ablation", [(0.1, 0.08, 0.12)], [(-0.3, -0.4, -0.2)]),
    "zero-shot-loss": ("zero_shot", [(0.1, float("-inf"), float("inf"))], [(0.1, 0.0, 0.2)]),
}
VERDICTS = {"supported": 1, "refuted": 1, "inconclusive": 2}


def write(out, *, data=DATA):
    """Fill a folder as a run does, but for its runs and figures."""
    rows = {name: [] for name in EXPERIMENTS}
    for claim, (experiment, checks, controls) in MEASURED.items():
        for role, values in (("check", checks), ("control", controls)):
            for i, (value, low, high) in enumerate(values):
                row = {"claim": claim, "case": f"{role} {i}", "role": role, "value": value, "low": low, "high": high}
                rows[experiment].append(row | {"data": data, "profile": "quick", "numerics": NUMERICS_VERSION})
    tables = {f"{name}_measurements": pd.DataFrame(mine) for name, mine in rows.items() if mine}
    summary = {"variant": ["g1", "g1+g2"], "mean": [0.6, 0.9], "low": [0.5, 0.8], "high": [0.7, 1.0], "seeds": [3, 3]}
    tables["ablation_summary"] = pd.DataFrame(summary)
    for name, table in tables.items():
        write_csv(table, out / "tables" / f"{name}.csv")
    comparison.note([out / "tables" / f"{name}.csv" for name in tables])
    every = [claim for experiment in EXPERIMENTS.values() for claim in experiment.claims]
    found = [table for name, table in tables.items() if name.endswith("_measurements")]
    claims.write_ledger(claims.ledger(every, pd.concat(found)), out)
    (out / "manifest.json").write_text(json.dumps(MANIFEST))
    return out


def draw(out):
    """The figure of the ablation."""
    with style():
        figure, ax = plt.subplots(figsize=(6, 3))
        ax.plot([1, 2])
        finish(figure, FINDING, "A caption with $\\alpha$ = 0.1.")
        stamp(figure, DATA, real=True)
        save(figure, out / "figures", "ablation", experiment="ablation")
