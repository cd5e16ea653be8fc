"""Draws from the prior alone, or from any distribution whose denoiser is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from invsolve.engine.protocol import State
from invsolve.kernels import reverse
from invsolve.levels import Level, Move
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.variance import ancestral_step
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class Remembered(State):
    """The iterate, and the posterior mean of the step before with its level (for the two-step kernel)."""

    before: Tensor | None = None
    level: tuple[float, float] | None = None


@dataclass(frozen=True)
class Unconditional:
    """The plain reverse process; the likelihood, if there is one, is not used.

    Args:
        kernel: "ancestral" (DDPM), "ddim" (with `eta`), "euler" (probability-flow ODE), "heun" (the same, second order,
            two network calls a step) or "dpmpp_2m" (DPM-Solver++ 2M, second order, one call). Sources in `kernels`.
        variance: of "ancestral": "posterior" (fixed-small), "upper" (fixed-large), or "learned" by the network.
        eta: of "ddim": 0 deterministic, 1 ancestral.
    """

    guided: ClassVar[bool] = False
    kernel: Literal["ancestral", "ddim", "euler", "heun", "dpmpp_2m"] = "ancestral"
    variance: Literal["posterior", "upper", "learned"] = "posterior"
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, eta="a number in [0, 1]")

    def init(self, target: Any, x: Tensor) -> Remembered:
        """The iterate, with nothing to remember."""
        return Remembered(x)

    def step(self, target: Any, state: Remembered, move: Move, noise: NoiseSource) -> Remembered:
        """One move of the chosen kernel."""
        prior, x = target.prior, state.x
        if self.kernel == "ancestral":
            x0, x = ancestral_step(prior, x, move, noise, self.variance)
            return Remembered(x, x0)
        x0 = prior.denoise(x, move.t)
        if self.kernel == "ddim":
            z = noise.normal(x.shape[1:]) if self.eta else None
            return Remembered(reverse.ddim(x, x0, move, z, self.eta), x0)
        if self.kernel == "dpmpp_2m":
            better = x0
            if state.before is not None and state.level is not None:
                better = reverse.multistep(x0, state.before, move, Level(*state.level))
            return Remembered(reverse.ddim(x, better, move), x0, x0, (move.t.alpha, move.t.sigma))
        x_s = reverse.euler(x, x0, move)
        if self.kernel == "heun" and not move.last:
            x_s = reverse.heun(x, x0, x_s, prior.denoise(x_s, move.s), move)
        return Remembered(x_s, x0)

    def result(self, state: Remembered) -> Tensor:
        """The last iterate."""
        return state.x
