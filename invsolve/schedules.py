"""Schedules: lists of levels from the noisiest to the clean image.

A schedule is a frozen dataclass of numbers, hence its own configuration schema. `levels()` returns Python floats in
double precision, noisiest first, strictly decreasing in sigma / alpha, the last with sigma exactly 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

from invsolve.levels import CLEAN, Level, Move

SCHEDULES: dict[str, str] = {
    "ddpm": "invsolve.schedules:DDPM",
    "scaled_linear": "invsolve.schedules:ScaledLinear",
    "cosine": "invsolve.schedules:Cosine",
    "karras": "invsolve.schedules:Karras",
    "linear": "invsolve.schedules:Linear",
    "levels": "invsolve.schedules:Levels",
}
"""Configuration names; a new schedule is a class and one line here."""


MOST_LEVELS = 100_000
"""More levels, or levels that a network was trained on, are taken for a slip: they would fill the memory before the first step."""


def _whole(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_LEVELS:
        raise ValueError(f"{name}={value!r}; a whole number from {least} to {MOST_LEVELS} is needed")


@runtime_checkable
class Schedule(Protocol):
    """Anything with `levels()`: noisiest first, the last with sigma = 0."""

    def levels(self) -> Sequence[Level]:
        """The levels, noisiest first."""
        ...


def moves(schedule: Schedule) -> list[Move]:
    """The reverse moves t -> s of a schedule. Raises ValueError if the levels are not a valid path to sigma = 0."""
    levels = [Level(float(a), float(s)) for a, s in schedule.levels()]
    if len(levels) < 2:
        raise ValueError(f"a schedule needs at least 2 levels, got {len(levels)}")
    for k, level in enumerate(levels):
        if not (math.isfinite(level.alpha) and math.isfinite(level.sigma) and level.alpha > 0 and level.sigma >= 0):
            raise ValueError(f"level {k} is {tuple(level)}; alpha > 0 and sigma >= 0 are needed")
        if not (1e-150 < level.alpha < 1e150 and (level.sigma == 0 or 1e-150 < level.sigma < 1e150)):
            raise ValueError(f"level {k} is {tuple(level)}; its squares must be numbers in double precision, so no 1e-150 or 1e150")
        if k and level.ratio >= levels[k - 1].ratio:
            raise ValueError(f"levels must get less noisy, but sigma/alpha goes from {levels[k - 1].ratio:g} to {level.ratio:g} at {k}")
    if levels[-1].sigma != 0.0:
        raise ValueError(f"the last level must have sigma = 0, got {levels[-1].sigma:g}; append (1, 0)")
    total = len(levels) - 1
    return [Move(t, s, k, total) for k, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True))]


def vp_level(alpha_bar: float) -> Level:
    """The variance-preserving level of alpha_bar = alpha^2."""
    return Level(math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar))


@lru_cache(maxsize=32)
def alpha_bars(beta_start: float, beta_end: float, train_steps: int, power: float = 1.0) -> tuple[float, ...]:
    """alpha_bar_t = prod (1 - beta_i), beta^(1/power) linear from start to end, for t = 0 .. train_steps - 1.

    power 1 is the DDPM linear schedule (Ho et al. 2020, section 4), power 2 the "scaled linear" one of latent diffusion.
    """
    if not (0 < beta_start < 1 and 0 < beta_end < 1):
        raise ValueError(f"beta_start={beta_start}, beta_end={beta_end}; numbers in (0, 1) are needed")
    _whole("train_steps", train_steps)
    lo, hi = beta_start ** (1 / power), beta_end ** (1 / power)
    out, product = [], 1.0
    for i in range(train_steps):
        beta = (lo + (hi - lo) * i / max(train_steps - 1, 1)) ** power
        product *= 1.0 - beta
        out.append(product)
    return tuple(out)


def _respaced(table: Sequence[float], steps: int) -> list[Level]:
    """`steps` levels at evenly spaced (rounded) indices of a training table, noisiest first, then the clean one."""
    last = len(table) - 1
    if not isinstance(steps, int):
        raise ValueError(f"steps={steps!r}; a whole number is needed")
    if not 1 <= steps <= len(table):
        raise ValueError(f"steps={steps}; this schedule has between 1 and {len(table)} levels")
    # The order of the operations is numpy's linspace, so that ties are rounded to the same index as there.
    kept = sorted({round(i * (last / (steps - 1))) for i in range(steps)}, reverse=True) if steps > 1 else [last]
    return [*(vp_level(table[i]) for i in kept), CLEAN]


@dataclass(frozen=True)
class DDPM:
    """DDPM's linear schedule, respaced: `steps` of the 1000 training levels, then 0.

    Ho, Jain, Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, section 4; respacing keeps alpha_bar at
    the kept indices (Nichol and Dhariwal, ICML 2021). Variance preserving; sigma/alpha runs from 157.4 to 0.01.
    """

    steps: int = 200
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    train_steps: int = 1000

    def levels(self) -> list[Level]:
        """The kept levels, noisiest first."""
        return _respaced(alpha_bars(self.beta_start, self.beta_end, self.train_steps), self.steps)


@dataclass(frozen=True)
class ScaledLinear:
    """The latent-diffusion schedule: sqrt(beta) linear over 1000 levels, respaced.

    Rombach et al., "High-resolution image synthesis with latent diffusion models", CVPR 2022 (Stable Diffusion's values).
    """

    steps: int = 200
    beta_start: float = 8.5e-4
    beta_end: float = 1.2e-2
    train_steps: int = 1000

    def levels(self) -> list[Level]:
        """The kept levels, noisiest first."""
        return _respaced(alpha_bars(self.beta_start, self.beta_end, self.train_steps, 2.0), self.steps)


@dataclass(frozen=True)
class Cosine:
    """The cosine schedule alpha_bar(u) = cos^2(pi/2 (u + offset)/(1 + offset)), normalised, u from 1 to 0.

    Nichol and Dhariwal, "Improved denoising diffusion probabilistic models", ICML 2021, equation 17. As there, the step
    beta is capped at 0.999, which keeps the first alpha away from 0.
    """

    steps: int = 200
    offset: float = 0.008
    train_steps: int = 1000

    def levels(self) -> list[Level]:
        """The kept levels, noisiest first."""

        _whole("train_steps", self.train_steps)
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset={self.offset}; a finite number > 0 is needed")

        def bar(u: float) -> float:
            return math.cos(math.pi / 2 * (u + self.offset) / (1 + self.offset)) ** 2

        table, product = [], 1.0
        for i in range(self.train_steps):
            product *= 1 - min(1 - bar((i + 1) / self.train_steps) / bar(i / self.train_steps), 0.999)
            table.append(product)
        return _respaced(table, self.steps)


@dataclass(frozen=True)
class Karras:
    """The EDM grid: sigma_i^(1/rho) evenly spaced from sigma_max to sigma_min, then 0; variance exploding (alpha = 1).

    Karras, Aittala, Aila, Laine, "Elucidating the design space of diffusion-based generative models", NeurIPS 2022,
    equation 5. sigma in the units of the signal ([-1, 1] for images).
    """

    steps: int = 50
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def levels(self) -> list[Level]:
        """The grid, noisiest first."""
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"0 < sigma_min < sigma_max is needed, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}")
        if isinstance(self.steps, int) and self.steps < 2:
            raise ValueError(f"steps={self.steps}; at least 2 are needed")
        _whole("steps", self.steps, 2)
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho={self.rho}; a finite number > 0 is needed")
        try:
            lo, hi = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
            grid = [(lo + i / (self.steps - 1) * (hi - lo)) ** self.rho for i in range(self.steps)]
        except ArithmeticError:
            grid = []
        # A root or a power beyond the range of doubles, or one that rounds neighbours to the same level.
        if not grid or not all(a > b > 0 for a, b in itertools.pairwise(grid)):
            raise ValueError(
                f"rho={self.rho} with sigma_min={self.sigma_min}, sigma_max={self.sigma_max} and steps={self.steps}: the levels "
                "cannot be told apart in double precision; rho between 1 and 10 is usual"
            )
        return [*(Level(1.0, s) for s in grid), CLEAN]


@dataclass(frozen=True)
class Linear:
    """The rectified-flow path x_t = (1 - t) x_0 + t z, with t evenly spaced from `start` to 0.

    Liu, Gong, Liu, "Flow straight and fast", ICLR 2023. start < 1, for alpha must not vanish.
    """

    steps: int = 50
    start: float = 0.999

    def levels(self) -> list[Level]:
        """The levels, noisiest first."""
        if not 0 < self.start < 1:
            raise ValueError(f"start={self.start}; a value in (0, 1) is needed")
        if isinstance(self.steps, int) and self.steps < 1:
            raise ValueError(f"steps={self.steps}; at least 1 is needed")
        _whole("steps", self.steps)
        times = [self.start * (1 - i / self.steps) for i in range(self.steps)]
        return [*(Level(1 - t, t) for t in times), CLEAN]


@dataclass(frozen=True)
class Levels:
    """Any list of (alpha, sigma) pairs, noisiest first, the last with sigma = 0."""

    values: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        try:
            pairs = tuple((float(a), float(s)) for a, s in self.values)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"levels are pairs (alpha, sigma), such as [(1, 10), (1, 1), (1, 0)]; got {self.values!r}") from error
        object.__setattr__(self, "values", pairs)
        moves(self)

    def levels(self) -> list[Level]:
        """The pairs as levels."""
        return [Level(a, s) for a, s in self.values]
