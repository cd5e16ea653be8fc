"""Reading the arrays that a user gives: as a tensor, an array, or the path of a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor


def _grey(path: Path) -> Tensor:
    """Grey values of an image file, scaled so that white is 1."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):
            # Pillow's conversion to 8 bits would clip these, not scale them.
            return torch.from_numpy(np.array(picture, dtype=np.float64)) / 65535
        return torch.from_numpy(np.array(picture.convert("L"), dtype=np.float64)) / 255


def _numbers(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _plain_tensor(path: Path) -> Tensor:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Tensor):
        raise TypeError(f"a {type(loaded).__name__}, not a tensor")
    return loaded


def read_array(
    source: str | Path | Tensor | np.ndarray, what: str, images: bool = True, complex_values: bool = False
) -> tuple[Tensor, str]:
    """(array, its name for messages) of a tensor, an array, a .npy file, a .pt file with one tensor, or an image file.

    Float64, or complex128 if `complex_values` are wanted. Image files, taken if `images`, give their grey values between
    0 (black) and 1 (white). `what` is the word for the thing in messages, such as "kernel". Pickled code is never loaded.

    Raises ValueError if there is no such file, it is of no known kind, or an entry is complex (real, where
    complex ones are wanted) or not finite.
    """
    if isinstance(source, (Tensor, np.ndarray)):
        found, name = torch.as_tensor(source).detach().cpu(), f"the {what} {'tensor' if isinstance(source, Tensor) else 'array'}"
    else:
        path = Path(source).expanduser()
        name = str(path)
        if not path.is_file():
            raise ValueError(f"no {what} file at {path}")
        readers = {".npy": _numbers, ".pt": _plain_tensor, ".pth": _plain_tensor}
        if path.suffix not in readers and not images:
            raise ValueError(f"a {what} file ends in .npy or .pt, got {path}")
        try:
            found = readers.get(path.suffix, _grey)(path)
        except (UnidentifiedImageError, EOFError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
            known = "a .npy file of numbers nor a .pt file of one tensor" + (" nor an image" if images else "")
            raise ValueError(f"{path} is neither {known}") from error
    if found.is_complex() != complex_values or not bool(found.isfinite().all()):
        kind = "complex" if complex_values else "real"
        raise ValueError(f"{name} must be {kind} and finite, got {found.dtype} with {int((~found.isfinite()).sum())} bad entries")
    return found.to(torch.complex128 if complex_values else torch.float64).clone(), name
