"""The user's own experiment and claim: `python reproduce.py --plugin own_claim.py own_claim`."""

import matplotlib.pyplot as plt
import pandas as pd

from analysis.experiments.shared.experiment import Experiment, Result
from analysis.results.claims import Claim, Control
from analysis.results.evidence import CHECK, CONTROL, rows, tabulate

CLAIM = Claim(
    id="own-claim",
    kind="experiment",
    statement="our method is right nine times in ten",
    band=(0.9, float("inf")),
    control=Control(kind="foil", words="the baseline in its place"),
    least="smoke",
)


def run(context):
    table = pd.DataFrame({"seed": context.seeds_of(6, epoch=0)})
    table["ours"], table["baseline"] = 0.95 + table.seed % 3 / 100, 0.88 + table.seed % 2 / 100
    values = table.set_index("seed")
    found = [
        *rows(CLAIM.id, "test", CHECK, values.ours),
        *rows(CLAIM.id, "test", CONTROL, values.baseline),
    ]
    return Result({"own_claim": table}, tabulate(found), [f"  ours {table.ours.mean():.2f}"])


def draw(tables, settings):
    figure, ax = plt.subplots()
    ax.plot(tables["own_claim"].seed, tables["own_claim"].ours, "o")
    figure.suptitle("Ours is right nine times in ten")
    return {"own_claim": figure}


EXPERIMENT = Experiment(
    name="own_claim",
    shows="a method of our own",
    takes={"smoke": "a second"},
    claims=(CLAIM,),
    settings=lambda context: {"seeds": 6},
    run=run,
)
