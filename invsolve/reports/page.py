"""report.html: what a run folder holds on one page, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import torch

from invsolve.atomic import replacing
from invsolve.errors import ConfigError
from invsolve.pictures import gallery as pictures
from invsolve.pictures.gallery import Arrays, Gallery
from invsolve.reports import charts, honesty
from invsolve.reports.charts import Chart
from invsolve.reports.reading import StoredRun
from invsolve.reports.scoring import Metric, Scores, cell, label_of, scores_of
from invsolve.runs.outcome import align_all, picture_of
from invsolve.runs.records import read_manifest

FILE = "report.html"
_TEMPLATE = "page.html.j2"
_MARK = '<meta name="invsolve-report" content="'
_HEAD = 4096  # bytes of a report, among which its mark is


@dataclass(frozen=True)
class _Entry:
    """One finished image: cells of the table as (text, what to sort by), links, and what its card shows, where it has one."""

    id: str
    cells: list[tuple[str, float]]
    arrays: str
    panel: str
    gallery: Gallery | None
    captions: Mapping[str, str]
    trace: Chart | None


def report(run: str | Path, lpips: str = "auto", images: int = 100, trust: bool = False) -> Path:
    """Writes report.html into a run folder, and returns its path.

    Numbers are those of `scores_of` (which see for ``lpips`` and ``trust``) and of `Honesty`, from the stored arrays. Pictures are shown of
    the first so many ``images`` (-1: of all); of 100 the file stays below 30 MB. The same folder gives the same bytes. Raises
    ConfigError for a folder without results, and where a report.html is there that is not of this run.
    """
    stored = StoredRun(run, trust)
    folder, records = stored.folder, stored.records
    scores = scores_of(folder, lpips, trust=trust)
    finished = [id for id in scores.ids if id in stored.finished]
    if not finished:
        raise ConfigError(f"{run}: its records are not complete; the command that made them goes on with them")
    identity = str(records[finished[0]].get("config", ""))
    _refuse_stranger(folder / FILE, identity)
    shown = len(finished) if images < 0 else images
    page = _page(stored, scores, {id: records[id] for id in finished}, shown)
    failed = {id: str(record["failed"]) for id, record in records.items() if "failed" in record}
    # An image that no process came to (a full disk) has no record; the manifest knows how many there should be.
    expected = read_manifest(folder).get("expected")
    total = max(expected if isinstance(expected, int) else 0, len(finished) + len(failed))
    text = _environment().get_template(_TEMPLATE).render(page, identity=identity, failed=failed, total=total)
    with replacing(folder / FILE) as path:
        path.write_text(text, encoding="utf-8")
    return folder / FILE


def _environment() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters["g"] = lambda value: format(value, ".6g")
    env.filters["digest"] = lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    return env


def _refuse_stranger(path: Path, identity: str) -> None:
    """Raises ConfigError unless the file is not there, or is a report of the run with this identity."""
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(f"{path}: is no file, and is not overwritten; move it away")
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    if f'{_MARK}{identity}">' not in head:
        what = "a report of another run" if _MARK in head else "no report of invsolve"
        raise ConfigError(f"{path}: is {what}, and is not overwritten; move it away")


def _page(stored: StoredRun, scores: Scores, records: Mapping[str, Mapping[str, Any]], shown: int) -> dict[str, Any]:
    """What the template needs but the failures."""
    folder, config = stored.folder, stored.config
    manifest = read_manifest(folder)
    steps = [trace["steps"][-1] + 1 for record in records.values() if (trace := record.get("trace") or {}).get("steps")]
    total = max(steps, default=0)
    measures = honesty.Honesty(scores.samples) if scores.samples > 1 and scores.truths else None
    metrics = scores.metrics()
    estimator = "mean" if scores.samples > 1 else "one"
    entries = []
    for place, (id, record) in enumerate(records.items()):
        trace = record.get("trace") or {}
        arrays = _read(stored, id, trace.get("frames", ()) if place < shown else None)
        if measures is not None and arrays.truth is not None:
            measures.update(torch.from_numpy(arrays.samples), torch.from_numpy(arrays.truth))
        gallery = pictures.gallery(arrays) if place < shown else None
        entries.append(_entry(folder, id, record, scores, metrics, estimator, gallery, charts.of_trace(trace, total)))
    found = measures.found() if measures is not None else None
    residuals = charts.of_residuals([record.get("trace") or {} for record in records.values()], total)
    return {
        "name": scores.name,
        "what": {group: Path(config.sections[group].name).name for group in ("sampler", "operator", "noise", "prior", "schedule")},
        "samples": scores.samples,
        "scores": scores.table(),
        "honesty": None if found is None else honesty.table(found),
        "charts": [] if found is None else charts.of_honesty(found),
        "residuals": residuals,
        "tiles": _tiles(scores, metrics, estimator, found, records),
        "columns": [*(metric.label for metric in metrics), "time [s]"],
        "estimator": label_of(estimator, scores.samples),
        "entries": entries,
        "pictured": min(shown, len(entries)),
        "stops": ", ".join(pictures.colour_stops()),
        "facts": _facts(manifest, records, scores.samples),
        "versions": versions if isinstance(versions := manifest.get("versions"), dict) else {},
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def _read(stored: StoredRun, id: str, steps: Sequence[int] | None) -> Arrays:
    """The arrays of an image, its samples as `align_all` turns them; with ``steps``, those of its frames, these too."""
    held = stored.arrays(id, ("y", "samples", "mean", "std"), ("x",))
    x = held.get("x")
    shape = tuple(held["mean"].shape)
    if shape[0] not in (1, 2, 3):
        raise ConfigError(f"{stored.folder}: {id} is of shape {shape}, which is no picture; (C, H, W) with 1, 2 or 3 channels is needed")
    operator = stored.operator(shape, id)
    aligned = align_all(operator, held["samples"][None], None if x is None else x[None])[0]
    view = picture_of(operator, stored.noise, held["y"][None])[0]
    frames = [] if steps is None else pictures.frames_of(_inside(stored.folder, "images", id, "trajectory.gif"), steps)
    truth = None if x is None else x.numpy()
    return Arrays(view.numpy(), truth, aligned.numpy(), held["mean"].numpy(), held["std"].numpy(), frames)


def _inside(folder: Path, *parts: str) -> Path | None:
    """The path of a file in a run folder; None where a link leads out of it, for what is there is nothing that a page may show."""
    path = folder.joinpath(*parts)
    return path if path.resolve().is_relative_to(folder.resolve()) else None


def _entry(
    folder: Path, id: str, record: Mapping[str, Any], scores: Scores, metrics: Sequence[Metric], estimator: str, gallery: Gallery | None,
    trace: Chart | None,
) -> _Entry:  # fmt: skip
    values = [(metric, scores.values.get((estimator, metric.name), {}).get(id, np.nan)) for metric in metrics]
    cells = [("" if np.isnan(value) else f"{value:.{metric.digits}f}", value) for metric, value in values]
    seconds = float((record.get("facts") or {}).get("seconds", np.nan))
    cells.append(("" if np.isnan(seconds) else f"{seconds:.2f}", seconds))
    panel = f"images/{quote(id)}/panel.png" if (folder / "images" / id / "panel.png").is_file() else ""
    return _Entry(id, cells, f"arrays/{quote(id)}.npz", panel, gallery, _captions(record), trace)


def _captions(record: Mapping[str, Any]) -> dict[str, str]:
    """A line for each sample and the mean, by the name of its picture."""
    found: dict[str, list[str]] = {}
    for sample, metric, value in record["rows"]:
        name = "posterior mean" if sample == "mean" else f"sample {int(sample) + 1}" if sample.isdecimal() and sample.isascii() else ""
        text = {"psnr": f"{float(value):.1f} dB", "residual": f"residual {float(value):.2f}"}.get(metric)
        if name and text:
            found.setdefault(name, []).insert(0, text)
    return {name: "\n".join(parts) for name, parts in found.items()}


def _tiles(
    scores: Scores, metrics: Sequence[Metric], estimator: str, found: Mapping[str, Any] | None, records: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str, str]]:
    """(what, value, of what) of the figures at the top."""
    tiles = []
    for metric in metrics:
        if metric.name in ("psnr", "ssim", "lpips", "chi2"):
            text = cell(scores.values.get((estimator, metric.name), {}).values(), metric)
            tiles.append((metric.label, text, label_of(estimator, scores.samples)))
    if found is not None:
        nominal, mean, _ = honesty.levels(found["coverage"])[-1]
        tiles.append(("coverage", f"{100 * mean:.0f} %", f"of pixels, in {100 * nominal:.0f} % intervals"))
    seconds = [record["facts"]["seconds"] for record in records.values() if "seconds" in (record.get("facts") or {})]
    if seconds:
        tiles.append(("time per image", f"{np.mean(seconds):.2f} s", f"{scores.samples} sample{'s' if scores.samples > 1 else ''} each"))
    return tiles


def _facts(manifest: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]], samples: int) -> list[tuple[str, str]]:
    """Lines about time, memory, device and origin."""
    held = [record.get("facts") or {} for record in records.values()]
    seconds = [fact["seconds"] for fact in held if "seconds" in fact]
    lines = [("images", str(len(records))), ("samples of each", str(samples))]
    if seconds:
        lines.append(("sampling time", f"{sum(seconds):.1f} s in all"))
        lines.append(("time per image", f"{np.mean(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"))
    batches = {json.dumps([fact.get("batch"), fact.get("network_calls")]) for fact in held if fact.get("network_calls")}
    for batch, calls in sorted((json.loads(text) for text in batches), key=str)[:4]:
        told = ", ".join(f"{count} {name}" for name, count in calls.items() if count)
        lines.append(("network calls", f"{told or 'none'} for a batch of {batch}"))
    memory = [fact["peak_memory_mb"] for fact in held if fact.get("peak_memory_mb")]
    if memory:
        lines.append(("peak memory", f"{max(memory):.0f} MB"))
    devices = sorted({str(fact["device"]) for fact in held if "device" in fact})
    lines.append(("device", ", ".join([*devices, str(manifest.get("device_name", ""))]).strip(", ")))
    for key in ("prior", "weights_sha256", "seed", "noise_device", "array_range"):
        if manifest.get(key) is not None:
            lines.append((key.replace("_", " "), str(manifest[key])))
    return lines
