"""The one reverse loop that every sampler runs in."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from invsolve.engine import stopping
from invsolve.engine.checkpoint import Checkpoint, fingerprint
from invsolve.engine.guard import Monitor
from invsolve.engine.memory import rows_that_fit
from invsolve.engine.observers import Event, Observer
from invsolve.engine.protocol import Sampler, remedy_of
from invsolve.errors import Unfit
from invsolve.levels import Move
from invsolve.posterior import Posterior
from invsolve.schedules import Schedule, moves
from invsolve.streams import Noise, Row


def sample(
    sampler: Sampler,
    target: Any,
    schedule: Schedule,
    *,
    n: int = 1,
    seed: int = 0,
    ids: Sequence[int | str] | None = None,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = True,
    observe: Observer | None = None,
    memory_gb: float | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    noise_device: Literal["cpu", "device"] = "cpu",
) -> Tensor:
    """Draws n samples for each measurement.

    Main arguments:
        sampler: how to sample, such as DPS().
        target: a Posterior, or a prior to sample from without a measurement.
        schedule: which levels to walk, such as DDPM(steps=200).
        n: samples for each image.
        seed: root seed. The result for an image depends on (seed, its id, the sample index) and on nothing else: not on
            the batch, its order, or how it is cut into chunks.
        ids: one int or string for each row of y (or for each image to draw, without a measurement); range(B) by default.

    Other arguments:
        shape: of one signal, where neither measurement nor prior tells.
        dtype: of the state; by default that of the network's weights, else of y.
        progress: a bar with the time left and the running residual ||y - A x0_hat|| / (sigma sqrt(m)).
        observe: called after every step with an Event; may have methods `finish` (see `samplers.State`), `read`, which gets
            the running residuals (see `engine.observers.Residuals`), and `begin`, which gets the rows of one pass before the first.
        memory_gb: limit on what one chunk of samples may take; by default 4 (`invsolve.resources.MEMORY_GB`). It divides the
            rows, which changes results by rounding; the free memory does not, but a chunk that is too large for it is refused.
        checkpoint: a file that makes the call resumable: finished chunks and, every `checkpoint_every` steps, the
            running one are saved there, and a later identical call continues bit for bit. It is left in place.
        noise_device: "cpu" draws the same numbers, bit for bit, on every machine, "device" draws them on the accelerator.

    Returns (B, n, *X) on the prior's device, in the prior's range ([-1, 1] for images), not clamped.
    Raises ValueError for shapes, ids or levels that do not fit, TypeError (`invsolve.Unfit`) for an operator or likelihood
    of a kind that the sampler cannot serve, and Divergence if a trajectory leaves all bounds.
    """
    n = _checked(sampler, target, schedule, n)
    # Samplers need autograd: leave Lightning's inference mode, whatever the caller runs under.
    with torch.inference_mode(False), torch.no_grad():
        target = target if isinstance(target, Posterior) else Posterior(target)
        if target.likelihood is None and getattr(sampler, "guided", True):
            raise ValueError(f"{type(sampler).__name__} needs a measurement; pass Posterior(prior, likelihood)")
        signal = _signal_shape(target, shape)
        device, dtype = _where(target, dtype)
        if target.likelihood is not None:
            target = Posterior(target.prior, _moved(target.likelihood, device, dtype)).in_prior_space()
        names = _ids(target, ids)
        rows: list[Row] = [(i, k) for i in names for k in range(n)]
        plan = getattr(sampler, "plan", None)
        steps = plan(schedule) if plan else moves(schedule)
        index = torch.arange(len(names)).repeat_interleave(n)
        chunk = rows_that_fit(target.select(index[:1]), signal, dtype, device, len(rows), memory_gb, steps[0].t)
        store = None
        if checkpoint is not None:
            store = Checkpoint(
                checkpoint, fingerprint(sampler, target, steps, seed, rows, signal, dtype, noise_device), checkpoint_every, chunk
            )
            chunk = store.chunk
        if begin := getattr(observe, "begin", None):
            begin(chunk)
        done: list[Tensor] = []
        with _bar(len(steps) * -(-len(rows) // chunk), type(sampler).__name__, progress) as bar:
            for first in range(0, len(rows), chunk):
                part = rows[first : first + chunk]
                noise = Noise(seed, part, dtype=dtype, device=device, where=noise_device)
                walk = _Walk(sampler, target.select(index[first : first + chunk]), steps, part, noise, observe, bar)
                done.append(walk.run(signal, store, len(done)))
        return torch.cat(done).unflatten(0, (len(names), n))


def _checked(sampler: Any, target: Any, schedule: Any, n: Any) -> int:
    """n as an int, once all arguments are of the right kind."""
    if isinstance(sampler, type) or not isinstance(sampler, Sampler):
        hint = f"pass an object, {sampler.__name__}()" if isinstance(sampler, type) else "the order is sample(sampler, target, schedule)"
        raise TypeError(f"{getattr(sampler, '__name__', type(sampler).__name__)} is no sampler; {hint}")
    if not isinstance(target, Posterior) and not hasattr(target, "denoise"):
        raise TypeError(f"target is a {type(target).__name__}; a Posterior, or a prior with denoise(x, level), is needed")
    if isinstance(target, Posterior) and not hasattr(target.prior, "denoise"):
        raise TypeError(f"the prior is a {type(target.prior).__name__}; an object with denoise(x, level) is needed")
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule is {schedule!r}; a schedule such as DDPM(steps=200), or Levels([...]) for your own levels, is needed")
    try:
        count = operator.index(n)
    except TypeError as error:
        raise TypeError(f"n={n!r}; a whole number of samples is needed") from error
    if count < 1:
        raise ValueError(f"n={count}; at least 1 sample is needed")
    return count


def _bar(total: int, name: str, progress: bool) -> Any:
    # A log file gets a line now and then, not one for every refresh of a terminal's bar.
    quiet = not sys.stderr.isatty() and "ipykernel" not in sys.modules
    return tqdm(total=total, disable=not progress, desc=name, unit="step", mininterval=30.0 if quiet else 0.1)


class _Walk:
    """One chunk of rows on its way through the moves."""

    def __init__(self, sampler: Any, target: Any, steps: list[Move], rows: list[Row], noise: Noise, observe: Observer | None, bar: Any):
        self.sampler, self.target, self.steps, self.rows = sampler, target, steps, rows
        self.noise, self.observe, self.bar = noise, observe, bar

    def run(self, shape: tuple[int, ...], store: Checkpoint | None, number: int) -> Tensor:
        if store is not None and (finished := store.finished(number)) is not None:
            self.bar.update(len(self.steps))
            self._finish(store.statistics(number))
            return finished.to(self.noise.device)
        x = self.noise.normal(shape) * self.steps[0].t.sigma
        try:
            state = self.sampler.init(self.target, x)
        except TypeError as error:
            raise Unfit(*error.args) from error
        first = 0
        if store is not None and (saved := store.running(number)) is not None:
            first, fields, self.noise.counts = saved
            state = type(state)(**{k: v.to(self.noise.device) if isinstance(v, Tensor) else v for k, v in fields.items()})
            self.bar.update(first)
        remedy, tell = remedy_of(self.sampler), getattr(self.observe, "read", None)
        monitor = Monitor(self.target, self.rows, self.bar, self.steps, remedy=remedy, tell=tell)
        for move in self.steps[first:]:
            state = self.sampler.step(self.target, state, move, self.noise)
            monitor.step(move, state.x, state.x0)
            if self.observe is not None:
                self.observe(Event(move.index, move.total, move, state.x, state.x0, self.rows))
            stop = None if move.last else stopping.requested()
            if store is not None and (store.due(move) or stop is not None):
                store.save_running(number, move.index + 1, vars(state), self.noise.counts)
            if stop is not None:
                raise stopping.Stopped(stop)
        monitor.close()
        result: Tensor = self.target.prior.decode(self.sampler.result(state))
        statistics = vars(state) if getattr(state, "statistics", ()) else None
        if store is not None:
            store.save_finished(number, result, statistics)
        self._finish(statistics)
        return result

    def _finish(self, statistics: dict[str, Any] | None) -> None:
        finish = getattr(self.observe, "finish", None)
        if finish is not None and statistics is not None:
            finish(self.rows, statistics)


def _signal_shape(target: Posterior, shape: Sequence[int] | None) -> tuple[int, ...]:
    known = getattr(target.likelihood, "image_shape", None) or getattr(target.prior, "image_shape", None)
    if shape is not None and known is not None and tuple(shape) != tuple(known):
        raise ValueError(f"shape={tuple(shape)}, but the measurement (or the prior) is for signals of shape {tuple(known)}")
    found = tuple(shape) if shape is not None else known
    if found is None:
        raise ValueError("the shape of a signal is not known; pass shape=, such as shape=(3, 64, 64)")
    check = getattr(target.prior, "image_shape_ok", None)
    if check:
        check(tuple(found))
    inner = getattr(target.prior, "signal_shape", None)
    return tuple(inner(tuple(found)) if inner else found)


def _where(target: Posterior, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    y = getattr(target.likelihood, "y", None)
    own = getattr(getattr(target.prior, "prior", target.prior), "mean", None)
    follows = y if y is not None else own if isinstance(own, Tensor) else torch.empty(())
    device = getattr(target.prior, "device", None) or follows.device
    fixed = getattr(target.prior, "dtype", None)
    if dtype is not None and fixed is not None and dtype != fixed:
        raise ValueError(f"dtype={dtype}, but the prior's network computes in {fixed}; leave dtype out, or convert the network")
    return device, dtype or fixed or torch.empty(0, dtype=follows.dtype).real.dtype


def _moved(likelihood: Any, device: torch.device, dtype: torch.dtype) -> Any:
    move = getattr(likelihood, "to", None)
    return move(device, dtype) if move else likelihood


def _ids(target: Posterior, ids: Sequence[int | str] | None) -> list[int | str]:
    y = getattr(target.likelihood, "y", None)
    inner: Any = getattr(target.prior, "prior", target.prior)
    per_row = len(inner.mean) if getattr(inner, "_per_row", False) else getattr(inner, "rows", None)
    count = per_row if y is None or len(y) == 1 else len(y)
    if per_row is not None and count != per_row:
        raise ValueError(f"the prior is for {per_row} images (one embedding or mean each), but y holds {count}")
    names: list[int | str] = list(range(count or 1)) if ids is None else [_id(name) for name in ids]
    if not names:
        raise ValueError("ids is empty; one id for each image is needed")
    if count is not None and len(names) != count:
        raise ValueError(f"{len(names)} ids for {count} measurements; one id for each is needed")
    if len(set(names)) != len(names):
        raise ValueError(f"ids must differ, for they seed the noise; got {names}")
    return names


def _id(name: Any) -> int | str:
    if isinstance(name, str):
        return name
    try:
        return operator.index(name)
    except TypeError as error:
        raise TypeError(f"id {name!r} is a {type(name).__name__}; an int or a string is needed") from error
