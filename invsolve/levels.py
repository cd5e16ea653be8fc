"""Noise levels: the only clock of the library.

A level (alpha, sigma) says that x_t = alpha x_0 + sigma z with z ~ N(0, I). Variance-preserving, variance-exploding
and flow paths are all lists of levels, so a prior never needs to know which path a sampler walks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Level(NamedTuple):
    """x_t = alpha x_0 + sigma z, with alpha > 0 and sigma >= 0 as Python floats in the units of the signal."""

    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise level of x_t / alpha, called sigma in variance-exploding papers."""
        return self.sigma / self.alpha

    @property
    def scale(self) -> float:
        """sqrt(alpha^2 + sigma^2), which brings x_t to the variance-preserving path by division."""
        return math.hypot(self.alpha, self.sigma)


CLEAN = Level(1.0, 0.0)


@dataclass(frozen=True)
class Move:
    """One reverse move from level `t` to the less noisy level `s`; the `index`-th of `total`, counted from 0."""

    t: Level
    s: Level
    index: int
    total: int

    @property
    def last(self) -> bool:
        """Whether the move ends at the clean image."""
        return self.s.sigma == 0.0

    @property
    def forward_variance(self) -> float:
        """Variance of q(x_t | x_s) = N((alpha_t / alpha_s) x_s, variance I); beta of DDPM on its path."""
        # Factored, so that it is positive for any two levels in order, however close.
        return self.t.alpha**2 * (self.t.ratio - self.s.ratio) * (self.t.ratio + self.s.ratio)

    @property
    def upper_variance(self) -> float:
        """Variance of q(x_s | x_t) if x_0 were N(0, I); beta of DDPM on its path, and the same rescaled on any other."""
        return self.forward_variance * (self.s.scale / self.t.scale) ** 2

    @property
    def posterior_variance(self) -> float:
        """Variance of q(x_s | x_t, x_0) (Ho et al. 2020, equation 7, for any alpha and sigma)."""
        return self.forward_variance * (self.s.sigma / self.t.sigma) ** 2
