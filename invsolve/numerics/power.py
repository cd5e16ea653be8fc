"""Lipschitz constants by power iteration, and the step sizes of Langevin chains that follow from them.

Everything is per row and on the device: a fixed number of iterations from a fixed start, never read by the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invsolve.numerics.rows import _norm
from operators import generator


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
