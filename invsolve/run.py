"""A run: from a configuration to an output folder.

Everything that can be refused is refused before the first step is sampled: names, sizes, masks, measurements, the folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import Divergence, Posterior, __version__, memory, panels, sample, tables
from invsolve.config import Config, ConfigError
from invsolve.data import Item
from invsolve.monitor import Event
from invsolve.outputs import Row, RunFolder, replacing
from invsolve.priors.loading import resolve_device
from invsolve.samplers.base import Unfit
from invsolve.schedules import moves

_FRAMES = 60
_SSIM_WINDOW = 11


@dataclass
class RunResult:
    """What a run did: ids sampled now, ids found finished, ids that failed with the reason, and rows of metrics.csv.

    ``seconds`` and ``calls`` (network calls, forward and backward, None where the prior does not count them) are of the
    ids sampled now.
    """

    out: Path
    sampled: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    calls: dict[str, int] | None = None


def run(config: Config, prior: Any = None, say: Callable[[str], None] = print) -> RunResult:
    """Samples every image of ``config`` that is not finished yet and writes the folder ``config.settings.out``.

    ``prior`` takes the place of the configured one (then the section prior is only recorded); ``say`` receives lines for
    a person. An id whose trajectory diverges is recorded in ``failed`` and the others go on. Raises ConfigError where the
    configuration cannot be run.
    """
    items: list[Item] = config.sections["data"].build().items()
    folder = RunFolder(config)
    result = RunResult(folder.path, skipped=folder.finished([item.id for item in items]), rows=folder.rows)
    _check_unchanged(folder, items, result.skipped)
    if result.skipped:
        many = len(result.skipped)
        say(f"{many} of {len(items)} images {'is' if many == 1 else 'are'} finished in {folder.path}, not sampled again")
    todo = [item for item in items if item.id not in result.skipped]
    if todo:
        job = _Job(config, folder, result, prior, say)
        say(f"{config.sections['operator'].name}, {job.noise.describe()}")
        job.run(todo)
        result.rows = folder.rows
    return result


class _Job:
    """The components of one run, and the work on its batches."""

    def __init__(self, config: Config, folder: RunFolder, result: RunResult, prior: Any, say: Callable[[str], None]) -> None:
        self.config, self.folder, self.result, self.say = config, folder, result, say
        self.settings = config.settings
        self.schedule = config.sections["schedule"].build()
        self.sampler = config.sections["sampler"].build()
        self.noise = config.sections["noise"].build()
        device = _usable(self.settings.device)
        try:
            self.steps = self.sampler.plan(self.schedule) if hasattr(self.sampler, "plan") else moves(self.schedule)
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        self.prior = config.sections["prior"].build(device=device) if prior is None else prior
        self.device = getattr(self.prior, "device", None) or device
        self.operators: dict[tuple[int, ...], Any] = {}

    def run(self, todo: Sequence[Item]) -> None:
        """Samples the items in batches of equal shape."""
        by_shape: dict[tuple[int, ...], list[Item]] = {}
        for item in todo:
            by_shape.setdefault(self._check(item), []).append(item)
        weights = getattr(self.prior, "weights_sha256", None) or None
        if self.result.skipped and weights != self.folder.manifest.get("weights_sha256"):
            raise ConfigError(
                f"out = {self.folder.path}: its results came from other weights of the prior; choose another folder with out=..."
            )
        self.folder.begin()
        self.folder.describe(**self._facts(weights))
        try:
            for shape, items in by_shape.items():
                for first in range(0, len(items), self.settings.batch):
                    self._solve(shape, items[first : first + self.settings.batch])
        finally:
            # A configuration that gave nothing must not bar its folder to the corrected one.
            self.folder.withdraw()

    def _check(self, item: Item) -> tuple[int, ...]:
        """The image shape of an item, once prior and operator have accepted it and, where given, its measurement."""
        y = item.load() if item.measured else None
        shape = item.image_shape or (tuple(y.shape) if y is not None else ())
        if len(shape) != 3:
            raise ConfigError(f"data.image_shape is needed, such as [3, 64, 64]: y has shape {shape}, which is no image's (C, H, W)")
        try:
            if hasattr(self.prior, "image_shape_ok"):
                self.prior.image_shape_ok(shape)
        except ValueError as error:
            key = "data.image_shape" if item.measured else "data.size"
            raise ConfigError(f"{item.id}: prior {self.config.sections['prior'].name}: {error}; set {key}") from error
        if shape not in self.operators:
            self.operators[shape] = self.config.sections["operator"].build(image_shape=shape)
        try:
            self.operators[shape].for_ids([item.id])
        except (ValueError, OSError) as error:
            raise ConfigError(f"{item.id}: operator {self.config.sections['operator'].name}: {' '.join(str(error).split())}") from error
        if y is not None:
            self._match(y, shape)
        return shape

    def _match(self, y: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """y without the leading 1 of a batch of one. Raises ConfigError unless it then has the operator's shape."""
        wanted = tuple(self.operators[shape].measurement_shape)
        if y.shape == (1, *wanted):
            y = y[0]
        if y.shape != wanted:
            name = self.config.sections["operator"].name
            raise ConfigError(
                f"y has shape {y.shape}, but {name} measures an image of shape {shape} as {wanted}; set data.image_shape or the operator"
            )
        return y

    def _solve(self, shape: tuple[int, ...], batch: Sequence[Item]) -> None:
        """Samples and writes a batch; one that diverges is done again one by one, which gives the others' same samples."""
        ids = [item.id for item in batch]
        operator = self.operators[shape].for_ids(ids)
        x = None if batch[0].measured else torch.stack([torch.from_numpy(item.load()) for item in batch])
        if x is None:
            y = _as_float(torch.stack([torch.from_numpy(self._match(item.load(), shape)) for item in batch]))
        else:
            y = operator.measure(x, self.noise, seed=self.settings.seed, ids=ids)
        section = self.config.sections["noise"]
        codec = getattr(self.prior, "autoencoder", None)
        frames = _Frames(self._frame_indices(), getattr(codec, "decode", lambda x0: x0)) if self.settings.trajectory else None
        watch = self.sampler.watch() if hasattr(self.sampler, "watch") else None
        memory.reset_peak(self.device)
        before, start = self._calls(), time.perf_counter()
        try:
            likelihood = tables.load_object(tables.LIKELIHOODS[section.name])(operator, y.to(self.device), **self.noise.parameters)
            samples = self._sample(Posterior(self.prior, likelihood), ids, _Observers(frames, watch))
        except Divergence as error:
            self._checkpoint(ids).unlink(missing_ok=True)
            if len(batch) > 1:
                for item in batch:
                    self._solve(shape, [item])
            else:
                self.result.failed[ids[0]] = str(error)
                self.folder.fail(ids[0], str(error))
            return
        except (Unfit, ValueError) as error:  # any other TypeError is a mistake of ours, and keeps its traceback
            raise ConfigError(f"sampler {self.config.sections['sampler'].name}: {' '.join(str(error).split())}") from error
        seconds = (time.perf_counter() - start) / len(batch)
        calls = _minus(self._calls(), before)
        self.result.seconds += seconds * len(batch)
        self.result.calls = _plus(self.result.calls, calls)
        facts: dict[str, Any] = {"seconds": round(seconds, 3), "network_calls": calls, "peak_memory_mb": memory.peak_megabytes(self.device)}
        facts |= {"batch": len(batch), "image_shape": list(shape)}
        aligned = _aligned(operator, samples, x)
        closest = samples if x is None else torch.stack([operator.align(s, x) for s in samples.unbind(1)], 1)
        mean, std = aligned.mean(1), aligned.std(1) if samples.shape[1] > 1 else torch.zeros_like(aligned[:, 0])
        if watch is not None and codec is None:  # the mean of a chain of codes is the code of no mean image
            mean, std = watch.moments(ids)
            mean = _aligned(operator, mean[:, None], x)[:, 0]
        residuals = [likelihood.discrepancy(s.to(self.device)).cpu() for s in (*samples.unbind(1), mean)]
        view = operator.view(2 * y - 1 if self.noise.intensity else y)  # counts are of the image in [0, 1]
        for b, item in enumerate(batch):
            truth, numbers = None if x is None else x[b], [float(r[b]) for r in residuals]
            done = _Done(item, y[b], truth, samples[b], aligned[b], closest[b], mean[b], std[b], numbers, view[b])
            self._write(done, facts, frames, watch)
        self._checkpoint(ids).unlink(missing_ok=True)

    def _sample(self, target: Any, ids: list[str], observe: _Observers) -> Tensor:
        """Samples (B, n, C, H, W) on the CPU. Raises Divergence, also where a result is not finite."""
        s = self.settings
        drawn = sample(
            self.sampler, target, self.schedule,
            n=s.samples, seed=s.seed, ids=ids, progress=s.progress, observe=observe, memory_gb=s.memory_gb,
            checkpoint=self._checkpoint(ids) if s.checkpoint_every else None, checkpoint_every=s.checkpoint_every,
            noise_device=s.noise_device,
        )  # fmt: skip
        drawn = drawn.detach().float().cpu()
        bad = [id for id, rows in zip(ids, drawn, strict=True) if not bool(torch.isfinite(rows).all())]
        if bad:
            raise Divergence(f"the samples of {', '.join(bad)} hold NaN or infinity; a smaller guidance step or float32 may help")
        return drawn

    def _write(self, done: _Done, facts: dict[str, Any], frames: _Frames | None, watch: Any) -> None:
        """Pictures first, then numbers, the arrays last."""
        id, samples, aligned = done.item.id, done.samples.numpy(), done.aligned.numpy()
        mean, std = done.mean.numpy(), done.std.numpy()
        rows = _scores(done)
        if watch is not None:
            rows += [Row(id, "chains", name, value) for name, value in watch.numbers(id).items()]
            facts = {**facts, "chains": watch.verdict(id)}
            self.say(f"{id}: {facts['chains']}")
        images = self.folder.image_folder(id)
        for k, one in enumerate(aligned):
            with replacing(images / f"sample_{k}.png") as path:
                panels.save_png(one, path)
        if frames is not None and frames.kept.get(id):
            with replacing(images / "trajectory.gif") as path:
                panels.save_gif(frames.kept[id], path)
        x = None if done.x is None else done.x.numpy()
        shown = panels.Shown(self._title(id), done.view.numpy(), x, aligned[0], mean, std, len(samples), _captions(done, rows))
        with replacing(images / "panel.png") as path:
            panels.save_panel(shown, path)
        facts = {"input": str(done.item.path), "input_sha256": done.item.digest(), **done.item.facts(), **facts}
        arrays = {"y": done.y.numpy(), **({} if x is None else {"x": x}), "samples": samples, "mean": mean, "std": std}
        self.folder.finish(id, arrays, rows, facts)
        self.result.sampled.append(id)

    def _title(self, id: str) -> str:
        parts = self.config.sections
        shown = {key: f"{value:g}" if isinstance(value, float) else value for key, value in parts["noise"].values.items()}
        noise = ", ".join(f"{key} {value}" for key, value in shown.items())
        how = f"{parts['sampler'].name}, {len(self.steps)} steps"
        return f"{id}: {parts['operator'].name}, {parts['noise'].name} noise ({noise}), prior {Path(parts['prior'].name).name}, {how}"

    def _facts(self, weights: str | None) -> dict[str, Any]:
        names = ("torch", "deepinv", "diffusers", "torchmetrics", "numpy")
        versions = {"invsolve": __version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in names}
        cuda = self.device.type == "cuda"
        return {
            "versions": versions,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine(),
            "noise_device": self.settings.noise_device,
            "seed": self.settings.seed,
            "prior": self.config.sections["prior"].name,
            "weights_sha256": weights,
            "array_range": "[-1, 1]",
        }

    def _frame_indices(self) -> list[int]:
        return panels.log_spaced([move.t.sigma / move.t.alpha for move in self.steps], _FRAMES)

    def _checkpoint(self, ids: list[str]) -> Path:
        label = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
        return self.folder.path / "partial" / f"{label}.pt"

    def _calls(self) -> dict[str, int] | None:
        calls = getattr(self.prior, "calls", None)
        return None if calls is None else dict(vars(calls))


def _usable(name: str) -> torch.device:
    """The device of a name. Raises ConfigError with the names there are if torch cannot compute on it."""
    try:
        device = resolve_device(name)
        torch.empty(0, device=device)
    except (ValueError, RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        here = ["auto", "cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise ConfigError(f"device = {name}: not available here; there are: {', '.join(here)}") from error
    return device


def _aligned(operator: Any, samples: Tensor, x: Tensor | None) -> Tensor:
    """Samples (B, n, C, H, W), each under the symmetry of the operator that brings it nearest to the first of its image.

    For operators without symmetries, the samples. The first one stays as it is, or is itself aligned to the truth x
    (B, C, H, W) where that is known: this sets the common orientation of all, and no sample's relation to another.
    """
    first = samples[:, 0] if x is None else operator.align(samples[:, 0], x)
    return torch.stack([first, *(operator.align(s, first) for s in samples.unbind(1)[1:])], 1)


@dataclass(frozen=True)
class _Done:
    """One sampled item.

    y, x (or None), samples (n, C, H, W), the same aligned to the first (`_aligned`), and each aligned to the truth; mean and
    std of the aligned ones, or where a sampler is watched those of its whole chains; the residual of each sample and of the
    mean, a picture of y.
    """

    item: Item
    y: Tensor
    x: Tensor | None
    samples: Tensor
    aligned: Tensor
    closest: Tensor
    mean: Tensor
    std: Tensor
    residuals: list[float]
    view: Tensor


class _Observers:
    """Several observers as one; those that are None are left out."""

    def __init__(self, *observers: Any) -> None:
        self.observers = [one for one in observers if one is not None]

    def __call__(self, event: Event) -> None:
        for one in self.observers:
            one(event)

    def finish(self, rows: Sequence[Any], fields: dict[str, Any]) -> None:
        for one in self.observers:
            if hasattr(one, "finish"):
                one.finish(rows, fields)


class _Frames:
    """An observer that keeps x0_hat of the first sample of every id at chosen steps, as bytes; `decode` makes it an image."""

    def __init__(self, indices: Sequence[int], decode: Callable[[Tensor], Tensor]) -> None:
        self.indices, self.decode = set(indices), decode
        self.kept: dict[str, list[Any]] = {}

    def __call__(self, event: Event) -> None:
        if event.index not in self.indices or event.x0_hat is None:
            return
        for place, (id, k) in enumerate(event.rows):
            if k == 0:
                image = self.decode(event.x0_hat[place : place + 1].detach())[0]
                self.kept.setdefault(str(id), []).append(panels.to_bytes(image.float().cpu().numpy()))


def _scores(done: _Done) -> list[Row]:
    """Rows of metrics.csv: the residual always, PSNR (dB) and SSIM where the truth is known.

    PSNR and SSIM are torchmetrics' on images clipped to [0, 1] (data range 1), of complex ones on the magnitudes; SSIM is left
    out below 11 pixels a side.
    Where the operator has symmetries (`Operator.align`: flip and sign in phase retrieval), a sample is first brought to its
    form nearest to the truth, and the mean is that of the samples aligned to the first, as in the panel.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    labels = [*map(str, range(len(done.samples))), "mean"]
    rows = [Row(done.item.id, label, "residual", value) for label, value in zip(labels, done.residuals, strict=True)]
    if done.x is None:
        return rows
    truth = ((panels.as_shown(done.x)[None] + 1) / 2).clamp(0, 1)
    for label, image in zip(labels, (*done.closest, done.mean), strict=True):
        unit = ((panels.as_shown(image)[None] + 1) / 2).clamp(0, 1)
        rows.append(Row(done.item.id, label, "psnr", float(peak_signal_noise_ratio(unit, truth, data_range=1.0))))
        if min(truth.shape[-2:]) >= _SSIM_WINDOW:
            rows.append(Row(done.item.id, label, "ssim", float(structural_similarity_index_measure(unit, truth, data_range=1.0))))
    return rows


def _captions(done: _Done, rows: Sequence[Row]) -> dict[str, str]:
    """One line below each picture of the panel."""
    found = {(row.sample, row.metric): row.value for row in rows}

    def line(label: str) -> str:
        psnr = f"PSNR {found[label, 'psnr']:.1f} dB, " if (label, "psnr") in found else ""
        return f"{psnr}residual / noise {found[label, 'residual']:.2f}"

    y = done.y.abs() if done.y.is_complex() else done.y
    shape = " x ".join(map(str, y.shape))
    measured = f"y: {shape}, {'modulus' if done.y.is_complex() else 'values'} {float(y.min()):.2f} to {float(y.max()):.2f}"
    return {"view": measured, "sample": line("0"), "mean": line("mean")}


def _check_unchanged(folder: RunFolder, items: Sequence[Item], finished: Sequence[str]) -> None:
    """Raises ConfigError if the input of a finished id is no longer the file it was made from."""
    for item in items:
        then = folder.fact(item.id, "input_sha256")
        if item.id in finished and then is not None and then != item.digest():
            raise ConfigError(
                f"out = {folder.path}: {item.path} has changed since {item.id} was sampled; choose another folder with out=..."
            )


def _as_float(y: Tensor) -> Tensor:
    return y.to(torch.complex64 if y.is_complex() else torch.float32)


def _minus(now: dict[str, int] | None, before: dict[str, int] | None) -> dict[str, int] | None:
    return None if now is None or before is None else {key: now[key] - before[key] for key in now}


def _plus(total: dict[str, int] | None, more: dict[str, int] | None) -> dict[str, int] | None:
    return total if more is None else {key: (total or {}).get(key, 0) + more[key] for key in more}
