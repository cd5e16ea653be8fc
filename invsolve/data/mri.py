"""MRI data: fastMRI volumes (.h5), BART arrays (.cfl with .hdr), complex .npy arrays, and simulated phantoms.

Every source gives fully sampled complex slices as truths (2, H, W), to be undersampled by the operator of the run. A
measurement that was undersampled by a scanner is read by `invsolve.data.measurements.Measurement` (y as real channels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from invsolve.config.schema import digits
from invsolve.data.items import Array, Computed, Item, find_files, nameable, pick, refusing
from invsolve.errors import ConfigError
from invsolve.ids import refuse_alike
from operators.core.files import MOST_BYTES, Unreadable, reading
from operators.core.fourier import ifft2c
from operators.mri.coils import calibrated_maps, coil_maps_of

SUFFIXES = (".h5", ".hdf5", ".cfl", ".npy")
_PERCENTILE = 99.5


@dataclass(frozen=True)
class MRIData:
    """Fully sampled slices from files: fastMRI .h5 volumes, BART .cfl with .hdr, or complex .npy arrays.

    Args:
        root: file, folder (its .h5, .cfl and .npy files, by name) or glob.
        domain: "kspace" (Cartesian, zero frequency in the middle, fully sampled) or "image" (complex images).
        slices: which slices of each volume, such as "10-20"; null for all. Slices, then coils, then rows and columns are the
            axes of .h5 and .npy arrays: (H, W), (S, H, W) or (S, N, H, W); BART's are (rows, columns, slices, coils).
        key: the dataset of an .h5 file (default: kspace).
        coil_maps: how slices with coils become one complex image: "calibrate" estimates the sensitivities from the low
            frequencies (`operators.mri.coils.calibrated_maps`); or a .npy or .pt file, complex (N, H, W).
        size: side, or [height, width], cropped from the centre of the image (this removes fastMRI's readout oversampling).
        scale: what the image is divided by: "max", its largest magnitude after cropping; "percentile", the 99.5 percentile
            of its magnitude (some values then exceed 1); or a number. Per slice; the divisor is kept in the manifest.

    The image is the least-squares combination sum_n conj(s_n) z_n / sum_n |s_n|^2 of the coil images z_n. K-space that was
    undersampled (fastMRI's test volumes with a dataset `mask`; lines that are zero between others) is no truth and is refused.
    """

    root: str
    scale: Literal["max", "percentile"] | float
    domain: Literal["kspace", "image"] = "kspace"
    slices: str | int | tuple[int, ...] | None = None
    key: str | None = None
    coil_maps: str = "calibrate"
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scale, str) and not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"data.scale = {self.scale}: must be max, percentile or a finite number > 0")
        if self.size is not None and min(self._sides((1, 1))) < 1:
            raise ConfigError(f"data.size = {self.size}: must be positive")
        pick(self.slices, None, "data.slices")

    def _sides(self, whole: tuple[int, int]) -> tuple[int, int]:
        if self.size is None:
            return whole
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def items(self) -> list[Item]:
        """One item for each slice, <file>_<slice> (the file's name alone for an array (H, W)).

        Of several files, one that cannot be read is an item with a `problem`. Raises ConfigError for a single one, and where two
        files would give one id.
        """
        files = find_files(self.root, SUFFIXES)
        found = [nameable(item) for path in files for item in (self._of(path) if len(files) == 1 else self._of_many(path))]
        refuse_alike([(item.id, item.path) for item in found], f"data.root = {self.root}", "rename one")
        return found

    def _of_many(self, path: Path) -> list[Item]:
        try:
            return self._of(path)
        except ConfigError as error:
            return [Computed(path.stem, path, None, False, partial(self._load, path, 0), problem=str(error))]

    def _of(self, path: Path) -> list[Item]:
        volume = Volume(path, self.key)
        if volume.undersampled and self.domain == "kspace":
            told = "holds the dataset `mask` with which its k-space was undersampled, so it is no truth"
            raise ConfigError(f"{path}: {told}; take a fully sampled volume, or give y as data.measurement with its mask")
        shape = volume.shape
        sides = self._sides(shape[2:])
        if any(wanted > there for wanted, there in zip(sides, shape[2:], strict=True)):
            raise ConfigError(f"data.size = {self.size}: larger than the slices of {path.name}, which are {shape[2]} x {shape[3]}")
        chosen = pick(self.slices, shape[0], "data.slices")
        names = [path.stem if shape[0] == 1 else f"{path.stem}_{k:03d}" for k in chosen]
        return [self._item(path, k, name, sides) for k, name in zip(chosen, names, strict=True)]

    def _item(self, path: Path, k: int, name: str, sides: tuple[int, int]) -> Item:
        return Computed(name, path, (2, *sides), False, partial(self._load, path, k), partial(self._facts, path, k))

    def _load(self, path: Path, k: int) -> Array:
        return self.read(path, k)[0]

    def _facts(self, path: Path, k: int) -> dict[str, Any]:
        return {"slice": k, "intensity_divisor": self.read(path, k)[1]}

    def read(self, path: Path, k: int) -> tuple[Array, float]:
        """Slice k of a file as float32 (2, H, W), and what it was divided by. Raises ConfigError."""
        stored = torch.from_numpy(Volume(path, self.key).read(k))
        if not bool(stored.isfinite().all()):
            raise ConfigError(f"{path}, slice {k}: holds NaN or infinity")
        if self.domain == "kspace":
            _check_full(stored, f"{path}, slice {k}")
        image = self._combined(ifft2c(stored) if self.domain == "kspace" else stored, path)
        h, w = self._sides((image.shape[0], image.shape[1]))
        top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
        image = image[top : top + h, left : left + w]
        divisor = self._divisor(image.abs())
        if divisor == 0:
            raise ConfigError(f"{path}, slice {k}: is zero everywhere, so data.scale={self.scale} cannot scale it")
        scaled = torch.stack([image.real, image.imag]) / divisor
        return np.ascontiguousarray(scaled.numpy(), dtype=np.float32), divisor

    def _divisor(self, magnitude: Tensor) -> float:
        if self.scale == "max":
            return float(magnitude.max())
        if self.scale == "percentile":
            return float(magnitude.flatten().quantile(_PERCENTILE / 100))
        return float(self.scale)

    def _combined(self, images: Tensor, path: Path) -> Tensor:
        """Coil images (N, H, W) as one (H, W)."""
        if len(images) == 1:
            return images[0]
        try:
            maps = calibrated_maps(images) if self.coil_maps == "calibrate" else coil_maps_of(self.coil_maps, *images.shape[1:])
        except ValueError as error:
            raise ConfigError(f"data.coil_maps = {self.coil_maps}: {error}") from error
        if len(maps) != len(images):
            raise ConfigError(f"data.coil_maps = {self.coil_maps}: {len(maps)} coils, but {path.name} has {len(images)}")
        total = maps.abs().square().sum(0)
        return (maps.conj() * images).sum(0) / torch.where(total > 0, total, 1.0)


def _check_full(kspace: Tensor, name: str) -> None:
    """Raises ConfigError for k-space (N, H, W) with lines that no coil measured between lines that were."""
    measured = (kspace != 0).any(0)
    for axis, what in ((0, "columns"), (1, "rows")):
        lines = measured.any(axis)
        places = lines.nonzero().flatten()
        missing = 0 if not len(places) else int(places[-1] - places[0]) + 1 - len(places)
        if missing:
            raise ConfigError(f"{name}: {missing} of {len(lines)} {what} of k-space are empty between others: it is undersampled, no truth")


class Volume:
    """A stored array of any of the formats as (slices, coils, H, W), read slice by slice.

    ``undersampled`` tells of a mask beside it that hides something. Raises ConfigError for a file that cannot be read, and for
    one with other axes.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path, self.key, self.undersampled = path, key, False
        with refusing(), reading(path), self._open() as array:
            self.shape = self._four(tuple(array.shape))

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The whole array (S, N, H, W), (S, H, W) or (H, W), on disk where the format allows."""
        if self.path.suffix == ".npy":
            yield np.load(self.path, mmap_mode="r", allow_pickle=False)
            return
        if self.path.suffix == ".cfl":
            yield read_cfl(self.path)
            return
        import h5py  # type: ignore[import-untyped]

        key = self.key or "kspace"
        with h5py.File(self.path, "r") as opened:
            if key not in opened:
                raise Unreadable(f"{self.path}: no dataset {key!r}; it holds: {', '.join(opened) or 'nothing'} (set data.key)")
            if not isinstance(opened[key], h5py.Dataset):
                raise Unreadable(f"{self.path}: {key!r} is a group; it holds: {', '.join(opened[key]) or 'nothing'} (set data.key)")
            self.undersampled = "mask" in opened and key != "mask" and not bool(np.all(opened["mask"][()]))
            yield opened[key]

    def _four(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        if len(shape) not in (2, 3, 4) or min(shape) < 1:
            raise Unreadable(f"{self.path} has shape {tuple(shape)}; (H, W), (slices, H, W) or (slices, coils, H, W) is needed")
        slices, coils = shape[0] if len(shape) > 2 else 1, shape[1] if len(shape) == 4 else 1
        return slices, coils, shape[-2], shape[-1]

    def read(self, k: int) -> Array:
        """Slice k, (coils, H, W), complex128. Raises ConfigError."""
        with refusing(), reading(self.path), self._open() as array:
            if array.dtype.kind not in "fciu":
                raise Unreadable(f"{self.path} holds {array.dtype}; numbers are needed")
            if math.prod(self.shape[1:]) * array.dtype.itemsize > MOST_BYTES:
                raise Unreadable(f"{self.path} has slices {self.shape[1:]} of {array.dtype}; at most {MOST_BYTES} bytes are read at once")
            found = np.array(array[()] if len(array.shape) == 2 else array[k]).astype(np.complex128)
        return found.reshape(self.shape[1:])


def read_cfl(path: Path) -> Array:
    """A BART array (.cfl and .hdr side by side) as complex64 (slices, coils, H, W), read lazily.

    BART stores complex64 in column-major order with the axes (rows, columns, slices, coils, ...); further axes must be 1.
    Raises Unreadable where the header is missing, does not fit the size of the file, or has more axes.
    Source: BART, "CFL and HDR files", https://bart-doc.readthedocs.io.
    """
    header = path.with_suffix(".hdr")
    if not header.is_file():
        raise Unreadable(f"{path}: the header {header.name} is missing beside it")
    lines = [line.strip() for line in header.read_text(encoding="utf-8", errors="replace").splitlines()]
    start = next((n for n, line in enumerate(lines) if line.lower().startswith("# dimensions")), None)
    numbers = lines[start + 1].split() if start is not None and start + 1 < len(lines) else []
    sides = [side for side in map(digits, numbers) if side]
    if not numbers or len(sides) < len(numbers):
        raise Unreadable(f"{header} does not tell the dimensions: '# Dimensions' and a line of positive numbers are needed")
    sides += [1] * 4
    if math.prod(sides[4:]) != 1:
        raise Unreadable(f"{path} has the dimensions {numbers}; those after the coils must be 1 (take one with `bart slice`)")
    if path.stat().st_size != 8 * math.prod(sides):
        raise Unreadable(f"{path} has {path.stat().st_size} bytes, its header promises {8 * math.prod(sides)}")
    stored = np.memmap(path, dtype="<c8", mode="r", shape=tuple(sides[:4]), order="F")
    return np.asarray(stored).transpose(2, 3, 0, 1)
