"""The checks behind the ledger: on the smallest losses every claim is supported; a wrong formula turns the verdict."""

import pandas as pd
import torch

from analysis.claims import SUPPORTED, ledger
from analysis.experiments import theory
from analysis.experiments.theorems import CLAIMS
from analysis.experiments.theory import Check, run_check
from analysis.runs import Source
from analysis.theory import manifolds, modified_loss
from analysis.theory.losses import quadratic, tanh_network

NO_SOURCE = Source("glyphs", None, "")


def ignore(units: int) -> None:
    """Progress that nobody watches."""


QUICK = [
    *(Check(name, "tanh network") for name in ("gradients", "identities", "joint training", "sgd", "any order")),
    *(Check("updates", "tanh network", k) for k in (2, 3)),
    Check("expectations", "tanh network", 2),
    Check("solution manifolds"),
]


def test_every_claim_is_supported_on_the_smallest_losses_and_has_a_control_that_fails():
    rows = pd.DataFrame([row for check in QUICK for row in run_check(check, ignore, source=NO_SOURCE)[0]])
    table = ledger(CLAIMS, rows)
    assert dict(zip(table.id, table.verdict, strict=True)) == {claim.id: SUPPORTED for claim in CLAIMS}


def test_every_piece_of_work_is_on_a_known_pool():
    pieces = theory.checks()
    assert len(pieces) == len(set(pieces))
    assert {piece.pool for piece in pieces} == {"omniglot", "quadratic", "cubic", "tanh network", ""}


def test_manifolds_against_gradient_descent_on_the_mean_squared_distance():
    tasks = manifolds.affine_tasks()
    phi = torch.zeros(tasks[0].a.shape[1], dtype=torch.float64)
    for _ in range(3000):
        steps = [torch.linalg.lstsq(task.a, task.a @ phi - task.b).solution for task in tasks]
        phi = phi - torch.stack(steps).mean(0)
    # lstsq gives the shortest solution, so that phi - step is the projection; 3,000 steps leave far less than 1e-10
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
    expected = torch.linalg.solve(hessian, (torch.matrix_exp(-0.7 * hessian) - torch.eye(6)) @ gradient)
    found = modified_loss.flow_displacement(modified_loss.modified_gradient(pool.losses, 0.0), pool.phi, 0.7)
    assert float((found - expected).norm()) < 1e-11  # the integrator is asked for 1e-13


def test_modified_gradient_is_that_of_the_modified_loss():
    pool, eps = tanh_network(3), 0.3

    def modified(phi):
        gradients = torch.stack([torch.func.grad(loss)(phi) for loss in pool.losses])
        losses = torch.stack([loss(phi) for loss in pool.losses])
        return losses.mean() + eps / (4 * 3) * gradients.square().sum()

    found = modified_loss.modified_gradient(pool.losses, eps)(pool.phi)
    assert float((found - torch.func.grad(modified)(pool.phi)).norm()) < 1e-12
