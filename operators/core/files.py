"""Reading files that somebody else wrote: images, .npy, .npz and .pt arrays, by name or as the tensors that they hold.

Whatever a damaged, hostile or foreign file does to the library that decodes it becomes one declared error, `Unreadable`. What a
file claims is compared with what it holds before memory is taken for it, and no pickled code is loaded.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# What is unpacked (an array of an .npz, a slice of a volume, an expanded tensor) may be no larger, whatever a small file claims.
MOST_BYTES = 2**32
_PNG = b"\x89PNG\r\n\x1a\n"
_NOTES = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP")
# EXIF orientation -> how the stored picture is turned.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(ValueError):
    """A file that cannot be read, or not without losing something; the message is one line that names it and the reason."""


def one_line(error: BaseException) -> str:
    """The message of an error, or the name of its type, without line breaks and undecodable characters."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def printable(text: str) -> str:
    """Text with the bytes of a file name that are not UTF-8 written as ``\\xe9``, so that it can be printed and written."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return "".join(
        f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c.encode("utf-8", "backslashreplace").decode() for c in text
    )


@contextmanager
def reading(path: Path, what: str = "cannot be read") -> Iterator[None]:
    """Makes whatever a decoder of other people's bytes raises an `Unreadable` that names the file.

    Decoders raise nearly anything on damaged bytes (zlib.error, struct.error, SyntaxError, KeyError, OverflowError, MemoryError).
    """
    try:
        if not os.path.isfile(path):
            raise OSError("it is no file (a folder, a device, or a link that leads nowhere)" if os.path.lexists(path) else "no such file")
        yield
    except Unreadable:
        raise
    except MemoryError as error:
        raise Unreadable(f"{printable(str(path))} {what}: it does not fit into memory ({one_line(error)})") from error
    except Exception as error:
        raise Unreadable(f"{printable(str(path))} {what}: {one_line(error)}") from error


def native(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Numbers of any kind and byte order as float32 or complex64, the precision that is computed in.

    Raises Unreadable for what holds no numbers, for NaN or infinity, and for values beyond single precision.
    """
    if array.dtype.kind not in "fciu":
        raise Unreadable(f"{name} has type {array.dtype}; numbers are needed")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise Unreadable(f"{name} holds {bad} values of {array.size} that are NaN or infinite; every value must be finite")
    with np.errstate(over="ignore"):
        found = array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)
    if not bool(np.isfinite(found).all()):
        raise Unreadable(f"{name} holds values up to {np.abs(array).max():g} in magnitude; single precision ends at 3.4e+38")
    return found


# -- arrays ---------------------------------------------------------------------------------------------------------------


def load_npy(path: Path) -> np.ndarray[Any, Any]:
    """The array of a .npy file. Raises Unreadable, also for one whose header claims more than the file holds."""
    with reading(path), path.open("rb") as stream:
        _check_claim(stream, path.stat().st_size, "the file has")
        found: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return found


def load_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an .npz among ``names``; the others are not unpacked. Raises Unreadable."""
    found = {}
    with reading(path), zipfile.ZipFile(path) as opened:
        held = {info.filename.removesuffix(".npy"): info for info in opened.infolist()}
        for name in names:
            if name not in held:
                continue
            if held[name].file_size > MOST_BYTES:
                raise OSError(f"its array `{name}` unpacks to {held[name].file_size} bytes; at most {MOST_BYTES} are read from an .npz")
            with opened.open(held[name]) as stream:
                _check_claim(stream, held[name].file_size, f"its array `{name}` has")
            with opened.open(held[name]) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


def names_in(path: Path) -> list[str]:
    """The names of the arrays of an .npz. Raises Unreadable."""
    with reading(path), zipfile.ZipFile(path) as opened:
        return [name.removesuffix(".npy") for name in opened.namelist()]


def _check_claim(stream: BinaryIO | Any, room: int, what: str) -> None:
    """Raises ValueError if the header of an .npy stream claims more bytes than there are; leaves a file at its beginning."""
    version = np.lib.format.read_magic(stream)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"it is of .npy version {version}, which holds named fields; plain numbers are needed")
    shape, _, dtype = headers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded; numbers are needed")
    claimed, room = math.prod(shape) * dtype.itemsize, room - stream.tell()
    if min(shape, default=1) < 0 or claimed > room:
        raise ValueError(f"its header claims an array {shape} of {dtype}, which is {claimed} bytes, and {what} {room}")
    if isinstance(stream, zipfile.ZipExtFile):
        return
    stream.seek(0)


def load_tensor(path: Path) -> Tensor:
    """The one tensor of a .pt file, dense and on the CPU. Raises Unreadable; pickled code is not loaded."""
    import pickle

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise Unreadable(f"{path} holds Python objects, or is no .pt file; save the tensor alone: torch.save(y, path)") from error
        if not isinstance(held, Tensor):
            raise TypeError(f"it holds a {type(held).__name__}, not a tensor; save a single one")
        if held.layout != torch.strided or held.is_quantized or held.is_meta:
            kind = "no values" if held.is_meta else "a quantised tensor" if held.is_quantized else f"a sparse tensor ({held.layout})"
            raise Unreadable(f"{path} holds {kind}; save the dense one: torch.save(y.to_dense(), path), or y.dequantize()")
        claimed = held.numel() * held.element_size()
        if claimed > max(MOST_BYTES, path.stat().st_size):
            raise Unreadable(f"{path} claims {claimed} bytes and has {path.stat().st_size}; at most {MOST_BYTES} are unpacked")
        return held.detach().resolve_conj().resolve_neg()


def tensor_numbers(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array; types that numpy does not know (bfloat16, float8) in single precision."""
    known = (torch.float16, torch.float32, torch.float64)
    return np.asarray((tensor.float() if tensor.is_floating_point() and tensor.dtype not in known else tensor).numpy())


# -- images ---------------------------------------------------------------------------------------------------------------


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file, opened by Pillow; its pixels may not be decoded yet, and are as they were stored (see `upright`).

    Notes beside the pixels (text, EXIF, colour profile) that are damaged or too large to unpack do not matter. Raises Unreadable for
    what Pillow cannot decode, for more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels (179 million), for several pages or
    frames, and for depths that Pillow would cut (16-bit colour) or misread (grey of other than 1, 2, 4, 8, 16 or 32 bits).
    """
    with reading(path, "cannot be read as an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format != "MPO":  # a telephone's photograph with its preview or depth
                raise Unreadable(f"{printable(str(path))} has {pages} pages; an image has one (save the one that is meant by itself)")
            _check_depth(image, path)
            yield image


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        image = Image.open(path)
        try:
            if image.format == "PNG":
                image.load()  # notes may also stand behind the pixels
        except Exception:
            image.close()
            raise
    except Image.DecompressionBombError as error:
        told = str(error).split(", could be")[0]
        raise Unreadable(f"{printable(str(path))} is too large to be read: {told}; cut or shrink it first") from error
    except Exception:
        bare = _without_notes(path)
        if bare is None:
            raise
        image = Image.open(BytesIO(bare))
        image.load()
    with image:
        yield image


def _without_notes(path: Path) -> bytes | None:
    """A PNG file without the chunks that hold notes, which Pillow unpacks or refuses; None for another file."""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        return None
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in _NOTES:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _check_depth(image: Image.Image, path: Path) -> None:
    """Raises Unreadable for what Pillow reads with fewer bits than the file has, or on another scale."""
    bits: tuple[int, ...] = (8,)
    if image.format == "PNG":
        with path.open("rb") as stream:
            header = stream.read(26)
        bits = (header[24],) * {2: 3, 4: 2, 6: 4}.get(header[25], 1)
    elif image.format == "TIFF":
        held = image.tag_v2.get(258, (1,))  # type: ignore[attr-defined]
        bits = held if isinstance(held, tuple) else (held,)
    if max(bits) == 16 and len(bits) > 1:
        raise Unreadable(
            f"{printable(str(path))} has {len(bits)} channels of 16 bits, of which Pillow reads 8; save it with 8, or as a .npy array"
        )
    if max(bits) not in (1, 2, 4, 8, 16, 32, 64):
        raise Unreadable(f"{printable(str(path))} has {max(bits)} bits for each value; 8 or 16 are needed")


def upright(image: Image.Image) -> Image.Image:
    """The picture as the camera was held; an orientation that cannot be read is none."""
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = image.getexif().get(0x0112, 1)
        except (SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, OSError, struct.error):
            return 1
    return found if isinstance(found, int) and found in range(1, 9) else 1


def _grey(path: Path, transparent_hides: bool = False) -> Tensor:
    """Grey values of an image file, white 1; floating-point files as they are.

    Transparency is refused, or with ``transparent_hides`` counts as black beside white. Raises Unreadable.
    """
    with opened_image(path) as opened:
        picture = upright(opened)
        if picture.has_transparency_data:
            rgba = np.array(picture.convert("RGBA"), dtype=np.float64) / 255
            alpha = rgba[..., 3]
            if alpha.min() < 1:
                # Black on transparent ground, or grey: which of the two is meant to be hidden cannot be known.
                if not transparent_hides or not bool((rgba[alpha > 0] == 1)[:, :3].all()):
                    only = "; a mask with transparency has white beside it, and no other colour" if transparent_hides else ""
                    raise Unreadable(f"{path} has transparent pixels{only}; save it in black and white, without transparency")
                return torch.from_numpy(alpha.copy())
        if picture.mode.startswith("I"):
            # Pillow's conversion to 8 bits would clip these, not scale them.
            return torch.from_numpy(np.array(picture, dtype=np.float64)) / 65535
        if picture.mode == "F":
            return torch.from_numpy(np.array(picture, dtype=np.float64))
        return torch.from_numpy(np.array(picture.convert("L"), dtype=np.float64)) / 255


def plain(array: np.ndarray[Any, Any]) -> Tensor:
    """Numbers of any kind and byte order as a tensor in double precision. Raises Unreadable for other arrays."""
    if array.dtype.kind not in "fciub":
        raise Unreadable(f"an array of type {array.dtype}; numbers are needed")
    return torch.from_numpy(array.astype(np.complex128 if array.dtype.kind == "c" else np.float64))


def read_array(
    source: str | Path | Tensor | np.ndarray[Any, Any],
    what: str,
    images: bool = True,
    complex_values: bool = False,
    transparent_hides: bool = False,
) -> tuple[Tensor, str]:
    """(array, its name for messages) of a tensor, an array, a .npy file, a .pt file with one tensor, or an image file.

    Float64, or complex128 if `complex_values` are wanted. Image files, taken if `images`, give their grey values between
    0 (black) and 1 (white); transparent pixels are refused, or with `transparent_hides` are black where all others are white.
    `what` is the word for the thing in messages, such as "kernel". Pickled code is never loaded.

    Raises ValueError if there is no such file, it is of no known kind or damaged, or an entry is complex (real, where
    complex ones are wanted) or not finite.
    """
    if isinstance(source, Tensor):
        found, name = source.detach().cpu(), f"the {what} tensor"
    elif isinstance(source, np.ndarray):
        found, name = plain(source), f"the {what} array"
    else:
        path = Path(source).expanduser()
        name = str(path)
        if not path.is_file():
            raise ValueError(f"no {what} file at {path}")
        if path.suffix not in (".npy", ".pt", ".pth") and not images:
            raise ValueError(f"a {what} file ends in .npy or .pt, got {path}")
        found = _of_file(path, images, transparent_hides)
    if found.is_complex() != complex_values or not bool(found.isfinite().all()):
        kind = "complex" if complex_values else "real"
        raise ValueError(f"{name} must be {kind} and finite, got {found.dtype} with {int((~found.isfinite()).sum())} bad entries")
    return found.to(torch.complex128 if complex_values else torch.float64).clone(), name


def _of_file(path: Path, images: bool, transparent_hides: bool) -> Tensor:
    known = f"{path} is neither a .npy file of numbers nor a .pt file of one tensor" + (" nor an image" if images else "")
    try:
        if path.suffix == ".npy":
            stored = load_npy(path)
            if stored.dtype.kind not in "fciub":
                raise Unreadable(f"{known}: it holds {stored.dtype}")
            return plain(stored)
        return load_tensor(path) if path.suffix in (".pt", ".pth") else _grey(path, transparent_hides)
    except Unreadable as error:
        if error.__cause__ is None:  # the reason is ours, and says more
            raise
        if isinstance(error.__cause__, TypeError):
            raise Unreadable(known) from error
        raise Unreadable(f"{known} ({one_line(error.__cause__)})") from error
