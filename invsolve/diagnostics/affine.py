"""The exact output law of a sampler, without Monte Carlo.

With a Gaussian prior and a linear Gaussian likelihood, a step of many samplers is an affine map of its state and its
noise. Probing it with unit vectors carries mean and covariance through a whole trajectory in milliseconds, to rounding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invsolve.posterior import Posterior
from invsolve.schedules import Schedule, moves


class _CountingNoise:
    """Hands out zeros and notes the shapes that were asked for."""

    def __init__(self, rows: int, like: Tensor):
        self.rows, self.like, self.shapes = rows, like, list[tuple[int, ...]]()

    def normal(self, shape: Sequence[int]) -> Tensor:
        self.shapes.append(tuple(shape))
        return self.like.new_zeros((self.rows, *shape))


class _UnitNoise:
    """Hands out zeros, but for one unit vector in each of the rows kept for it."""

    def __init__(self, rows: int, first: int, like: Tensor):
        self.rows, self.next_row, self.like = rows, first, like

    def normal(self, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        z = self.like.new_zeros((self.rows, size))
        index = torch.arange(size)
        z[self.next_row + index, index] = 1.0
        self.next_row += size
        return z.reshape(self.rows, *shape)


def output_law(sampler: Any, target: Any, schedule: Schedule, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean X and covariance (n, n) of what the sampler returns, exact when its steps are affine.

    Args:
        sampler: any sampler whose step is affine in state and noise under this target.
        target: a Posterior with a Gaussian prior (and one measurement, B = 1), or a Gaussian prior. With a latent prior
            over a Gaussian one the law is that of the code.
        schedule: the levels to walk.
        start: (n, k) square root of the covariance of the first iterate; sigma_T I by default, as in `sample`.

    Raises ValueError if a step turns out not to be affine (checked on the way with one doubled perturbation).
    """
    target = (target if isinstance(target, Posterior) else Posterior(target)).in_prior_space()
    if target.likelihood is not None and len(target.likelihood.y) != 1:
        raise ValueError(f"output_law needs one measurement, got {len(target.likelihood.y)}; select one row of the posterior")
    plan = getattr(sampler, "plan", None)
    steps = plan(schedule) if plan else moves(schedule)
    own = getattr(target.prior, "prior", target.prior)
    mean = own.mean
    shape = tuple(getattr(target.likelihood, "image_shape", None) or own.image_shape)
    n = math.prod(shape)
    root = torch.eye(n, dtype=mean.dtype, device=mean.device) * steps[0].t.sigma if start is None else start.to(mean)
    with torch.no_grad():
        x = torch.cat([torch.zeros((1, n), dtype=mean.dtype, device=mean.device), root.mT]).reshape(-1, *shape)
        state = sampler.init(target, x)
        # They feed back into nothing, and a variance is not affine.
        state = dataclasses.replace(state, **dict.fromkeys(getattr(state, "statistics", ())))
        for move in steps:
            state = _advance(sampler, target, state, move)
        out = sampler.result(state).flatten(1)
    columns = (out[1:] - out[:1]).mT
    return out[0].reshape(shape), columns @ columns.mT


def _tensors(state: Any) -> dict[str, Tensor]:
    return {f.name: v for f in dataclasses.fields(state) if isinstance(v := getattr(state, f.name), Tensor)}


def _advance(sampler: Any, target: Any, state: Any, move: Any) -> Any:
    """One step of a state whose row 0 is the mean and whose other rows are mean + one column of a root of the covariance."""
    held = _tensors(state)
    rows = len(state.x)
    counting = _CountingNoise(1, state.x)
    sampler.step(target, dataclasses.replace(state, **{k: v[:1] for k, v in held.items()}), move, counting)
    fresh = sum(math.prod(s) for s in counting.shapes)
    # One more row than is needed: the mean moved twice as far along all columns, which an affine step maps to the like.
    index = torch.cat([torch.arange(rows), torch.zeros(fresh + 1, dtype=torch.long)])
    wide = {k: v[index].clone() for k, v in held.items()}
    for k, v in held.items():
        wide[k][-1] = v[0] + 2 * (v[1:] - v[:1]).sum(0)
    stepped = sampler.step(target, dataclasses.replace(state, **wide), move, _UnitNoise(rows + fresh + 1, rows, state.x))
    out = _tensors(stepped)
    flat = torch.cat([v.flatten(1) for v in out.values()], 1)
    mean, columns, probe = flat[0], flat[1:-1] - flat[:1], flat[-1] - flat[0]
    expected = 2 * columns[: rows - 1].sum(0)
    if not bool((probe - expected).abs().amax() <= 1e-6 * (1 + expected.abs().amax())):
        raise ValueError(f"{sampler} is not affine at step {move.index + 1}; its law cannot be probed")
    # Fewer columns with the same covariance: C C^T = R^T R for C^T = Q R.
    reduced = torch.linalg.qr(columns, mode="r").R if len(columns) > columns.shape[1] else columns
    flat = torch.cat([mean[None], mean + reduced])
    parts = torch.split(flat, [v[0].numel() for v in out.values()], 1)
    return dataclasses.replace(stepped, **{k: p.reshape(-1, *v.shape[1:]) for (k, v), p in zip(out.items(), parts, strict=True)})
