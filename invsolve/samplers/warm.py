"""Where a chain may start: one guided reverse move, with no setting where the problem is linear and Gaussian."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invsolve import kernels
from invsolve.levels import Move
from invsolve.noise import NoiseSource
from invsolve.reverse import linearize
from invsolve.samplers.base import State
from invsolve.samplers.dps import DPS


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
    x0 = kernels.tweedie(x, kernels.score(x, x0, t) + guide, t)
    return State(kernels.ancestral(x, x0, move, noise.normal(x.shape[1:])), x0)
