"""Decoupled annealing posterior sampling.

Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving diffusion inverse problem solving with decoupled noise annealing",
CVPR 2025 (arXiv 2407.01521), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.engine.protocol import State
from invsolve.kernels import mcmc, reverse
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.pulled_back import Clipped
from invsolve.numerics.power import curvature
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.latent import closed, of_images
from invsolve.samplers.unconditional import Remembered, Unconditional
from invsolve.schedules import Karras, moves
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class Annealed(State):
    """The iterate, and the largest curvature (B, 1) of log p(y | x) where that is the same at every x."""

    curvature: Tensor | None = None


@dataclass(frozen=True)
class DAPS:
    """At each level: estimate x_0 from x_t, draw u given y around the estimate, and noise u to the next level.

    u is drawn from p(u | y) under N(x0_hat, r^2 I) with r = sigma/alpha of x_t, so successive levels are coupled through u
    alone. The last draw, at the lowest level above zero, is the result: what y leaves open carries noise of its r, so let
    the schedule end at a level that may be seen (Karras with sigma_min 0.02 for images; the paper's ends at 0.1).

    Args:
        estimate: "tweedie", the posterior mean, one network call; or "ode", the end of the probability-flow ODE (the paper),
            `ode_steps` calls. The ODE's end is already a draw with the full spread of x_0 given x_t, and the draw around it
            adds r^2 once more: where y says nothing the variance tends to twice that of the prior, the more so the better
            the ODE is solved. Around the mean it tends to the right one (Gaussian prior, many levels); hence the default.
        ode_steps, ode_kernel, ode_sigma_min: steps of "euler", "heun" (two calls a step) or "dpmpp_2m", on a Karras grid
            from the level down to ode_sigma_min. At levels below that, the posterior mean is taken.
        prior_std: s in r^2 = ratio^2 s^2 / (ratio^2 + s^2), the spread of x_0 given x_t if single pixels had the standard
            deviation s around what is known of them; None for r = ratio (the paper). Neighbouring pixels of an image say so
            much of each other that r = ratio leaves noise behind wherever y is silent: take 0.15 for photographs in [-1, 1].
        inner: how u is drawn. "exact": one solve, for a linear operator and Gaussian noise; "langevin", "underdamped" (what
            the authors' code calls HMC), "hmc" (leap-frog with acceptance), "metropolis": see `inner`; "auto": exact where it
            can be, else hmc, which cannot diverge. underdamped goes further in as many steps where curvature varies little.
        inner_steps: of the chain, which starts at the estimate; for hmc the leap-frog steps, `leapfrogs` a trajectory.
        lr: step of the chain, decaying linearly to lr * lr_min_ratio at the last level (the authors' code); None sets it from
            the curvature of the target, measured by power iteration, and tunes "hmc" and "metropolis" by their acceptance.
        momentum: of "underdamped"; 0 is "langevin".
        likelihood: "correct", log p(y | x) with its one-half; "official", the gradient of -||y - A x||^2 / tau^2 as in the
            authors' code (for "metropolis" with the one-half, as there); "legacy", that of their first version with the half.
        clip: None, or a bound on each entry of the gradient of ||y - A x||^2 in a chain, which turns large forces away from
            their direction; 1 in the authors' code for latent priors, without a word in the paper.

    Any schedule, any operator, any likelihood that the inner draw can serve; no backward pass through the network.
    """

    remedy: ClassVar[str] = "lower lr, or take inner=hmc, which cannot diverge"
    estimate: Literal["tweedie", "ode"] = "tweedie"
    ode_steps: int = 5
    ode_kernel: Literal["euler", "heun", "dpmpp_2m"] = "euler"
    ode_sigma_min: float = 0.01
    prior_std: float | None = None
    inner: Literal["auto", "exact", "langevin", "underdamped", "hmc", "metropolis"] = "auto"
    inner_steps: int = 100
    leapfrogs: int = 10
    lr: float | None = None
    lr_min_ratio: float = 1.0
    momentum: float = 0.9
    likelihood: Literal["correct", "official", "legacy"] = "correct"
    tau: float = 0.01
    clip: float | None = None

    def __post_init__(self) -> None:
        check_settings(self, **dict.fromkeys(("ode_steps", "inner_steps", "leapfrogs"), "a whole number >= 1"))
        check_settings(self, **dict.fromkeys(("ode_sigma_min", "prior_std", "lr", "tau", "clip"), "a finite number > 0"))
        check_settings(self, lr_min_ratio="a number in (0, 1]", momentum="a number in [0, 1)")

    def init(self, target: Any, x: Tensor) -> Annealed:
        """The iterate, and the curvature of the likelihood if a chain needs it and it is a constant.

        Raises TypeError if the likelihood is not one that the inner draw can serve.
        """
        likelihood = self._likelihood(target.likelihood)
        if self.inner == "exact" and not closed(likelihood):
            raise TypeError("inner='exact' needs a linear operator and Gaussian noise; take 'auto' or one of the chains")
        if self.clip is not None and not isinstance(of_images(likelihood), GaussianLikelihood):
            raise TypeError(f"clip={self.clip} is for Gaussian noise, not for a {type(of_images(likelihood)).__name__}")
        if self._exact(likelihood) or self.lr is not None or not closed(likelihood):
            return Annealed(x)
        return Annealed(x, None, curvature(likelihood.score, torch.zeros_like(x))[:, None])

    def step(self, target: Any, state: Annealed, move: Move, noise: NoiseSource) -> Annealed:
        """One level: estimate, draw, noise."""
        t = Level(1.0, move.t.ratio)
        x = state.x if move.t.alpha == 1 else state.x / move.t.alpha
        x0 = self._estimate(target, x, t, noise)
        u = self._draw(target, replace(state, x=x, x0=x0), move, noise)
        return replace(state, x=u if move.last else reverse.diffuse(u, move.s, noise.normal(u.shape[1:])), x0=x0)

    def result(self, state: Annealed) -> Tensor:
        """The last draw."""
        return state.x

    def _estimate(self, target: Any, x: Tensor, t: Level, noise: NoiseSource) -> Tensor:
        if self.estimate == "tweedie" or t.sigma <= self.ode_sigma_min:
            return target.prior.denoise(x, t)
        ode, state = Unconditional(kernel=self.ode_kernel), Remembered(x)
        for move in moves(Karras(self.ode_steps + 1, t.sigma, self.ode_sigma_min))[:-1]:
            state = ode.step(target, state, move, noise)
        return state.x

    def _draw(self, target: Any, state: Annealed, move: Move, noise: NoiseSource) -> Tensor:
        """u from p(u | y) under N(x0_hat, r^2 I)."""
        ratio, x0, likelihood = move.t.ratio, state.x0, self._likelihood(target.likelihood)
        assert x0 is not None
        r = ratio if self.prior_std is None else ratio * self.prior_std / math.hypot(ratio, self.prior_std)
        if self._exact(likelihood):
            return likelihood.sample_given(x0, r, noise)
        lr = self.lr and self.lr * (1 + move.index / (move.total + 1) * (self.lr_min_ratio - 1))
        chain = mcmc.Chain("hmc" if self.inner == "auto" else self.inner, self.inner_steps, self.leapfrogs, self.momentum, lr)
        largest = None
        if lr is None:
            held = state.curvature
            largest = 1 / r**2 + (curvature(likelihood.score, x0, iterations=5) if held is None else held[:, 0])
        if self.clip is not None:
            likelihood = Clipped(likelihood, self.clip / (2 * of_images(likelihood).sigma ** 2))
        return chain.draw(mcmc.around(likelihood, x0, r), x0, noise, largest)

    def _likelihood(self, likelihood: Any) -> Any:
        if self.likelihood == "correct":
            return likelihood
        images = of_images(likelihood)
        if not isinstance(images, GaussianLikelihood):
            raise TypeError(f"likelihood={self.likelihood!r} is for Gaussian noise, not for a {type(images).__name__}")
        doubled = self.likelihood == "official" and self.inner != "metropolis"
        return likelihood.with_sigma(self.tau / math.sqrt(2) if doubled else self.tau)

    def _exact(self, likelihood: Any) -> bool:
        return self.inner == "exact" or (self.inner == "auto" and closed(likelihood))
