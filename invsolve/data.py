"""What a run reads: images to be degraded (and then recovered), or a stored measurement without a truth.

Both list their items without reading pixels, so that a mistake in the last file is found before the first is sampled.
"""

from __future__ import annotations

import glob
import hashlib
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from invsolve.resources import resource
from invsolve.schema import ConfigError, digits

Array = NDArray[Any]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_MEASUREMENTS = (".npz", ".npy", ".pt")
_MOST_INDICES = 1_000_000


@dataclass(frozen=True)
class Item:
    """One unit of work.

    ``image_shape`` is (C, H, W) of the unknown image, or None where the measurement's own shape has to serve. ``load()``
    gives the truth, float32 (C, H, W) in [-1, 1], or with ``measured`` the measurement y as it was stored. ``facts()`` is what
    else the manifest should say of the item. Two channels are the real and the imaginary part of a complex image.
    ``problem`` says why the item cannot be loaded, where that is known from the listing.
    """

    id: str
    path: Path
    image_shape: tuple[int, int, int] | None
    measured: bool
    load: Callable[[], Array]
    facts: Callable[[], dict[str, Any]] = dict
    problem: str = ""

    def digest(self) -> str:
        """The sha256 of the input file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Images:
    """Image files: one file, a folder or a glob; they are degraded by the operator, and are the truth.

    Args:
        root: file, folder (its image files, by name) or glob; looked up in the working folder, then among the shipped data.
        indices: which of the files, such as "0-3", "0,2" or [0, 2] (from 0, by name); null for all.
        size: side, or [height, width], of the image to take; null for the whole image.
        fit: "resize" scales the image until it just covers ``size`` (Lanczos) and takes the centre; "crop" takes the
            centre at full resolution.
        origin: [row, column] of the upper left corner of a crop, in place of the centre.
        alpha: what to do with transparency: refuse it, or lay the image on white or black.

    Colour is read as RGB and grey as three equal channels; 8 bits are divided by 255, 16-bit grey by 65535, and
    floating-point files must lie in [0, 1]. Pillow reads 16-bit colour files at 8 bits.
    """

    root: str
    indices: str | int | tuple[int, ...] | None = None
    size: int | tuple[int, int] | None = None
    fit: Literal["resize", "crop"] = "resize"
    origin: tuple[int, int] | None = None
    alpha: Literal["refuse", "white", "black"] = "refuse"

    def __post_init__(self) -> None:
        if self.size is not None and min(self._sides()) < 1:
            raise ConfigError(f"data.size = {self.size}: must be positive")
        if self.origin is not None and (self.fit != "crop" or self.size is None):
            raise ConfigError(f"data.origin = {list(self.origin)}: needs data.fit=crop and a data.size")
        pick(self.indices, None)

    def _sides(self) -> tuple[int, int]:
        assert self.size is not None
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def items(self) -> list[Item]:
        """The chosen files in order; the id of an image is its file name without the suffix.

        A file that cannot be read is an item with a `problem`. Raises ConfigError for a missing folder and ambiguous ids.
        """
        files = find_files(self.root)
        chosen = [files[i] for i in pick(self.indices, len(files))]
        _each_once([(path.stem, path) for path in chosen], f"data.root = {self.root}", "rename one, or use data.indices")
        return [self._item(path) for path in chosen]

    def _item(self, path: Path) -> Item:
        load = _Loader(self, path)
        try:
            return Item(path.stem, path, self._shape(path), False, load)
        except ConfigError as error:
            return Item(path.stem, path, None, False, load, problem=str(error))

    def _shape(self, path: Path) -> tuple[int, int, int]:
        """(3, H, W) of the image to be loaded, from the file's header."""
        try:
            with Image.open(path) as opened:
                width, height = opened.size
                if opened.getexif().get(0x0112, 1) >= 5:  # an orientation that lies on its side
                    width, height = height, width
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(f"{path} cannot be read as an image: {error}") from error
        if self.size is None:
            return 3, height, width
        h, w = self._sides()
        top, left = self.origin or (0, 0)
        if self.fit == "crop" and (min(top, left) < 0 or top + h > height or left + w > width):
            at = f" at origin [{top}, {left}]" if self.origin else ""
            raise ConfigError(f"data.size = {self.size}: a {h} x {w} crop{at} does not fit into {path.name}, which is {height} x {width}")
        return 3, h, w

    def read(self, path: Path) -> Array:
        """The image as float32 (3, H, W) in [-1, 1]."""
        try:
            with Image.open(path) as opened:
                planes = _planes(ImageOps.exif_transpose(opened), path, self.alpha)
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(f"{path} cannot be read as an image: {error}") from error
        if self.size is not None:
            h, w = self._sides()
            if self.fit == "resize":
                planes = _cover(planes, h, w)
            top, left = self.origin or ((planes.shape[1] - h) // 2, (planes.shape[2] - w) // 2)
            planes = planes[:, top : top + h, left : left + w]
        return np.ascontiguousarray(2 * planes - 1, dtype=np.float32)


@dataclass(frozen=True)
class _Loader:
    images: Images
    path: Path

    def __call__(self) -> Array:
        return self.images.read(self.path)


@dataclass(frozen=True)
class Measurement:
    """Stored measurements y without a truth: .npz with an array `y` (and perhaps an `id`), .npy or .pt.

    Args:
        measurement: a file, a folder (its files of these kinds, by name) or a glob; other arrays in an .npz are not read.
        image_shape: [C, H, W] of the unknown image; may be left out where y has that shape itself.
        id: what to call the result of a single file; by default the file's own `id`, else its name without the suffix.
    """

    measurement: str
    image_shape: tuple[int, int, int] | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if self.image_shape is not None and min(self.image_shape) < 1:
            raise ConfigError(f"data.image_shape = {list(self.image_shape)}: must be positive")

    def items(self) -> list[Item]:
        """One item for each file. Raises ConfigError for a missing file, and for a single one that cannot be read.

        Of a folder or glob, files that cannot be read are items with a `problem`, and y is read when it is needed.
        """
        path = Path(self.measurement).expanduser()
        if path.is_file() or not (path.is_dir() or any(c in self.measurement for c in "*?[")):
            if not path.is_file():
                raise ConfigError(f"data.measurement = {self.measurement}: no such file")
            y, stored = _read_measurement(path)
            _finite_numbers(y, path)
            return [Item(_file_name(self.id or stored or path.stem), path, self.image_shape, True, lambda: y)]
        if self.id is not None:
            raise ConfigError(f"data.id = {self.id!r}: names one result, but data.measurement = {self.measurement} may be many files")
        items = [self._item(file) for file in find_files(self.measurement, _MEASUREMENTS, "data.measurement")]
        _each_once([(item.id, item.path) for item in items], f"data.measurement = {self.measurement}", "rename one")
        return items

    def _item(self, path: Path) -> Item:
        def load() -> Array:
            y = _read_measurement(path)[0]
            _finite_numbers(y, path)
            return y

        try:
            stored = _stored_id(path) if path.suffix == ".npz" else None
        except ConfigError as error:
            return Item(path.stem, path, self.image_shape, True, load, problem=str(error))
        return Item(_file_name(stored or path.stem), path, self.image_shape, True, load)


def _finite_numbers(y: Array, path: Path) -> None:
    if y.dtype.kind not in "fciu":
        raise ConfigError(f"{path}: y has type {y.dtype}; numbers are needed")
    bad = int((~np.isfinite(y)).sum())
    if bad:
        raise ConfigError(f"{path}: y holds {bad} values of {y.size} that are NaN or infinite; every value must be finite")


def _file_name(id: str) -> str:
    if id in (".", "..", "") or set(id) & set("/\\\0"):
        raise ConfigError(f"data.id = {id!r}: the id names a folder, so it cannot hold a slash")
    return id


def _each_once(named: Sequence[tuple[str, Path]], where: str, advice: str) -> None:
    twice = [id for id, count in Counter(id for id, _ in named).items() if count > 1]
    if twice:
        both = ", ".join(str(path) for id, path in named if id == twice[0])
        raise ConfigError(f"{where}: the id {twice[0]!r} would stand for {both}; {advice}")


def _stored_id(path: Path) -> str | None:
    """The `id` in an .npz, without reading its arrays."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["id"]) if "id" in stored else None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _read_measurement(path: Path) -> tuple[Array, str | None]:
    """(y, id or None)."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                if "y" not in stored:
                    raise ConfigError(f"{path}: no array `y`; it holds: {', '.join(stored) or 'nothing'}")
                return stored["y"], str(stored["id"]) if "id" in stored else None
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False), None
        if path.suffix == ".pt":
            return _read_torch(path), None
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    raise ConfigError(f"data.measurement = {path}: expected a file ending in {', '.join(_MEASUREMENTS)}")


def _read_torch(path: Path) -> Array:
    import pickle

    import torch

    try:
        y = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} holds Python objects; save the tensor alone: torch.save(y, path)") from error
    if not isinstance(y, torch.Tensor):
        raise ConfigError(f"{path} holds a {type(y).__name__}; a single tensor y is needed")
    return np.asarray(y.detach().to(torch.float32).numpy() if y.dtype == torch.bfloat16 else y.detach().numpy())


def find_files(root: str, suffixes: Sequence[str] = SUFFIXES, key: str = "data.root") -> list[Path]:
    """The files behind a file name, folder or glob, sorted by name. Raises ConfigError where none has one of the suffixes."""
    for pattern in (Path(root).expanduser(), resource(root)):
        if pattern.is_file():
            return [pattern]
        if pattern.is_dir():
            found = list(pattern.iterdir())
        else:
            found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
        files = sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())
        if files:
            return files
        if found:
            what = "images" if suffixes is SUFFIXES else "files"
            raise ConfigError(f"{key} = {root}: no {what} there; the suffixes known are {', '.join(suffixes)}")
    raise ConfigError(f"{key} = {root}: no such file or folder, and no glob that matches (looked in {Path.cwd()} and the shipped data)")


def pick(indices: str | int | Sequence[int] | None, count: int | None, key: str = "data.indices") -> list[int]:
    """The indices chosen among ``count`` things; with ``count`` None any that are written out. Raises ConfigError naming ``key``."""
    if indices is None:
        return list(range(count or 0))
    ranges: list[range] = []
    parts = indices.split(",") if isinstance(indices, str) else [str(i) for i in ([indices] if isinstance(indices, int) else indices)]
    for part in parts:
        first, dash, last = part.strip().partition("-")
        low, high = digits(first), digits(last if dash else first)
        if low is None or high is None:
            raise ConfigError(f"{key} = {indices!r}: expected numbers and ranges such as 0-3 or 0,2")
        if count is not None and high >= count:
            raise ConfigError(f"{key} = {indices!r}: there are {count}, numbered 0 to {count - 1}")
        ranges.append(range(low, high + 1))
    # Counted before they are written out, for a range may be of more than the memory holds.
    if sum(map(len, ranges)) > _MOST_INDICES:
        raise ConfigError(f"{key} = {indices!r}: names more than {_MOST_INDICES}")
    picked = [index for part in ranges for index in part]
    if not picked or len(set(picked)) < len(picked):
        raise ConfigError(f"{key} = {indices!r}: must name each once, and at least one")
    return picked


def _planes(image: Image.Image, path: Path, alpha: str) -> Array:
    """An opened image as (3, H, W) in [0, 1], float64."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow widens some of these files to 32 bits
        grey = np.asarray(image, dtype=np.float64) / 65535
    elif image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
    else:
        return _eight_bit(image, path, alpha)
    if not (grey.min() >= 0 and grey.max() <= 1):
        scale = 65535 if image.mode.startswith("I") else 1
        raise ConfigError(f"{path}: grey values from {grey.min() * scale:g} to {grey.max() * scale:g}; they must lie in [0, {scale}]")
    return np.repeat(grey[None], 3, axis=0)


def _eight_bit(image: Image.Image, path: Path, alpha: str) -> Array:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            if alpha == "refuse":
                raise ConfigError(f"{path} has transparent pixels; say what is behind them with data.alpha=white or data.alpha=black")
            rgba = Image.alpha_composite(Image.new("RGBA", image.size, alpha), rgba)
        image = rgba
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LA", "PA"):
        raise ConfigError(f"{path}: images of Pillow mode {image.mode} are not read; save it as an RGB or grey PNG")
    return np.asarray(image.convert("RGB"), dtype=np.float64).transpose(2, 0, 1) / 255


def _cover(planes: Array, h: int, w: int) -> Array:
    """(3, H, W) scaled until it just covers h x w."""
    scale = max(h / planes.shape[1], w / planes.shape[2])
    size = (max(w, round(planes.shape[2] * scale)), max(h, round(planes.shape[1] * scale)))
    resized = [Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.LANCZOS) for plane in planes]
    return np.clip(np.stack([np.asarray(plane, dtype=np.float64) for plane in resized]), 0, 1)
