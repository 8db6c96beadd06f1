"""The checks of the ledger: every claim is supported on the smallest losses.

A wrong formula turns the verdict.
"""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from analysis.experiments import theory
from analysis.experiments.shared.experiment import Context
from analysis.experiments.theory import Check, run_check
from analysis.experiments.theory_claims import CLAIMS
from analysis.experiments.theory_rates import rate_rows, update_rates
from analysis.results.evidence import CONTROL
from analysis.results.judge import judge
from analysis.results.verdict import SUPPORTED
from analysis.runs.job import Source
from analysis.runs.workers import silent
from analysis.theory import manifolds, modified_loss
from analysis.theory.losses import quadratic, tanh_network
from tests.helpers.jobs import Followed

NO_SOURCE = Source("glyphs", None, "", real=False)


QUICK = [
    *(
        Check(name, "tanh network")
        for name in ("gradients", "identities", "joint training", "sgd", "any order")
    ),
    *(Check("updates", "tanh network", k) for k in (2, 3)),
    Check("expected sums", "tanh network"),
    Check("expected MAML", "tanh network", 2),
    Check("solution manifolds"),
]


def test_every_claim_is_supported_on_the_smallest_losses_and_has_a_control_that_fails():
    by_check = {check: run_check(check, silent, source=NO_SOURCE, k_max=3)[0] for check in QUICK}
    rows = pd.DataFrame([row for found in by_check.values() for row in found])
    found = judge(CLAIMS, rows)
    assert {verdict.claim.id: verdict.decision for verdict in found} == {
        claim.id: SUPPORTED for claim in CLAIMS
    }
    assert {verdict.control for verdict in found} == {"failed"}
    assert not any("omniglot" in data.lower() for verdict in found for data in verdict.data)
    on_images = {check.name for check in theory.checks() if check.pool == "omniglot"}
    of_gradients = {
        row["claim"]
        for check, found in by_check.items()
        if check.name in on_images
        for row in found
    }
    assert of_gradients == {claim.id for claim in CLAIMS} - {"solution-manifolds"}, (
        "all are checked on the paper's network"
    )


def test_mamls_second_order_without_third_derivatives_leaves_a_term_of_second_order():
    """The third derivatives are in the alpha^2 term: without them the slope is 2 in place of 3."""
    (control,) = (
        rate
        for rate in update_rates(tanh_network(), 3)
        if rate.claim == "taylor-second-order" and rate.case.startswith("MAML")
        and rate.role == CONTROL
    )  # fmt: skip
    row, _ = rate_rows(control, tanh_network())
    assert row["value"] == pytest.approx(-1.0, abs=0.05)


def test_only_what_is_checked_on_images_says_so():
    real = replace(NO_SOURCE, name="omniglot", real=True)
    assert theory.data_of(Check("updates", "omniglot", 2), real).endswith("real minibatches")
    assert theory.data_of(Check("updates", "omniglot", 2), NO_SOURCE).endswith(
        "minibatches of glyphs"
    )
    on_images = {
        piece.pool for piece in theory.checks() if "minibatches" in theory.data_of(piece, real)
    }
    assert on_images == {"omniglot"}


def _in(folder, check, *, source=NO_SOURCE, fresh=False):
    return theory.run_or_read(check, silent, source=source, folder=folder, fresh=fresh)


def test_a_check_is_kept_and_read_again(tmp_path, monkeypatch):
    check = Check("identities", "tanh network")
    found = _in(tmp_path, check)
    assert list(map(list, found)) == list(map(list, run_check(check, silent, source=NO_SOURCE)))
    (path,) = tmp_path.iterdir()
    followed = Followed()
    theory.run_or_read(check, followed, source=NO_SOURCE, folder=tmp_path, fresh=False)
    assert (followed.there, followed.now) == ([1], [])
    monkeypatch.setattr(theory, "run_check", lambda *_, **__: ([{"claim": "again"}], []))
    assert list(_in(tmp_path, check)) == list(found)
    assert _in(tmp_path, check, fresh=True)[0] == [{"claim": "again"}]
    path.write_text("[1, 2")
    assert _in(tmp_path, check)[0] == [{"claim": "again"}]
    assert _in(tmp_path, check)[0] == [{"claim": "again"}]  # and the result is kept


def test_what_decides_a_check_is_in_its_key(monkeypatch):
    small, on_images = Check("gradients", "cubic"), Check("gradients", "omniglot")
    other = replace(NO_SOURCE, content="other")
    assert theory.key(small, NO_SOURCE) == theory.key(small, other)
    assert theory.key(on_images, NO_SOURCE) != theory.key(on_images, other)
    assert len({theory.key(piece, NO_SOURCE) for piece in theory.checks()}) == len(theory.checks())
    before = theory.key(small, NO_SOURCE)
    monkeypatch.setattr(theory, "code", lambda: "changed")
    assert theory.key(small, NO_SOURCE) != before


def test_an_interrupted_run_loses_nothing(tmp_path, monkeypatch):
    """An interrupted run loses nothing.

    The last check fails, and the next run does that one alone.
    """
    pieces = [
        Check("identities", "quadratic"),
        Check("joint training", "quadratic"),
        Check("solution manifolds"),
    ]
    monkeypatch.setattr(theory, "checks", lambda: pieces)
    done = []

    def counted(check, progress, *, source):
        done.append(check)
        if len(done) == len(pieces):
            raise KeyboardInterrupt
        return run_check(check, progress, source=source)

    monkeypatch.setattr(theory, "run_check", counted)
    workers = SimpleNamespace(
        map=lambda name, function, items, **_: [function(item, silent) for item in items]
    )
    context = Context("smoke", NO_SOURCE, workers, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        theory.run(context)
    result = theory.run(context)
    assert done == [*pieces, pieces[-1]]
    assert list(result.evidence) == ["claim", "case", "role", "value", "data"]
    assert set(result.evidence.role) == {"check", "control", "shown"}


def test_every_piece_of_work_is_on_a_known_pool():
    pieces = theory.checks()
    assert len(pieces) == len(set(pieces))
    assert {piece.pool for piece in pieces} == {
        "omniglot",
        "quadratic",
        "cubic",
        "tanh network",
        "",
    }


def test_manifolds_against_gradient_descent_on_the_mean_squared_distance():
    tasks = manifolds.affine_tasks()
    phi = torch.zeros(tasks[0].a.shape[1], dtype=torch.float64)
    shortest = [task.a.T @ torch.linalg.inv(task.a @ task.a.T) for task in tasks]
    for _ in range(3000):
        steps = [
            inverse @ (task.a @ phi - task.b) for inverse, task in zip(shortest, tasks, strict=True)
        ]
        phi = phi - torch.stack(steps).mean(0)
    # The step is the shortest solution, so that phi - step is the projection. 3,000 steps leave an
    # error far below 1e-10.
    assert float((manifolds.nearest_point(tasks) - phi).norm()) < 1e-10


def test_the_fixed_point_is_one_of_the_real_algorithm():
    tasks, k, alpha = manifolds.affine_tasks(), 3, 1.0
    phi = manifolds.reptile_fixed_point(tasks, k, alpha=alpha)
    ends = []
    for task in tasks:
        point = phi
        for _ in range(k):
            point = point - alpha * task.a.T @ (task.a @ point - task.b)
        ends.append(point)
    assert float((torch.stack(ends).mean(0) - phi).norm()) < 1e-12


def test_flow_on_a_quadratic_is_the_matrix_exponential():
    pool = quadratic(1)
    hessian = torch.func.hessian(pool.losses[0])(pool.phi)
    gradient = torch.func.grad(pool.losses[0])(pool.phi)
    expected = torch.linalg.solve(
        hessian, (torch.matrix_exp(-0.7 * hessian) - torch.eye(6)) @ gradient
    )
    found = modified_loss.flow_displacement(
        modified_loss.modified_gradient(pool.losses, 0.0), pool.phi, 0.7
    )
    assert float((found - expected).norm()) < 1e-11  # the integrator's tolerance is 1e-13


def test_modified_gradient_is_that_of_the_modified_loss():
    pool, eps = tanh_network(3), 0.3

    def modified(phi):
        gradients = torch.stack([torch.func.grad(loss)(phi) for loss in pool.losses])
        losses = torch.stack([loss(phi) for loss in pool.losses])
        return losses.mean() + eps / (4 * 3) * gradients.square().sum()

    found = modified_loss.modified_gradient(pool.losses, eps)(pool.phi)
    assert float((found - torch.func.grad(modified)(pool.phi)).norm()) < 1e-12
