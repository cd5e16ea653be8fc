"""Priors: exact ones, and diffusion networks."""

from invsolve.priors.base import ConditionalPrior, PixelPrior, Prior
from invsolve.priors.checkpoints.loading import load_prior, resolve_device
from invsolve.priors.conditional import ConditionalNetworkPrior
from invsolve.priors.gaussian import GaussianMixturePrior, GaussianPrior, StationaryGaussianPrior
from invsolve.priors.gaussian_conditional import ConditionalGaussianPrior
from invsolve.priors.latent import LatentPrior, LinearAutoencoder
from invsolve.priors.network import NetworkPrior, TrainingTable
from invsolve.resources import shipped_priors

__all__ = [
    "ConditionalGaussianPrior",
    "ConditionalNetworkPrior",
    "ConditionalPrior",
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
