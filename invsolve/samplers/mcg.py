"""Manifold-constrained gradients: a gradient step, then the measured part of the iterate taken from the measurement.

Chung, Sim, Ryu, Ye, "Improving diffusion models for inverse problems using manifold constraints", NeurIPS 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from invsolve.engine.protocol import State, Stateless
from invsolve.kernels import langevin, reverse
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.numerics.rows import unit
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.variance import choose_variance
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class MCG(Stateless):
    """Ancestral sampling (or predictor and corrector) with a gradient step and a projection onto the measurement.

    A move takes an unconditional step to x', subtracts weight g, with g a gradient through the denoiser, and then puts the
    measurement, noised to the level of x', in the place of the part of x' that A sees (equations 12 and 13).

    Args:
        weight: of the gradient step; 0 leaves it (and its backward pass) out, and only the projection guides.
        gradient: "norm": g = grad ||W (y - A x0_hat)||, the norm of each sample by itself, as the official code computes it;
            "squared": g = grad ||W (y - A x0_hat)||^2, equation 12 as printed.
        weighting: W. "identity", "pseudo_inverse": A^+, the paper's choice for tomography (one more solve, of many iterations there), or
            "fbp": the operator's filtered back-projection, which the official tomography code has in its place.
        projection: what becomes of y, noised to the level of x':

            - "soft": y is noised from its own noise to that of the level, component by component, and no longer followed once
              the level is below it, so that the prior removes the noise of y (`GaussianLikelihood.renew`). With sigma_y = 0
              this is "hard".
            - "hard": published. All that A sees is replaced, as if y held no noise; the noise of y then stays in the result,
              divided by the singular values of A: fit for masks, not for blur (diverges) or tomography (the pseudo-inverse
              takes thousands of iterations).
            - "sirt": x' + lambda A^T (y_s - A x') / (A^T A 1), lambda falling from 1 to 0.6, of the official tomography code:
              no solve, for operators without negative entries (ValueError otherwise). Tomography takes this or "soft". See `order`.
            - "none": the gradient step alone; any operator and likelihood.
        level: where y is noised to: "s", the level of x'; "t", that of the iterate before, as the official code for inpainting
            has it (measured pixels are then a level too noisy, also in the result); "clean", not at all (official tomography).
        paste: whether to project after the last move too, where x' is clean; published for "s", so that A x = y to the last
            digit, noise of y included. "soft" has nothing to do there unless sigma_y = 0.
        clip: clamp x0_hat to [-1, 1] inside the graph, as the official code does.
        variance: of the ancestral step; "auto" is learned where the network predicts it, else "posterior".
        form: "ancestral", or "predictor_corrector": an unconditional reverse-diffusion step to level s, and there a Langevin
            step, after which gradient and projection follow (the form of the score-SDE and tomography code, which is for
            variance-exploding paths such as Karras; this works on any). Two forward passes and one backward.
        snr: the Langevin step is 2 (snr sigma_s)^2, stable for snr < 1. Song et al. 2021, algorithm 4, have
            2 (snr ||z|| / ||score||)^2, whose norms are these where noise dominates; with the norms of the very draw the step
            would favour some draws, and grow without bound where the score vanishes.
        order: of gradient and SIRT. "in_turn": SIRT works on x' - weight g, and takes back lambda A^T A g / (A^T A 1) of the gradient's
            step. "at_once": both are taken from x' and added, as in the official tomography code, with its lambda, 1 - 0.4 k/N.

    The official inpainting: gradient="norm", weight=1, projection="hard", level="t", clip=True. The official tomography:
    gradient="norm", weight=0.2 (its 0.1 is of images in [0, 1]), weighting="fbp", projection="sirt", order="at_once",
    level="clean", form="predictor_corrector"; not offered are its restriction of g to the views that are not taken, the
    corrector's network call at level t and its guidance in the last move. Any projection needs a linear operator and a
    Gaussian likelihood (TypeError otherwise). Biased, whatever the settings, for the measured part is replaced without regard
    to the prior, and what the unmeasured part learns is set by `weight`: with two numbers of correlation 0.8, the first
    measured as 1, the mean of the second comes to 0.48 without a gradient, to 0.65 with "squared" and 0.03 over 100 steps,
    and to 1.25 with 1, where 0.79 is right. Where everything is measured, "soft" comes near the exact posterior, and "hard"
    returns y.
    """

    remedy: ClassVar[str] = "lower weight"
    weight: float = 1.0
    gradient: Literal["norm", "squared"] = "norm"
    weighting: Literal["identity", "pseudo_inverse", "fbp"] = "identity"
    projection: Literal["soft", "hard", "sirt", "none"] = "soft"
    level: Literal["s", "t", "clean"] = "s"
    paste: bool = True
    clip: bool = False
    variance: Literal["auto", "posterior", "upper", "learned"] = "auto"
    form: Literal["ancestral", "predictor_corrector"] = "ancestral"
    snr: float = 0.16
    order: Literal["in_turn", "at_once"] = "in_turn"

    def __post_init__(self) -> None:
        check_settings(self, weight="a number >= 0", snr="a number > 0")
        if self.level != "s" and self.projection == "soft":
            raise ValueError(f"level={self.level!r} belongs to projection='hard' or 'sirt'; 'soft' is right at level='s' alone")
        if self.order == "at_once" and self.projection != "sirt":
            raise ValueError(f"order='at_once' belongs to projection='sirt'; {self.projection!r} comes after the gradient, 'in_turn'")

    def init(self, target: Any, x: Tensor) -> State:
        """The iterate, once the likelihood has been found fit. Raises TypeError or ValueError where it is not."""
        likelihood = target.likelihood
        solves = self.projection != "none" or (self.weight > 0 and self.weighting != "identity")
        if (solves or self.gradient == "squared") and not isinstance(likelihood, GaussianLikelihood):
            raise TypeError(f"these settings of MCG need a GaussianLikelihood, not a {type(likelihood).__name__}; {_ANY}")
        if solves and not likelihood.operator.linear:
            raise TypeError(f"a projection needs a linear operator; {type(likelihood.operator).__name__} is not linear; {_ANY}")
        if self.weighting == "fbp" and not hasattr(likelihood.operator, "fbp"):
            raise TypeError(f"weighting='fbp' is for operators with filtered back-projection, not for {type(likelihood.operator).__name__}")
        if self.projection == "sirt" and not bool((_normal_of_ones(likelihood.operator, x) >= 0).all()):
            raise ValueError(f"projection='sirt' divides by A^T A 1, which {type(likelihood.operator).__name__} makes negative")
        return State(x)

    def step(self, target: Any, state: State, move: Move, noise: NoiseSource) -> State:
        """One move: unconditional step, gradient step, projection."""
        shape, down = state.x.shape[1:], None
        if self.form == "ancestral":
            x0, fraction, down = self._look(target, state.x, move.t)
            x = reverse.ancestral(state.x, x0, move, noise.normal(shape), choose_variance(self.variance, fraction))
        else:
            x0 = target.prior.denoise(state.x, move.t)
            x = reverse.reverse_diffusion(state.x, x0, move, noise.normal(shape))
            if not move.last:
                x0, _, down = self._look(target, x, move.s)
                x = langevin.langevin(x, reverse.score(x, x0, move.s), 2 * (self.snr * move.s.sigma) ** 2, noise.normal(shape))
        if down is not None and self.order == "in_turn":
            x = torch.add(x, down, alpha=self.weight)
        if self.projection != "none" and (self.paste or not move.last):
            x = self._project(target.likelihood, x, move, noise)
        if down is not None and self.order == "at_once":
            x = torch.add(x, down, alpha=self.weight)
        return State(x, x0)

    def _look(self, target: Any, x: Tensor, t: Level) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x0_hat, the learned variance (None if there is none), and -g (None if it has no weight)."""
        likelihood = target.likelihood
        x0, pull, fraction = linearize(target.prior, x, t, clip=self.clip)
        if self.weight == 0:
            return x0, fraction, None
        if self.weighting == "identity" and self.gradient == "norm":
            return x0, fraction, pull(-likelihood.misfit_grad(x0))
        r = likelihood.residual(x0)
        if self.weighting == "fbp":
            with torch.enable_grad():
                image = likelihood.operator.fbp(r.requires_grad_())
            wanted = 2 * image.detach() if self.gradient == "squared" else unit(image.detach())
            return x0, fraction, pull(likelihood.operator.A_adjoint(torch.autograd.grad(image, r, wanted)[0]))
        # -A^+ r is half the gradient of ||A^+ r||^2 by x0_hat, for A^+ A is an orthogonal projection.
        back = likelihood.operator.A_dagger(r) if self.weighting == "pseudo_inverse" else likelihood.operator.A_vjp(x0, r)
        return x0, fraction, pull(2 * back if self.gradient == "squared" else unit(back))

    def _project(self, likelihood: GaussianLikelihood, x: Tensor, move: Move, noise: NoiseSource) -> Tensor:
        """x with its measured part taken from y, in the scale of the clean image on the way."""
        at = move.t if self.level == "t" else move.s
        v, r = x / at.alpha, 0.0 if self.level == "clean" else at.ratio
        if self.projection == "hard":
            return at.alpha * likelihood.renew(v, r, noise)
        if self.projection == "soft":
            # rho^2: the variance of x_0 given x_t, if that of x_0 were 1, less that given x_s.
            rho = math.sqrt(move.forward_variance) * move.s.alpha / (move.t.scale * move.s.scale)
            return at.alpha * likelihood.renew(v, r, noise, rho)
        span = move.total if self.order == "at_once" else max(move.total - 1, 1)
        operator, relax = likelihood.operator, 1 - 0.4 * move.index / span
        wanted = v if r == 0 else torch.sub(v, noise.normal(x.shape[1:]), alpha=r)
        back = operator.A_adjoint(likelihood.y - operator.A(wanted))
        return at.alpha * torch.addcdiv(v, back, _normal_of_ones(operator, x).clamp_min(1e-5), value=relax)


_ANY = "projection='none', weighting='identity', gradient='norm' take any operator and likelihood"


def _normal_of_ones(operator: Any, x: Tensor) -> Tensor:
    """A^T A 1, (1, *X)."""
    return operator.A_adjoint(operator.A(torch.ones_like(x[:1])))
