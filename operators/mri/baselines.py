"""Classical MRI reconstructions, to hold beside posterior samples: zero-filled, SENSE and total variation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.core.base import LinearOperator


def zero_filled(op: LinearOperator, y: Tensor) -> Tensor:
    """A^T y, (B, *measurement_shape) -> (B, 2, H, W): what is not measured is taken for zero."""
    return op.A_adjoint(y)


def sense(op: LinearOperator, y: Tensor, weight: float = 1e-3) -> Tensor:
    """argmin_x 1/2 ||A x - y||^2 + weight/2 ||x||^2, (B, *measurement_shape) -> (B, 2, H, W).

    CG-SENSE with Tikhonov's penalty (K. P. Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space
    trajectories", MRM 46, 2001), solved by the operator's prox to its tolerance. ValueError unless weight is finite and > 0;
    for weight 0 there is `op.A_dagger`.
    """
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"weight must be a finite number > 0, got {weight!r}; without a penalty use op.A_dagger(y)")
    return op.prox_l2(None, y, 1 / weight)


def _gradient(x: Tensor) -> Tensor:
    """Forward differences (2, B, C, H, W), zero across the lower and right border."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    right[..., :-1] = x[..., 1:] - x[..., :-1]
    return torch.stack([down, right])


def _gradient_adjoint(p: Tensor) -> Tensor:
    down, right = p[0, ..., :-1, :], p[1, ..., :-1]
    x = torch.zeros_like(p[0])
    x[..., 1:, :] += down
    x[..., :-1, :] -= down
    x[..., 1:] += right
    x[..., :-1] -= right
    return x


def joint_variation(x: Tensor) -> Tensor:
    """Isotropic total variation of images (B, C, H, W), (B,): sum over pixels of the norm over both directions and all channels.

    For two-channel images it is that of the complex image, and does not change with a constant phase.
    """
    return torch.linalg.vector_norm(_gradient(x), dim=(0, 2)).sum((1, 2))


@torch.no_grad()
def total_variation(op: LinearOperator, y: Tensor, weight: float, iterations: int = 300) -> Tensor:
    """argmin_x 1/2 ||A x - y||^2 + weight TV(x) with `joint_variation`, (B, *measurement_shape) -> (B, C, H, W).

    `iterations` steps of the primal-dual method from A^T y, with the operator's prox for the data term (A. Chambolle, T. Pock,
    "A first-order primal-dual algorithm for convex problems with applications to imaging", JMIV 40, 2011, Algorithm 1,
    both steps 1/sqrt(8)). ValueError unless weight is finite and >= 0.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight must be a finite number >= 0, got {weight!r}")
    step = 1 / math.sqrt(8)  # ||gradient||^2 <= 8
    x = op.A_adjoint(y)
    ahead, dual = x, _gradient(torch.zeros_like(x))
    for _ in range(iterations):
        dual = dual + step * _gradient(ahead)
        size = torch.linalg.vector_norm(dual, dim=(0, 2), keepdim=True)
        dual = dual * (weight / size.clamp(min=weight if weight > 0 else 1.0))
        after = op.prox_l2(x - step * _gradient_adjoint(dual), y, step)
        ahead, x = 2 * after - x, after
    return x
