"""Pictures of a result: the panel, the samples as PNG, and the trajectory as GIF.

Images are shown and saved on the fixed range [-1, 1] and clipped to it, never stretched to their own extremes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

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
    """(C, H, W) in [-1, 1], C = 1 or 3, as uint8 (H, W) or (H, W, 3): clipped, 0 for -1 and 255 for 1.

    Raises ValueError for another number of channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an array of shape {image.shape} is no picture; (1, H, W) or (3, H, W) is needed")
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


def log_spaced(ratios: Sequence[float], most: int) -> list[int]:
    """At most ``most`` indices of the decreasing ``ratios`` (sigma / alpha > 0), evenly spaced in their logarithm.

    The first and the last are among them. Where the two are equal the indices themselves are evenly spaced.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    if logs[0] == logs[-1]:
        logs = -np.arange(len(logs), dtype=np.float64)
    wanted = np.linspace(logs[0], logs[-1], min(most, len(logs)))
    return sorted({int(np.abs(logs - level).argmin()) for level in wanted} | {0, len(logs) - 1})[-most:]


def save_panel(shown: Shown, path: Path) -> None:
    """Writes the panel: measurement | truth | one sample, and below mean | |mean - truth| | std (no truth: four pictures).

    |mean - truth| and std are root mean squares over the channels on one colour scale, so that an honest std looks
    like the error beside it; the colour bar's end is the larger of their 99.5 % quantiles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    std = _magnitude(shown.std)
    error = None if shown.truth is None else _magnitude(shown.mean - shown.truth)
    maps = [m for m in (error, std) if m is not None]
    top = max([float(np.quantile(m, 0.995)) for m in maps] + [1e-6])
    noun = "sample" if shown.count == 1 else "samples"
    cells: list[tuple[str, str, Array, bool]] = [("measurement", "view", shown.view, False)]
    if shown.truth is not None:
        cells.append(("truth", "truth", shown.truth, False))
    cells.append(("one sample", "sample", shown.sample, False))
    cells.append((f"mean of {shown.count} {noun}", "mean", shown.mean, False))
    if error is not None:
        cells.append(("|mean \N{MINUS SIGN} truth|", "error", error, True))
    cells.append(("posterior std" if shown.count > 1 else "posterior std (needs 2 samples)", "std", std, True))

    columns = 3 if len(cells) == 6 else 2
    rows = math.ceil(len(cells) / columns)
    height, width = shown.mean.shape[1:]
    tall = 3.1 * min(max(height / width, 0.4), 2.5)
    figure = Figure(figsize=(3.7 * columns, (tall + 0.85) * rows + 0.5), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shown.title, fontsize=12, color="black")
    for place, (name, key, content, is_map) in enumerate(cells):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(name, fontsize=13, fontweight="bold", color="black")
        axes.set_xticks([])
        axes.set_yticks([])
        if is_map:
            drawn = axes.imshow(content, cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
            bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02, extend="max" if content.max() > top else "neither")
            bar.ax.tick_params(labelsize=9)
            text = f"{content.min():.2g} to {content.max():.2g}, average {content.mean():.2g}"
        else:
            axes.imshow(to_bytes(content), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            text = "" if key == "view" else f"values {content.min():.2f} to {content.max():.2f}"
        axes.set_xlabel("\n".join(filter(None, (text, shown.captions.get(key)))), fontsize=10, color="black")
    figure.savefig(path, format="png", metadata={"Software": None})


def _magnitude(values: Array) -> Array:
    """Root mean square over channels, (C, H, W) -> (H, W)."""
    magnitude: Array = np.sqrt(np.mean(np.square(values.astype(np.float64)), axis=0))
    return magnitude
