"""Markov chains on a density known up to a constant: how a sampler draws where no closed form exists.

Every chain is a free function of a density, a start u (B, *X) and the noise of its rows. A step size eta is a variance: a
number, or one for each row, shape (B,). Rows never meet, nothing is read by the host, and accepting is per row.
Uniform numbers are made from normal ones, for a stream hands out nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.kernels.langevin import langevin as langevin_step
from invsolve.streams import NoiseSource

Step = float | Tensor


@dataclass(frozen=True)
class Density:
    """What a chain asks of its target: log density up to a constant, (B, *X) -> (B,), and its gradient, (B, *X)."""

    log_prob: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor]


def around(likelihood: Any, centre: Tensor, r: float) -> Density:
    """p(u | y) under the prior N(centre, r^2 I)."""

    def log_prob(u: Tensor) -> Tensor:
        return likelihood.log_prob(u) - _energy(u - centre) / r**2

    def score(u: Tensor) -> Tensor:
        return torch.add(likelihood.score(u), centre - u, alpha=1 / r**2)

    return Density(log_prob, score)


def langevin(density: Density, u: Tensor, noise: NoiseSource, steps: int, eta: Step) -> Tensor:
    """`steps` steps of the unadjusted Langevin algorithm, `kernels.langevin`.

    Stable for eta P < 2 with P the largest curvature; on a Gaussian it inflates the variance 1/P to 1/(P (1 - eta P / 2)).
    """
    eta = _column(eta, u)
    for _ in range(steps):
        u = langevin_step(u, density.score(u), eta, noise.normal(u.shape[1:]))
    return u


def underdamped(density: Density, u: Tensor, noise: NoiseSource, steps: int, eta: Step, momentum: float) -> Tensor:
    """v <- m v + sqrt(eta) score(u) + sqrt(2 (1 - m)) z; u <- u + sqrt(eta) v; v starts as N(0, I).

    What the code of Zhang et al. (DAPS, CVPR 2025) calls HMC: Langevin with momentum, neither leap-frog nor acceptance.
    m = 0 is `langevin`. Stable for eta P < 2 (1 + m).
    """
    root, kick = _column(eta, u) ** 0.5, math.sqrt(2 * (1 - momentum))
    v = noise.normal(u.shape[1:])
    for _ in range(steps):
        v = torch.add(momentum * v + root * density.score(u), noise.normal(u.shape[1:]), alpha=kick)
        u = u + root * v
    return u


def hmc(density: Density, u: Tensor, noise: NoiseSource, steps: int, eta: Step, leapfrogs: int, warmup: int = 0) -> Tensor:
    """Hamiltonian Monte Carlo: `steps` trajectories of `leapfrogs` leap-frog steps of length sqrt(eta), each accepted or not.

    Neal, "MCMC using Hamiltonian dynamics", 2011, section 3; the step of each trajectory is shortened by a uniform factor in
    [1/2, 1] (section 3.2), without which a Gaussian direction may return to where it began. Exact but for the `warmup` first
    trajectories, in which each row's step is tuned to an acceptance of 0.8. Stable for eta P < 4.
    """
    tuned = _Tuned(eta, u, 0.8, warmup)
    log_prob, grad = density.log_prob(u), density.score(u)
    for k in range(steps):
        v, root = noise.normal(u.shape[1:]), tuned.eta**0.5 * _column(1 - _uniform(noise) / 2, u)
        q, g, before = u, grad, log_prob - _energy(v)
        for _ in range(leapfrogs):
            v = v + root / 2 * g
            q = q + root * v
            g = density.score(q)
            v = v + root / 2 * g
        found = density.log_prob(q)
        taken = tuned.accept(k, found - _energy(v) - before, noise)
        here = _column(taken, u)
        u, grad, log_prob = torch.where(here, q, u), torch.where(here, g, grad), torch.where(taken, found, log_prob)
    return u


def metropolis(density: Density, u: Tensor, noise: NoiseSource, steps: int, eta: Step, warmup: int = 0) -> Tensor:
    """Random-walk Metropolis: u + sqrt(eta) z is proposed `steps` times, and accepted or not; only log_prob is used.

    Exact but for the `warmup` first steps, in which each row's step is tuned to an acceptance of 0.3.
    """
    tuned = _Tuned(eta, u, 0.3, warmup)
    log_prob = density.log_prob(u)
    for k in range(steps):
        q = u + tuned.eta**0.5 * noise.normal(u.shape[1:])
        found = density.log_prob(q)
        taken = tuned.accept(k, found - log_prob, noise)
        u, log_prob = torch.where(_column(taken, u), q, u), torch.where(taken, found, log_prob)
    return u


@dataclass(frozen=True)
class Chain:
    """Which chain, and how long.

    Args:
        kind: "langevin", "underdamped", "hmc" or "metropolis".
        steps: of the chain; for "hmc" leap-frog steps, `leapfrogs` a trajectory.
        momentum: m of "underdamped".
        eta: step size; None takes it from the curvature that `draw` is given and lets "hmc" and "metropolis" tune it during
            the first half of their steps.
    """

    kind: str
    steps: int
    leapfrogs: int = 10
    momentum: float = 0.0
    eta: float | None = None

    def draw(self, density: Density, u: Tensor, noise: NoiseSource, curvature: Tensor | None = None) -> Tensor:
        """The last state of a chain from u; curvature (B,) is the largest of the density, needed where eta is None."""
        n = u[0].numel()
        # Without acceptance: the variance of the stiffest direction comes out at most 1/(1 - 0.15) too large, and the less the
        # more momentum there is. HMC and Metropolis: the scalings under which acceptance does not depend on the dimension n.
        length = {"langevin": 0.3, "underdamped": 0.3, "hmc": 2.25 / math.sqrt(n), "metropolis": 5.7 / n}[self.kind]
        eta: Any = self.eta
        if tuned := eta is None:
            if curvature is None:
                raise ValueError("a step size eta, or the curvature to take it from, is needed")
            eta = length / curvature
        if self.kind == "langevin":
            return langevin(density, u, noise, self.steps, eta)
        if self.kind == "underdamped":
            return underdamped(density, u, noise, self.steps, eta, self.momentum)
        if self.kind == "metropolis":
            return metropolis(density, u, noise, self.steps, eta, self.steps // 2 if tuned else 0)
        paths = max(1, self.steps // self.leapfrogs)
        return hmc(density, u, noise, paths, eta, self.leapfrogs, paths // 2 if tuned else 0)


class _Tuned:
    """Acceptance, and a step size that approaches a wanted rate while the warm-up lasts.

    Robbins and Monro's rule on log eta with gains 2 k^-0.6 (Andrieu and Thoms, "A tutorial on adaptive MCMC", 2008, section 5).
    """

    def __init__(self, eta: Step, u: Tensor, goal: float, warmup: int):
        self.goal, self.warmup = goal, warmup
        self.eta: Tensor = _column(eta.to(u) if isinstance(eta, Tensor) else u.new_full((len(u),), eta), u)

    def accept(self, k: int, log_ratio: Tensor, noise: NoiseSource) -> Tensor:
        """Which rows are accepted, (B,); a proposal whose density is not a number never is."""
        if k < self.warmup:
            rate = torch.where(log_ratio.isnan(), -math.inf, log_ratio).clamp(max=0).exp()
            self.eta = self.eta * _column(torch.exp((rate - self.goal) * (2 * (k + 1) ** -0.6)), self.eta)
        return _uniform(noise).log() < log_ratio


def _uniform(noise: NoiseSource) -> Tensor:
    """A uniform number in [0, 1] for each row."""
    return torch.special.ndtr(noise.normal(()))


def _energy(v: Tensor) -> Tensor:
    """||v||^2 / 2 of each row, (B,)."""
    return v.flatten(1).square().sum(1) / 2


def _column(values: Any, like: Tensor) -> Any:
    """One number for each row (B,), shaped to multiply (B, *X); a float stays one."""
    return values.view(-1, *[1] * (like.ndim - 1)) if isinstance(values, Tensor) else values
