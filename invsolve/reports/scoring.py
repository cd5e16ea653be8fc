"""Metrics of a run from its stored arrays, without sampling: as often as one likes, also long after."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from invsolve.atomic import replacing
from invsolve.data.items import find_files
from invsolve.errors import ConfigError
from invsolve.metrics.fidelity import fidelity
from invsolve.metrics.perceptual import Lpips, SetDistances
from invsolve.reports import tables
from invsolve.reports.reading import StoredRun
from invsolve.reports.reference import Reference
from invsolve.reports.tables import Table

ESTIMATORS = ("one", "mean", "best")


class Metric(NamedTuple):
    """A column: its name in files, its label, digits to print, and whether more is better (None: 1 is wanted)."""

    name: str
    label: str
    digits: int
    rising: bool | None


METRICS = (
    Metric("psnr", "PSNR [dB]", 2, True),
    Metric("ssim", "SSIM", 4, True),
    Metric("lpips", "LPIPS", 4, False),
    Metric("nmse", "NMSE", 5, False),
    Metric("chi2", "residual chi²", 3, None),
)
# Of a set of images as a whole: they have no value for one image and no standard error.
SET_METRICS = (Metric("fid", "FID", 2, False), Metric("kid", "KID", 5, False))


@dataclass(frozen=True)
class Scores:
    """The scores of a run: ``values[estimator, metric][id]``, with what they are in words.

    Estimators: "one" the average over the samples of an image of each sample's metric, "mean" the posterior mean, "best" the best
    of the n samples by that very metric and the truth, an oracle. ``truths`` tells images of one name apart. ``sets`` holds FID and
    KID by (estimator, metric) where they were asked for: of all samples, and of the posterior means.
    """

    name: str
    values: dict[tuple[str, str], dict[str, float]]
    samples: int
    notes: tuple[str, ...]
    truths: dict[str, str]
    sets: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """The images scored."""
        return sorted({id for column in self.values.values() for id in column})

    def metrics(self) -> list[Metric]:
        """The metrics there are."""
        return [metric for metric in METRICS if any(name == metric.name for _, name in self.values)]

    def table(self) -> Table:
        """A row for each estimator and a column for each metric: mean ± standard error over the images."""
        metrics, rows = self.metrics(), []
        whole = [metric for metric in SET_METRICS if ("one", metric.name) in self.sets]
        for estimator in ESTIMATORS:
            cells = [cell(self.values.get((estimator, metric.name), {}).values(), metric) for metric in metrics]
            found = [self.sets.get((estimator, metric.name)) for metric in whole]
            cells += ["" if value is None else f"{value:.{metric.digits}f}" for value, metric in zip(found, whole, strict=True)]
            if any(cells) and (self.samples > 1 or estimator == "one"):
                rows.append([label_of(estimator, self.samples), *cells])
        caption = f"{self.name}: {len(self.ids)} images, {self.samples} samples each, mean ± standard error over the images"
        return Table(caption, ["", *(metric.label for metric in (*metrics, *whole))], rows, self.notes)

    def markdown(self) -> str:
        """The table in Markdown."""
        return self.table().markdown()


def label_of(estimator: str, samples: int) -> str:
    """The name of an estimator in a table."""
    return {"one": "one sample", "mean": f"mean of {samples}", "best": f"best of {samples} (oracle)"}[estimator]


def cell(values: Any, metric: Metric) -> str:
    """Mean ± standard error of values over images, or nothing."""
    held = list(values)
    return tables.plus_minus(*tables.average(held), metric.digits) if held else ""


def score(
    run: str | Path, lpips: str = "auto", reference: str | Path | None = None, features: Callable[[Tensor], Tensor] | None = None,
    trust: bool = False,
) -> Scores:  # fmt: skip
    """Scores a run folder and writes scores.csv (id, estimator, metric, value) and table.md, table.tex and table.csv into it.

    ``lpips`` names a backbone (alex, vgg, squeeze) whose weights must be on this machine, "auto" the first that is, "none" no
    LPIPS. With ``reference``, a folder of images, FID and KID against them, which have no id in scores.csv; ``features`` takes
    the place of Inception (`SetDistances`). No code of the run is executed but with ``trust`` (see `StoredRun`). Raises ConfigError
    for a folder without results and for missing weights that were asked for.
    """
    scores = scores_of(run, lpips, reference, features, trust)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("id", "estimator", "metric", "value"))
    for (estimator, metric), column in scores.values.items():
        writer.writerows((id, estimator, metric, f"{value:.9g}") for id, value in column.items())
    writer.writerows(("", estimator, metric, f"{value:.9g}") for (estimator, metric), value in scores.sets.items())
    with replacing(Path(run) / "scores.csv") as path:
        path.write_bytes(text.getvalue().encode())
    tables.write([scores.table()], Path(run) / "table")
    return scores


def scores_of(
    run: str | Path, lpips: str = "auto", reference: str | Path | None = None, features: Callable[[Tensor], Tensor] | None = None,
    trust: bool = False,
) -> Scores:  # fmt: skip
    """As `score`, and writes nothing. One image at a time is held in memory, and of all of them the features for FID."""
    stored = StoredRun(run, trust)
    if not stored.finished:
        raise ConfigError(f"{run}: nothing is finished there; `invsolve eval` or `invsolve run` writes results")
    perceptual = Lpips(lpips)
    if reference is not None:
        find_files(str(reference), key="--fid")  # before the arrays are read
    distances = None if reference is None else SetDistances(features)
    values: dict[tuple[str, str], dict[str, float]] = {}
    count, truths = 0, {}
    for id in stored.finished:
        arrays = stored.arrays(id, ("y", "samples", "mean"), ("x",))
        shape = tuple(arrays["mean"].shape)
        count = len(arrays["samples"])
        if "x" in arrays:
            truths[id] = _digest(arrays["x"])
        operator = stored.operator(shape, id)
        for key, value in _of_image(stored, id, operator, arrays, perceptual).items():
            values.setdefault(key, {})[id] = value
        if distances is not None:
            distances.add("one", _aligned(operator, arrays))
            distances.add("mean", arrays["mean"][None])
    notes, sets = _notes(perceptual, bool(truths)), {}
    if distances is not None and reference is not None:
        images = Reference(reference, stored.folder, shape)
        distances.add_reference(images, images.note)
        sets = {(group, name): value for group in ("one", "mean") for name, value in distances.of(group).items()}
        notes.append(distances.note)
    if stored.code:
        notes.append(stored.code)
    if stored.cut_off:
        notes.append(f"left out, for their arrays are gone or cut short: {', '.join(stored.cut_off)}")
    return Scores(stored.config.name, values, count, tuple(notes), truths, sets)


def _aligned(operator: Any, arrays: dict[str, Tensor]) -> Tensor:
    """The samples (n, C, H, W), each in the form nearest to the truth where there is one."""
    samples = arrays["samples"]
    return torch.cat([operator.align(one[None], arrays["x"][None]) for one in samples]) if "x" in arrays else samples


def _of_image(
    stored: StoredRun, id: str, operator: Any, arrays: dict[str, Tensor], perceptual: Lpips
) -> dict[tuple[str, str], float]:  # fmt: skip
    """The scores of one image by (estimator, metric)."""
    samples, mean = arrays["samples"], arrays["mean"]
    residual = stored.residuals(operator, arrays["y"], id)
    misfits = [residual(str(k), one) for k, one in enumerate(samples)]
    chi2 = [value**2 for value in misfits if value is not None]
    of_samples = {"chi2": chi2} if chi2 else {}
    misfit = residual("mean", mean)
    of_mean = {} if misfit is None else {"chi2": misfit**2}
    if "x" in arrays:
        x = arrays["x"]
        found = [_against(one, x, perceptual) for one in _aligned(operator, arrays)]
        of_samples |= {name: [one[name] for one in found] for name in found[0]}
        of_mean |= _against(mean, x, perceptual)
    scores: dict[tuple[str, str], float] = {}
    for name, column in of_samples.items():
        rising = next(metric.rising for metric in METRICS if metric.name == name)
        scores["one", name] = float(np.mean(column))
        if len(column) > 1 and rising is not None:
            scores["best", name] = max(column) if rising else min(column)
    return scores | {("mean", name): value for name, value in of_mean.items()}


def _against(image: Tensor, truth: Tensor, perceptual: Lpips) -> dict[str, float]:
    return fidelity(image, truth) | perceptual(image, truth)


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()


def _notes(perceptual: Lpips, truth: bool) -> list[str]:
    version = importlib.metadata.version("torchmetrics")
    chi2 = "residual chi²: the mean squared residual y − A x in units of its noise, about 1 where x fits y (invsolve)"
    if not truth:
        return ["no truths are stored, so only the residual is measured", chi2]
    return [
        "per image, on the float arrays clipped to [0, 1] (data range 1), complex images as magnitudes",
        f"PSNR, SSIM (Gaussian window of 11, sigma 1.5): torchmetrics {version}; NMSE: ||x − truth||² / ||truth||² (invsolve)",
        perceptual.note,
        chi2,
        "best of n takes for each metric the sample that the truth says is best: an oracle, no estimate",
    ]
