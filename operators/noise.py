"""Measurement noise, drawn from one generator per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from operators.base import Operator


class Noise(Protocol):
    """How a noise-free signal becomes a noisy measurement."""

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Noisy measurement of x (B, *image_shape); row b uses generators[b] (CPU) only."""
        ...


@dataclass(frozen=True)
class GaussianNoise:
    """Additive white Gaussian noise: y = A(x) + sigma n, n ~ N(0, I) on the measured entries.

    `sigma` is the standard deviation in image units, where images span [-1, 1]; it is twice the value quoted for images in
    [0, 1] (e.g. 0.05 here is 0.025 there). Entries that the operator does not measure get no noise. Complex measurements get
    independent real and imaginary parts of standard deviation sigma each. Draws are made in float64 and then rounded, so
    float32 and float64 runs see the same noise.

    Raises ValueError if sigma is negative or not finite.
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma must be a finite number >= 0 (image units, [-1, 1]), got {self.sigma!r}")

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = A(x) + sigma n, shape (B, *measurement_shape)."""
        y = op.A(x)
        if self.sigma == 0:
            return y
        shape = (*y.shape[1:], 2) if y.is_complex() else tuple(y.shape[1:])
        n = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])
        if y.is_complex():
            n = torch.view_as_complex(n)
        return y + op.restrict(self.sigma * n.to(y))


@dataclass(frozen=True)
class PoissonNoise:
    """Photon counting: y = gain * P, P ~ Poisson(A(u) / gain), with u = (x + 1) / 2 the intensity in [0, 1].

    `gain` is the intensity of one photon, so the noise variance is gain * A(u). The measurement is in intensity units, not
    image units: E[y] = A((x + 1) / 2). Operators with negative lobes (bicubic) can give slightly negative rates; those are
    counted as zero. Meant for linear operators with non-negative kernels (Chung et al., DPS, arXiv:2209.14687, Sec. 4).

    Raises ValueError if gain is not a finite number > 0, or if A(u) is complex.
    """

    gain: float = 1 / 255

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain must be a finite number > 0, got {self.gain!r}")

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = gain * Poisson(A(u) / gain), shape (B, *measurement_shape), zero on entries that are not measured."""
        clean = op.A((x + 1) / 2)
        if clean.is_complex():
            raise ValueError("Poisson noise needs a real, non-negative measurement; this operator gives a complex one")
        rate = (clean.detach().cpu().double() / self.gain).clamp(min=0)
        counts = torch.stack([torch.poisson(r, generator=g) for r, g in zip(rate, generators, strict=True)])
        return op.restrict(self.gain * counts.to(clean))


NOISES: dict[str, str] = {
    "gaussian": "operators.noise:GaussianNoise",
    "poisson": "operators.noise:PoissonNoise",
}
