"""Measurement noise, drawn from one generator per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from operators.core.base import Operator


# How sigma may be quoted: where images span [-1, 1], or where they span [0, 1].
UNITS = ("image", "unit")
# The share of negative rates that may be cut off before counting.
_DARKEST = 0.25


class Noise(Protocol):
    """How a noise-free signal becomes a noisy measurement."""

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Noisy measurement of x (B, *image_shape); row b uses generators[b] (CPU) only."""
        ...


# Variances, and one over them, must be numbers in single precision too.
_FAR = 1e15


def _in_image_units(sigma: float, units: str) -> float:
    """sigma as a standard deviation where images span [-1, 1]; ValueError for a bad sigma or name of units."""
    if units not in UNITS:
        raise ValueError(f"units must be 'image' (sigma where images span [-1, 1]) or 'unit' (where they span [0, 1]), got {units!r}")
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"sigma must be a finite number >= 0 ({'image units, [-1, 1]' if units == 'image' else '[0, 1]'}), got {sigma!r}")
    if sigma and not 1 / _FAR <= sigma <= _FAR:
        raise ValueError(f"sigma must be 0, or between {1 / _FAR:g} and {_FAR:g}, as its square must be a number, got {sigma!r}")
    return sigma if units == "image" else 2 * sigma


def _both(std: float) -> str:
    """A standard deviation given in image units, spelled in both."""
    return f"sigma {std:g} where images span [-1, 1] = {std / 2:g} where they span [0, 1]"


def _normal(y: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers like y (B, ...), row b from generators[b]; complex ones have two independent parts of std 1 each."""
    shape = (*y.shape[1:], 2) if y.is_complex() else tuple(y.shape[1:])
    n = torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])
    return (torch.view_as_complex(n) if y.is_complex() else n).to(y)


def _counts(op: Operator, x: Tensor, gain: float, generators: Sequence[torch.Generator]) -> Tensor:
    """gain * Poisson(A((x + 1) / 2) / gain), row b from generators[b]; ValueError where that is no count of light."""
    if not op.takes_light:
        raise ValueError(f"Poisson noise counts A((x + 1) / 2), but {type(op).__name__} takes images in [-1, 1] and no others")
    clean = op.A((x + 1) / 2)
    if clean.is_complex():
        raise ValueError("Poisson noise needs a real, non-negative measurement; this operator gives a complex one")
    rate = clean.detach().cpu().double() / gain
    light, dark = rate.clamp(min=0), rate.clamp(max=0).neg()
    share = dark.flatten(1).sum(1) / rate.abs().flatten(1).sum(1).clamp(min=1e-300)
    # The lobes of bicubic reduction reach 17 % where a single pixel is lit, and are usually far below.
    if bool((share > _DARKEST).any()):
        found = f"{float(share.max()):.0%} of {type(op).__name__}'s"
        raise ValueError(f"Poisson noise needs a non-negative measurement; {found} would be lost, as negative rates count as zero")
    return gain * torch.stack([torch.poisson(r, generator=g) for r, g in zip(light, generators, strict=True)]).to(clean)


def _check_gain(gain: float) -> None:
    if not (math.isfinite(gain) and gain > 0):
        raise ValueError(f"gain must be a finite number > 0, got {gain!r}")
    if not 1 / _FAR <= gain <= _FAR:
        raise ValueError(f"gain must be between {1 / _FAR:g} and {_FAR:g}, got {gain!r}")


@dataclass(frozen=True)
class GaussianNoise:
    """Additive white Gaussian noise: y = A(x) + sigma n, n ~ N(0, I) on the measured entries.

    `sigma` is a standard deviation where images span [-1, 1] (units="image"), or where they span [0, 1] (units="unit"): 0.025
    there is 0.05 here, and `std`, the one that is added, is 2 sigma. Entries that the operator does not measure get no noise.
    Complex measurements get independent real and imaginary parts of standard deviation `std` each. Draws are made in float64
    and then rounded, so float32 and float64 runs see the same noise.

    Raises ValueError if sigma is negative or not finite, or for another name of units.
    """

    sigma: float = 0.05
    units: Literal["image", "unit"] = "image"

    intensity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _in_image_units(self.sigma, self.units)

    @property
    def std(self) -> float:
        """The standard deviation that is added to y, in image units."""
        return _in_image_units(self.sigma, self.units)

    @property
    def parameters(self) -> dict[str, float]:
        """What the likelihood is called with, in the units of y: sigma."""
        return {"sigma": self.std}

    def describe(self) -> str:
        """One line for a person, sigma in both units."""
        return f"Gaussian noise, {_both(self.std)}"

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = A(x) + std n, shape (B, *measurement_shape)."""
        y = op.A(x)
        return y if self.std == 0 else y + op.restrict(self.std * _normal(y, generators))


@dataclass(frozen=True)
class ComplexGaussianNoise:
    """Circular complex Gaussian noise, as in MRI: y = A(x) + s (n_re + i n_im), both N(0, I), on the measured entries.

    std_of="part": `sigma` is the standard deviation s of the real part and of the imaginary part, each (as `GaussianNoise`
    and the likelihood have it; E|noise|^2 = 2 sigma^2). std_of="modulus": sigma^2 = E|noise|^2, so s = sigma / sqrt(2).
    `units` as in `GaussianNoise`. Meant for measurements that are complex, or real with (real, imaginary) in the first axis
    after the batch; s is what `GaussianNoise` calls its std, and gives the same noise.

    Raises ValueError if sigma is negative or not finite, for another name of units or std_of, and if y is neither complex
    nor a pair of parts.
    """

    sigma: float = 0.05
    std_of: Literal["part", "modulus"] = "part"
    units: Literal["image", "unit"] = "image"

    intensity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _in_image_units(self.sigma, self.units)
        if self.std_of not in ("part", "modulus"):
            raise ValueError(f"std_of must be 'part' (real and imaginary each) or 'modulus' (both together), got {self.std_of!r}")

    @property
    def std(self) -> float:
        """The standard deviation of each part, in image units."""
        total = _in_image_units(self.sigma, self.units)
        return total if self.std_of == "part" else total / math.sqrt(2)

    @property
    def parameters(self) -> dict[str, float]:
        """What the likelihood is called with, in the units of y: sigma of each part."""
        return {"sigma": self.std}

    def describe(self) -> str:
        """One line for a person, sigma in both units."""
        return f"complex Gaussian noise, real and imaginary part each: {_both(self.std)}"

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = A(x) + std (n_re + i n_im), shape (B, *measurement_shape)."""
        y = op.A(x)
        if not y.is_complex() and (y.ndim < 3 or y.shape[1] != 2):
            raise ValueError(
                f"complex noise needs a complex measurement, or one of (real, imaginary) pairs (B, 2, ...), got a real {tuple(y.shape)}"
            )
        return y if self.std == 0 else y + op.restrict(self.std * _normal(y, generators))


@dataclass(frozen=True)
class PoissonNoise:
    """Photon counting: y = gain * P, P ~ Poisson(A(u) / gain), with u = (x + 1) / 2 the intensity in [0, 1].

    `gain` is the intensity of one photon, so the noise variance is gain * A(u). The measurement is in intensity units, not
    image units: E[y] = A((x + 1) / 2). Operators with negative lobes (bicubic) can give slightly negative rates; those are
    counted as zero, up to a quarter of the whole. As in DPS (Chung et al., arXiv:2209.14687, Sec. 4).

    Raises ValueError if gain is not a finite number > 0, if A(u) is complex or largely negative (random projections), or for an
    operator that takes [-1, 1] only (`takes_light` is False: clipping, JPEG, non-linear blur).
    """

    gain: float = 1 / 255

    intensity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_gain(self.gain)

    @property
    def parameters(self) -> dict[str, float]:
        """What the likelihood is called with, in the units of y: gain."""
        return {"gain": self.gain}

    def describe(self) -> str:
        """One line for a person."""
        return f"Poisson noise, one photon is {self.gain:g} where images span [0, 1] ({1 / self.gain:g} photons for white)"

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = gain * Poisson(A(u) / gain), shape (B, *measurement_shape), zero on entries that are not measured."""
        return op.restrict(_counts(op, x, self.gain, generators))


@dataclass(frozen=True)
class PoissonGaussianNoise:
    """Photon counting and read-out noise: y = gain * Poisson(A(u) / gain) + s n, u = (x + 1) / 2 the intensity in [0, 1].

    As in `PoissonNoise` y is in intensity units, E[y] = A(u), and its variance is gain * A(u) + s^2 (Foi et al., "Practical
    Poissonian-Gaussian noise modeling", IEEE TIP 2008, eq. 3). `sigma` is quoted as everywhere: where images span [-1, 1]
    (units="image", s = sigma / 2) or where they span [0, 1] (units="unit", s = sigma). The counts are drawn first.

    Raises ValueError if gain is not a finite number > 0, if sigma is negative or not finite, for another name of units, and
    as `PoissonNoise` for the operator.
    """

    gain: float = 1 / 255
    sigma: float = 0.05
    units: Literal["image", "unit"] = "image"

    intensity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_gain(self.gain)
        _in_image_units(self.sigma, self.units)

    @property
    def std(self) -> float:
        """The standard deviation of the read-out noise in the units of y, where images span [0, 1]."""
        return _in_image_units(self.sigma, self.units) / 2

    @property
    def parameters(self) -> dict[str, float]:
        """What the likelihood is called with, in the units of y: gain and sigma."""
        return {"gain": self.gain, "sigma": self.std}

    def describe(self) -> str:
        """One line for a person, sigma in both units."""
        return f"Poisson noise, one photon is {self.gain:g} where images span [0, 1], and Gaussian noise, {_both(2 * self.std)}"

    def __call__(self, op: Operator, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """y = gain * Poisson(A(u) / gain) + s n, shape (B, *measurement_shape), zero on entries that are not measured."""
        y = _counts(op, x, self.gain, generators)
        return op.restrict(y + self.std * _normal(y, generators))


NOISES: dict[str, str] = {
    "complex_gaussian": "operators.core.noise:ComplexGaussianNoise",
    "gaussian": "operators.core.noise:GaussianNoise",
    "poisson": "operators.core.noise:PoissonNoise",
    "poisson_gaussian": "operators.core.noise:PoissonGaussianNoise",
}
