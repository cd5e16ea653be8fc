"""The stochastic resampling of ReSample: the weight of an estimate, and the draw between it and the iterate."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from invsolve.levels import Level, Move


def unrooted(t: Level) -> tuple[float, float]:
    """(a, b) of a x_t + b x0_hat = (x_t - (1 - abar) eps) / sqrt(abar): what the code of ReSample has for x0_hat.

    Tweedie's formula with the root of 1 - abar left out; it keeps noise of standard deviation sigma/alpha (1 - sqrt(1 - abar)).
    On any path, by scaling to the variance-preserving one: abar = alpha^2 / (alpha^2 + sigma^2).
    """
    root = t.sigma / t.scale
    return (1 - root) / t.alpha, root


def resampling_weight(move: Move, gamma: float, variance: Literal["paper", "official"] = "paper") -> float:
    """w = sigma_t^2 / (sigma_t^2 + 1 - abar_s), how far `resample` trusts the estimate that agrees with y.

    Song et al., "Solving inverse problems with latent diffusion models via hard data consistency", ICLR 2024:
    sigma_t^2 = gamma (1 - abar_s)/c (1 - abar_t/abar_s) with c = abar_t ("paper") or 1 - abar_t (the authors' code), so
    w = gamma beta / (gamma beta + c) with beta = 1 - abar_t/abar_s. On any path, by scaling to the variance-preserving one. gamma = inf
    gives 1, gamma = 0 gives 0.
    """
    if gamma == 0:
        return 0.0
    abar_t = (move.t.alpha / move.t.scale) ** 2
    beta = move.forward_variance / move.t.scale**2
    c = abar_t if variance == "paper" else (move.t.sigma / move.t.scale) ** 2
    return 1 / (1 + c / (gamma * beta))


def resample(x0: Tensor, x_s: Tensor, move: Move, weight: float, z: Tensor) -> Tensor:
    """A draw of N(w alpha_s x0 + (1 - w) x_s, w sigma_s^2 I): the estimate x0 noised to s, times a Gaussian around x_s.

    The stochastic resampling of Song et al., ICLR 2024, proposition 1: the product of N(alpha_s x0, sigma_s^2 I) and
    N(x_s, sigma_t^2 I). w = 1 is `diffuse` ("stochastic encoding"), w = 0 leaves x_s.
    """
    return torch.add(x0 * (weight * move.s.alpha) + x_s * (1 - weight), z, alpha=math.sqrt(weight) * move.s.sigma)
