"""Pictures of a result: the panel, the samples as PNG, and the trajectory as GIF.

Images are shown and saved on the fixed range [-1, 1] and clipped to it, never stretched to their own extremes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from invsolve.signals import Array, as_shown, magnitude

_GIF_SIDE = 256


@dataclass(frozen=True)
class Shown:
    """What a panel shows: ``view`` a picture of the measurement, (C, H, W) arrays in [-1, 1], and lines of text."""

    title: str
    view: Array
    truth: Array | None
    sample: Array
    mean: Array
    std: Array
    count: int
    captions: dict[str, str]


def to_bytes(image: Array) -> Array:
    """(C, H, W) in [-1, 1] as uint8 (H, W), or (H, W, 3) for C = 3: clipped, 0 for -1 and 255 for 1.

    Two channels are a complex image, shown by its magnitude: 0 for 0 and 255 for 1 and above. Raises ValueError for
    another number of channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 2, 3):
        raise ValueError(f"an array of shape {image.shape} is no picture; (C, H, W) with 1, 2 or 3 channels is needed")
    image = as_shown(image)
    levels = np.rint(np.clip((image.astype(np.float64) + 1) / 2, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return levels[..., 0] if image.shape[0] == 1 else levels


def save_png(image: Array, path: Path) -> None:
    """Writes `to_bytes` of an image without loss."""
    Image.fromarray(to_bytes(image)).save(path, format="PNG")


def save_gif(frames: Sequence[Array], path: Path) -> None:
    """Writes uint8 frames of equal shape as an endless GIF; small ones are enlarged by whole pixels, the last one stays on."""
    enlarge = max(1, _GIF_SIDE // max(frames[0].shape[:2]))
    pictures = [Image.fromarray(frame.repeat(enlarge, 0).repeat(enlarge, 1)) for frame in frames]
    durations = [80] * (len(pictures) - 1) + [1500]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def save_panel(shown: Shown, path: Path) -> None:
    """Writes the panel: measurement | truth | one sample, and below mean | |mean - truth| | std (no truth: four pictures).

    |mean - truth| and std are root mean squares over the channels on one colour scale, so that an honest std looks
    like the error beside it; the colour bar's end is the larger of their 99.5 % quantiles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = _cells(shown)
    top = scale_of([cell.content for cell in cells if cell.is_map])
    columns = 3 if len(cells) == 6 else 2
    rows = math.ceil(len(cells) / columns)
    height, width = shown.mean.shape[1:]
    # One cell is a picture with room for a colour bar at its right and two lines of text below (inches).
    side_h, side_w = 3.1 * min(max(height / width, 0.4), 2.5), 3.1
    cell_h, cell_w, top_margin = side_h + 0.95, side_w + 0.75, 0.45
    total_h, total_w = rows * cell_h + top_margin, columns * cell_w + 0.1
    figure = Figure(figsize=(total_w, total_h), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.1 / total_w, 1 - 0.3 / total_h, shown.title, fontsize=11, color="black", parse_math=False)
    for place, cell in enumerate(cells):
        left = 0.1 + place % columns * cell_w
        bottom = total_h - top_margin - (place // columns + 1) * cell_h + 0.6
        axes = figure.add_axes((left / total_w, bottom / total_h, side_w / total_w, side_h / total_h))
        axes.set_title(cell.name, fontsize=13, fontweight="bold", color="black")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(cell.caption, fontsize=10, color="black")
        if not cell.is_map:
            axes.imshow(to_bytes(cell.content), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            continue
        drawn = axes.imshow(cell.content, cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
        beside = figure.add_axes(((left + side_w + 0.06) / total_w, bottom / total_h, 0.13 / total_w, side_h / total_h))
        figure.colorbar(drawn, cax=beside, extend="max" if cell.content.max() > top else "neither").ax.tick_params(labelsize=9)
    figure.savefig(path, format="png", metadata={"Software": None})


class _Cell(NamedTuple):
    """One picture of the panel: an image (C, H, W), or with ``is_map`` a map (H, W) for the colour scale."""

    name: str
    content: Array
    caption: str
    is_map: bool = False


def _cells(shown: Shown) -> list[_Cell]:
    def image(name: str, key: str, content: Array) -> _Cell:
        what, seen = ("magnitude", (as_shown(content) + 1) / 2) if content.shape[0] == 2 else ("values", content)
        values = f"{what} {seen.min():.2f} to {seen.max():.2f}"
        return _Cell(name, content, "\n".join(filter(None, (values, shown.captions.get(key)))))

    def colour_map(name: str, content: Array) -> _Cell:
        text = f"{content.min():.2g} to {content.max():.2g}, average {content.mean():.2g}\n(where images span [\N{MINUS SIGN}1, 1])"
        return _Cell(name, content, text, True)

    # The view is clamped, so its caption gives the values of y in place of its own.
    cells = [_Cell("measurement", shown.view, shown.captions.get("view", ""))]
    if shown.truth is not None:
        cells.append(image("truth", "truth", shown.truth))
    cells.append(image("one sample", "sample", shown.sample))
    cells.append(image(f"mean of {shown.count} sample{'s' if shown.count > 1 else ''}", "mean", shown.mean))
    if shown.truth is not None:
        cells.append(colour_map("|mean \N{MINUS SIGN} truth|", magnitude(shown.mean - shown.truth)))
    cells.append(colour_map("posterior std" if shown.count > 1 else "posterior std (needs 2 samples)", magnitude(shown.std)))
    return cells


def scale_of(maps: Sequence[Array]) -> float:
    """The upper end of the colour scale that maps share: the largest of their 99.5 % quantiles."""
    return max([float(np.quantile(one, 0.995)) for one in maps] + [1e-6])
