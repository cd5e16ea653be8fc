"""Likelihoods: log p(y | x), bound to a measurement."""

from invsolve.likelihoods.base import Likelihood, MeasuredLikelihood
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonGaussianLikelihood, PoissonLikelihood
from invsolve.likelihoods.pulled_back import Clipped, PulledBack

# The log-likelihood that belongs to each noise: called as cls(operator, y, **noise.parameters).
LIKELIHOODS = {
    "complex_gaussian": "invsolve.likelihoods.gaussian:GaussianLikelihood",
    "gaussian": "invsolve.likelihoods.gaussian:GaussianLikelihood",
    "poisson": "invsolve.likelihoods.poisson:PoissonLikelihood",
    "poisson_gaussian": "invsolve.likelihoods.poisson:PoissonGaussianLikelihood",
}

__all__ = [
    "LIKELIHOODS",
    "Clipped",
    "GaussianLikelihood",
    "Likelihood",
    "MeasuredLikelihood",
    "PoissonGaussianLikelihood",
    "PoissonLikelihood",
    "PulledBack",
]
