"""The ledger's checks can fail: each small change to the source turns a verdict.

A change is one to a sign, factor, bar or index in the text of one module.
The changed module is run, and its functions replace the right ones wherever these are in use.
Then the ledger is drawn up from one small check on a tanh network or a cubic.
"""

import inspect
import sys
from dataclasses import dataclass
from types import ModuleType

import pandas as pd
import pytest

from analysis.experiments.theory import Check, run_check
from analysis.experiments.theory_claims import CLAIMS
from analysis.results.judge import judge
from analysis.results.verdict import SUPPORTED
from analysis.runs.job import Source
from analysis.runs.workers import silent
from analysis.theory import derivatives, expectations, manifolds, modified_loss, taylor

Checks = tuple[Check, ...]
GRADIENTS, IDENTITIES, SGD, ANY_ORDER = (
    (Check(name, "tanh network"),) for name in ("gradients", "identities", "sgd", "any order")
)
# The checks of gradients hold the second-order control.
UPDATES = {k: (*GRADIENTS, Check("updates", "tanh network", k)) for k in (2, 3, 4)}
SUMS, MANIFOLDS = (Check("expected sums", "tanh network"),), (Check("solution manifolds"),)
EXPECTATIONS = (*SUMS, Check("expected MAML", "tanh network", 2))


@dataclass(frozen=True)
class Mutation:
    """A change of `right` to `wrong` in a module, and the checks that must notice it.

    `right` occurs once in the module.
    """

    module: ModuleType
    right: str
    wrong: str
    checks: Checks

    def __str__(self) -> str:
        return f"{self.module.__name__.split('.')[-1]}: {self.right} -> {self.wrong}"


MUTATIONS = [
    Mutation(
        taylor, "phi = phi - alpha * gradients[-1]", "phi = phi + alpha * gradients[-1]", GRADIENTS
    ),
    Mutation(
        taylor,
        "phi = phi - alpha * gradients[-1]",
        "phi = phi - 2 * alpha * gradients[-1]",
        GRADIENTS,
    ),
    Mutation(
        taylor, "phi = phi - alpha * gradients[-1]", "phi = phi - alpha * gradients[0]", GRADIENTS
    ),
    Mutation(taylor, "point = point - alpha * g\n", "point = point + alpha * g\n", UPDATES[2]),
    Mutation(taylor, "return losses[-1](point)", "return losses[0](point)", UPDATES[2]),
    Mutation(taylor, "v = v - alpha * derivative", "v = v + alpha * derivative", IDENTITIES),
    Mutation(taylor, "zip(losses[:-1], points[:-1]", "zip(losses[:-1], points[1:]", IDENTITIES),
    Mutation(taylor, "[at.gradient, -product, ", "[at.gradient, product, ", GRADIENTS),
    Mutation(taylor, "+ bend / 2", "+ bend", GRADIENTS),
    Mutation(taylor, "at.product(-firsts)", "at.product(firsts)", GRADIENTS),
    Mutation(taylor, "s = s + terms[0]", "s = terms[0]", GRADIENTS),
    Mutation(taylor, "firsts = firsts + (terms[1]", "firsts = (terms[1]", GRADIENTS),
    Mutation(taylor, "terms[1] - product", "terms[1] + product", UPDATES[2]),
    Mutation(taylor, "later - minus_h_k_s_k", "later + minus_h_k_s_k", UPDATES[3]),
    Mutation(taylor, "products(g_bar_k, s_j)", "products(g_bar_k, g_bar_k)", UPDATES[3]),
    Mutation(taylor, "later = later + product", "later = product", UPDATES[4]),
    Mutation(taylor, "sum_of(weights, of_order_n", "sum_of(weights[::-1], of_order_n", UPDATES[2]),
    Mutation(
        taylor,
        "alpha**n for n in range(len(kept))",
        "alpha**n / (n + 1) for n in range(len(kept))",
        GRADIENTS,
    ),
    Mutation(
        expectations, "derivative(loss, phi, whole - g)", "derivative(loss, phi, whole)", IDENTITIES
    ),
    Mutation(
        expectations,
        "grad(mean_inner_product)(phi) / 2",
        "grad(mean_inner_product)(phi)",
        IDENTITIES,
    ),
    Mutation(expectations, "(gram.sum() - gram.diagonal().sum())", "gram.sum()", IDENTITIES),
    Mutation(expectations, "return sum(weights), -sum(w", "return sum(weights), sum(w", SUMS),
    Mutation(
        expectations, "for i, w in enumerate(weights))", "for i, w in enumerate(weights, 1))", SUMS
    ),
    Mutation(expectations, "-2.0 * (k - 1)", "-2.0 * k", EXPECTATIONS),
    Mutation(
        expectations,
        "rest - alpha * at.product(rest)",
        "rest + alpha * at.product(rest)",
        EXPECTATIONS,
    ),
    Mutation(
        expectations,
        "phi - alpha * at.graph.detach()",
        "phi + alpha * at.graph.detach()",
        EXPECTATIONS,
    ),
    Mutation(expectations, "_tree(pool, phi - alpha * g,", "_tree(pool, phi + alpha * g,", SUMS),
    Mutation(expectations, "/ perm(len(pool), depth + 1)", "/ perm(len(pool), k)", SUMS),
    Mutation(
        expectations, '"disjoint": -1 / (len(pool) - 1)', '"disjoint": -1 / len(pool)', IDENTITIES
    ),
    Mutation(expectations, "(8 * (half_plus", "(4 * (half_plus", SUMS),
    Mutation(modified_loss, "g + eps / 2 * at", "g + eps * at", SGD),
    Mutation(
        modified_loss,
        "derivative(b, phi, derivative(a, phi))",
        "derivative(a, phi, derivative(a, phi))",
        SGD,
    ),
    Mutation(manifolds, "[inverse @ task.b", "[-inverse @ task.b", MANIFOLDS),
    Mutation(manifolds, "points = points - alpha", "points = points + alpha", MANIFOLDS),
    Mutation(derivatives, "factorial *= n", "factorial += n", ANY_ORDER),
    Mutation(
        derivatives,
        "return jvp(f, (x,), (direction,))[1]",
        "return -jvp(f, (x,), (direction,))[1]",
        ANY_ORDER,
    ),
    Mutation(derivatives, "f, phi, v, retain_graph", "f, phi, -v, retain_graph", GRADIENTS),
]


def verdicts(checks: Checks) -> set[str]:
    source = Source("glyphs", None, "")
    rows = []
    for check in checks:
        # Sums of two gradients show what those of five do in a tenth of the time.
        rows += run_check(check, silent, source=source, k_max=2)[0]
    found = judge(CLAIMS, pd.DataFrame(rows))
    return {verdict.decision for verdict in found if verdict.why != "not measured"}


def mutate(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace functions by those of the changed module, in every module of `analysis`."""
    module, source = mutation.module, inspect.getsource(mutation.module)
    assert source.count(mutation.right) == 1, mutation
    namespace = {"__name__": module.__name__}
    exec(
        compile(source.replace(mutation.right, mutation.wrong), str(module.__file__), "exec"),
        namespace,
    )
    users = [other for name, other in sys.modules.items() if name.startswith("analysis")]
    for name, value in namespace.items():
        if getattr(value, "__module__", None) == module.__name__ and inspect.isfunction(value):
            right = getattr(module, name)
            for user in users:
                if getattr(user, name, None) is right:
                    monkeypatch.setattr(user, name, value)


@pytest.mark.parametrize(
    "checks", sorted({mutation.checks for mutation in MUTATIONS}, key=str), ids=str
)
def test_the_right_source_is_supported(checks):
    assert verdicts(checks) == {SUPPORTED}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_wrong_source_is_not(mutation, monkeypatch):
    mutate(mutation, monkeypatch)
    assert verdicts(mutation.checks) != {SUPPORTED}
