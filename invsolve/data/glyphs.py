"""Rendered characters and symbols in colour on textured backgrounds: data of a class-conditional prior, drawn on the fly.

The outlines come from the fonts that matplotlib ships: DejaVu, STIX and Computer Modern. Each glyph is kept as a signed
distance to its outline, so that it stays anti-aliased, and its weight can be varied, under any affine map. Some faces and
some backgrounds are never trained on; scores are measured on those, and on three composites with photographs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invsolve.resources import resource

if TYPE_CHECKING:
    from PIL import Image
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from invsolve.data.items import EVALUATION_SEED, Computed, Item, pick
from invsolve.errors import ConfigError

Array = NDArray[np.float32]

SIZE = 64
"""Side of the images in pixels."""

# No two that a turn by 20 degrees or coarse pixels would confuse: no 0, O and Q's like, no 1 and I, no 5 and S, 8 and B, U and V.
_SYMBOLS = {
    "Δ": "delta",
    "Φ": "phi",
    "Ψ": "psi",
    "Ω": "omega",
    "Ξ": "xi",
    "←": "left",
    "↑": "up",
    "→": "right",
    "↓": "down",
    "♥": "heart",
    "♠": "spade",
    "♣": "club",
    "♦": "diamond",
    "●": "disc",
    "∞": "infinity",
    "+": "plus",
    "#": "hash",
    "?": "question",
    "&": "and",
}
_CHARACTERS = "234679ABCDEFHJKLMNPQRSTUWXYZ" + "".join(_SYMBOLS)
CLASSES = tuple(_SYMBOLS.get(c, c) for c in _CHARACTERS)
"""The names of the classes; a class is its index here."""

TRAINING_FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmti10",
    "cmtt10",
)
HELD_OUT_FACES = ("DejaVuSerif-Italic", "STIXGeneral", "cmss10")
"""Faces that are never trained on."""

TRAINING_BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "clouds")
HELD_OUT_BACKGROUNDS = ("rings", "dots")
"""Kinds of background that are never trained on."""

COMPOSITES = (("chelsea.png", (96, 208), "R"), ("coffee.png", (40, 420), "heart"), ("rocket.jpg", (20, 40), "4"))
"""Photograph, row and column of the crop of twice the side, and class, of the held-out composites."""

_CELL = 128  # side of a stored distance map
_LARGER = 88  # larger side of the glyph's bounding box in it
_FAR = -16.0  # distance beyond the map
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_LINE = np.arange(SIZE, dtype=np.float32)
_COSINES = np.cos(np.pi * (_LINE + 0.5) * np.arange(7, dtype=np.float32)[:, None] / SIZE)


def _ink(character: str, face: str, points: int) -> Image.Image:
    """The inked box of a character, 255 inside."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{face}.ttf", points)
    sheet = Image.new("L", (2 * points, 2 * points))
    ImageDraw.Draw(sheet).text((points // 2, points // 4), character, fill=255, font=font)
    return sheet.crop(sheet.getbbox())


@functools.cache
def _covered(face: str) -> frozenset[str]:
    """The characters that a face has."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    known = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/{face}.ttf").get_charmap()
    return frozenset(c for c in _CHARACTERS if ord(c) in known)


@functools.cache
def faces_of(label: int, held_out: bool = False) -> tuple[str, ...]:
    """The faces, of those trained on or of those held out, in which a class can be drawn."""
    faces = HELD_OUT_FACES if held_out else TRAINING_FACES
    return tuple(face for face in faces if _CHARACTERS[label] in _covered(face))


@functools.cache
def outline(label: int, face: str) -> Array:
    """Signed distance (128, 128) to the outline in pixels of that grid, positive inside; the larger side of the glyph is 88."""
    from PIL import Image
    from scipy.ndimage import distance_transform_edt

    small = _ink(_CHARACTERS[label], face, 200)
    ink = _ink(_CHARACTERS[label], face, round(200 * 2 * _LARGER / max(small.size)))
    sheet = Image.new("L", (2 * _CELL, 2 * _CELL))
    sheet.paste(ink, (_CELL - ink.width // 2, _CELL - ink.height // 2))
    inside = np.asarray(sheet) > 127
    fine = np.where(inside, distance_transform_edt(inside) - 0.5, 0.5 - distance_transform_edt(~inside))
    return (fine.reshape(_CELL, 2, _CELL, 2).mean(axis=(1, 3)) / 2).clip(_FAR, -_FAR).astype(np.float32)


def _coverage(rng: np.random.Generator, label: int, face: str) -> Array:
    """The share of each pixel that the glyph covers, (64, 64), under a random turn, shear, size, shift and weight."""
    from scipy.ndimage import affine_transform

    turn, shear = math.radians(rng.uniform(-20, 20)), rng.uniform(-0.15, 0.15)
    zoom = _LARGER / rng.uniform(40, 52)  # cells per pixel
    aspect = math.exp(rng.uniform(-0.12, 0.12))
    c, s = math.cos(turn), math.sin(turn)
    matrix = zoom * np.array([[c, s], [-s, c]]) @ np.array([[aspect, 0.0], [shear, 1 / aspect]])
    centre = (SIZE - 1) / 2 + rng.uniform(-3, 3, 2)
    offset = (_CELL - 1) / 2 - matrix @ centre
    distance = affine_transform(outline(label, face), matrix, offset, (SIZE, SIZE), order=1, cval=_FAR)
    return (distance / zoom + 0.5 + rng.uniform(-0.1, 0.8)).clip(0, 1)


def _wave(rng: np.random.Generator, period: float) -> Array:
    """A plane wave in a random direction with soft edges, values in [-1, 1]."""
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    k = 2 * math.pi / period
    return np.tanh(2.5 * np.sin(k * math.cos(angle) * _LINE[:, None] + k * math.sin(angle) * _LINE + phase)).astype(np.float32)


def _texture(rng: np.random.Generator, kind: str) -> Array:
    """A pattern (64, 64) of values in about [-1, 1]."""
    if kind == "plain":
        return np.zeros((SIZE, SIZE), np.float32)
    if kind == "gradient":
        along = rng.uniform(-1, 1, 2) / SIZE * 2
        return (along[0] * (_LINE[:, None] - SIZE / 2) + along[1] * (_LINE - SIZE / 2)).astype(np.float32)
    if kind == "stripes":
        return _wave(rng, rng.uniform(7, 24))
    if kind == "checks":
        angle, phases, k = rng.uniform(0, math.pi / 2), rng.uniform(0, 2 * math.pi, 2), 2 * math.pi / rng.uniform(10, 28)
        p = k * (math.cos(angle) * _LINE[:, None] + math.sin(angle) * _LINE) + phases[0]
        q = k * (math.cos(angle) * _LINE - math.sin(angle) * _LINE[:, None]) + phases[1]
        return np.tanh(4 * np.sin(p) * np.sin(q)).astype(np.float32)
    if kind == "clouds":
        fields = _COSINES.T @ rng.standard_normal((7, 7)).astype(np.float32) @ _COSINES
        return (fields / 4.5).astype(np.float32)
    centre = rng.uniform(0, SIZE, 2)
    if kind == "rings":
        radius = np.hypot(_LINE[:, None] - centre[0], _LINE - centre[1])
        return np.sin(2 * math.pi * radius / rng.uniform(9, 24)).astype(np.float32)
    if kind == "dots":
        period = rng.uniform(9, 20)
        rows, columns = (np.abs((_LINE + c) % period - period / 2) for c in centre)
        return (2 * (0.3 * period - np.hypot(rows[:, None], columns) + 0.5).clip(0, 1) - 1).astype(np.float32)
    raise ValueError(f"no background is called {kind!r}")


def _colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Foreground and background in [-1, 1], (3,) each, whose luminances differ by at least 0.8."""
    pairs = rng.uniform(-1, 1, (48, 2, 3)).astype(np.float32)
    contrast = np.abs((pairs[:, 0] - pairs[:, 1]) @ _LUMINANCE)
    # The first that is clear enough; among 48 there is one but for a chance of 1e-3, and then the clearest is taken.
    best = int(np.argmax(np.minimum(contrast, 0.8)))
    return pairs[best, 0], pairs[best, 1]


def _stream(seed: int, index: int, name: str) -> np.random.Generator:
    if index < 0 or seed < 0:
        raise ValueError(f"seed and index must be 0 or larger, got {seed} and {index}")
    return np.random.default_rng(np.random.SeedSequence([seed, index, int.from_bytes(name.encode(), "big")]))


def glyph(seed: int, index: int, held_out: bool = False) -> tuple[Tensor, int]:
    """Image `index` of stream `seed`, float32 (3, 64, 64) in [-1, 1], and its class (see `CLASSES`).

    `held_out` draws from the faces and the backgrounds that are never trained on, in a stream of its own; without it neither
    occurs. The glyph's larger side takes 40 to 52 pixels before shear and change of aspect; it is turned by at most 20
    degrees. Raises ValueError for a negative seed or index.
    """
    rng = _stream(seed, index, "held-out" if held_out else "training")
    label = int(rng.integers(len(CLASSES)))
    faces = faces_of(label, held_out)
    kinds = HELD_OUT_BACKGROUNDS if held_out else TRAINING_BACKGROUNDS
    face, kind = faces[int(rng.integers(len(faces)))], kinds[int(rng.integers(len(kinds)))]
    cover = _coverage(rng, label, face)
    front, back = _colours(rng)
    tint = (0.6 + 0.4 * rng.uniform(-1, 1, 3)).astype(np.float32) * np.float32(rng.uniform(0.06, 0.3))
    ground = back[:, None, None] + tint[:, None, None] * _texture(rng, kind)
    shade = np.float32(rng.uniform(0, 0.2)) * _texture(rng, "gradient")
    image = ground + cover * (front[:, None, None] + shade - ground)
    return torch.from_numpy(image.clip(-1, 1).astype(np.float32)), label


def glyphs(seed: int, indices: Iterable[int], held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Several glyphs: images (B, 3, 64, 64) and classes (B,); see `glyph`."""
    images, labels = zip(*(glyph(seed, index, held_out) for index in indices), strict=True)
    return torch.stack(images), torch.tensor(labels)


def composite(k: int) -> tuple[Tensor, int]:
    """Composite k (0, 1 or 2): as if a glyph were painted on a photographed scene, float32 (3, 64, 64) in [-1, 1], and its class.

    A crop of a shipped photograph, halved in size, is covered by the glyph in a held-out face with 85 % opacity; a gradient
    of light falls on both, and a Gaussian of 0.6 pixels blurs the whole. Raises ValueError for another k.
    """
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    if not 0 <= k < len(COMPOSITES):
        raise ValueError(f"there are composites 0 to {len(COMPOSITES) - 1}, got {k}")
    name, (top, left), wanted = COMPOSITES[k]
    rng, label = _stream(0, k, "composite"), CLASSES.index(wanted)
    with Image.open(resource("data", "photos", name)) as opened:
        crop = opened.convert("RGB").crop((left, top, left + 2 * SIZE, top + 2 * SIZE)).resize((SIZE, SIZE), Image.Resampling.BOX)
    scene = (np.asarray(crop, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)
    cover = np.float32(0.85) * _coverage(rng, label, faces_of(label, held_out=True)[0])
    # Bright on a dark scene, dark on a bright one.
    bright = float(scene.mean()) < 0
    paint = rng.uniform(0.5, 0.9, 3) if bright else rng.uniform(-0.95, -0.6, 3)
    painted = scene + cover * (paint.astype(np.float32)[:, None, None] - scene)
    lit = (painted + 1) * (1 + 0.35 * _texture(rng, "gradient")) - 1
    return torch.from_numpy(gaussian_filter(lit, (0, 0.6, 0.6)).clip(-1, 1).astype(np.float32)), label


@dataclass(frozen=True)
class Glyphs:
    """Rendered characters and symbols, (3, 64, 64) in [-1, 1], each with its class in the manifest (see invsolve.data.glyphs).

    Args:
        indices: which images, such as "0-7", "0,2" or 5.
        kind: "held_out", in faces and on backgrounds that are never trained on; "unseen", new renderings in the faces and on
            the backgrounds of training; "composite", glyphs on photographs, of which there are three.
        seed: the stream of renderings; the default is one that is never trained on.
    """

    indices: str | int | tuple[int, ...] = "0-7"
    kind: Literal["held_out", "unseen", "composite"] = "held_out"
    seed: int = EVALUATION_SEED

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"data.seed = {self.seed}: must be 0 or larger")
        pick(self.indices, self._count())

    def _count(self) -> int | None:
        return len(COMPOSITES) if self.kind == "composite" else None

    def items(self) -> list[Item]:
        """The chosen images; ids are glyph-0000, ... (unseen-0000, composite-0000). Each item's facts() hold its `class`."""
        return [self._item(index) for index in pick(self.indices, self._count())]

    def draw(self, index: int) -> tuple[Array, str]:
        """Image `index` of this kind, float32 (3, 64, 64), and the name of its class."""
        image, label = composite(index) if self.kind == "composite" else glyph(self.seed, index, self.kind == "held_out")
        return np.asarray(image.numpy()), CLASSES[label]

    def _item(self, index: int) -> Item:
        name = f"{'glyph' if self.kind == 'held_out' else self.kind}-{index:04d}"
        load, facts = partial(self._load, index), partial(self._facts, index)
        return Computed(name, Path(f"seed_{self.seed}") / name, (3, SIZE, SIZE), False, load, facts)

    def _load(self, index: int) -> Array:
        return self.draw(index)[0]

    def _facts(self, index: int) -> dict[str, Any]:
        return {"class": self.draw(index)[1]}
