"""Prompt tuning for latent diffusion inverse solvers.

Chung, Ye, Milanfar, Delbracio, "Prompt-tuning latent diffusion models for inverse problems", ICML 2024 (arXiv 2310.01110).
The authors have released no code; this follows the algorithm of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.kernels import reverse
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level, Move
from invsolve.samplers.parts import prompts
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.latent import Gradient, check_gradient, image_likelihood, misfit_grad, needs_linear_gaussian
from invsolve.samplers.parts.prompts import Prompted
from invsolve.schedules import moves
from invsolve.streams import NoiseSource


class Anew(Move):
    """A move from the top of the schedule, before which the code is drawn anew unless it is the first of all."""


@dataclass(frozen=True)
class P2L:
    """DDIM steps on codes z, guided by y, whose prompt is tuned to y on the way; now and then the decoded estimate is fitted to y.

    At each level: K steps on the embedding C of each row (on its own); the posterior mean z0_hat given it; a DDIM
    step; and down the gradient of the misfit of D(z0_hat). Every `gamma` steps z0_hat is replaced in the DDIM step by E(x), x the
    image between D(z0_hat) and y, which also brings it into the range of the encoder.

    Args:
        K: steps a level. The paper's: 1 for images of 512 pixels; 5 for SDXL. 0 leaves the prompt alone: latent DPS
            with range projection, for any prior, also one without condition.
        within: where C may go. "anywhere", by Adam (the paper's). "classes": from null its first step makes C a mixture of the
            embeddings in the prior's table of classes, and exponentiated gradient moves the weights (`prompts.mix`), so that what
            the levels say of a class adds up. A network trained on some dozens of embeddings makes little of a C far from them.
            Every step counts as much, so give `tuned` a low end of 1 or above: below, steps say little but noise. "auto":
            "classes" where the prior has a table and has been given no prompt, else "anywhere".
        class_lr: of "classes", the standard deviation over the classes of what a step takes from log w.
        lr, lr_unit: of Adam, hence of "anywhere", as adam, radius, penalty and spread are. "absolute", the paper's 1e-4, made for
            77 x 768 numbers of size 1: an entry moves by no more than about lr a step, so a small embedding needs more. "rms":
            in units of the root mean square of an entry of the prior's table of classes, or else of its null embedding.
        adam: "fresh", its running means begin anew at each level (the paper's algorithm), or "persistent".
        tuned: [low, high], the sigma/alpha within which the prompt is tuned; all, in the paper. Towards the end z_t has more to
            say than the prompt, and tuning costs as much there as anywhere.
        rehearsals: how many times the levels down to tuned[0] are walked beforehand, for the prompt alone: the code then starts from new
            noise. What a code becomes is settled where noise is high, before a prompt tuned on the way is of use. 0 is the paper's.
        radius: None, or how far each token (vector along the last axis of C) may go from where it began.
        penalty: kappa: C has the prior N(m, S)^kappa, with the mean and (per entry) the variance of the prior's table of
            classes; without a table those of the start: itself, and the mean square of its entries.
        spread: s: while the prompt is tuned y counts as if it had the variance sigma_y^2 + r^2, r^2 = ratio^2 s^2/(ratio^2 + s^2),
            of what x_t leaves open if pixels have the standard deviation s. 0 is the paper's. Adam does not mind a factor, so
            this matters where there is a penalty, which would else be nothing beside the misfit at noisy levels.
        gamma: period of the range projection in steps, counted from the end; 8 is the paper's, 0 is never.
        lam: of the projection, argmin_x ||y - A x||^2 / 2 + lam ||x - D(z0_hat)||^2 / 2; the paper's 1. None takes the weight
            sigma_y^2/ratio^2 that is right if D(z0_hat) is off by ratio = sigma/alpha.
        zeta: of the gradient step on z (the paper's rho).
        gradient: of that step: "norm", of ||y - A D(z0_hat)|| (published), or "squared".
        eta: of the DDIM step; 0 published.

    Projection needs a linear operator and Gaussian noise (TypeError otherwise; gamma = 0 takes any). Prompt tuning needs
    sigma_y > 0. A level costs K + 1 forward and backward passes of network and decoder, a projection one decoding, one
    encoding and one solve. Biased as DPS is. Where the noise is high the tuned embedding tends to the one, or the class, whose mean
    image fits y best by least squares: neither the most likely nor a draw (which the penalty comes nearer to).
    """

    remedy: ClassVar[str] = "lower zeta and lr"
    K: int = 1
    within: Literal["anywhere", "classes", "auto"] = "anywhere"
    class_lr: float = 0.3
    lr: float = 1e-4
    lr_unit: Literal["absolute", "rms"] = "absolute"
    adam: Literal["fresh", "persistent"] = "fresh"
    tuned: tuple[float, float] = (0.0, math.inf)
    rehearsals: int = 0
    radius: float | None = None
    penalty: float = 0.0
    spread: float = 0.0
    gamma: int = 8
    lam: float | None = 1.0
    zeta: float = 1.0
    gradient: Gradient = "norm"
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, **dict.fromkeys(("K", "gamma"), "a whole number >= 0"), rehearsals="a whole number in [0, 1000]")
        check_settings(self, tuned="an interval (low, high)", eta="a number in [0, 1]")
        check_settings(self, **dict.fromkeys(("class_lr", "lr", "radius", "lam"), "a finite number > 0"))
        check_settings(self, **dict.fromkeys(("penalty", "spread", "zeta"), "a finite number >= 0"))
        if self.within == "classes":
            prompts.check_mixture(self)

    def plan(self, schedule: Any) -> list[Move]:
        """The moves of the rehearsals, and those of the schedule."""
        path = moves(schedule)
        noisy = [move.t for move in path if self.K and move.t.ratio >= self.tuned[0]]
        pairs = [*pairwise(noisy)] * self.rehearsals + [(move.t, move.s) for move in path]
        return [(Anew if t == path[0].t else Move)(t, s, k, len(pairs)) for k, (t, s) in enumerate(pairs)]

    def init(self, target: Any, x: Tensor) -> Prompted:
        """The code, and for each row the embedding that the prior has been given, or its null.

        Raises TypeError or ValueError for a prior without condition (unless K = 0) and for a likelihood that is not fit.
        """
        likelihood, prior = image_likelihood(target), target.prior
        if self.gamma:
            needs_linear_gaussian(likelihood, "the range projection of P2L", "gamma=0 takes any")
            if self.lam is None and likelihood.sigma == 0:
                raise ValueError("lam=None weighs the projection by the noise of y, which needs sigma > 0; give lam a number")
        check_gradient(likelihood, self.gradient)
        if self.K == 0:
            return Prompted(x)
        return prompts.begin(self, prior, likelihood, x)

    def step(self, target: Any, state: Prompted, move: Move, noise: NoiseSource) -> Prompted:
        """One move: tune the prompt, DDIM step (projected when it is due), gradient step."""
        t = move.t
        if isinstance(move, Anew) and move.index:
            state = replace(state, x=noise.normal(state.x.shape[1:]) * t.sigma)
        x = state.x
        if self.K and self.tuned[0] <= t.ratio <= self.tuned[1]:
            state = prompts.tune(self, target, state, t)
        prior = target.prior if state.embedding is None else target.prior.conditioned(state.embedding)
        x0, pull, _ = linearize(prior, x, t)
        x_s = reverse.ddim(x, x0, move, noise.normal(x.shape[1:]) if self.eta else None, self.eta)
        if self.gamma and (move.total - move.index) % self.gamma == 0:
            # The noise of x_t stays that of the network, and is not computed anew from the projected estimate.
            x_s = torch.add(x_s, self._project(target, x0, t) - x0, alpha=move.s.alpha)
        down = pull(misfit_grad(target.likelihood, x0, self.gradient))
        return replace(state, x=torch.sub(x_s, down, alpha=self.zeta), x0=x0)

    def result(self, state: Prompted) -> Tensor:
        """The last code."""
        return state.x

    def _project(self, target: Any, x0: Tensor, t: Level) -> Tensor:
        """E(x) of the image x between D(z0_hat) and y."""
        likelihood, x = image_likelihood(target), target.prior.decode(x0)
        if self.lam is None:
            return target.prior.encode(likelihood.prox(x, t.ratio))
        return target.prior.encode(likelihood.operator.prox_l2(x, likelihood.y, 1 / self.lam))
