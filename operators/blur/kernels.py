"""Two-dimensional blur kernels (kh, kw), float64: drawn, computed, or read from a file.

Kernels are used in true convolutions, y[i] = sum_m k[m] x[i - (m - c)] with c = (kh // 2, kw // 2): the response to a single
bright pixel is the kernel itself, not its mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from operators.core.files import read_array
from operators.core.streams import generator


def _odd(taps: int) -> int:
    if isinstance(taps, bool) or not isinstance(taps, int) or taps < 1 or taps % 2 == 0:
        raise ValueError(f"taps must be odd and positive (a centred kernel), got {taps!r}")
    return taps


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number of pixels > 0, got {value!r}")
    return value


def gaussian_radius(std: float, taps: int | None) -> int:
    """Radius int(4 std + 1/2) at which a Gaussian is cut (scipy's truncate=4), at most taps // 2; ValueError as below."""
    radius = int(4 * _positive("std", std) + 0.5)
    return radius if taps is None else min(radius, _odd(taps) // 2)


def gaussian_taps(std: float, taps: int | None = None) -> Tensor:
    """Weights (2r + 1,) of a Gaussian of standard deviation `std` pixels, float64, summing to 1, r = int(4 std + 1/2).

    This is scipy.ndimage.gaussian_filter's response to an impulse (truncate=4). `taps` limits the radius to
    (taps - 1) / 2; more taps than the natural radius add only zeros, which are left out.
    Raises ValueError unless std is finite and > 0 and taps odd and > 0.
    """
    radius = gaussian_radius(std, taps)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / std) ** 2)
    return weights / weights.sum()


def gaussian_kernel(std: float | Sequence[float] = 3.0, angle: float = 0.0, taps: int | None = None) -> Tensor:
    """Gaussian (n, n) sampled at pixel centres, summing to 1; n = 2 r + 1 with r = int(4 max(std) + 1/2) or taps // 2 if less.

    `std` in pixels: one number, or [along, across] an axis that stands `angle` degrees counter-clockwise (as a person sees
    the picture) from the horizontal. A single std gives the outer product of `gaussian_taps`. ValueError out of range.
    """
    pair = [std, std] if isinstance(std, (int, float)) else list(std)
    if len(pair) != 2 or not math.isfinite(angle):
        raise ValueError(f"a Gaussian needs std as a number or [along, across] and a finite angle, got std={std!r}, angle={angle!r}")
    along, across = (_positive("std", float(value)) for value in pair)
    radius = gaussian_radius(max(along, across), taps)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    x, up = offset, -offset[:, None]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    weights = torch.exp(-0.5 * (((cos * x + sin * up) / along) ** 2 + ((cos * up - sin * x) / across) ** 2))
    return weights / weights.sum()


def uniform_kernel(taps: int = 9) -> Tensor:
    """Mean over taps x taps pixels; an even number is allowed and centred half a pixel up and left. ValueError unless >= 1."""
    if isinstance(taps, bool) or not isinstance(taps, int) or taps < 1:
        raise ValueError(f"taps must be an integer >= 1, got {taps!r}")
    return torch.full((taps, taps), 1 / taps**2, dtype=torch.float64)


def disk_kernel(radius: float = 3.0) -> Tensor:
    """Defocus: the share of each pixel's area that lies in a disk of `radius` pixels, exactly, summing to 1.

    Side 2 ceil(radius - 1/2) + 1. The area of a disk within [0, a] x [0, b] is b x0 + F(a) - F(x0), where the arc leaves the
    upper edge at x0 and F is the antiderivative of sqrt(r^2 - x^2); pixels are its differences. ValueError unless radius > 0.
    """
    _positive("radius", radius)
    half = max(math.ceil(radius - 0.5), 0)
    edge = torch.arange(-half - 0.5, half + 1, dtype=torch.float64)
    reach = edge.abs().clamp(max=radius)
    a, b = reach, reach[:, None]
    leaves = torch.minimum(a, (radius**2 - b**2).clamp(min=0).sqrt())

    def area(x: Tensor) -> Tensor:
        return 0.5 * (x * (radius**2 - x**2).clamp(min=0).sqrt() + radius**2 * torch.asin((x / radius).clamp(max=1)))

    corner = edge.sign() * edge.sign()[:, None] * (b * leaves + area(a) - area(leaves))
    return corner.diff(dim=0).diff(dim=1).clamp(min=0) / (math.pi * radius**2)


def motion_kernel(taps: int = 61, intensity: float = 0.5, seed: int = 0) -> Tensor:
    """Camera shake: a random smooth path of at most taps - 1 pixels' length, drawn into (taps, taps) and summing to 1.

    The heading is theta_0 + pi intensity sum_m g_m sin(pi m t + phi_m) / m and the logarithm of the speed intensity times
    another such sum, m = 1..5, g standard normal, theta_0 and phi uniform: intensity near 0 gives a straight steady move, 1 a
    tangled one. The path's mean over time lies on the centre tap, so the blur does not shift the image; the path is shortened
    if it would leave the square, and each of its 32 taps points is shared among its four neighbours (bilinear). Our own
    family of kernels, of the kind of DPS's motion blur (Chung et al., arXiv:2209.14687, App. D: 61 x 61, intensity 0.5), which
    comes from another generator. `Blur` convolves with a kernel; the official code of DPS correlates: turn a kernel of theirs by
    180 degrees (kernel.flip(0, 1)) for the same y.

    Raises ValueError unless taps is odd and intensity lies in (0, 1].
    """
    if not 0 < intensity <= 1:
        raise ValueError(f"intensity must lie in (0, 1], got {intensity!r}")
    points = 32 * _odd(taps)
    rng = generator(seed, "motion kernel")
    t = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    order = torch.arange(1, 6, dtype=torch.float64)[:, None]

    def wander() -> Tensor:
        amplitude = torch.randn(5, 1, generator=rng, dtype=torch.float64)
        phase = 2 * math.pi * torch.rand(5, 1, generator=rng, dtype=torch.float64)
        return (amplitude * torch.sin(math.pi * order * t + phase) / order).sum(0)

    start = 2 * math.pi * torch.rand((), generator=rng, dtype=torch.float64)
    heading = start + math.pi * intensity * wander()
    speed = torch.exp(intensity * wander())
    step = (taps - 1) * speed / speed.sum()
    path = torch.stack([torch.sin(heading), torch.cos(heading)]).mul(step).cumsum(1)
    path = path - path.mean(1, keepdim=True)
    room = taps // 2
    path = path * torch.clamp(room / path.abs().max().clamp(min=1e-9), max=1) + room
    path = path.clamp(0, taps - 1)  # against rounding
    low = path.floor().clamp(max=max(taps - 2, 0)).long()
    part = path - low
    kernel = torch.zeros(taps, taps, dtype=torch.float64)
    for down in (0, 1):
        for right in (0, 1):
            row, col = (low[0] + down).clamp(max=taps - 1), (low[1] + right).clamp(max=taps - 1)
            share = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            kernel.index_put_((row, col), share, accumulate=True)
    return kernel / kernel.sum()


def cubic(t: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -1/2 (Keys 1981, Eq. 15)."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def bicubic_kernel(factor: int) -> Tensor:
    """Keys' kernel stretched by `factor` in both directions, summing to 1.

    Side 4 factor - 1 if factor is odd, else 4 factor and centred half a pixel up and left of the tap of index side // 2, as
    the block of `factor` pixels that an output pixel stands for.
    """
    taps = 4 * factor - factor % 2
    weights = cubic((torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / factor)
    weights = weights / weights.sum()
    return torch.outer(weights, weights)


def given_kernel(source: str | Path | Tensor, normalise: bool | None = None) -> Tensor:
    """Kernel (kh, kw), float64, from a tensor or a .npy, .pt or image file.

    Divided by its sum if `normalise`, and as it is if not; by default (None) image files, whose grey values have no scale, are
    divided, tensors are taken as they are, and the numbers of a file have to sum to 1 within 1e-3.

    Raises ValueError for what `read_array` refuses, another number of axes, zeros only, or a sum of 0 to divide by or that is
    not 1 where it has to be.
    """
    found, name = read_array(source, "kernel")
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2 or not bool((found != 0).any()):
        raise ValueError(f"{name} must have shape (kh, kw) and an entry other than 0, got shape {tuple(found.shape)}")
    total = float(found.sum())
    if isinstance(source, (str, Path)) and normalise is None:
        normalise = Path(source).suffix not in (".npy", ".pt", ".pth")
        if not normalise and abs(total - 1) > 1e-3:
            gain = f"{name} sums to {total:.6g}, so that the blur scales the image by it"
            raise ValueError(f"{gain}; normalise=true divides by the sum, normalise=false takes the numbers as they are")
    if normalise and abs(total) < 1e-12 * float(found.abs().sum()):
        raise ValueError(f"{name} sums to 0 and cannot be normalised")
    return found / total if normalise else found


_MAKERS: dict[str, Callable[..., Tensor]] = {
    "motion": motion_kernel,
    "uniform": uniform_kernel,
    "gaussian": gaussian_kernel,
    "disk": disk_kernel,
}
_OPTIONS = {
    "motion": ("taps", "intensity"),
    "uniform": ("taps",),
    "gaussian": ("std", "angle", "taps"),
    "disk": ("radius",),
}


def make_kernel(kernel: str | Path | Tensor, seed: int = 0, **options: Any) -> Tensor:
    """Kernel (kh, kw) by name (motion, uniform, gaussian, disk), from a file (.npy or an image) or a tensor.

    `options` are those of the function that makes it (`normalise` for files and tensors); None stands for its default.
    Raises ValueError for an unknown name, an option that belongs to another kernel, and what that function refuses.
    """
    known = isinstance(kernel, str) and kernel in _MAKERS
    given = {key: value for key, value in options.items() if value is not None}
    if isinstance(kernel, str) and not known and not Path(kernel).suffix:
        raise ValueError(f"kernel must be one of {sorted(_MAKERS)}, a .npy or image file, or a tensor, got {kernel!r}")
    allowed = _OPTIONS[str(kernel)] if known else ("normalise",)
    foreign = sorted(given.keys() - set(allowed))
    if foreign:
        shown = repr(kernel) if isinstance(kernel, str) else "a given kernel"
        raise ValueError(
            f"{', '.join(f'{key}={given[key]!r}' for key in foreign)} means nothing for {shown}, which takes: {', '.join(allowed)}"
        )
    if not known:
        return given_kernel(kernel, **given)
    if kernel == "motion":
        given["seed"] = seed
    return _MAKERS[str(kernel)](**given)
