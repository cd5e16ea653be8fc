"""Plug-and-play Langevin sampling.

Laumont, De Bortoli, Almansa, Delon, Durmus, Pereyra, "Bayesian imaging using plug and play priors: when Langevin meets
Tweedie", SIAM J. Imaging Sciences 15, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from invsolve.engine.chains import Chains, Gathered, draw_number, keep, nothing
from invsolve.engine.protocol import State
from invsolve.kernels import langevin, reverse
from invsolve.kernels.langevin import skrock_limit
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level, Move
from invsolve.numerics.power import curvature, jacobian_norm
from invsolve.samplers.dps import DPS
from invsolve.samplers.parts.checks import check_settings
from invsolve.schedules import moves
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class Chain(Gathered, State):
    """The iterate with D(x); L, L_y, delta and lambda (B, 4) once the chain has begun; statistics since the burn-in."""

    constants: Tensor | None = None


@dataclass(frozen=True)
class PnPULA:
    """A Langevin chain at one small noise level epsilon = level^2, whose target is p(y | x) p_epsilon(x)^alpha.

    x <- x + delta (grad log p(y | x) + alpha (D(x) - x)/epsilon + (proj_C(x) - x)/lambda) + sqrt(2 delta) z, D the prior's
    denoiser at the level, with a step and a lambda that follow from Lipschitz constants.
    Each sample is a chain of its own, and its draw is the last iterate; `observe=Chains()` (`invsolve.engine.chains`) gives
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
        rule, fraction: how delta and lambda follow from the constants, see `step_sizes`.
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
            score = target.likelihood.score(x) + self.alpha * reverse.score(x, means[-1], t)
            return score + (x.clamp(*self.box) - x) / lam if self.constraint == "tail" else score

        z = noise.normal(x.shape[1:])
        ula = self.kernel == "ula"
        x = langevin.langevin(x, drift(x), delta, z) if ula else langevin.skrock(x, drift, delta, z, self.stages)
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


Number = TypeVar("Number", float, Tensor)


Rule = Literal["fraction", "published", "mismatch"]


def drift_constants(target: Any, x: Tensor, t: Level, residual: float | None = None) -> tuple[Tensor, Tensor]:
    """L of D - Id at level t, given or estimated at x (B, *X), and L_y of grad log p(y | x), estimated at x; (B,) each."""
    data = curvature(target.likelihood.score, x)
    if residual is not None:
        return torch.full_like(data, residual), data
    return jacobian_norm(lambda v: target.prior.denoise(v, t) - v, x), data


class StepSizes(NamedTuple):
    """delta, the step of the chain, and lam, the variance of the tail term; numbers, or tensors (B,)."""

    delta: Any
    lam: Any


def step_sizes(
    residual: Number,
    data: Number,
    *,
    epsilon: float,
    alpha: float = 1.0,
    tail: bool = True,
    stages: int = 0,
    damping: float = 0.05,
    rule: Rule = "fraction",
    fraction: float | None = None,
) -> StepSizes:
    """delta and lam of a PnP-ULA chain from the constants of its drift; all formulas hold for numbers and for tensors (B,).

    Args:
        residual: L, the Lipschitz constant of D - Id for the denoiser D at variance `epsilon` (that of the score is L/epsilon).
        data: L_y, the Lipschitz constant of grad log p(y | x): ||A||^2 / sigma_y^2 for linear Gaussian likelihoods.
        tail: whether the drift has the tail term; without it lam does not enter delta.
        stages: of SK-ROCK (at least 2); 0 for plain Langevin steps.
        rule: with S = alpha L/epsilon + L_y,

            - "fraction": delta = fraction / S, by default 0.3 / S, which makes no variance larger by more than 1/(1 - 0.15);
              with SK-ROCK fraction * l_s / S, by default 0.05 of its limit l_s, which with ten stages leaves the variance of
              curvatures up to S/4 within 7 % (`kernels.skrock`). lam = 1 / (2 S), the largest that Laumont et al. admit
              (2 lam (L_y + alpha L/epsilon) <= 1, for a convex data term).
            - "published": lam = 0.99/(2 alpha L/epsilon + 4 L_y); delta = 0.99/3 / (S + 1/lam), without tail 0.99/S; with
              SK-ROCK 0.99 l_s / (S + 1/lam), without tail 0.99 l_s/S: the code that accompanies the paper. With SK-ROCK it
              shrinks variances severely, and is meant for posterior means.
            - "mismatch": lam = 0.5/(2 L_y + alpha L/epsilon), delta = 1/3 / (S + 1/lam) (Renaud et al., "Plug-and-play posterior
              sampling under mismatched measurement and prior models", ICLR 2024, whose code assumes L = ||A|| = 1).

    Raises ValueError for an unknown rule, a fraction given to another rule than "fraction", or one not in (0, 2) (without
    SK-ROCK) or (0, 1] (with it).
    """
    if rule not in ("fraction", "published", "mismatch"):
        raise ValueError(f"rule={rule!r}; one of fraction, published, mismatch is needed")
    if fraction is not None and rule != "fraction":
        raise ValueError(f"fraction={fraction} belongs to rule='fraction', got rule={rule!r}")
    prior = residual * (alpha / epsilon)
    total = prior + data
    limit = skrock_limit(stages, damping) if stages else 1.0
    if rule == "fraction":
        part = (0.05 if stages else 0.3) if fraction is None else fraction
        if not (0 < part <= 1 if stages else 0 < part < 2):
            raise ValueError(f"fraction={part}; a number in {'(0, 1] of the limit of SK-ROCK' if stages else '(0, 2)'} is needed")
        return StepSizes(part * limit / total, 0.5 / total)
    lam = 0.99 / (2 * prior + 4 * data) if rule == "published" else 0.5 / (2 * data + prior)
    largest = total + 1 / lam if tail else total
    if stages:
        return StepSizes(0.99 * limit / largest, lam)
    if rule == "mismatch":
        return StepSizes(1 / (3 * largest), lam)
    return StepSizes((0.99 / 3 if tail else 0.99) / largest, lam)


def is_linear(likelihood: Any) -> bool:
    """Whether the likelihood is Gaussian with a linear operator, so that `guide` and `prox` exist."""
    return hasattr(likelihood, "guide") and bool(likelihood.operator.linear)


def warm_move(target: Any, x: Tensor, move: Move, noise: NoiseSource, zeta: float = 1.0) -> State:
    """One ancestral move of x (B, *X) towards the posterior.

    Linear Gaussian likelihoods guide the score by that of y under N(x0_hat, r^2 I), r^2 = sigma^2/(alpha^2 + sigma^2), pulled
    back through the network (Song et al., "Pseudoinverse-guided diffusion models", ICLR 2023, equation 7, with this r);
    any other takes a move of DPS with `zeta`. One forward and one backward pass of the network.
    """
    if not is_linear(target.likelihood):
        return DPS(zeta=zeta, variance="posterior").step(target, State(x), move, noise)
    t = move.t
    x0, pull, _ = linearize(target.prior, x, t)
    guide = pull(target.likelihood.guide(x0, (t.sigma / t.scale) ** 2))
    x0 = reverse.tweedie(x, reverse.score(x, x0, t) + guide, t)
    return State(reverse.ancestral(x, x0, move, noise.normal(x.shape[1:])), x0)
