"""Priors: exact ones, and diffusion networks."""

from invsolve.priors.analytic import GaussianMixturePrior, GaussianPrior, StationaryGaussianPrior
from invsolve.priors.base import PixelPrior, Prior
from invsolve.priors.loading import load_prior, resolve_device, shipped_priors
from invsolve.priors.network import NetworkPrior, TrainingTable

__all__ = [
    "GaussianMixturePrior",
    "GaussianPrior",
    "NetworkPrior",
    "PixelPrior",
    "Prior",
    "StationaryGaussianPrior",
    "TrainingTable",
    "load_prior",
    "resolve_device",
    "shipped_priors",
]
