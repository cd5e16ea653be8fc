"""Crops of a folder of photographs at many scales, from one cached file, some of the photographs held out.

Every photograph is brought to scales 2^(-k/4) between 1 and 0.2 (Lanczos) once; the levels lie one behind the other as uint8 in
one .npy file, which is mapped into memory, so that a crop costs a copy of its own pixels alone and several runs share the pages.
Dead leaves (`training_data.dead_leaves`) lie behind them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from training_data import dead_leaves, training_photo_paths

SCALES = tuple(2 ** (-k / 4) for k in range(10))  # 1 to 0.21
HELD_OUT_EVERY, HELD_OUT_FIRST = 15, 7
LEAVES, LEAF_SIDE = 96, 512


def held_out(paths: list[Path]) -> list[Path]:
    """The photographs of a sorted list that are never trained on: every 15th, from the 8th."""
    return paths[HELD_OUT_FIRST::HELD_OUT_EVERY]


@dataclass(frozen=True)
class Piece:
    """One image of the cache: where its (height, width, 3) values begin, and of which photograph at which scale; leaves have none."""

    name: str
    scale: float
    start: int
    height: int
    width: int


class Pyramids:
    """The cached levels of all photographs of a folder.

    Args:
        folder: the photographs.
        cache: folder for pyramids.npy and pyramids.json; made if there are none, or if they are of other photographs.
        smallest: no level has a side below this, in pixels.

    Raises ValueError if the folder holds too few photographs to hold one out, or one that is too small.
    """

    def __init__(self, folder: Path, cache: Path, smallest: int = 96):
        self.paths = training_photo_paths(folder)
        if len(self.paths) <= HELD_OUT_FIRST:
            raise ValueError(
                f"{folder} holds {len(self.paths)} photographs; at least {HELD_OUT_FIRST + 1} are needed, of which one is held out"
            )
        self.held_out = [path.name for path in held_out(self.paths)]
        index = cache / "pyramids.json"
        digest = hashlib.sha256(repr((SCALES, smallest, LEAVES, LEAF_SIDE)).encode())
        for path in self.paths:
            digest.update(path.name.encode() + path.read_bytes())
        if not index.exists() or json.loads(index.read_text())["of"] != digest.hexdigest():
            self._make(cache, smallest, digest.hexdigest())
        self.pieces = [Piece(**piece) for piece in json.loads(index.read_text())["pieces"]]
        self.values: NDArray[np.uint8] = np.load(cache / "pyramids.npy", mmap_mode="r")

    def _make(self, cache: Path, smallest: int, digest: str) -> None:
        cache.mkdir(parents=True, exist_ok=True)
        pieces: list[Piece] = []
        parts: list[NDArray[np.uint8]] = []
        position = 0

        def add(name: str, scale: float, values: NDArray[np.uint8]) -> None:
            nonlocal position
            pieces.append(Piece(name, scale, position, *values.shape[:2]))
            parts.append(values.reshape(-1))
            position += values.size

        for path in self.paths:
            image = Image.open(path).convert("RGB")
            if min(image.size) < smallest:
                raise ValueError(f"{path} is {image.width}x{image.height}; at least {smallest} pixels a side are needed")
            for scale in SCALES:
                size = (round(image.width * scale), round(image.height * scale))
                if min(size) >= smallest:
                    add(path.name, scale, np.array(image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)))
        rng = np.random.default_rng((0, LEAVES))
        for _ in range(LEAVES):
            add("", 1.0, dead_leaves(rng, LEAF_SIDE).permute(1, 2, 0).numpy())
        # The index last: a cache that was cut short is made again.
        (cache / "pyramids.json").unlink(missing_ok=True)
        np.save(cache / "pyramids.part.npy", np.concatenate(parts))
        os.replace(cache / "pyramids.part.npy", cache / "pyramids.npy")
        (cache / "pyramids.part.json").write_text(json.dumps({"of": digest, "pieces": [asdict(piece) for piece in pieces]}))
        os.replace(cache / "pyramids.part.json", cache / "pyramids.json")

    def crop(self, piece: Piece, top: int, left: int, size: int) -> NDArray[np.uint8]:
        """(size, size, 3) values of one level."""
        image = self.values[piece.start : piece.start + piece.height * piece.width * 3].reshape(piece.height, piece.width, 3)
        return image[top : top + size, left : left + size]


class Crops:
    """Batches of augmented crops, float32 (batch, 3, size, size) in [-1, 1], of the photographs that are not held out.

    Photographs are drawn in proportion to the fourth root of their pixels (by variety, which grows slower than size), then a scale,
    a small one rather than a large one, at which photographs are soft. Crops are turned and mirrored; three in ten change brightness,
    contrast, saturation and tint, some are grey or have their channels exchanged.

    Args:
        pyramids: the cache.
        batch, size: of a batch.
        leaves: share of dead leaves.
    """

    def __init__(self, pyramids: Pyramids, batch: int, size: int = 64, leaves: float = 0.12):
        self.pyramids, self.batch, self.size, self.leaves = pyramids, batch, size, leaves
        kept = [p for p in pyramids.pieces if p.name not in pyramids.held_out and min(p.height, p.width) >= size]
        self.synthetic = [p for p in kept if not p.name]
        levels: dict[str, list[Piece]] = {}
        for piece in kept:
            if piece.name:
                levels.setdefault(piece.name, []).append(piece)
        self.photographs = list(levels.values())
        weight = np.array([(rows[0].height * rows[0].width) ** 0.25 for rows in self.photographs])
        self.weight = weight / weight.sum()

    def draw(self, rng: np.random.Generator) -> Tensor:
        """One batch."""
        crops = np.stack([self._one(rng) for _ in range(self.batch)])
        return _recoloured(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1, rng)

    def _one(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        if rng.random() < self.leaves:
            piece = self.synthetic[rng.integers(len(self.synthetic))]
        else:
            levels = self.photographs[rng.choice(len(self.photographs), p=self.weight)]
            share = np.array([level.scale**-0.5 for level in levels])
            piece = levels[rng.choice(len(levels), p=share / share.sum())]
        top, left = (int(rng.integers(side - self.size + 1)) for side in (piece.height, piece.width))
        crop = np.rot90(self.pyramids.crop(piece, top, left, self.size), int(rng.integers(4)))
        return crop[:, ::-1] if rng.random() < 0.5 else crop


class Batches(IterableDataset):  # type: ignore[type-arg]
    """The batches of steps `start`, `start` + 1, ... without end, each drawn from (seed, step), in order for any number of workers."""

    def __init__(self, crops: Crops, seed: int, start: int):
        self.crops, self.seed, self.start = crops, seed, start

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        first, stride = (info.id, info.num_workers) if info else (0, 1)
        for step in itertools.count(self.start + first, stride):
            yield self.crops.draw(np.random.default_rng((self.seed, step)))


def _recoloured(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of some images changed, (B, 3, H, W) in [-1, 1] clipped to it; some made grey."""
    some, grey = rng.random(len(x)) < 0.3, rng.random(len(x)) < 0.05
    bright = np.where(some, rng.uniform(-0.2, 0.2, len(x)), 0.0)
    contrast = np.where(some, rng.uniform(0.75, 1.25, len(x)), 1.0)
    saturation = np.where(grey, 0.0, np.where(some, rng.uniform(0.4, 1.5, len(x)), 1.0))
    tint = np.where(some[:, None], rng.uniform(-0.12, 0.12, (len(x), 3)), 0.0) * (saturation > 0)[:, None]
    # In place of a hue: the channels change places now and then.
    for k in np.flatnonzero(rng.random(len(x)) < 0.04):
        x[k] = x[k, torch.from_numpy(rng.permutation(3))]
    luma = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    mean = luma.mean((2, 3), keepdim=True)

    def column(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).float().view(len(x), -1, 1, 1)

    x = luma + (x - luma) * column(saturation)
    return ((x - mean) * column(contrast) + mean + column(bright) + column(tint)).clamp(-1, 1)


def held_out_crops(pyramids: Pyramids, side: int = 128, smaller: int = 256) -> Tensor:
    """Crops (4 per held-out photograph, 3, side, side) in [-1, 1] that scores are measured on: the corners of the middle.

    Two scales of each: the smallest with a shorter side of at least `smaller` pixels (of a picture of 256 x 256), and twice as large.
    """
    crops = []
    for name in pyramids.held_out:
        levels = sorted((p for p in pyramids.pieces if p.name == name), key=lambda p: p.height)
        for wanted in (smaller, 2 * smaller):
            piece = next((p for p in levels if min(p.height, p.width) >= wanted), levels[-1])
            top, left = piece.height // 2 - side // 2, piece.width // 2 - side // 2
            shift = min(side // 2, top, left)
            for sign in (-1, 1):
                crops.append(pyramids.crop(piece, top + sign * shift, left + sign * shift, side))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
