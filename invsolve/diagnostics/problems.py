"""Problems whose posteriors are known, to hold samplers against; all in float64.

Two in the plane with one measurement each, whose `Posterior.exact()` gives the truth and `modes` what draws say of it; and
`Problem`, from which pairs of signal and measurement are drawn, in the plane or for any operator on images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.posterior import Posterior
from invsolve.priors.gaussian import GaussianMixturePrior, GaussianPrior, StationaryGaussianPrior
from operators import Matrix, generator
from operators.core.dense import matrix_of

_DOUBLE = torch.float64


def _first_measured(y: float, sigma: float) -> GaussianLikelihood:
    return GaussianLikelihood(Matrix(torch.tensor([[1.0, 0.0]], dtype=_DOUBLE), (2,)), torch.tensor([[y]], dtype=_DOUBLE), sigma)


def problem_r1() -> Posterior:
    """Two numbers of unit variance and correlation 0.8, the first measured as 1 with sigma 0.1.

    Exact mean (.9901, .7921), variances .00990 and .3663, covariance .00792.
    """
    cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=_DOUBLE)
    return Posterior(GaussianPrior(torch.zeros(2, dtype=_DOUBLE), cov), _first_measured(1.0, 0.1))


def problem_mixture(sigma: float = 0.3, y: float = 0.1) -> Posterior:
    """Two modes of weights 0.3 and 0.7 at +-(0.3, 1), standard deviation 0.2 each way, the first coordinate measured.

    Exact weights 0.405 and 0.595 for the values given here: y says little of the mode, and nothing of the second coordinate
    within one. The modes lie five standard deviations from the line between them.
    """
    means = torch.tensor([[0.3, 1.0], [-0.3, -1.0]], dtype=_DOUBLE)
    covs = 0.04 * torch.eye(2, dtype=_DOUBLE).repeat(2, 1, 1)
    return Posterior(GaussianMixturePrior(torch.tensor([0.3, 0.7], dtype=_DOUBLE), means, covs), _first_measured(y, sigma))


def nearest_mode(x: Tensor, means: Tensor, roots: Tensor, weights: Tensor) -> Tensor:
    """The component (B, n) that each x (B, n, d) most probably is of.

    Of mixtures with means (B, K, d), Cholesky factors of the covariances (K, d, d) and weights (B, K).
    """
    log_density = []
    for k, root in enumerate(roots):
        white = torch.linalg.solve_triangular(root, (x - means[:, None, k]).mT, upper=False)
        log_density.append(weights[:, None, k].log() - 0.5 * white.square().sum(1) - torch.linalg.diagonal(root).log().sum())
    return torch.stack(log_density, -1).argmax(-1)


class Modes(NamedTuple):
    """Weights (K,), means (K, n) and covariances (K, n, n) of the modes, and the number of draws (K,) they come from."""

    weights: Tensor
    means: Tensor
    covs: Tensor
    counts: Tensor


def modes(draws: Tensor, exact: GaussianMixturePrior) -> Modes:
    """What draws (N, *X) say of each component of the exact posterior: each draw counts for the one it most probably is of.

    Raises ValueError if a component has fewer than two draws, for then it has no covariance.
    """
    x, means = draws.flatten(1), exact.means.reshape(-1, exact.covs.shape[-1])
    nearest = nearest_mode(x[None], means[None], torch.linalg.cholesky(exact.covs), exact.weights.reshape(1, -1))[0]
    counts = torch.bincount(nearest, minlength=len(means))
    if int(counts.min()) < 2:
        raise ValueError(f"the modes hold {counts.tolist()} of the draws; at least 2 each are needed")
    parts = [x[nearest == k] for k in range(len(means))]
    return Modes(counts / len(x), torch.stack([p.mean(0) for p in parts]), torch.stack([torch.cov(p.mT) for p in parts]), counts)


@dataclass(frozen=True)
class Problem:
    """Pairs (x, y): x from an analytic prior, y from an operator and a noise.

    `likelihood` is called with the operator and y; `name` is what a report calls the problem.
    """

    name: str
    prior: Any
    operator: Any
    noise: Any
    likelihood: Callable[[Any, Tensor], Any] = field(repr=False)

    def simulate(self, images: int, seed: int = 0) -> tuple[Tensor, Posterior]:
        """Signals (images, *X) drawn from the prior, and the posterior given a measurement of each.

        Raises ValueError for an operator that differs from image to image.
        """
        if self.operator.for_ids([0]) is not self.operator:
            raise ValueError(f"{type(self.operator).__name__} differs from image to image (per_image); one operator for all is needed")
        # Another seed than that of the samples, whose streams must not be those of the truths.
        x = self.prior.draw(images, seed + (1 << 40))
        y = self.operator.measure(x, self.noise, seed=seed)
        return x, Posterior(self.prior, self.likelihood(self.operator, y))


def gaussian_noise_likelihood(sigma: float) -> Callable[[Any, Tensor], GaussianLikelihood]:
    """The factory of `Problem.likelihood` for Gaussian noise."""
    return partial(GaussianLikelihood, sigma=sigma)


def plane_problem(kind: str, noise: Any = None) -> Problem:
    """R1 ("gaussian") or the mixture ("mixture") of this module, with y drawn; `noise`: their own by default."""
    posterior = problem_r1() if kind == "gaussian" else problem_mixture()
    own = posterior.likelihood
    sigma = own.sigma if noise is None else noise.parameters["sigma"]
    return Problem(kind, posterior.prior, own.operator, sigma if noise is None else noise, gaussian_noise_likelihood(sigma))


def smooth_prior(image_shape: Sequence[int], std: float = 0.35, reach: float = 1.5) -> StationaryGaussianPrior:
    """Smooth images of mean 0 and standard deviation `std` about as large as photographs in [-1, 1]; channels are independent.

    The power at a frequency f (cycles a pixel) goes as (1 + (2 pi f reach)^2)^(-3/2), the spectrum of an exponential
    covariance of range `reach`, which has no null directions.
    """
    height, width = image_shape[-2:]
    f2 = torch.fft.fftfreq(height, dtype=_DOUBLE)[:, None].square() + torch.fft.fftfreq(width, dtype=_DOUBLE).square()
    power = (1 + (2 * torch.pi * reach) ** 2 * f2) ** -1.5
    return StationaryGaussianPrior(0.0, std**2 * power / power.mean(), image_shape)


class Axes(NamedTuple):
    """Coordinates in which a Gaussian prior is N(0, I) and its posterior diagonal, see `axes`."""

    gains: Tensor
    functionals: Tensor
    vectors: Tensor

    @property
    def measured(self) -> Tensor:
        """(n,) which coordinates y tells more of than the prior: their variance shrinks to less than half."""
        return self.gains >= 1


def axes(prior_cov: Tensor, operator: Any, shape: Sequence[int], sigma: float) -> Axes:
    """The principal axes of what a measurement says beside a prior covariance (n, n).

    functionals (n, n): row j of F gives the coordinate c_j = F_j x, N(0, 1) under the prior, of variance 1/(1 + gains_j) given
    y, and independent of the others; vectors (n, n): F^-1, so that x = vectors c. gains (n,), rising, are the eigenvalues of
    (A L)^T (A L) / sigma^2 with L L^T the prior covariance: 0 where y says nothing.
    """
    root = torch.linalg.cholesky(prior_cov)
    seen = matrix_of(operator, shape, prior_cov) @ root / sigma
    gains, vectors = torch.linalg.eigh(seen.mT @ seen)
    functionals = torch.linalg.solve_triangular(root.mT, vectors, upper=True).mT
    return Axes(gains.clamp_min(0), functionals, root @ vectors)


def two_modes(prior: GaussianPrior, operator: Any, sigma: float | None) -> GaussianMixturePrior:
    """Weights 0.3 and 0.7 of two copies of a prior, moved to either side, so that y hardly tells which one it was.

    As in `problem_mixture`: 5 standard deviations each way along a pattern that y leaves open, and 0.8 along one that it
    measures, both parts of one random image; 2.5 along that image where there is no open direction, or where sigma=None, for
    operators that have no axes.
    """
    shape, cov = tuple(prior.mean.shape), prior.cov
    z = torch.randn(len(cov), dtype=cov.dtype, generator=generator(0, "pattern"))
    step = 2.5 * torch.linalg.cholesky(cov) @ (z / z.norm())
    if sigma is not None:
        found = axes(cov, operator, shape, sigma)
        c = torch.linalg.solve(found.vectors, step)
        # Less of what y tells of at all: 5 standard deviations are plain to see at a gain of 1/25.
        sides = [part / part.norm() for part in (c * ~found.measured / (1 + 25 * found.gains), c * found.measured) if bool(part.any())]
        if len(sides) == 2 or not bool(found.measured.any()):
            step = found.vectors @ sum(5 * part if k == 0 else 0.8 * part for k, part in enumerate(sides))
    means = prior.mean + torch.stack([step, -step]).reshape(2, *shape)
    return GaussianMixturePrior(torch.tensor([0.3, 0.7], dtype=cov.dtype), means, cov.repeat(2, 1, 1))


def image_problem(kind: str, operator: Any, noise: Any, likelihood: Callable[[Any, Tensor], Any], sigma: float | None) -> Problem:
    """The problem of an operator on images under `smooth_prior` ("gaussian") or two modes of it ("mixture").

    `sigma`: of Gaussian noise and a linear operator, else None.
    """
    prior: Any = smooth_prior(operator.image_shape)
    return Problem(kind, prior if kind == "gaussian" else two_modes(prior.dense(), operator, sigma), operator, noise, likelihood)
