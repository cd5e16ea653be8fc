"""Cartesian sampling masks of k-space: which frequencies a scan measures.

Masks are (H, W), float64, 1 = measured, the zero frequency at (H // 2, W // 2). Lines run along the columns (the last axis
is phase encoding, as in fastMRI). Except for `radial`, exactly round(W / acceleration) lines, or
round(H W / acceleration) points, are measured, the calibration region in the centre included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from operators.core.files import read_array
from operators.core.streams import generator

_GAUSSIAN_STD = 0.2  # of the Gaussian densities, as a share of the side
_POISSON_SLOPE = 3.0  # the minimal distance at the corner of k-space is 1 + this times the one at its centre


def _centre(side: int, fraction: float) -> slice:
    """The round(fraction * side) indices around side // 2."""
    count = round(fraction * side)
    first = side // 2 - count // 2
    return slice(first, first + count)


def _sample(weights: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """`count` distinct indices, drawn one after the other in proportion to `weights` (Efraimidis & Spirakis, 2006)."""
    keys = torch.rand(weights.shape, generator=rng, dtype=torch.float64).log() / weights
    return keys.topk(count).indices


def _density(side: int) -> Tensor:
    offset = (torch.arange(side, dtype=torch.float64) - side // 2) / (_GAUSSIAN_STD * side)
    return torch.exp(-0.5 * offset**2)


def _lines(kind: str, height: int, width: int, acceleration: float, fraction: float, rng: torch.Generator) -> Tensor:
    line = torch.zeros(width, dtype=torch.float64)
    line[_centre(width, fraction)] = 1
    outer = (line == 0).nonzero()[:, 0]
    count = round(width / acceleration) - (width - len(outer))
    if kind == "equispaced":
        start = float(torch.rand((), generator=rng, dtype=torch.float64))
        chosen = ((torch.arange(count) + start) * (len(outer) / max(count, 1))).long()
    elif kind == "random":
        chosen = torch.randperm(len(outer), generator=rng)[:count]
    else:
        chosen = _sample(_density(width)[outer], count, rng)
    line[outer[chosen]] = 1
    return line.expand(height, width).clone()


def _calibration(height: int, width: int, fraction: float) -> Tensor:
    """1 in the block of round(fraction H) x round(fraction W) central frequencies."""
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[_centre(height, fraction), _centre(width, fraction)] = 1
    return mask


def _gaussian_points(height: int, width: int, acceleration: float, fraction: float, rng: torch.Generator) -> Tensor:
    mask = _calibration(height, width, fraction).flatten()
    outer = (mask == 0).nonzero()[:, 0]
    weights = (_density(height)[:, None] * _density(width)).flatten()[outer]
    mask[outer[_sample(weights, round(height * width / acceleration) - int(mask.sum()), rng)]] = 1
    return mask.reshape(height, width)


def disc_radius(height: int, width: int) -> NDArray[np.float64]:
    """Relative minimal distance (H, W) of the Poisson-disc mask: 1 in the centre, growing linearly to 4 at the corner."""
    v, u = np.mgrid[:height, :width].astype(np.float64)
    distance = np.hypot((v - height // 2) / (height / 2), (u - width // 2) / (width / 2)) / math.sqrt(2)
    return np.asarray(1 + _POISSON_SLOPE * distance)


def _darts(order: NDArray[np.int64], radius: NDArray[np.float64], free: NDArray[np.bool_]) -> list[int]:
    """Points taken in `order` where still free; each then blocks all points nearer than its radius."""
    height, width = radius.shape
    free, taken = free.copy(), []
    discs: dict[int, NDArray[np.bool_]] = {}
    for index in order:
        i, j = divmod(int(index), width)
        if not free[i, j]:
            continue
        taken.append(int(index))
        # Squared distances on the grid are integers, so discs repeat.
        squared = math.ceil(radius[i, j] ** 2)
        reach = math.isqrt(max(squared - 1, 0))
        if squared not in discs:
            v, u = np.mgrid[-reach : reach + 1, -reach : reach + 1]
            discs[squared] = v * v + u * u >= squared
        top, left = max(i - reach, 0), max(j - reach, 0)
        bottom, right = min(i + reach + 1, height), min(j + reach + 1, width)
        a, b = top - i + reach, left - j + reach
        free[top:bottom, left:right] &= discs[squared][a : a + bottom - top, b : b + right - left]
    return taken


def _poisson(height: int, width: int, acceleration: float, fraction: float, rng: torch.Generator) -> Tensor:
    """Dart throwing at the largest radius that leaves enough points; the excess is dropped at random."""
    mask = _calibration(height, width, fraction)
    wanted = round(height * width / acceleration) - int(mask.sum())
    order, radius, free = torch.randperm(height * width, generator=rng).numpy(), disc_radius(height, width), (mask == 0).numpy()
    low, high, found = 0.0, float(max(height, width)), [int(k) for k in order if free.flat[k]]
    while high - low > 0.01 * high and high > 0.25:
        middle = 0.5 * (low + high) if high > 8 else math.sqrt(max(low, 0.2) * high)
        taken = _darts(order, middle * radius, free)
        if len(taken) >= wanted:
            low, found = middle, taken
        else:
            high = middle
    keep = torch.randperm(len(found), generator=rng)[:wanted]
    mask.view(-1)[torch.tensor(found, dtype=torch.long)[keep]] = 1
    return mask


def _radial(height: int, width: int, acceleration: float, fraction: float, rng: torch.Generator) -> Tensor:
    """Spokes through the centre, each turned by the golden angle from the one before, as many as come nearest."""
    mask = _calibration(height, width, fraction)
    angle = math.pi * float(torch.rand((), generator=rng, dtype=torch.float64))
    along = torch.arange(-1, 1, 1 / max(height, width), dtype=torch.float64)
    wanted, before = height * width / acceleration, mask
    while float(mask.sum()) < wanted:
        before = mask.clone()
        rows = (height // 2 + along * (height / 2) * math.sin(angle)).round().long()
        columns = (width // 2 + along * (width / 2) * math.cos(angle)).round().long()
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = 1
        angle += math.pi * (math.sqrt(5) - 1) / 2
    # Before the last spoke may be nearer; but an empty mask measures nothing.
    return before if 0 < wanted - float(before.sum()) < float(mask.sum()) - wanted and bool(before.any()) else mask


_POINTS: dict[str, Callable[[int, int, float, float, torch.Generator], Tensor]] = {
    "gaussian_2d": _gaussian_points,
    "poisson": _poisson,
    "radial": _radial,
}
_LINES = ("equispaced", "random", "gaussian")
KINDS = (*_LINES, *_POINTS)


def sampling_mask(kind: str, height: int, width: int, acceleration: float = 4, centre_fraction: float = 0.08, seed: int = 0) -> Tensor:
    """The mask (H, W) of a name in KINDS.

    Lines: "equispaced" (from a random start, skipping the centre), "random" (uniform without replacement), "gaussian"
    (without replacement, the density falling from the centre with a standard deviation of W/5). Points: "gaussian_2d" (the
    same in the plane), "poisson" (variable-density Poisson disc: points outside the calibration block keep a distance that
    grows fourfold from the centre to the corner, see `disc_radius`), "radial" (spokes by the golden angle, rounded to the
    grid, in the ellipse that touches the borders). Sources: M. Lustig, D. Donoho, J. Pauly, "Sparse MRI", MRM 58, 2007
    (variable density); R. L. Cook, "Stochastic sampling in computer graphics", ACM TOG 5, 1986 (Poisson disc);
    S. Winkelmann et al., IEEE TMI 26, 2007 (golden angle).

    `acceleration` is H W over the number of measured points, exact up to rounding to whole lines or points (`radial`: to
    whole spokes). `centre_fraction` is the share of the lines that is measured around the zero frequency, and for
    points the share of each side of such a block.

    Raises ValueError for an unknown kind, an acceleration below 1 or one that leaves less than the centre, a centre_fraction
    outside [0, 1), and a radial acceleration below 1.35, which spokes do not reach.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of the mask must be one of {', '.join(KINDS)}, got {kind!r}")
    if not (math.isfinite(acceleration) and acceleration >= 1):
        raise ValueError(f"acceleration must be a finite number >= 1, got {acceleration!r}")
    if not 0 <= centre_fraction < 1:
        raise ValueError(f"centre_fraction is a share of the lines and must lie in [0, 1), got {centre_fraction!r}")
    lines = kind in _LINES
    centre = round(centre_fraction * width) * (1 if lines else round(centre_fraction * height))
    total = round((width if lines else height * width) / acceleration)
    if total < max(centre, 1):
        what = "lines" if lines else "points"
        raise ValueError(
            f"acceleration {acceleration:g} leaves {total} {what} of a {height}x{width} k-space, centre_fraction {centre_fraction:g} alone"
            f" takes {centre}; lower one of them"
        )
    if kind == "radial" and acceleration < 1.35:
        raise ValueError(f"spokes leave the corners out, so a radial mask accelerates by 1.35 at least, got {acceleration!r}")
    rng = generator(seed, f"{kind} k-space mask")
    return (
        _lines(kind, height, width, acceleration, centre_fraction, rng)
        if lines
        else _POINTS[kind](height, width, acceleration, centre_fraction, rng)
    )


def mask_of(mask: str | Path | Tensor, height: int, width: int) -> Tensor:
    """A mask (H, W), float64 0/1, from a .npy or .pt file or a tensor: (H, W), or (W,) for lines; nonzero means measured.

    Raises ValueError if there is no such file, for another shape (also for a batch of masks, which could be read as
    channels), and for values that are not finite.
    """
    found, name = read_array(mask, "mask", images=False)
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if tuple(found.shape) not in ((height, width), (width,)):
        raise ValueError(
            f"{name} has shape {tuple(found.shape)}, k-space has {(height, width)}; one mask (H, W), or one line pattern (W,), is needed,"
            " the same for both channels and every sample"
        )
    return (found != 0).double().expand(height, width).clone()
