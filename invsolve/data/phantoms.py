"""Brain-like phantoms: complex slices drawn from random anatomy, for training a prior and for trying MRI without data.

A slice is scalp, skull, fluid, folded cortex, white matter, ventricles, deep nuclei and a few extra ellipses in a random
contrast, with tissue texture, a bias field and a smooth phase. The anatomy is a set of distance functions evaluated on
elastically deformed coordinates, so that every edge is anti-aliased whatever the deformation.
The layout generalises the ellipses of L. A. Shepp, B. F. Logan, "The Fourier reconstruction of a head section", IEEE
Trans. Nucl. Sci. 21, 1974; the shapes, contrasts and ranges are ours and resemble no particular scanner or sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from invsolve.data.items import EVALUATION_SEED, Array, Computed, Item, pick
from invsolve.errors import ConfigError
from operators.core.streams import generator, standard_normal

_SMALLEST = 32
_COARSE = 32  # side of the grid on which coordinates are deformed


class _Draw:
    """Numbers and smooth fields from the stream of one phantom."""

    def __init__(self, seed: int, index: int, size: int) -> None:
        self.rng, self.size = generator(seed, index, "phantom"), size

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.rng))

    def normal(self, *shape: int) -> Tensor:
        return standard_normal(math.prod(shape), [self.rng]).reshape(shape)

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def field(self, cells: int) -> Tensor:
        """A smooth random field (size, size) of about unit variance with `cells` independent values along a side."""
        values = interpolate(self.normal(1, 1, cells + 1, cells + 1), size=(self.size, self.size), mode="bicubic", align_corners=True)
        return 1.25 * values[0, 0]


class _Anatomy:
    """Coordinates of one head on the pixel grid: u to the right, v to the back, in half-sides of the picture."""

    def __init__(self, draw: _Draw) -> None:
        from kornia.geometry.transform import elastic_transform2d

        self.draw, self.pixel = draw, 2 / draw.size
        line = (torch.arange(_COARSE) + 0.5) * (2 / _COARSE) - 1
        v, u = torch.meshgrid(line, line, indexing="ij")
        turn, zoom = draw.uniform(-0.2, 0.2), draw.uniform(1.0, 1.2)
        u, v = u - draw.uniform(-0.04, 0.04), v - draw.uniform(-0.04, 0.04)
        u, v = zoom * (u * math.cos(turn) + v * math.sin(turn)), zoom * (v * math.cos(turn) - u * math.sin(turn))
        strength = draw.uniform(0.06, 0.24)
        warped = elastic_transform2d(
            torch.stack([u, v])[None],
            draw.normal(1, 2, _COARSE, _COARSE),
            kernel_size=(13, 13),
            sigma=(3.0, 3.0),
            alpha=(strength, strength),
            padding_mode="border",
        )
        full = interpolate(warped, size=(draw.size, draw.size), mode="bicubic", align_corners=False)[0]
        self.u, self.v = full[0], full[1]
        self.soft = draw.uniform(0.8, 1.5) * self.pixel

    def inside(self, distance: Tensor) -> Tensor:
        """Coverage in [0, 1] of the region where `distance` > 0: a smooth step about one pixel wide."""
        t = (distance / (1.5 * self.soft) + 0.5).clamp(0, 1)
        return t * t * (3 - 2 * t)

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float], turn: float) -> Tensor:
        """Distance (positive inside, first order near the edge) of an ellipse in the anatomy's coordinates."""
        p, q = self.u - centre[0], self.v - centre[1]
        c, s = math.cos(turn), math.sin(turn)
        a, b = (p * c + q * s) / axes[0], (q * c - p * s) / axes[1]
        rho = torch.sqrt(a * a + b * b)
        slope = torch.sqrt((a / axes[0]) ** 2 + (b / axes[1]) ** 2) / rho.clamp(min=1e-4)
        return (1 - rho) / slope.clamp(min=1e-3)


def _slope(field: Tensor) -> Tensor:
    """|gradient| per pixel of a field (H, W), by central differences."""
    gv, gu = torch.gradient(field)
    return torch.sqrt(gu * gu + gv * gv)


def _folds(at: _Anatomy, depth: Tensor, angle: Tensor) -> Tensor:
    """Distance to the nearest sulcus: the zero lines of a random field that runs along the radius, fading with depth."""
    draw = at.draw
    around, along = int(draw.uniform(30, 46)), int(draw.uniform(3, 6))
    polar = draw.normal(1, 1, along, around)
    polar = torch.cat([polar, polar, polar], dim=3)
    wander = angle / math.pi + 0.06 * draw.field(7)
    where = torch.stack([wander / 3, (depth * 3.2 - 1).clamp(-1, 1)], dim=-1)[None]
    field = grid_sample(polar, where, mode="bicubic", padding_mode="border", align_corners=False)[0, 0]
    field = field + draw.uniform(0.5, 1.0) * draw.field(int(draw.uniform(15, 22)))
    distance = field.abs() / (_slope(field) / at.pixel + 0.5)
    reach = draw.uniform(0.16, 0.32) * (1 + 0.3 * draw.field(6))
    return distance + 0.5 * (depth - reach).clamp(min=0)


def _contrast(draw: _Draw) -> dict[str, float]:
    """Intensities of the tissues: like T1, like T2, like FLAIR, or any."""
    bases = (
        {"scalp": 0.85, "bone": 0.06, "csf": 0.14, "gm": 0.48, "wm": 0.75, "deep": 0.56},
        {"scalp": 0.45, "bone": 0.05, "csf": 0.95, "gm": 0.55, "wm": 0.36, "deep": 0.42},
        {"scalp": 0.50, "bone": 0.05, "csf": 0.08, "gm": 0.68, "wm": 0.52, "deep": 0.58},
    )
    kind = int(draw.uniform(0, 3.6))
    if kind < 3:
        return {name: max(0.02, value * (1 + 0.15 * float(draw.normal()))) for name, value in bases[kind].items()}
    values = {name: draw.uniform(0.1, 1.0) for name in ("scalp", "csf", "gm", "wm")}
    return {**values, "bone": draw.uniform(0.01, 0.12), "deep": 0.5 * (values["gm"] + values["wm"])}


def _ventricles(at: _Anatomy, size: float) -> Tensor:
    """Distance, positive inside: two lateral ventricles of two horns each, and the third."""
    draw, parts = at.draw, []
    gap, length, tilt = draw.uniform(0.015, 0.035), draw.uniform(0.11, 0.16) * size, draw.uniform(0.1, 0.35)
    back, spread = draw.uniform(0.1, 0.16) * size, draw.uniform(0.25, 0.6)
    for s in (-1.0, 1.0):
        wide = draw.uniform(0.03, 0.06) * size
        front = (s * (gap + wide + 0.6 * length * math.sin(tilt)), -0.12 + draw.uniform(-0.02, 0.02))
        parts.append(at.ellipse(front, (wide, length), s * tilt))
        rear = (s * (gap + 0.9 * wide + length * math.sin(spread)), back + draw.uniform(-0.02, 0.02))
        parts.append(at.ellipse(rear, (draw.uniform(0.6, 1.1) * wide, 1.2 * length), -s * spread))
    parts.append(at.ellipse((0.0, 0.02), (draw.uniform(0.008, 0.02) * size, draw.uniform(0.06, 0.11)), draw.uniform(-0.05, 0.05)))
    return torch.stack(parts).amax(0)


def _nuclei(at: _Anatomy, size: float) -> Tensor:
    """Coverage of the deep grey matter: caudate, putamen and thalamus on both sides."""
    draw, cover = at.draw, torch.zeros_like(at.u)
    shapes = (
        ((0.15, -0.2), (0.035, 0.085), 0.35),
        ((0.26, -0.07), (0.045, 0.14), 0.3),
        ((0.11, 0.08), (0.065, 0.095), -0.5),
    )
    for (x, y), (a, b), turn in shapes:
        a, b = a * draw.uniform(0.75, 1.25), b * draw.uniform(0.75, 1.25)
        x, y = x * (0.6 + 0.4 * size) + draw.uniform(-0.015, 0.015), y + draw.uniform(-0.02, 0.02)
        for s in (-1.0, 1.0):
            centre = (s * (x + draw.uniform(-0.01, 0.01)), y + draw.uniform(-0.01, 0.01))
            cover = torch.maximum(cover, at.inside(at.ellipse(centre, (a, b), s * turn)))
    return cover


def _extras(at: _Anatomy, picture: Tensor, brain: Tensor) -> Tensor:
    """A few lesions and vessels: ellipses of random contrast within the brain."""
    draw = at.draw
    for _ in range(int(draw.uniform(0, 7))):
        radius = 0.01 * math.exp(draw.uniform(0, 2.2))
        centre = (draw.uniform(-0.5, 0.5), draw.uniform(-0.6, 0.6))
        cover = at.inside(at.ellipse(centre, (radius, radius * draw.uniform(0.5, 1.0)), draw.uniform(0, math.pi))) * brain
        picture = torch.lerp(picture, torch.full_like(picture, draw.uniform(0.02, 1.0)), cover * draw.uniform(0.3, 1.0))
    return picture


def _magnitude(at: _Anatomy) -> Tensor:
    """The slice without bias field, (size, size), air being 0."""
    draw, grey = at.draw, _contrast(at.draw)
    a, b = draw.uniform(0.66, 0.78), draw.uniform(0.82, 0.92)
    # An egg: wider at the back.
    radius, shape = torch.hypot(at.u, at.v), torch.hypot(at.u / (a * (1 + 0.12 * at.v)), at.v / b)
    depth = radius * (1 / shape.clamp(min=1e-3) - 1).clamp(max=1e3) + 0.012 * draw.field(5)
    angle = torch.atan2(at.u, at.v)
    scalp = draw.uniform(0.04, 0.09) * (1 + 0.25 * draw.field(4))
    skull = scalp + draw.uniform(0.035, 0.07)
    within = depth - skull - draw.uniform(0.005, 0.025)
    wall = draw.uniform(0.004, 0.014)  # half the width of a sulcus
    surface = torch.minimum(within, _folds(at, within, angle) - wall)
    fissure = at.u.abs() + 0.01 * draw.field(5) + 1.5 * (draw.uniform(0.22, 0.4) - (at.v - 0.05).abs()).clamp(min=0)
    surface = torch.minimum(surface, fissure - draw.uniform(0.006, 0.016))
    cortex = draw.uniform(0.035, 0.055)
    high = draw.uniform(0, 1)  # how high the slice lies: ventricles shrink and end towards the top
    tissue = {
        "scalp": at.inside(depth),
        "bone": at.inside(depth - scalp),
        "csf": at.inside(depth - skull),
        "gm": at.inside(surface),
        "wm": at.inside(surface - cortex),
    }
    picture = torch.zeros_like(depth)
    for name, cover in tissue.items():
        texture = 1 + draw.uniform(0.01, 0.06) * draw.field(int(draw.uniform(20, 64))) + draw.uniform(0.0, 0.08) * draw.field(9)
        picture = torch.lerp(picture, (grey[name] * texture).clamp(min=0), cover)
    if high < 0.8:
        size = draw.uniform(0.7, 1.6) * (1 if high < 0.6 else 0.8)
        if high < 0.6:
            picture = torch.lerp(picture, grey["deep"] * (1 + 0.03 * draw.field(30)), _nuclei(at, size) * tissue["gm"])
        picture = torch.lerp(picture, torch.full_like(picture, grey["csf"]), at.inside(_ventricles(at, size)))
    return _extras(at, picture, tissue["gm"])


def _phase(at: _Anatomy) -> Tensor:
    """A smooth phase in radians: any constant, a ramp and a slow random field."""
    draw = at.draw
    ramp = draw.uniform(-1.5, 1.5) * at.u + draw.uniform(-1.5, 1.5) * at.v
    return draw.uniform(0, 2 * math.pi) + ramp + draw.uniform(0.1, 0.9) * draw.field(3) + draw.uniform(0.0, 0.25) * draw.field(7)


def phantom(seed: int, index: int, size: int = 128) -> Tensor:
    """Phantom `index` of stream `seed`: float32 (2, size, size), the real and the imaginary part, of magnitude at most 1.

    The largest magnitude lies in [0.8, 1]; air is exactly 0. The same (seed, index, size) gives the same phantom; another
    size gives another phantom, not a resampled one.

    Raises ValueError for a size below 32.
    """
    if size < _SMALLEST:
        raise ValueError(f"size must be at least {_SMALLEST} pixels, got {size}")
    at = _Anatomy(_Draw(seed, index, size))
    draw = at.draw
    picture = _magnitude(at) * torch.exp(draw.uniform(0.05, 0.3) * draw.field(2) + draw.uniform(-0.2, 0.2) * at.v)
    picture = picture * (draw.uniform(0.8, 1.0) / picture.amax())
    phase = _phase(at)
    return torch.stack([picture * torch.cos(phase), picture * torch.sin(phase)])


def phantoms(seed: int, indices: Iterable[int], size: int = 128) -> Tensor:
    """Several phantoms, (B, 2, size, size); see `phantom`."""
    return torch.stack([phantom(seed, index, size) for index in indices])


@dataclass(frozen=True)
class Phantoms:
    """Simulated complex brain-like slices, (2, size, size) with magnitudes in [0, 1] (see invsolve.data.phantoms).

    Args:
        indices: which phantoms of the stream, such as "0-15", "0,2" or 5.
        size: side in pixels.
        seed: the stream; the default is the one that the shipped prior has never seen.
    """

    indices: str | int | tuple[int, ...] = "0-3"
    size: int = 128
    seed: int = EVALUATION_SEED

    def __post_init__(self) -> None:
        if self.size < 32:
            raise ConfigError(f"data.size = {self.size}: phantoms have at least 32 pixels a side")
        pick(self.indices, None)

    def items(self) -> list[Item]:
        """The chosen phantoms; ids are phantom_0, phantom_1, ..."""
        return [self._item(index) for index in pick(self.indices, None)]

    def _item(self, index: int) -> Item:
        name = f"phantom_{index}"
        return Computed(name, Path(f"seed_{self.seed}") / name, (2, self.size, self.size), False, partial(self.draw, index))

    def draw(self, index: int) -> Array:
        """Phantom `index` of the stream, float32 (2, size, size)."""
        return np.asarray(phantom(self.seed, index, self.size).numpy())
