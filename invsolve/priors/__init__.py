"""Priors: exact ones, and diffusion networks."""

from invsolve.priors.analytic import GaussianMixturePrior, GaussianPrior, StationaryGaussianPrior
from invsolve.priors.base import PixelPrior, Prior
from invsolve.priors.latent import LatentPrior, LinearAutoencoder
from invsolve.priors.loading import load_prior, resolve_device
from invsolve.priors.network import NetworkPrior, TrainingTable
from invsolve.resources import shipped_priors

__all__ = [
    "GaussianMixturePrior",
    "GaussianPrior",
    "LatentPrior",
    "LinearAutoencoder",
    "NetworkPrior",
    "PixelPrior",
    "Prior",
    "StationaryGaussianPrior",
    "TrainingTable",
    "load_prior",
    "resolve_device",
    "shipped_priors",
]
