"""Plug-and-play Langevin sampling.

Laumont, De Bortoli, Almansa, Delon, Durmus, Pereyra, "Bayesian imaging using plug and play priors: when Langevin meets
Tweedie", SIAM J. Imaging Sciences 15, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve import kernels
from invsolve.chains import Chains, Gathered, draw_number, keep, nothing
from invsolve.levels import Level, Move
from invsolve.lipschitz import Rule, drift_constants, step_sizes
from invsolve.noise import NoiseSource
from invsolve.samplers.base import State, check_settings
from invsolve.samplers.warm import is_linear, warm_move
from invsolve.schedules import moves


@dataclass(frozen=True)
class Chain(Gathered, State):
    """The iterate with D(x); L, L_y, delta and lambda (B, 4) once the chain has begun; statistics since the burn-in."""

    constants: Tensor | None = None


@dataclass(frozen=True)
class PnPULA:
    """A Langevin chain at one small noise level epsilon = level^2, whose target is p(y | x) p_epsilon(x)^alpha.

    x <- x + delta (grad log p(y | x) + alpha (D(x) - x)/epsilon + (proj_C(x) - x)/lambda) + sqrt(2 delta) z, D the prior's
    denoiser at the level, with a step and a lambda that follow from Lipschitz constants.
    Each sample is a chain of its own, and its draw is the last iterate; `observe=Chains()` (`invsolve.chains`) gives
    mean and standard deviation over the chains, effective sample size, R-hat and whether they have mixed.

    Args:
        steps: of the chain, warm start not counted. One network call each, or `stages` of them.
        level: sqrt(epsilon), the noise level of the denoiser; 10/255 is the paper's 5/255 on [0, 1].
        alpha: power of the prior.
        kernel: "ula", or "skrock" with `stages` (`kernels.skrock`), which goes further per network call.
        constraint: "tail" (the term in lambda, for convergence from anywhere), "projected" (PPnP-ULA: x is clamped to C after
            each step, without that term; biased where the posterior has mass outside C) or "none".
        box: C, the same interval for every pixel. The default is the paper's [-1, 2] on [0, 1]. Codes of a latent prior may
            lie beyond it, which biases them: give a wider one.
        rule, fraction: how delta and lambda follow from the constants, see `lipschitz.step_sizes`.
        delta, lam: given outright; they take the place of the rule's.
        lipschitz: L of D - Id; by default estimated by power iteration at the start of each chain, as L_y always is.
        start: "reverse" walks the schedule down to the level by guided moves (`warm.warm_move`; `zeta` counts only where the
            problem is not linear and Gaussian). Starts then differ about as draws do, without which R-hat says little.
            "pseudo_inverse" starts at A^+ y + N(0, epsilon), "noise" at N(0, I), without the schedule.
        burn_in: share of the steps before statistics begin. thinning: keep one iterate in so many after it; by default
            so many that about 2000 are kept, as in the code of the paper.

    Any operator and likelihood with sigma_y > 0. Biases: epsilon smooths the prior; delta widens ("ula") or narrows
    ("skrock") the directions of large curvature (`kernels`). Chains do not cross between far modes in any reasonable time.
    """

    remedy: ClassVar[str] = "lower delta or fraction"
    steps: int = 2000
    level: float = 10 / 255
    alpha: float = 1.0
    kernel: Literal["ula", "skrock"] = "ula"
    stages: int = 10
    constraint: Literal["tail", "projected", "none"] = "tail"
    box: tuple[float, float] = (-3.0, 3.0)
    rule: Rule = "fraction"
    fraction: float | None = None
    delta: float | None = None
    lam: float | None = None
    lipschitz: float | None = None
    start: Literal["reverse", "pseudo_inverse", "noise"] = "reverse"
    zeta: float = 1.0
    burn_in: float = 0.2
    thinning: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, **dict.fromkeys(("level", "alpha", "delta", "lam", "lipschitz"), "a finite number > 0"))
        check_settings(self, steps="at least 1", stages="at least 2", thinning="at least 1", zeta="at least 0")
        check_settings(self, burn_in="a share of the steps in [0, 1)", box="an interval (low, high)")
        draw_number(1, self.steps, self.burn_in, self.thinning)
        self._sizes(1.0, 1.0)

    def watch(self) -> Chains:
        """The observer that reports on the chains."""
        return Chains()

    def plan(self, schedule: Any) -> list[Move]:
        """The moves of the warm start, if there is one, and `steps` moves that stay at the level."""
        level = Level(1.0, self.level)
        path = [move.t for move in moves(schedule) if move.t.ratio > level.ratio] if self.start == "reverse" else []
        pairs = [*pairwise([*path, level]), *[(level, level)] * self.steps]
        return [Move(t, s, k, len(pairs)) for k, (t, s) in enumerate(pairs)]

    def init(self, target: Any, x: Tensor) -> Chain:
        """The start, with empty statistics. Raises ValueError if there is no pseudo-inverse to start from."""
        if self.start == "noise":
            x = x / self.level
        elif self.start == "pseudo_inverse":
            if not is_linear(target.likelihood):
                raise ValueError("start='pseudo_inverse' needs a linear operator and Gaussian noise; take 'reverse' or 'noise'")
            x = x + target.likelihood.operator.A_dagger(target.likelihood.y)
        return Chain(x, **nothing(x))

    def step(self, target: Any, state: Chain, move: Move, noise: NoiseSource) -> Chain:
        """One move of the warm start, or one step of the chain."""
        x, t = state.x, move.t
        if move.s != t:
            warm = warm_move(target, x, move, noise, self.zeta)
            return replace(state, x=warm.x, x0=warm.x0)
        constants = self._constants(target, x, t) if state.constants is None else state.constants
        delta, lam = (c.view(-1, *[1] * (x.ndim - 1)) for c in constants[:, 2:].unbind(1))
        means: list[Tensor] = []

        def drift(x: Tensor) -> Tensor:
            means.append(target.prior.denoise(x, t))
            score = target.likelihood.score(x) + self.alpha * kernels.score(x, means[-1], t)
            return score + (x.clamp(*self.box) - x) / lam if self.constraint == "tail" else score

        z = noise.normal(x.shape[1:])
        ula = self.kernel == "ula"
        x = kernels.langevin(x, drift(x), delta, z) if ula else kernels.skrock(x, drift, delta, z, self.stages)
        state = replace(state, x=x.clamp(*self.box) if self.constraint == "projected" else x, x0=means[0], constants=constants)
        done = move.index + 1 - (move.total - self.steps)
        return keep(state, draw_number(done, self.steps, self.burn_in, self.thinning))

    def result(self, state: Chain) -> Tensor:
        """The last iterate."""
        return state.x

    def _sizes(self, residual: Any, data: Any) -> tuple[Any, Any]:
        stages, tail = self.stages if self.kernel == "skrock" else 0, self.constraint == "tail"
        return step_sizes(
            residual, data, epsilon=self.level**2, alpha=self.alpha, tail=tail, stages=stages, rule=self.rule, fraction=self.fraction
        )

    def _constants(self, target: Any, x: Tensor, t: Level) -> Tensor:
        """L, L_y, delta and lambda of each row, (B, 4)."""
        residual, data = drift_constants(target, x, t, self.lipschitz)
        given = zip(self._sizes(residual, data), (self.delta, self.lam), strict=True)
        return torch.stack([residual, data, *(v if g is None else torch.full_like(v, g) for v, g in given)], 1)
