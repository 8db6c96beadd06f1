"""Outside meta-learning: what shuffled SGD follows in the mean, and what minibatch order changes.

One epoch over m minibatches with step eps moves, in the mean over orders and up to O(eps^3), as
gradient flow does in the time m eps on L + eps / (4 m) sum_k |dL_k|^2. Here L is the mean loss
(Smith et al. 2021, arXiv 2101.12176). The gradient of the extra term is a combination of
AvgGradInner and the gradient of the squared norm of the mean gradient: Reptile's 1/2 k (k - 1) once
more.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.theory.derivatives import At, Loss, Vector, derivative, gradient
from analysis.theory.expectations import expected_inner_gradients
from analysis.theory.taylor import inner_gradients


def shuffled_displacement(pool: Sequence[Loss], phi: Vector, eps: float) -> Vector:
    """Return the displacement of one epoch of SGD with step eps, its mean over all m! orders.

    It is -eps sum_i E[g_i].
    """
    return -eps * expected_inner_gradients(pool, phi, eps, len(pool)).sum(0)


def modified_gradient(pool: Sequence[Loss], eps: float) -> Callable[[Vector], Vector]:
    """Return the gradient of L + eps / (4 m) sum_k |dL_k|^2 as a function of phi.

    It is the mean of dL_k + eps / 2 H_k dL_k; eps = 0 gives plain dL. It is not to be
    differentiated again.
    """

    def of(loss: Loss, phi: Vector) -> Vector:
        if not eps:
            return gradient(loss, phi)
        at = At(loss, phi)
        g = at.graph.detach()
        return g + eps / 2 * at.product(g)

    return lambda phi: torch.stack([of(loss, phi) for loss in pool]).mean(0)


def flow_displacement(field: Callable[[Vector], Vector], phi: Vector, time: float) -> Vector:
    """Return the displacement of phi' = -field(phi) after `time`.

    It is integrated to about the last digits of float64.
    """

    from scipy.integrate import solve_ivp  # slow to import, and needed here alone

    def velocity(_: float, point: np.ndarray) -> np.ndarray:
        return -field(torch.from_numpy(point)).numpy()

    solution = solve_ivp(
        velocity, (0.0, time), phi.numpy(), method="DOP853", rtol=1e-13, atol=1e-15
    )
    return torch.from_numpy(solution.y[:, -1]) - phi


def order_difference(a: Loss, b: Loss, phi: Vector, alpha: float) -> Vector:
    """Return theta_AB - theta_BA: two steps of SGD on A then B, less the same on B then A."""
    ab, ba = (torch.stack(inner_gradients(order, phi, alpha)).sum(0) for order in ((a, b), (b, a)))
    return -alpha * (ab - ba)


def predicted_order_difference(a: Loss, b: Loss, phi: Vector, alpha: float) -> Tensor:
    """Return alpha^2 (H_B g_A - H_A g_B)."""
    return alpha**2 * (
        derivative(b, phi, derivative(a, phi)) - derivative(a, phi, derivative(b, phi))
    )
