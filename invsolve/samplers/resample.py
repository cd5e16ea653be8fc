"""ReSample: hard data consistency in pixels and in codes, and stochastic resampling.

Song, Kwon, Zhang, Hu, Qu, Shen, "Solving inverse problems with latent diffusion models via hard data consistency", ICLR 2024
(arXiv 2307.08123), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.engine.protocol import State, Stateless
from invsolve.kernels import resample, reverse
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level, Move
from invsolve.likelihoods import fits
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.numerics.adam import descend
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.latent import closed, image_likelihood
from invsolve.schedules import moves
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class Ahead(Move):
    """A move that knows the levels after its own."""

    after: tuple[Level, ...] = ()


@dataclass(frozen=True)
class ReSample(Stateless):
    """DDIM steps on codes z; now and then the estimate is fitted to y, and noised to its level near the unconditional iterate.

    At every `skip`-th level of the last `begin` of the steps: estimate z0_hat; find the nearest code z0(y) whose image agrees with
    y; draw z_s from the product of N(alpha_s z0(y), sigma_s^2 I) and N(z', sigma_t^2 I), z' the DDIM iterate.

    Args:
        gamma, variance: of sigma_t^2 = gamma (1 - abar_s)/c (1 - abar_t/abar_s). 40 is the paper's. c = abar_t ("paper") hands
            the end back to the prior; c = 1 - abar_t ("official", the authors' code) trusts z0(y) to the end.
        skip: levels from one fit to the next, counted from the end; the authors' code has 10 of 500.
        begin, switch: shares of the steps, counted from the end, in which y is heeded, and of these the last in which the fit is made
            to codes (through the decoder) rather than to pixels (which are then encoded); 2/3 and 1/3 in the paper and the code.
        travel: how many more unconditional levels are looked at for z0_hat: 1, the paper's, takes it at z'; 0 from z_t, which saves
            a network call; 5 is the code's "time travel" (the authors advise 2 skip). z' stays what it is.
        final: fit the last code too. It is in every case of the code, and the last element of a set of times that ends at 0. What
            comes out then agrees with y up to its noise, and is an estimate rather than a draw.
        c, eps: a fit ends where the mean squared residual is c sigma_y^2 (or eps, if given). The code's eps is 1e-6, a hundredth of its
            sigma_y^2: it follows the noise of y. A decoder that cannot reproduce an image to within sigma_y cannot get there; a c
            that allows for its error keeps codes from being bent to it. The mean is over measured entries; the code's is over all
            of y, with the noise of hidden pixels, which no fit lowers: with a mask it never gets to 1e-6.
        solver: "prox": for linear operators and Gaussian noise: the prox of the operator with the smallest rho of each sample that
            reaches the wanted residual, or conjugate gradients stopped there if it has no closed form, or if the fit is to codes.
            "adam": AdamW, stopped there. "auto": prox where it can be.
        rho: a fixed rho of the prox, argmin ||y - A x||^2/(2 sigma_y^2) + ||x - D(z0_hat)||^2/(2 rho^2), instead of c and eps.
        cg: conjugate gradients of a fit to codes, at most; each costs two passes through the decoder and one back.
        pixel_steps, pixel_lr, latent_steps, latent_lr, decay, patience: of AdamW. Published: 2000 steps of 1e-2, 500 of 5e-3 (a
            comment: 200 for inpainting), decay 0.01, which draws unmeasured pixels to 0, and codes given up where the residual is no
            lower than 200 steps before.
        estimate: "tweedie", or "official": the code's z0_hat, which lacks a root (`kernels.unrooted`) and has the levels of its time
            travel one step late.
        zeta: of a step of latent DPS at each level, z' - zeta abar_t grad ||y - A D(z0_hat)||: 0 in the paper, 0.5 in the code.
        eta: of the DDIM step; 0 published.

    Any operator and likelihood; a prior over images will do, whose encoder and decoder are the identity. sigma_y = 0 needs eps.
    The last move ends at sigma 0; the code's path ends at the least noise of its network's training. A level costs one forward
    pass of the network, a fit `travel` more, and no backward pass unless zeta > 0. It is an optimiser: with `final` there is
    next to no spread in what y measures, whatever the posterior's.
    """

    remedy: ClassVar[str] = "lower pixel_lr, latent_lr and zeta"
    gamma: float = 40.0
    variance: Literal["paper", "official"] = "paper"
    skip: int = 10
    begin: float = 2 / 3
    switch: float = 1 / 3
    travel: int = 1
    final: bool = True
    c: float = 1.0
    eps: float | None = None
    solver: Literal["auto", "prox", "adam"] = "auto"
    rho: float | None = None
    cg: int = 30
    pixel_steps: int = 2000
    pixel_lr: float = 1e-2
    latent_steps: int = 500
    latent_lr: float = 5e-3
    decay: float = 0.0
    patience: int | None = 200
    estimate: Literal["tweedie", "official"] = "tweedie"
    zeta: float = 0.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "a whole number >= 0": ("travel",),
            "a whole number >= 1": ("skip", "cg", "pixel_steps", "latent_steps", "patience"),
            "a finite number > 0": ("c", "eps", "rho", "pixel_lr", "latent_lr"),
            "a number >= 0": ("gamma", "zeta", "decay"),
            "a number in [0, 1]": ("eta",),
        }
        check_settings(self, **{name: rule for rule, names in rules.items() for name in names})
        if not 0 <= self.switch <= self.begin <= 1:
            raise ValueError(f"begin={self.begin}, switch={self.switch}; 0 <= switch <= begin <= 1 is needed")
        if self.rho is not None and (self.solver == "adam" or self.eps is not None):
            raise ValueError(f"rho={self.rho} belongs to solver='prox', in the place of c and eps")

    def plan(self, schedule: Any) -> list[Move]:
        """The moves of the schedule, each with the levels that time travel may see."""
        path = moves(schedule)
        levels = [*(m.t for m in path), path[-1].s]
        return [Ahead(m.t, m.s, m.index, m.total, tuple(levels[m.index + 2 :][: self.travel])) for m in path]

    def init(self, target: Any, x: Tensor) -> State:
        """The iterate, once the likelihood has been found fit. Raises TypeError or ValueError where it is not."""
        likelihood = image_likelihood(target)
        wanted = "rho" if self.rho is not None else "solver='prox'"
        if (self.rho is not None or self.solver == "prox") and not closed(likelihood):
            raise TypeError(f"{wanted} needs a linear operator and Gaussian noise; take solver='adam', or 'auto' without rho")
        if self.eps is not None and not isinstance(likelihood, GaussianLikelihood):
            raise TypeError(f"eps={self.eps} is for Gaussian noise, not for a {type(likelihood).__name__}; take c")
        if self.eps is None and isinstance(likelihood, GaussianLikelihood) and likelihood.sigma == 0:
            raise ValueError("sigma_y = 0 leaves no noise at which a fit could end; give eps, such as 1e-6")
        return State(x)

    def step(self, target: Any, state: State, move: Move, noise: NoiseSource) -> State:
        """One move: DDIM step, and where one is due a fit and the resampling. Raises TypeError for a move not of `plan`."""
        if not isinstance(move, Ahead):
            raise TypeError("a step of ReSample needs a move of its own plan(schedule)")
        x0, x = self._unconditional(target, state.x, move, noise)
        left = move.total - 1 - move.index
        due = left % self.skip == 0 and left <= move.total - _share(1 - self.begin, move.total)
        if not due or (move.last and not self.final):
            return State(x, x0)
        if move.last:
            fitted = self._fit(target, x / move.s.alpha, pixels=False)
            return State(fitted * move.s.alpha, fitted)
        fitted = self._fit(target, self._look_ahead(target.prior, x, x0, move), pixels=left >= _share(self.switch, move.total))
        weight = resample.resampling_weight(move, self.gamma, self.variance)
        return State(resample.resample(fitted, x, move, weight, noise.normal(x.shape[1:])), fitted)

    def _unconditional(self, target: Any, x: Tensor, move: Ahead, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """(z0_hat, z'), guided by the misfit of z0_hat if zeta > 0."""
        t, z = move.t, noise.normal(x.shape[1:]) if self.eta else None
        a, b = self._coefficients(t)
        if self.zeta == 0:
            mean = target.prior.denoise(x, t)
            return a * x + b * mean, reverse.ddim(x, mean, move, z, self.eta)
        mean, pull, _ = linearize(target.prior, x, t)
        x0 = a * x + b * mean
        g = target.likelihood.misfit_grad(x0)
        down = self.zeta * (t.alpha / t.scale) ** 2
        return x0, torch.sub(reverse.ddim(x, mean, move, z, self.eta), a * g + b * pull(g), alpha=down)

    def _look_ahead(self, prior: Any, x: Tensor, x0: Tensor, move: Ahead) -> Tensor:
        """The estimate after `travel` more calls of the network on an unconditional path from z'."""
        path = [move.t, move.s, *move.after]
        for k in range(1, min(self.travel, move.total - 1 - move.index) + 1):
            mean, label, to = prior.denoise(x, path[k]), path[k], path[k + 1]
            if self.estimate == "official":
                label, to = path[k - 1], path[k]
                mean = (x - label.sigma * reverse.noise_of(x, mean, path[k])) / label.alpha
            a, b = self._coefficients(label)
            x0, x = a * x + b * mean, reverse.ddim(x, mean, Move(label, to, 0, 1))
        return x0

    def _coefficients(self, t: Level) -> tuple[float, float]:
        """z0_hat = a z_t + b E[z_0 | z_t]."""
        return resample.unrooted(t) if self.estimate == "official" else (0.0, 1.0)

    def _fit(self, target: Any, z: Tensor, pixels: bool) -> Tensor:
        """The code near z whose image agrees with y."""
        prior, likelihood = target.prior, image_likelihood(target)
        coded = isinstance(target.likelihood, PulledBack)
        sigma = getattr(likelihood, "sigma", 0.0) or 1.0
        goal = math.sqrt(self.c) if self.eps is None else math.sqrt(self.eps) / sigma
        if self.solver == "adam" or not closed(likelihood):
            if pixels:
                objective = fits.misfit(likelihood, lambda x: x)
                x = prior.decode(z)
                return prior.encode(descend(objective, x, goal=goal, steps=self.pixel_steps, lr=self.pixel_lr, decay=self.decay))
            objective = fits.misfit(likelihood, prior.decode)
            return descend(objective, z, goal=goal, steps=self.latent_steps, lr=self.latent_lr, decay=self.decay, patience=self.patience)
        limit = None if self.rho is not None else goal * sigma * likelihood.measured.to(z.dtype).sqrt()
        if coded and not pixels:
            return fits.conjugate_gradients(likelihood, prior.decode, z, limit=limit, rho=self.rho, steps=self.cg)
        x = prior.decode(z)
        return prior.encode(likelihood.prox(x, self.rho) if limit is None else fits.nearest(likelihood, x, limit))


def _share(share: float, total: int) -> int:
    """share * total, rounded down as if the share were an exact fraction."""
    return math.floor(share * total + 1e-9)
