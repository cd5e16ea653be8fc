"""How honest the samples of a run are, from its stored samples and truths: coverage, ranks, spread against error, scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from invsolve.reports import tables
from invsolve.reports.tables import Table

CELLS = 4
_LEVELS = tuple(k / 10 for k in range(1, 10))
_SHOWN = (0.5, 0.9)  # the levels whose nearest stand in the table; the chart has all


class Honesty:
    """Measures of `invsolve.metrics`, fed image by image with its samples and truth; n samples of each image, n >= 2.

    `found` maps a name to what `compute` gives: coverage, region_coverage (means over a grid of 4 x 4), ranks, spread,
    crps and energy.
    """

    def __init__(self, samples: int) -> None:
        from invsolve import metrics

        self.samples = samples
        # Rank 0 alone makes a report, of all images: to wait for the other ranks would be to wait for ever.
        alone = {"sync_on_compute": False}
        self._metrics: dict[str, Any] = {
            "coverage": metrics.Coverage(samples, _LEVELS, **alone),
            "region_coverage": metrics.Coverage(samples, _LEVELS, cells=CELLS, **alone),
            "ranks": metrics.RankHistogram(samples, **alone),
            "spread": metrics.SpreadError(**alone),
            "crps": metrics.CRPS(**alone),
            "energy": metrics.EnergyScore(**alone),
        }

    def update(self, samples: Tensor, truth: Tensor) -> None:
        """Adds an image: samples (n, *X), truth (*X)."""
        for metric in self._metrics.values():
            metric.update(samples[None], truth[None])

    def found(self) -> dict[str, dict[str, Tensor]]:
        """All measures over the images seen. Raises ValueError if there are none."""
        return {name: metric.compute() for name, metric in self._metrics.items()}


def levels(part: Mapping[str, Tensor]) -> list[tuple[float, float, float]]:
    """(nominal, mean, standard error) of a coverage, by rising level. torchmetrics takes the axis from results of a single level."""
    return sorted(zip(*(part[key].reshape(-1).tolist() for key in ("nominal", "mean", "stderr")), strict=True))


def table(found: Mapping[str, Mapping[str, Tensor]]) -> Table:
    """The measures as a row of mean ± standard error each, with what an honest posterior has."""
    rows = []
    for name, label in (("coverage", "pixels"), ("region_coverage", f"{CELLS} × {CELLS} region means")):
        known = levels(found[name])
        distances = [[abs(nominal - wanted) for nominal, *_ in known] for wanted in _SHOWN]
        for place in sorted({one.index(min(one)) for one in distances}):
            nominal, mean, error = known[place]
            rows.append([f"{100 * nominal:.0f} % intervals, {label}", tables.plus_minus(mean, error, 3), f"{nominal:.3f}"])
    spread, ranks = found["spread"], found["ranks"]
    rows.append(["spread / error", tables.plus_minus(float(spread["ratio"]), _error(spread), 3), "1"])
    rows.append(["ranks, deviation from uniform", f"{float(ranks['deviation']):.3f}", "0"])
    if not math.isnan(p := float(ranks["p"])):
        rows.append(["ranks, p if uniform", f"{p:.2g}", "not small"])
    for name, label in (("crps", "CRPS"), ("energy", "energy score")):
        rows.append([label, tables.plus_minus(float(found[name]["mean"]), _error(found[name]), 4 if name == "crps" else 2), "small"])
    images = int(spread["images"])
    notes = (
        "an interval between the k-th smallest and the k-th largest of n samples holds the truth with probability (n + 1 − 2k)/(n + 1) "
        "if both come from one distribution, whatever it is: these are the levels that n samples can have",
        "spread: root of (1 + 1/n) times the variance of the samples; error: root mean square error of their mean",
        "deviation: the largest distance between the distribution of the ranks and the uniform one; p by Hotelling's test over images",
    )
    return Table(f"{images} image{'s' if images > 1 else ''}, mean ± standard error over the images", ["", "found", "wanted"], rows, notes)


def _error(part: Mapping[str, Tensor]) -> float:
    # One image has no standard error of anything.
    return float(part["stderr"]) if int(part["images"]) > 1 else math.nan
