"""Runs of the same images side by side, with paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invsolve.errors import ConfigError
from invsolve.reports import tables
from invsolve.reports.scoring import Metric, Scores, cell, label_of, scores_of
from invsolve.reports.tables import Table

_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A table of the runs' averages over the images they share, and one of the differences from the first run, image by image."""

    averages: Table
    differences: Table

    def markdown(self) -> str:
        """Both tables."""
        return self.averages.markdown() + "\n" + self.differences.markdown()

    def write(self, stem: str | Path, overwrite: bool = False) -> None:
        """Writes both to ``stem``.md, .tex and .csv. Raises ConfigError where one of them is there, unless ``overwrite``."""
        tables.write([self.averages, self.differences], stem, overwrite)


def compare(runs: Sequence[str | Path], of: str = "mean", lpips: str = "auto", trust: bool = False) -> Comparison:
    """Compares runs on the images that all of them have finished, by one sample, the mean or the best of n (``of``).

    Differences are paired: run minus first run for each image, with a 95 % confidence interval by Student's t over the images.
    ``trust``: see `score`. Raises ConfigError for fewer than two runs, no common image, or images of one id with different truths.
    """
    if len(runs) < 2:
        raise ConfigError("compare needs two runs or more")
    scored = [scores_of(run, lpips, trust=trust) for run in runs]
    ids = sorted(set.intersection(*(set(one.ids) for one in scored)))
    if not ids:
        raise ConfigError(f"{', '.join(map(str, runs))}: no image is finished in all of them")
    for id in ids:
        if len({one.truths.get(id) for one in scored}) > 1:
            raise ConfigError(f"{id}: its truth is not the same in {', '.join(map(str, runs))}; they cannot be compared")
    metrics = [metric for metric in scored[0].metrics() if all((of, metric.name) in one.values for one in scored)]
    if not metrics:
        raise ConfigError(f"--of {of}: not every run has it; best needs two samples and a truth")
    names = [str(run) for run in runs]
    header = ["", *(metric.label for metric in metrics)]
    rows = [[name, *(cell(_column(one, of, metric, ids), metric) for metric in metrics)] for name, one in zip(names, scored, strict=True)]
    what = ", ".join(dict.fromkeys(label_of(of, one.samples) for one in scored))
    left_out = sorted({id for one in scored for id in one.ids} - set(ids))
    notes = [
        *dict.fromkeys(note for one in scored for note in one.notes),
        *([f"left out, for not all runs have them: {', '.join(left_out)}"] if left_out else []),
    ]
    averages = Table(f"{what}: {len(ids)} images, mean ± standard error over the images", header, rows, notes)
    rows = [
        [f"{name} − {names[0]}", *(_difference(scored[0], one, of, metric, ids) for metric in metrics)]
        for name, one in zip(names[1:], scored[1:], strict=True)
    ]
    caption = f"paired differences over {len(ids)} images, with {100 * _LEVEL:.0f} % confidence intervals (Student's t)"
    return Comparison(averages, Table(caption, header, rows))


def _column(one: Scores, of: str, metric: Metric, ids: Sequence[str]) -> list[float]:
    column = one.values[of, metric.name]
    return [column[id] for id in ids if id in column]


def _difference(first: Scores, other: Scores, of: str, metric: Metric, ids: Sequence[str]) -> str:
    """``difference [lower, upper]`` over the images that have the metric in both."""
    old, new = first.values[of, metric.name], other.values[of, metric.name]
    low, middle, high = interval([new[id] - old[id] for id in ids if id in old and id in new])
    text = f"{middle:+.{metric.digits}f}"
    return text if math.isnan(low) else f"{text} [{low:+.{metric.digits}f}, {high:+.{metric.digits}f}]"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower, mean, upper) of the 95 % confidence interval of the mean; the ends are NaN for a single value."""
    from scipy.stats import t

    mean, error = tables.average(values)
    half = math.nan if math.isnan(error) else float(t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return mean - half, mean, mean + half
