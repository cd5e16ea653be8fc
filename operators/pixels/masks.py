"""Which pixels are hidden: masks (H, W), float64, 1 = known and 0 = hidden, for every kind of inpainting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from operators.core.files import read_array

# Kind -> its options. Those of SEEDED are drawn at random, the others follow from their options alone.
KINDS: dict[str, tuple[str, ...]] = {
    "box": ("size", "margin"),
    "random": ("fraction",),
    "lines": ("fraction", "thickness"),
    "strokes": ("fraction", "thickness"),
    "text": ("text", "size"),
    "half": ("side",),
    "expand": ("size",),
    "alternate": (),
    "super_resolve": (),
    "file": ("mask",),
}
SEEDED = ("box", "random", "lines", "strokes", "text")
_SIDES = ("left", "right", "top", "bottom")


def listed(words: Sequence[str]) -> str:
    """'a', 'b' or 'c'."""
    quoted = [repr(word) for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def draw_mask(kind: str, height: int, width: int, options: Mapping[str, Any], rng: torch.Generator) -> Tensor:
    """Mask (height, width) of a kind in KINDS with these of its options, drawn from `rng` if the kind is in SEEDED.

    Raises ValueError for option values that its function refuses.
    """
    makers: dict[str, Callable[..., Tensor]] = {
        "box": box_mask, "random": random_mask, "lines": lines_mask, "strokes": strokes_mask, "text": text_mask,
        "half": half_mask, "expand": expand_mask, "alternate": alternate_mask, "super_resolve": super_resolve_mask, "file": file_mask,
    }  # fmt: skip
    return makers[kind](height, width, **({"rng": rng} if kind in SEEDED else {}), **options)


def _draw(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=rng))


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def _sides(size: int | Sequence[int] | None, height: int, width: int, part: int) -> tuple[int, int]:
    """`size` as (h, w): a side, a pair, or None for 1/part of each side of the image."""
    if size is None:
        return max(height // part, 1), max(width // part, 1)
    sides = list(size) if isinstance(size, Sequence) else [size, size]
    if len(sides) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in sides):
        raise ValueError(f"size must be a positive side or (h, w), got size={size!r}")
    return sides[0], sides[1]


def box_mask(height: int, width: int, rng: torch.Generator, size: int | Sequence[int] | None = None, margin: int = 0) -> Tensor:
    """Mask (H, W), float64, 0 in one box whose place is uniform among those at least `margin` pixels from the border.

    `size` is a side, a pair (h, w), or None for half of each side. Raises ValueError if the box does not fit.
    """
    h, w = _sides(size, height, width, 2)
    if isinstance(margin, bool) or not isinstance(margin, int) or margin < 0:
        raise ValueError(f"margin must be an integer >= 0 (pixels), got margin={margin!r}")
    if h + 2 * margin > height or w + 2 * margin > width:
        room = f"size may be at most {height - 2 * margin}x{width - 2 * margin}" if 2 * margin < min(height, width) else "lower margin"
        raise ValueError(f"a box of {h}x{w} with margin {margin} does not fit an image of {height}x{width}; {room}")
    top, left = _draw(margin, height - margin - h, rng), _draw(margin, width - margin - w, rng)
    mask = torch.ones(height, width, dtype=torch.float64)
    mask[top : top + h, left : left + w] = 0
    return mask


def _removed(fraction: float, height: int, width: int) -> int:
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is the share of pixels removed and must lie in [0, 1), got {fraction!r}")
    # 0.29 * 100 is 28.999999999999996: the product of a decimal fraction is meant, not its binary rounding.
    return math.floor(fraction * height * width + 1e-9)


def random_mask(height: int, width: int, rng: torch.Generator, fraction: float = 0.7) -> Tensor:
    """Mask (H, W), float64, with exactly floor(fraction H W) zeros at places uniform without replacement."""
    mask = torch.ones(height * width, dtype=torch.float64)
    mask[torch.randperm(height * width, generator=rng)[: _removed(fraction, height, width)]] = 0
    return mask.reshape(height, width)


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)


def _cover(height: int, width: int, fraction: float, shapes: Iterator[Tensor]) -> Tensor:
    """Mask that hides shapes (H, W), bool, one after another until at least floor(fraction H W) pixels are hidden."""
    goal = _removed(fraction, height, width)
    hidden = torch.zeros(height, width, dtype=torch.bool)
    while int(hidden.sum()) < goal:
        hidden |= next(shapes)
    return (~hidden).double()


def _thickness(thickness: int | None, default: int) -> int:
    if thickness is None:
        return default
    if isinstance(thickness, bool) or not isinstance(thickness, int) or thickness < 1:
        raise ValueError(f"thickness must be an integer >= 1 (pixels), got {thickness!r}")
    return thickness


def lines_mask(height: int, width: int, rng: torch.Generator, fraction: float = 0.25, thickness: int | None = None) -> Tensor:
    """Mask (H, W), float64, hidden along straight lines from border to border, `thickness` pixels wide (default 1).

    Each line goes through a uniform point of the image in a uniform direction and hides the pixels whose centres lie within
    thickness / 2 of it. Lines are added until at least floor(fraction H W) pixels are hidden.
    """
    radius = _thickness(thickness, 1) / 2
    rows, cols = _grid(height, width)

    def lines() -> Iterator[Tensor]:
        while True:
            row, col, angle = _uniform(-0.5, height - 0.5, rng), _uniform(-0.5, width - 0.5, rng), _uniform(0, math.pi, rng)
            yield ((rows - row) * math.cos(angle) - (cols - col) * math.sin(angle)).abs() <= radius

    return _cover(height, width, fraction, lines())


def strokes_mask(height: int, width: int, rng: torch.Generator, fraction: float = 0.3, thickness: int | None = None) -> Tensor:
    """Mask (H, W), float64, hidden along free-form brush strokes.

    A stroke is a polyline of 4 to 10 segments with round ends, from a uniform point in a uniform direction that turns by
    N(0, 0.6 rad) at each vertex; segments are 5 to 20 % of the longer side, and a stroke ends where it leaves the image. The brush
    is `thickness` to half of it wide, drawn per stroke (default: a tenth of the shorter side, at least 2). Segments are added until
    at least floor(fraction H W) pixels are hidden. The idea is Yu et al. 2019 (arXiv:1806.03589, Algorithm 1); numbers are ours.
    """
    thick = _thickness(thickness, max(min(height, width) // 10, 2))
    rows, cols = _grid(height, width)
    longer = max(height, width)

    def segments() -> Iterator[Tensor]:
        while True:
            row, col, angle = _uniform(0, height - 1, rng), _uniform(0, width - 1, rng), _uniform(0, 2 * math.pi, rng)
            radius = _uniform(thick / 2, thick, rng) / 2
            for _ in range(_draw(4, 10, rng)):
                angle += 0.6 * float(torch.randn((), generator=rng, dtype=torch.float64))
                length = _uniform(0.05, 0.2, rng) * longer
                down, right = length * math.sin(angle), length * math.cos(angle)
                part = (((rows - row) * down + (cols - col) * right) / length**2).clamp(0, 1)
                yield (rows - row - part * down).square() + (cols - col - part * right).square() <= radius**2
                row, col = row + down, col + right
                if not (0 <= row < height and 0 <= col < width):
                    break

    return _cover(height, width, fraction, segments())


def text_mask(height: int, width: int, rng: torch.Generator, text: str = "lorem ipsum dolor sit amet", size: int | None = None) -> Tensor:
    """Mask (H, W), float64, hidden where rows of `text` are written over the image, repeated to fill it.

    `size` is that of Pillow's default font in pixels (default: an eighth of the height, at least 8), rows are 1.5 size apart, and
    the shift of the rows and of the text within each row is random. The same Pillow draws the same letters.
    Raises ValueError if size is not a positive int or the text has no letters that leave a mark.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size of text must be an integer >= 1 (pixels), got size={size!r}")
    points = max(height // 8, 8) if size is None else size
    font = ImageFont.load_default(size=points)
    words = " ".join(text.split()) + " "
    period, pitch = math.ceil(font.getlength(words)), max(round(1.5 * points), 1)
    page = Image.new("L", (width, height), 255)
    pen = ImageDraw.Draw(page)
    pen.fontmode = "1"
    line = words * (width // max(period, 1) + 2)
    if not words.strip() or font.getmask(words, mode="1").getbbox() is None:
        raise ValueError(f"text has no letters to hide pixels with: {text!r}")
    for top in range(-_draw(0, pitch - 1, rng), height, pitch):
        pen.text((-_draw(0, max(period - 1, 0), rng), top), line, fill=0, font=font)
    return (torch.from_numpy(np.array(page)) != 0).double()


def half_mask(height: int, width: int, side: str = "right") -> Tensor:
    """Mask (H, W), float64, that hides one half, floor(W / 2) columns at the `side` left or right or floor(H / 2) rows at top or bottom.

    RePaint (Lugmayr et al., arXiv:2201.09865, Sec. 5.3) gives the left half as input. Raises ValueError for another side.
    """
    if side not in _SIDES:
        raise ValueError(f"side is the half that is hidden, {listed(_SIDES)}, got {side!r}")
    mask = torch.ones(height, width, dtype=torch.float64)
    h, w = height // 2, width // 2
    hidden = {"left": mask[:, :w], "right": mask[:, width - w :], "top": mask[:h], "bottom": mask[height - h :]}
    hidden[side].zero_()
    return mask


def expand_mask(height: int, width: int, size: int | Sequence[int] | None = None) -> Tensor:
    """Mask (H, W), float64, that knows only a centred box of side `size` (int or (h, w)); default a quarter of each side.

    The default is RePaint's Expand, 64 of 256 (arXiv:2201.09865, Sec. 5.3). Raises ValueError if the box exceeds the image.
    """
    h, w = _sides(size, height, width, 4)
    if h > height or w > width:
        raise ValueError(f"a known box of {h}x{w} exceeds the image of {height}x{width}")
    mask = torch.zeros(height, width, dtype=torch.float64)
    top, left = (height - h) // 2, (width - w) // 2
    mask[top : top + h, left : left + w] = 1
    return mask


def alternate_mask(height: int, width: int) -> Tensor:
    """Mask (H, W), float64, that hides every second row, the first one known (RePaint's Alternating Lines)."""
    mask = torch.ones(height, width, dtype=torch.float64)
    mask[1::2] = 0
    return mask


def super_resolve_mask(height: int, width: int) -> Tensor:
    """Mask (H, W), float64, that knows every second pixel of every second row (RePaint's Super-Resolve 2x)."""
    mask = torch.zeros(height, width, dtype=torch.float64)
    mask[::2, ::2] = 1
    return mask


def file_mask(height: int, width: int, mask: str | Path | Tensor) -> Tensor:
    """Mask (H, W), float64 0/1, from an image, .npy or .pt file or a tensor (H, W) or (1, H, W); nonzero means known.

    In an image file transparent pixels are hidden, if all others are white. Raises ValueError if there is no such file or it cannot
    be read, its size is not that of the image, it holds several masks, or values other than zero and one more (a photograph, or
    a mask with blurred edges, where it is not clear what is known), and for colours other than white beside transparency.
    """
    found, name = read_array(mask, "mask", transparent_hides=True)
    if found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if found.ndim > 2 and tuple(found.shape[-2:]) == (height, width):
        raise ValueError(
            f"{name} has shape {tuple(found.shape)}, which could mean masks of channels or of images; pass one mask "
            f"({height}, {width}) that channels and images share, or per_image=True with a folder of one mask file per image id"
        )
    if tuple(found.shape) != (height, width):
        raise ValueError(f"{name} has size {tuple(found.shape)}, the image has {(height, width)}")
    levels = found[found != 0].unique()
    if len(levels) > 1:
        raise ValueError(f"{name} holds {len(levels)} values other than 0, from {levels[0]:g} to {levels[-1]:g}; a mask holds one")
    return (found != 0).double()


def folder_mask(folder: str | Path, name: int | str) -> Path:
    """The file <name>.png or <name>.npy of a folder; ValueError if there is neither."""
    found = [path for path in (Path(folder) / f"{name}{suffix}" for suffix in (".png", ".npy")) if path.is_file()]
    if not found:
        raise ValueError(f"no mask for image {name!r}: there is neither {name}.png nor {name}.npy in {folder}")
    return found[0]
