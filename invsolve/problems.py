"""Problems in the plane whose posteriors are known, to hold samplers against; all in float64.

`Posterior.exact()` gives the truth and `modes` what draws say of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invsolve.likelihoods import GaussianLikelihood
from invsolve.posterior import Posterior
from invsolve.priors.analytic import GaussianMixturePrior, GaussianPrior
from operators import Matrix

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
    roots = torch.linalg.cholesky(exact.covs)
    white = torch.linalg.solve_triangular(roots, (x - means[:, None]).mT, upper=False)
    log_density = -0.5 * white.square().sum(1) - torch.linalg.diagonal(roots).log().sum(-1)[:, None]
    nearest = (log_density + exact.weights.flatten().log()[:, None]).argmax(0)
    counts = torch.bincount(nearest, minlength=len(means))
    if int(counts.min()) < 2:
        raise ValueError(f"the modes hold {counts.tolist()} of the draws; at least 2 each are needed")
    parts = [x[nearest == k] for k in range(len(means))]
    return Modes(counts / len(x), torch.stack([p.mean(0) for p in parts]), torch.stack([torch.cov(p.mT) for p in parts]), counts)
