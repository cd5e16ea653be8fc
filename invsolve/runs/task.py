"""The work on a batch of items: read, measure, sample, align. `invsolve.runs.local` and `invsolve.runs.lightning` share it.

What is wrong with one item (a file that cannot be read, NaN in a measurement, a trajectory that diverges) is an entry of
`Outcome.failed` and stops no other; what is wrong with the configuration is a ConfigError.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invsolve import __version__
from invsolve.config.model import Config
from invsolve.config.names import load_object
from invsolve.data.items import Item
from invsolve.engine import memory
from invsolve.engine.loop import sample
from invsolve.engine.observers import Event, Residuals
from invsolve.errors import ConfigError, Divergence, Unfit, Unusable, one_line
from invsolve.likelihoods import LIKELIHOODS
from invsolve.posterior import Posterior
from invsolve.priors.checkpoints.loading import resolve_device
from invsolve.runs.batch import Array, Batch
from invsolve.runs.frames import Frames, traced
from invsolve.runs.intake import check_measured, shape_for
from invsolve.runs.outcome import Done, Outcome, _minus, align_all, as_float, picture_of
from invsolve.runs.records import Row
from invsolve.schedules import moves

_FRAMES = 60


class Reconstruction:
    """The components of a configuration, and what they make of items.

    ``prior`` takes the place of the configured one, ``device`` that of `Settings.device`. ``partial`` is the folder of
    half-finished trajectories (None: they are not kept). Raises ConfigError where a component cannot be built.
    """

    def __init__(self, config: Config, prior: Any = None, device: torch.device | None = None, partial: Path | None = None) -> None:
        self.config, self.settings, self.partial = config, config.settings, partial
        self.schedule = config.sections["schedule"].build()
        self.sampler = config.sections["sampler"].build()
        self.noise = config.sections["noise"].build()
        device = _usable(self.settings.device) if device is None else device
        try:
            self.steps = self.sampler.plan(self.schedule) if hasattr(self.sampler, "plan") else moves(self.schedule)
        except ValueError as error:
            raise ConfigError(one_line(error)) from error
        self.prior = config.sections["prior"].build(device=device) if prior is None else prior
        self.device = getattr(self.prior, "device", None) or device
        self.operators: dict[tuple[int, ...], Any] = {}

    def accept(self, item: Item, y: Array | None = None) -> tuple[int, ...]:
        """The image shape of an item, once prior and operator have accepted it and, where given, its measurement y.

        Raises ConfigError.
        """
        shape = item.image_shape or (tuple(y.shape) if y is not None else ())
        if len(shape) != 3:
            raise ConfigError(f"data.image_shape is needed, such as [3, 64, 64]: y has shape {shape}, which is no image's (C, H, W)")
        shape = shape_for(self.prior, self.config.sections["prior"].name, item, shape)
        if shape not in self.operators:
            self.operators[shape] = self.config.sections["operator"].build(image_shape=shape)
        try:
            operator = self.operators[shape].for_ids([item.id])
        except (ValueError, OSError) as error:
            raise ConfigError(f"{item.id}: operator {self.config.sections['operator'].name}: {one_line(error)}") from error
        if y is not None and item.measured:
            y = self._match(y, shape)
            check_measured(item, y, operator, self.config.sections["operator"].name, self.noise)
            try:
                likelihood_of(self.config, operator, as_float(torch.from_numpy(y))[None], self.noise)
            except ValueError as error:
                raise ConfigError(f"{item.path}: noise {self.config.sections['noise'].name}: {one_line(error)}") from error
        return shape

    def _match(self, y: Array, shape: tuple[int, ...]) -> Array:
        """y without the leading 1 of a batch of one. Raises ConfigError unless it then has the operator's shape."""
        wanted = tuple(self.operators[shape].measurement_shape)
        if y.shape == (1, *wanted):
            y = y[0]
        if y.shape != wanted:
            name = self.config.sections["operator"].name
            advice = "set data.image_shape or the operator"
            if np.iscomplexobj(y):
                advice = f"y is complex, and complex values are two real channels here, np.stack([y.real, y.imag]); else {advice}"
            raise ConfigError(f"y has shape {y.shape}, but {name} measures an image of shape {shape} as {wanted}; {advice}")
        return y

    def solve(self, batch: Batch) -> Outcome:
        """Samples a batch that was read, also under Lightning's inference mode. Raises ConfigError for a sampler that is unfit.

        Items that prior or operator do not accept fail; the others are sampled together where their shapes agree. If one
        trajectory of a batch diverges its items are sampled one by one, which gives the others' same samples.
        """
        total = Outcome(failed=dict(batch.failed))
        alike: dict[tuple[tuple[int, ...], bool], tuple[list[Item], list[Array]]] = {}
        # Operators made under inference mode would be useless to autograd.
        with torch.inference_mode(False), torch.no_grad():
            for item, array in zip(batch.items, batch.arrays, strict=True):
                try:
                    shape = self.accept(item, array if item.measured else None)
                except ConfigError as error:
                    total.failed[item.id] = str(error).removeprefix(f"{item.id}: ")
                    continue
                items, arrays = alike.setdefault((shape, item.measured), ([], []))
                items.append(item)
                arrays.append(array[: shape[0]] if item.grey else array)
            for (shape, _), (items, arrays) in alike.items():
                total.add(self._solve(shape, items, arrays))
        for done in total.done:
            done.facts["input_sha256"] = batch.digests.get(done.item.id) or done.item.digest()
        return total

    def _solve(self, shape: tuple[int, ...], items: list[Item], arrays: list[Array]) -> Outcome:
        ids = [item.id for item in items]
        operator = self.operators[shape].for_ids(ids)
        if items[0].measured:
            x, y = None, as_float(torch.stack([torch.from_numpy(self._match(array, shape)) for array in arrays]))
        else:
            x = torch.stack([torch.from_numpy(array) for array in arrays])
            y = operator.measure(x, self.noise, seed=self.settings.seed, ids=ids)
        codec = getattr(self.prior, "autoencoder", None)
        frames = Frames(self._frame_indices(), getattr(codec, "decode", lambda x0: x0)) if self.settings.trajectory else None
        watch = self.sampler.watch() if hasattr(self.sampler, "watch") else None
        memory.reset_peak(self.device)
        before, start = self._calls(), time.perf_counter()
        try:
            likelihood = likelihood_of(self.config, operator, y.to(self.device), self.noise)
            samples = self._sample(Posterior(self.prior, likelihood), ids, _Observers(frames, watch, trace := Residuals()))
        except Divergence as error:
            if (path := self.checkpoint(ids)) is not None:
                path.unlink(missing_ok=True)
            if len(items) == 1:
                return Outcome(failed={ids[0]: str(error)})
            total = Outcome()
            for item, array in zip(items, arrays, strict=True):
                total.add(self._solve(shape, [item], [array]))
            return total
        except (Unfit, ValueError) as error:  # any other TypeError is a mistake of ours, and keeps its traceback
            raise ConfigError(f"sampler {self.config.sections['sampler'].name}: {one_line(error)}") from error
        outcome = Outcome(seconds=time.perf_counter() - start, calls=_minus(self._calls(), before))
        if (path := self.checkpoint(ids)) is not None:
            outcome.checkpoints.append(path)
        facts: dict[str, Any] = {"seconds": round(outcome.seconds / len(items), 3), "network_calls": outcome.calls}
        facts |= {"device": str(self.device), "peak_memory_mb": memory.peak_megabytes(self.device)}
        facts |= {"batch": len(items), "rows_per_pass": trace.rows_per_pass, "image_shape": list(shape)}
        self._gather(outcome, items, facts, operator, likelihood, samples, x, y, frames, watch, trace)
        return outcome

    def _gather(
        self, outcome: Outcome, items: list[Item], facts: dict[str, Any], operator: Any, likelihood: Any, samples: Tensor,
        x: Tensor | None, y: Tensor, frames: Frames | None, watch: Any, trace: Residuals,
    ) -> None:  # fmt: skip
        """Aligns, averages and compares samples (B, n, C, H, W), and adds each item to what is done or has failed."""
        aligned = align_all(operator, samples, x)
        closest = samples if x is None else torch.stack([operator.align(s, x) for s in samples.unbind(1)], 1)
        mean, std = aligned.mean(1), aligned.std(1) if samples.shape[1] > 1 else torch.zeros_like(aligned[:, 0])
        if watch is not None and not hasattr(self.prior, "autoencoder"):  # the mean of a chain of codes is the code of no mean image
            mean, std = watch.moments([item.id for item in items])
            mean = align_all(operator, mean[:, None], x)[:, 0]
        residuals = [likelihood.discrepancy(s.to(self.device)).cpu() for s in (*samples.unbind(1), mean)]
        view = picture_of(operator, self.noise, y)
        for b, item in enumerate(items):
            broken = [k for k, one in enumerate(samples[b]) if not bool(one.isfinite().all())]
            if broken:
                which = f"sample{'s' if len(broken) > 1 else ''} {', '.join(map(str, broken))}"
                advice = "a smaller guidance step or float32 may help"
                outcome.failed[item.id] = f"the result holds NaN or infinity in {which} of {len(samples[b])}; {advice}"
                continue
            truth, numbers, chains, told = None if x is None else x[b], [float(r[b]) for r in residuals], [], dict(facts)
            if watch is not None:
                chains = [Row(item.id, "chains", name, value) for name, value in watch.numbers(item.id).items()]
                told["chains"] = watch.verdict(item.id)
            kept = [] if frames is None else frames.kept.get(item.id, [])
            steps = traced(trace, item.id, len(samples[b])) | ({"frames": sorted(frames.indices)} if frames and kept else {})
            outcome.done.append(
                Done(item, y[b], truth, samples[b], aligned[b], closest[b], mean[b], std[b], numbers, view[b], kept, chains, told, steps)
            )

    def _sample(self, target: Any, ids: list[str], observe: _Observers) -> Tensor:
        """Samples (B, n, C, H, W) on the CPU. Raises Divergence."""
        s = self.settings
        path = self.checkpoint(ids) if s.checkpoint_every else None

        def attempt() -> Tensor:
            return sample(
                self.sampler, target, self.schedule,
                n=s.samples, seed=s.seed, ids=ids, progress=s.progress, observe=observe, memory_gb=s.memory_gb,
                checkpoint=path, checkpoint_every=s.checkpoint_every, noise_device=s.noise_device,
            ).detach().float().cpu()  # fmt: skip

        try:
            return attempt()
        except Unusable as error:  # before the first step; it only saves time, so it costs no more than that
            assert path is not None
            print(f"invsolve: discarded: {one_line(error)}", file=sys.stderr)
            path.unlink(missing_ok=True)
            return attempt()

    @property
    def weights(self) -> str | None:
        """The checksum of the prior's weights, where it has one."""
        return getattr(self.prior, "weights_sha256", None) or None

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the whole run."""
        names = ("torch", "deepinv", "diffusers", "torchmetrics", "numpy")
        versions = {"invsolve": __version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in names}
        cuda = self.device.type == "cuda"
        return {
            "versions": versions,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),  # sums on the CPU round differently with their number
            "noise_device": self.settings.noise_device,
            "seed": self.settings.seed,
            "prior": self.config.sections["prior"].name,
            "weights_sha256": self.weights,
            "array_range": "[-1, 1]",
        }

    def _frame_indices(self) -> list[int]:
        return log_spaced([move.t.sigma / move.t.alpha for move in self.steps], _FRAMES)

    def checkpoint(self, ids: Sequence[str]) -> Path | None:
        """The file of the half-finished trajectories of a batch."""
        label = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
        return None if self.partial is None else self.partial / f"{label}.pt"

    def _calls(self) -> dict[str, int] | None:
        calls = getattr(self.prior, "calls", None)
        return None if calls is None else dict(vars(calls))


def likelihood_of(config: Config, operator: Any, y: Tensor, noise: Any) -> Any:
    """The likelihood that belongs to the configured noise, bound to y (B, *measurement_shape)."""
    return load_object(LIKELIHOODS[config.sections["noise"].name])(operator, y, **noise.parameters)


def _usable(name: str) -> torch.device:
    """The device of a name. Raises ConfigError with the names there are if torch cannot compute on it."""
    try:
        device = resolve_device(name)
        torch.empty(0, device=device)
    except (ValueError, RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        here = ["auto", "cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise ConfigError(f"device = {name}: not available here; there are: {', '.join(here)}") from error
    return device


class _Observers:
    """Several observers as one; those that are None are left out."""

    def __init__(self, *observers: Any) -> None:
        self.observers = [one for one in observers if one is not None]

    def __call__(self, event: Event) -> None:
        for one in self.observers:
            one(event)

    def _tell(self, name: str, *told: Any) -> None:
        for one in self.observers:
            if hasattr(one, name):
                getattr(one, name)(*told)

    begin = partialmethod(_tell, "begin")
    read = partialmethod(_tell, "read")
    finish = partialmethod(_tell, "finish")


def log_spaced(ratios: Sequence[float], most: int) -> list[int]:
    """At most ``most`` indices of the decreasing ``ratios`` (sigma / alpha > 0), evenly spaced in their logarithm.

    The first and the last are among them. Where the two are equal the indices themselves are evenly spaced.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    if logs[0] == logs[-1]:
        logs = -np.arange(len(logs), dtype=np.float64)
    wanted = np.linspace(logs[0], logs[-1], min(most, len(logs)))
    return sorted({int(np.abs(logs - level).argmin()) for level in wanted} | {0, len(logs) - 1})[-most:]
