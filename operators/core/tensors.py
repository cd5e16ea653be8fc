"""Shapes, gradients and numbers for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def shape_of(image_shape: Sequence[int], ndim: int | None = None) -> tuple[int, ...]:
    """`image_shape` as a tuple of positive ints, of length `ndim` if that is given; ValueError naming it otherwise."""
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"image_shape must be positive integers such as (3, 64, 64), got {image_shape!r}")
    if ndim is not None and len(shape) != ndim:
        raise ValueError(f"image_shape must have {ndim} entries (C, H, W), got {image_shape!r}")
    return shape


def pull_back(fn: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """J(x)^T v for the Jacobian J of `fn`, by reverse-mode differentiation; differentiable in v, and in x if fn is twice.

    By torch.autograd.grad, which also takes functions written as a `torch.autograd.Function` of the older kind (without
    `setup_context`, as projectors are often wrapped); those torch.func refuses. It serves only where the caller is inside one of
    its transforms. Raises RuntimeError if autograd does not see how fn(x) depends on x.
    """
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (x, v)):
        transformed: Tensor = torch.func.vjp(fn, x)[1](v)[0]
        return transformed
    graph = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
    # Tensors of inference mode are of no use to autograd.
    with torch.inference_mode(False), torch.enable_grad():
        x, v = (t.clone() if t.is_inference() else t for t in (x, v))
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y = fn(x)
        if not y.requires_grad:
            raise RuntimeError("autograd does not see how the output depends on the input (numpy, .data or detach on the way?)")
        (result,) = torch.autograd.grad(y, x, v, create_graph=graph)
    return result


class _Transpose(torch.autograd.Function):
    """v -> A^T v by `pull_back`, whose derivative is A itself: no second derivative of the function is asked for."""

    @staticmethod
    def forward(v: Tensor, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return pull_back(fn, x, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.fn = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.fn(grads[0]), None, None


def transpose(fn: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """A^T v (B, *image_shape) of the linear map `fn`, differentiated at x (zeros of the signals' shape); differentiable in v.

    As `pull_back`, but a function whose backward pass cannot be differentiated again (through numpy, `once_differentiable`) serves.
    """
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (x, v)):
        return pull_back(fn, x, v)
    with torch.inference_mode(False):
        result: Tensor = _Transpose.apply(v.clone() if v.is_inference() else v, fn, x)
    return result


def per_sample(gamma: float | Tensor, like: Tensor) -> float | Tensor:
    """`gamma` as a float >= 0, or as a tensor (B, 1, ..., 1) broadcastable against `like` (B, ...).

    Tensors may hold one value or one per sample, in any layout such as (B,) or (B, 1, 1, 1). Raises ValueError for a
    negative or non-finite float and for a tensor of another size; values of tensors are not read (no host synchronisation).
    """
    if not isinstance(gamma, Tensor):
        value = float(gamma)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"gamma must be a finite number >= 0, got {gamma!r}")
        return value
    if gamma.numel() not in (1, like.shape[0]):
        raise ValueError(f"gamma must hold 1 or {like.shape[0]} values (one per sample), got shape {tuple(gamma.shape)}")
    return gamma.reshape(-1, *[1] * (like.ndim - 1)).to(device=like.device, dtype=like.real.dtype)
