"""Closed-form problems that the tests share."""

from __future__ import annotations

import math

import torch

from invsolve import Posterior
from invsolve.diagnostics.problems import modes, problem_mixture, problem_r1
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.priors import GaussianPrior
from operators import Matrix, Operator

__all__ = ["DOUBLE", "Squares", "assert_drawn_from", "modes", "problem_16", "problem_mixture", "problem_r1", "randn", "tensor"]

DOUBLE = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def problem_16(rows=1, sigma=0.2):
    """A 1 x 4 x 4 image with an exponential covariance and a non-zero mean, 7 random projections measured."""
    place = torch.cartesian_prod(torch.arange(4), torch.arange(4)).to(DOUBLE)
    cov = 0.5 * torch.exp(-torch.cdist(place, place) / 2)
    prior = GaussianPrior(0.3 * randn(1, 4, 4, seed=1), cov)
    A = Matrix(randn(7, 16, seed=2) / 4, (1, 4, 4))
    x = prior.draw(rows, seed=3)
    y = A.A(x) + sigma * randn(rows, 7, seed=4)
    return Posterior(prior, GaussianLikelihood(A, y, sigma=sigma))


def assert_drawn_from(mixture, draws, slack=0.0):
    """Weights, means and covariances of the modes agree within 4.5 standard errors; `slack` is added to those of covariances."""
    found, weights, means = modes(draws, mixture), mixture.weights.flatten(), mixture.means.reshape(len(mixture.covs), -1)
    w = weights.clamp(0.5 / len(draws))
    assert bool(((found.weights - weights).abs() < 4.5 * (w * (1 - w) / len(draws)).sqrt()).all()), found.weights
    for k, n in enumerate(found.counts.tolist()):
        root = torch.linalg.cholesky(mixture.covs[k])
        gap = torch.linalg.solve_triangular(root, (found.means[k] - means[k])[:, None], upper=False)
        half = torch.linalg.solve_triangular(root, found.covs[k], upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        assert float(gap.abs().max()) < 4.5 / math.sqrt(n), (k, gap)
        assert float((white - torch.eye(len(root), dtype=DOUBLE)).abs().max()) < 4.5 * math.sqrt(2 / n) + slack, (k, white)


class Squares(Operator):
    """x -> x^2, entry by entry."""

    def __init__(self, image_shape):
        super().__init__(image_shape, image_shape)

    def _forward(self, x):
        return x.square()
