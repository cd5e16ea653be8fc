"""Training images for the shipped priors: dead leaves synthesised on the fly and crops of photographs, or MRI phantoms.

The dead-leaves model (occluding shapes whose sizes follow a power law) reproduces the scale invariance, the
edges and the heavy-tailed gradients of natural images: A. B. Lee, D. Mumford, J. Huang, "Occlusion models for
natural images", IJCV 2001; its use as a training set for restoration networks: R. Achddou, Y. Gousseau,
S. Ladjal, "Synthetic images as a regularity prior for image restoration neural networks", SSVM 2021.

All images leave this module as float32 tensors (C, size, size) in [-1, 1], C = 3, or 2 (real, imaginary) for phantoms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import IterableDataset, get_worker_info

from invsolve.data.glyphs import glyph
from invsolve.data.items import EVALUATION_SEED
from invsolve.data.phantoms import phantom

EVALUATION_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
"""Never trained on: every score of the shipped prior is measured on these."""

SKIMAGE_PHOTOS = (
    "brick.png",
    "camera.png",
    "cell.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "text.png",
)
# How often each photograph is drawn: by its variety, not its pixel count (the retina is 1411 x 1411 of little detail).
WEIGHTS = {"motorcycle_left.png": 4.0, "motorcycle_right.png": 4.0, "camera.png": 3.0, "coins.png": 1.5, "grace_hopper.jpg": 4.0}


def training_photo_paths(folder: Path | None = None) -> list[Path]:
    """The photographs in the wheels of scikit-image and matplotlib, or every image of a user's folder.

    Raises ValueError if an evaluation photograph is among them.
    """
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
    else:
        import matplotlib
        import skimage

        shipped = Path(os.path.dirname(skimage.__file__)) / "data"
        paths = [shipped / name for name in SKIMAGE_PHOTOS]
        paths.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    held_out = [p for p in paths if p.stem in EVALUATION_PHOTOS]
    if held_out:
        raise ValueError(f"{held_out[0]} is an evaluation photograph and must not be trained on")
    if not paths:
        raise ValueError(f"no images under {folder}; expected png, jpg, webp or tif files")
    return paths


def pyramid(path: Path, smallest: int) -> list[torch.Tensor]:
    """uint8 copies (3, H, W) of one photograph at scales 1, 0.7, 0.5, ... down to `smallest` pixels a side."""
    image = Image.open(path).convert("RGB")
    levels = []
    scale = 1.0
    while min(image.size) * scale >= smallest:
        size = (round(image.width * scale), round(image.height * scale))
        small = image if scale == 1.0 else image.resize(size, Image.Resampling.LANCZOS)
        levels.append(torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous())
        scale *= 0.7
    if not levels:
        raise ValueError(f"{path} is {image.width}x{image.height}; at least {smallest} pixels a side are needed")
    return levels


def _power_noise(rng: np.random.Generator, side: int, exponent: float) -> np.ndarray:
    """A unit-variance random field (side, side) with amplitude spectrum |f|^-exponent."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    f[0, 0] = np.inf
    spectrum = f**-exponent * np.exp(2j * np.pi * rng.random(f.shape))
    field = np.fft.irfft2(spectrum, s=(side, side))
    return (field / field.std()).astype(np.float32)


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """One unit-variance texture: coloured noise, a sinusoidal grating or its thresholded version."""
    if rng.random() < 0.6:
        return _power_noise(rng, side, rng.uniform(0.0, 2.0))
    angle, period = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(4), np.log(60)))
    v, u = np.mgrid[:side, :side].astype(np.float32)
    warp = _power_noise(rng, side, 2.0) * rng.uniform(0, 0.6)
    wave = np.sin(2 * np.pi * (u * np.cos(angle) + v * np.sin(angle)) / period + warp)
    return np.asarray(np.sign(wave) if rng.random() < 0.3 else wave * np.sqrt(2), dtype=np.float32)


def _colours(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) colours in [0, 1]: broad luminance, chroma around a few hues that the whole image shares."""
    light = rng.beta(rng.uniform(0.6, 2.0), rng.uniform(0.6, 2.5), size=(count, 1))
    themes = rng.normal(size=(rng.integers(1, 5), 2)) * rng.choice([0.03, 0.08, 0.16])
    chroma = themes[rng.integers(len(themes), size=count)] + rng.normal(size=(count, 2)) * rng.choice([0.01, 0.03, 0.08])
    chroma *= 0.3 + light
    opponent = np.array([[0.8, 0.35], [-0.15, 0.35], [-0.65, -0.7]])  # warm-cold and yellow-blue axes
    return np.clip(light + chroma @ opponent.T, 0, 1).astype(np.float32)


def _outline(rng: np.random.Generator, cx: float, cy: float, radius: float) -> list[tuple[float, float]]:
    """Corners of one random shape: a rotated ellipse, rectangle, bar, triangle, polygon or blob."""
    kind = rng.choice(6, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.15])
    turn = rng.uniform(0, 2 * np.pi)
    if kind == 1 or kind == 2:
        phi = np.arctan2([1, 1, -1, -1], [1, -1, -1, 1])
        reach = np.ones(4)
    elif kind == 3 or kind == 4:
        phi = np.sort(rng.uniform(0, 2 * np.pi, 3 if kind == 3 else rng.integers(4, 8)))
        reach = rng.uniform(0.6, 1.0, len(phi))
    else:
        phi = np.linspace(0, 2 * np.pi, 12 + int(min(radius, 60) / 2), endpoint=False)
        reach = np.ones(len(phi))
        if kind == 5:
            for k in range(2, 6):
                reach = reach + rng.normal() * 0.25 / (k - 1) * np.cos(k * phi + rng.uniform(0, 6.3))
    aspect = rng.uniform(0.04, 0.25) if kind == 2 else rng.uniform(0.35, 1.0)
    px, py = reach * np.cos(phi) * radius, reach * np.sin(phi) * radius * aspect
    xs, ys = cx + px * np.cos(turn) - py * np.sin(turn), cy + px * np.sin(turn) + py * np.cos(turn)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def dead_leaves(rng: np.random.Generator, side: int = 512) -> torch.Tensor:
    """One dead-leaves canvas, uint8 (3, side, side), drawn at twice the size and averaged down for soft edges."""
    big = 2 * side
    labels = Image.new("I", (big, big), 0)
    draw = ImageDraw.Draw(labels)
    smallest, largest = np.exp(rng.uniform(np.log(4), np.log(100))), big * rng.uniform(0.1, 0.5)
    # Every octave of radii covers the same area; draw until the canvas is covered `layers` times over.
    mean_area = 0.5 * np.pi * 2 * smallest**2 * np.log(largest / smallest)
    layers = rng.uniform(1.0, 4.0)
    count = min(int(layers * big**2 / mean_area), 6000)
    # Inverse transform of p(r) ~ r^-3 on [smallest, largest].
    u = rng.random(count)
    radii = (smallest**-2 + u * (largest**-2 - smallest**-2)) ** -0.5
    for k, radius in enumerate(radii, start=1):
        cx, cy = rng.uniform(-radius, big + radius, 2)
        draw.polygon(_outline(rng, cx, cy, float(radius)), fill=k)
    label = np.asarray(labels)
    v, u_ = np.mgrid[:big, :big].astype(np.float32) / big
    shade = rng.normal(size=(count + 1, 2)).astype(np.float32) * rng.choice([0.0, 0.3, 0.7])
    strength = (rng.random(count + 1) < rng.uniform(0, 0.8)) * rng.gamma(1.0, rng.uniform(0.01, 0.1), count + 1)
    which = rng.integers(3, size=count + 1)
    textures = np.stack([_texture(rng, big) for _ in range(3)])
    grain = np.take_along_axis(textures, which[label][None], axis=0)[0] * strength.astype(np.float32)[label]
    light = shade[label, 0] * (u_ - 0.5) + shade[label, 1] * (v - 0.5) + grain
    if rng.random() < 0.5:  # illumination that ignores the shapes
        light = light + _power_noise(rng, big, 2.5) * rng.uniform(0, 0.12)
    tint = 1 + 0.3 * rng.normal(size=3).astype(np.float32) * (rng.random() < 0.5)
    colours = _colours(rng, count + 1)
    planes = []
    for c in range(3):
        plane = colours[label, c] + light * tint[c]
        planes.append(plane.reshape(side, 2, side, 2).mean((1, 3)))
    image = np.stack(planes)
    # Photographs are rarely sharp to the pixel: most canvases are blurred, at scales from half a pixel to several.
    if rng.random() < 0.65:
        blur = np.exp(rng.uniform(np.log(0.5), np.log(4.0)))
        from scipy.ndimage import gaussian_filter

        image = gaussian_filter(image, (0, blur, blur), mode="reflect")
    return torch.from_numpy((np.clip(image, 0, 1) * 255).round().astype(np.uint8))


class TrainingImages(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of float32 crops (3, size, size) in [-1, 1].

    Args:
        size: side of a crop in pixels.
        leaves: share of dead-leaves crops; the rest are crops of photographs.
        folder: a folder of the user's own images in place of the shipped photographs.
        seed: root seed; each worker and each restart (`epoch`) draws its own stream.
    """

    def __init__(self, size: int = 64, leaves: float = 0.35, folder: Path | None = None, seed: int = 0, epoch: int = 0):
        self.size, self.leaves, self.seed, self.epoch = size, leaves, seed, epoch
        self.paths = training_photo_paths(folder)

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        rng = np.random.default_rng((self.seed, self.epoch, info.id if info else 0))
        photos = [pyramid(p, self.size) for p in self.paths]
        weight = np.array([WEIGHTS.get(p.name, 1.0) for p in self.paths])
        weight /= weight.sum()
        pool: list[torch.Tensor] = []
        while True:
            if len(pool) < 16 or rng.random() < 1 / 250:
                pool.append(dead_leaves(rng))
                pool = pool[-16:]
            if rng.random() < self.leaves:
                image = pool[rng.integers(len(pool))]
            else:
                levels = photos[rng.choice(len(photos), p=weight)]
                # Scales 1, 0.7, 0.5, ... in proportion: photographs are mostly looked at near their own resolution.
                share = 0.7 ** np.arange(len(levels))
                image = levels[rng.choice(len(levels), p=share / share.sum())]
            i, j = (int(rng.integers(n - self.size + 1)) for n in image.shape[1:])
            crop = image[:, i : i + self.size, j : j + self.size].float() / 127.5 - 1
            yield _relight(crop, rng)


def _relight(crop: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random orientation, and for grey crops now and then a two-colour tint, so that grey is not a third of all colour."""
    crop = torch.rot90(crop, int(rng.integers(4)), (1, 2))
    if rng.random() < 0.5:
        crop = crop.flip(2)
    if bool((crop[0] == crop[1]).all()) and rng.random() < 0.6:
        dark, bright = np.sort(_colours(rng, 2), axis=0).astype(np.float32) * 2 - 1
        t = (crop[:1] + 1) / 2
        crop = torch.from_numpy(dark)[:, None, None] * (1 - t) + torch.from_numpy(bright)[:, None, None] * t
    if rng.random() < 0.03:
        crop = crop[torch.from_numpy(rng.permutation(3))]
    return crop.contiguous()


class Rendered(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of what `draw(index)` renders, each index once, shared among the workers of a loader.

    Args:
        start: the first index: a restart continues behind those already seen.
        seed: the stream that `draw` draws from; ValueError for the one that scores are measured on.
    """

    def __init__(self, seed: int, start: int):
        if seed == EVALUATION_SEED:
            raise ValueError(f"seed {seed} is that of the evaluation data and must not be trained on")
        self.seed, self.start = seed, start

    def draw(self, index: int) -> Any:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        index, stride = (self.start + info.id, info.num_workers) if info else (self.start, 1)
        while True:
            yield self.draw(index)
            index += stride


class TrainingPhantoms(Rendered):
    """Complex phantoms, float32 (2, size, size) in [-1, 1] (`invsolve.data.phantoms`)."""

    def __init__(self, size: int = 128, seed: int = 0, start: int = 0):
        super().__init__(seed, start)
        self.size = size

    def draw(self, index: int) -> torch.Tensor:
        return phantom(self.seed, index, self.size)


class TrainingGlyphs(Rendered):
    """Glyphs in the training faces and on the training backgrounds, float32 (3, 64, 64), each with its class (`invsolve.data.glyphs`)."""

    def __init__(self, seed: int = 0, start: int = 0):
        super().__init__(seed, start)

    def draw(self, index: int) -> tuple[torch.Tensor, int]:
        return glyph(self.seed, index)
