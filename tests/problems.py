"""Closed-form problems that the tests share."""

from __future__ import annotations

import torch

from invsolve import Posterior
from invsolve.likelihoods import GaussianLikelihood
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from operators import Matrix

DOUBLE = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def problem_r1():
    """Two correlated unit-variance numbers, the first measured as 1 with sigma 0.1."""
    prior = GaussianPrior(torch.zeros(2, dtype=DOUBLE), tensor([[1, 0.8], [0.8, 1]]))
    return Posterior(prior, GaussianLikelihood(Matrix(tensor([[1.0, 0.0]]), (2,)), tensor([[1.0]]), sigma=0.1))


def problem_16(rows=1, sigma=0.2):
    """A 1 x 4 x 4 image with an exponential covariance and a non-zero mean, 7 random projections measured."""
    place = torch.cartesian_prod(torch.arange(4), torch.arange(4)).to(DOUBLE)
    cov = 0.5 * torch.exp(-torch.cdist(place, place) / 2)
    prior = GaussianPrior(0.3 * randn(1, 4, 4, seed=1), cov)
    A = Matrix(randn(7, 16, seed=2) / 4, (1, 4, 4))
    x = prior.draw(rows, seed=3)
    y = A.A(x) + sigma * randn(rows, 7, seed=4)
    return Posterior(prior, GaussianLikelihood(A, y, sigma=sigma))


def problem_mixture(sigma=0.3, y=0.1):
    """Two modes in the plane, weights 0.3 and 0.7, of which the first coordinate is measured."""
    prior = GaussianMixturePrior(tensor([0.3, 0.7]), tensor([[0.3, 1.0], [-0.3, -1.0]]), 0.04 * torch.eye(2, dtype=DOUBLE).repeat(2, 1, 1))
    return Posterior(prior, GaussianLikelihood(Matrix(tensor([[1.0, 0.0]]), (2,)), tensor([[y]]), sigma=sigma))
