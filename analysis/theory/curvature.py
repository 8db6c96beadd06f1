"""The curvature of a minibatch loss at phi: the trace, eigenvalues and density of its Hessian.

Section 5.1 expands g_i in alpha H. The series says something about the inner loop that is really
run where alpha times the largest eigenvalues stays small. The gradient is linearized once, and
everything here needs only products L''(phi) v. The sampled quantities take random signs z, for
which E[z . f(L'') z] = tr f(L''):

- the trace (Hutchinson) is the case f(x) = x;
- the density of eigenvalues (stochastic Lanczos quadrature) is for any f.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.theory.derivatives import Loss, Vector, hessian_at
from analysis.theory.expectations import SampleMean, monte_carlo


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in falling order, with their unit vectors and residuals |H v - value v|.

    As H is symmetric, it has an eigenvalue within the residual of each value.
    """

    values: Float[Tensor, " n"]
    vectors: Float[Tensor, "n P"]
    residuals: Float[Tensor, " n"]


@dataclass(frozen=True)
class SpectralDensity:
    """The density of the eigenvalues as points with weights, in float64.

    Each row belongs to one random vector, and its weights add up to 1. A row integrates polynomials
    of degree below twice its number of points exactly as its random vector does.
    """

    points: Float[Tensor, "samples steps"]
    weights: Float[Tensor, "samples steps"]

    def moment(self, order: int) -> SampleMean:
        """Return tr(H^order) / P, with its standard error over the random vectors."""
        each = (self.weights * self.points**order).sum(-1)
        return SampleMean(float(each.mean()), float(each.std()) / sqrt(len(each)))

    def smoothed(self, at: Float[Tensor, " n"], *, width: float) -> Float[Tensor, " n"]:
        """Return the density at the points `at`.

        Each point of the density is widened to a normal distribution of standard deviation `width`.
        """
        scaled = (at.unsqueeze(-1) - self.points.flatten()) / width
        bells = torch.exp(-(scaled**2) / 2) / (width * sqrt(2 * pi))
        return bells @ self.weights.flatten() / len(self.weights)


def trace(loss: Loss, phi: Vector, *, samples: int, generator: torch.Generator) -> SampleMean:
    """Return tr L''(phi) by Hutchinson's estimator, the mean of z . L'' z.

    Each sample takes one product.
    """
    product = _products(loss, phi)

    def one() -> Tensor:
        z = _signs(phi, generator)
        return z @ product(z)

    mean, standard_error = monte_carlo(one, samples)
    return SampleMean(float(mean), float(standard_error))


def extreme_eigenvalues(
    loss: Loss,
    phi: Vector,
    *,
    count: int,
    which: str = "LA",
    tolerance: float = 0.0,
    generator: torch.Generator,
) -> Eigenpairs:
    """Return `count` extreme eigenvalues of L''(phi), by ARPACK's restarted Lanczos method.

    It starts from random signs and again from normal numbers. Signs may be orthogonal to an
    eigenvector: to that of (phi_1 - phi_2)^2, if the first two are equal.

    which: "LA" for the largest, "SA" for the lowest, "LM" for the largest in magnitude.
    tolerance: relative, on the values; 0 for round-off.
    generator: draws the start vectors, the only random choices.
    """
    if not 1 <= count < len(phi):
        raise ValueError(
            f"count: expected 1 … {len(phi) - 1} eigenvalues of {len(phi)}, found {count}"
        )
    if which not in ("LA", "SA", "LM"):
        raise ValueError(f'which: expected "LA", "SA" or "LM", found {which!r}')
    # Slow to import, as is scipy.linalg below.
    from scipy.sparse.linalg import LinearOperator, eigsh

    product = _products(loss, phi)

    def matvec(v: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(v).to(phi)).cpu().numpy()

    def from_start(start: Vector) -> Eigenpairs:
        v0 = start.cpu().numpy()
        operator = LinearOperator(2 * (len(phi),), matvec=matvec, dtype=v0.dtype)
        values, columns = eigsh(operator, k=count, which=which, v0=v0, tol=tolerance)
        falling = np.argsort(values)[::-1]
        found, vectors = (torch.from_numpy(a[falling].copy()).to(phi) for a in (values, columns.T))
        pairs = zip(found, vectors, strict=True)
        residuals = [(product(v) - value * v).norm() for value, v in pairs]
        return Eigenpairs(found, vectors, torch.stack(residuals))

    signs = _signs(phi, generator)
    normal = torch.randn(
        len(phi), generator=generator, dtype=torch.float64, device=generator.device
    ).to(phi)
    starts = [start for start in (signs, normal) if product(start).any()]
    if not starts:  # such as for a linear loss
        vectors = torch.eye(count, len(phi), dtype=phi.dtype, device=phi.device)
        return Eigenpairs(phi.new_zeros(count), vectors, phi.new_zeros(count))
    first, last = from_start(starts[0]), from_start(starts[-1])
    return last if _is_further(last, first, which, tolerance) else first


def _is_further(found: Eigenpairs, than: Eigenpairs, which: str, tolerance: float) -> bool:
    """Return whether an eigenvalue is further out, by more than both runs' errors explain."""

    def outward(pairs: Eigenpairs) -> Tensor:
        ends = {"LA": pairs.values, "SA": -pairs.values, "LM": pairs.values.abs()}[which]
        return ends.sort().values

    explained = found.residuals.max() + than.residuals.max()
    explained = explained + tolerance * found.values.abs().max()
    return bool((outward(found) - outward(than) > explained).any())


def spectral_density(
    loss: Loss, phi: Vector, *, steps: int, samples: int, generator: torch.Generator
) -> SpectralDensity:
    """Return the density of the eigenvalues of L''(phi), by stochastic Lanczos quadrature.

    steps: products for each random vector, 1 … P. samples: number of random vectors, at least 2.

    A random vector z weighs each eigenvalue by its squared component along the eigenvector, 1 / P
    on average. Lanczos' tridiagonal matrix is the Gauss quadrature of these weights. Its
    eigenvalues are the points; the squares of its eigenvectors' first components are the weights.
    """
    if not 1 <= steps <= len(phi):
        raise ValueError(f"steps: expected 1 … {len(phi)}, the parameters there are, found {steps}")
    if samples < 2:
        raise ValueError(f"samples: expected at least 2, for a standard error, found {samples}")
    from scipy.linalg import eigh_tridiagonal

    product = _products(loss, phi)
    points, weights = torch.zeros(2, samples, steps, dtype=torch.float64)
    for row in range(samples):
        values, vectors = eigh_tridiagonal(*_lanczos(product, _signs(phi, generator), steps))
        points[row, : len(values)] = torch.from_numpy(values)
        weights[row, : len(values)] = torch.from_numpy(vectors[0] ** 2)
    return SpectralDensity(points, weights)


def _lanczos(
    product: Callable[[Vector], Vector], start: Vector, steps: int
) -> tuple[list[float], list[float]]:
    """Return the diagonal and off-diagonal of Lanczos' tridiagonal matrix, of at most `steps` rows.

    Holds a basis of shape (steps, P). Every vector is made orthogonal to all earlier ones, twice,
    which suffices: otherwise round-off brings back eigenvalues that were found already, as ghosts.
    The loop ends when the rest is within round-off of 0: the space is invariant.
    """
    basis = start.new_empty(steps, len(start))
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    size = 0.0  # a lower bound on the norm of H
    for n in range(steps):
        w = product(basis[n])
        size = max(size, float(w.norm()))
        diagonal.append(float(basis[n] @ w))
        known = basis[: n + 1]
        for _ in range(2):
            w = w - known.T @ (known @ w)
        rest = float(w.norm())
        if n + 1 == steps or rest <= sqrt(len(start)) * torch.finfo(w.dtype).eps * size:
            break
        off_diagonal.append(rest)
        basis[n + 1] = w / rest
    return diagonal, off_diagonal


def _products(loss: Loss, phi: Vector) -> Callable[[Vector], Vector]:
    """Return v -> L''(phi) v, which checks that its results are finite.

    Raises ValueError where the loss does not depend on phi, or a product is not finite.
    """
    with torch.enable_grad():
        depends = loss(phi.detach().requires_grad_()).requires_grad
    if not depends:
        raise ValueError(
            "loss: expected a function of phi, found one that does not depend on it (constant or "
            "detached)"
        )
    product = hessian_at(loss, phi)

    def finite(v: Vector) -> Vector:
        found = product(v)
        if not found.isfinite().all():
            raise ValueError(
                "loss: expected finite derivatives at phi, found a Hessian-vector product with nan "
                "or inf"
            )
        return found

    return finite


def _signs(like: Vector, generator: torch.Generator) -> Vector:
    """Return independent random signs, drawn on the CPU.

    Of all independent entries, signs give the trace the least variance.
    """
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)
