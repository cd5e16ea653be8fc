"""Lipschitz constants by power iteration, and the step sizes of Langevin chains that follow from them.

Everything is per row and on the device: a fixed number of iterations from a fixed start, never read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from invsolve.kernels import skrock_limit
from invsolve.levels import Level
from operators import generator

Number = TypeVar("Number", float, Tensor)
Rule = Literal["fraction", "published", "mismatch"]


def power_iteration(apply: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 30) -> Tensor:
    """The largest |eigenvalue| of a symmetric linear map of each row, approached from below, (B,).

    `apply` maps (B, *X) -> (B, *X), row by row; start (B, *X) is not 0. The relative error is that of the power method, about
    (second eigenvalue / first)^(2 iterations), and less where many are near the largest. Raises ValueError for iterations < 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}; at least 1 is needed")
    v, size = start, _norm(start)
    for _ in range(iterations):
        v = apply(v / size.clamp_min(torch.finfo(size.dtype).tiny).view(-1, *[1] * (start.ndim - 1)))
        size = _norm(v)
    return size


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


def _start(like: Tensor) -> Tensor:
    """The same pseudo-random vector for every row, so that the result for a row depends on its own map alone."""
    start = torch.randn(tuple(like.shape[1:]), dtype=torch.float64, generator=generator(0, "power iteration"))
    return start.to(like).expand_as(like)


def operator_norm(operator: Any, like: Tensor, iterations: int = 30) -> Tensor:
    """||A||, the largest singular value of a linear operator, (B,); `like` (B, *image_shape) gives dtype and device.

    Raises TypeError if the operator is not linear.
    """
    if not operator.linear:
        raise TypeError(f"operator_norm needs a linear operator; {type(operator).__name__} is not linear")
    return power_iteration(lambda v: operator.A_adjoint(operator.A(v)), _start(like), iterations).sqrt()


def jacobian_norm(f: Callable[[Tensor], Tensor], x: Tensor, iterations: int = 30) -> Tensor:
    """The largest |eigenvalue| of the Jacobian of f at x (B, *X), (B,): its local Lipschitz constant if it is symmetric.

    f maps (B, *X) -> (B, *X), row by row. One forward and `iterations` backward passes, so that it also serves a network in
    reduced precision. The Jacobian of a posterior mean is symmetric, that of a trained network up to its training error.
    """
    # Also where the caller runs under inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        out = f(x)

    def transposed(v: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(out, x, v, retain_graph=True)
        return grad

    return power_iteration(transposed, _start(x.detach()), iterations)


def curvature(score: Callable[[Tensor], Tensor], x: Tensor, width: float = 0.01, iterations: int = 30) -> Tensor:
    """The same for a score that may not be differentiable: the largest |curvature| of a log density at x (B, *X), (B,).

    Power iteration on differences of the score over a distance of `width` (root mean square); exact for any width if the
    density is Gaussian. Costs iterations + 1 scores.
    """
    length, base = width * math.sqrt(x[0].numel()), score(x)
    return power_iteration(lambda v: (score(torch.add(x, v, alpha=length)) - base) / length, _start(x), iterations)


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
