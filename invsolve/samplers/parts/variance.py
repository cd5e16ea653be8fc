"""The ancestral step with the variance that a sampler names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invsolve.kernels import reverse
from invsolve.levels import Move
from invsolve.streams import NoiseSource


def ancestral_step(prior: Any, x: Tensor, move: Move, noise: NoiseSource, variance: str) -> tuple[Tensor, Tensor]:
    """(x0_hat, x_s) of one ancestral step from the prior's own denoiser."""
    x0, fraction = prior.denoise_with_variance(x, move.t) if variance == "learned" else (prior.denoise(x, move.t), None)
    return x0, reverse.ancestral(x, x0, move, noise.normal(x.shape[1:]), choose_variance(variance, fraction))


def choose_variance(variance: str, fraction: Tensor | None) -> Any:
    """The argument of kernels.ancestral that a setting stands for. "auto" is learned where the network has it.

    Raises ValueError if "learned" is asked of a prior that has none.
    """
    if variance == "learned" and fraction is None:
        raise ValueError("variance='learned', but this prior's network has no learned variance; choose 'posterior' or 'upper'")
    if variance == "auto":
        return "posterior" if fraction is None else fraction
    return fraction if variance == "learned" else variance
