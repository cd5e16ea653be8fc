"""The charts of a report: what is drawn, in units of the numbers; the template draws it as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from invsolve.reports.honesty import CELLS, levels

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` with ``ticks``, logarithmic where ``log``."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high one, and no further."""
        low, high, at = (math.log(max(v, 1e-12)) if self.log else v for v in (self.low, self.high, value))
        return min(max((at - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Series:
    """Points (x, y), drawn as "line", "points" (joined, with errors ± where given), "band" (its outline) or "ideal" (dashed)."""

    kind: str
    label: str
    points: Sequence[Point]
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """Axes, series, and bars from zero to y about x, ``width`` wide; ``text`` says below what is to be seen."""

    title: str
    text: str
    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    bars: Sequence[Point] = ()
    width: float = 0.0
    wide: bool = False


def of_honesty(found: Mapping[str, Mapping[str, Tensor]]) -> list[Chart]:
    """Coverage against its level, ranks, and spread against error."""
    return [_coverage(found), _ranks(found["ranks"]), _spread(found["spread"])]


def of_residuals(traces: Sequence[Mapping[str, Any]], total: int) -> Chart | None:
    """The residual of x0_hat against the step: median, and the range of all images and samples; None without traces."""
    values: dict[int, list[float]] = {}
    for trace in traces:
        for column in trace.get("residuals", ()):
            for step, value in zip(trace["steps"], column, strict=True):
                values.setdefault(step + 1, []).append(value)
    if not values:
        return None
    steps = sorted(values)
    middle = [(step, float(np.median(values[step]))) for step in steps]
    band = [(step, max(values[step])) for step in steps] + [(step, min(values[step])) for step in reversed(steps)]
    low, high = min(y for _, y in band), max(y for _, y in band)
    y = _log_axis("residual / noise", min(low, 0.8), max(high, 1.25))
    series = [Series("band", "all images and samples", band), Series("line", "median", middle)]
    many = sum(len(trace.get("residuals", ())) for trace in traces)
    text = f"Of the denoised estimate in units of the noise, over {many} sample{'s' if many > 1 else ''}: about 1 where it fits y."
    x = Axis("step", 1, max(total, steps[-1], 2), _round_ticks(1, max(total, steps[-1], 2)))
    return Chart("Residual against step", text, x, y, [*series, _flat(x, 1.0, "noise level")], wide=True)


def of_trace(trace: Mapping[str, Any], total: int) -> Chart | None:
    """The residuals of one image against the step, a line for each sample; None where they are not stored."""
    if not trace.get("residuals"):
        return None
    steps = [step + 1 for step in trace["steps"]]
    columns = trace["residuals"]
    flat = [value for column in columns for value in column]
    x = Axis("step", 1, max(total, steps[-1], 2), _round_ticks(1, max(total, steps[-1], 2)))
    y = _log_axis("residual / noise", min(*flat, 0.8), max(*flat, 1.25))
    series = [Series("line", f"sample {k}", list(zip(steps, column, strict=True))) for k, column in enumerate(columns, 1)]
    return Chart("Residual against step", "", x, y, [*series, _flat(x, 1.0, "noise level")])


def _coverage(found: Mapping[str, Mapping[str, Tensor]]) -> Chart:
    series = [Series("ideal", "honest", [(0, 0), (1, 1)])]
    for name, label in (("coverage", "pixels"), ("region_coverage", f"{CELLS} × {CELLS} region means")):
        rows = levels(found[name])
        series.append(Series("points", label, [(x, y) for x, y, _ in rows], [0.0 if math.isnan(e) else e for *_, e in rows]))
    fifths = [k / 5 for k in range(6)]
    text = "Below the diagonal the intervals are too narrow (too sure), above it too wide. Bars: one standard error over images."
    return Chart("Coverage of intervals", text, Axis("nominal", 0, 1, fifths), Axis("holds the truth", 0, 1, fifths), series)


def _ranks(part: Mapping[str, Tensor]) -> Chart:
    shares = part["shares"].tolist()
    n, even = len(shares) - 1, 1 / len(shares)
    top = max(*shares, 1.5 * even)
    x = Axis("rank of the truth among the samples", -0.5, n + 0.5, [k for k in range(n + 1) if k % max(1, math.ceil(n / 8)) == 0])
    text = "Flat if honest; U-shaped if too sure, a hump if too cautious, a slope if biased."
    p = float(part["p"])
    text += "" if math.isnan(p) else f" Uniform with p = {p:.2g}."
    y = Axis("share of pixels", 0, 1.05 * top, _round_ticks(0, 1.05 * top))
    return Chart("Ranks of the truth", text, x, y, [_flat(x, even, "honest")], [(float(k), s) for k, s in enumerate(shares)], 0.86)


def _spread(part: Mapping[str, Tensor]) -> Chart:
    count = part["curve_count"]
    kept = (count > max(20.0, 1e-4 * float(count.sum()))).tolist()
    rows = zip(kept, part["curve_spread"].tolist(), part["curve_error"].tolist(), strict=True)
    points = [(max(a, 1e-3), max(b, 1e-3)) for keep, a, b in rows if keep]
    both = [value for point in points for value in point] or [0.1]
    low, high = 0.8 * min(both), 1.25 * max(both)
    x, y = _log_axis("spread of the samples", low, high), _log_axis("error of their mean", low, high)
    ratio, error = float(part["ratio"]), float(part["stderr"])
    about = f"{ratio:.2f}" + ("" if math.isnan(error) or int(part["images"]) < 2 else f" ± {error:.2f}")
    text = f"Pixels by their spread; above the diagonal the samples are too sure. Spread / error overall: {about}."
    series = [Series("ideal", "honest", [(low, low), (high, high)]), Series("points", "pixels", points)]
    return Chart("Spread against error", text, x, y, series)


def _flat(x: Axis, y: float, label: str) -> Series:
    return Series("ideal", label, [(x.low, y), (x.high, y)])


def _log_axis(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis with ticks at 1, 2 and 5 times powers of ten, thinned out to at most six."""
    low, high = max(low, 1e-6), max(high, 2e-6)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**d for d in decades for m in parts if low <= m * 10.0**d <= high]
        if len(ticks) <= 6:
            break
    return Axis(label, low, high, ticks[:: max(1, math.ceil(len(ticks) / 6))], log=True)


def _round_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers between low and high."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
