"""The linearized denoiser that every guided sampler is built on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invsolve.levels import Level


class Linearized(NamedTuple):
    """A prior at one point: the posterior mean, its vector-Jacobian product, and the learned variance if there is one.

    `pull(v)` is J^T v with J = d x0_hat / d x, row by row, and may be called once.
    """

    x0: Tensor
    pull: Callable[[Tensor], Tensor]
    fraction: Tensor | None


def linearize(prior: Any, x: Tensor, t: Level, clip: bool = False) -> Linearized:
    """One forward pass of the prior at x (B, *X), which keeps what `pull` needs.

    x0 and fraction are detached; the graph is freed by the first `pull`. clip: x0 is clamped to [-1, 1] inside the graph, so
    that clamped entries transmit no gradient; ValueError for a latent prior, as codes know no such range.
    """
    if clip and getattr(prior, "autoencoder", None) is not None:
        raise ValueError("clamping x0_hat to [-1, 1] is for images, and this prior is over codes; take a variant without")
    # Also where the caller runs under inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        with_variance = getattr(prior, "denoise_with_variance", None)
        x0, fraction = with_variance(x, t) if with_variance else (prior.denoise(x, t), None)
        x0 = x0.clamp(-1, 1) if clip else x0

    def pull(v: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(x0, x, v)
        return grad

    return Linearized(x0.detach(), pull, None if fraction is None else fraction.detach())


class LinearizedPrompt(NamedTuple):
    """A conditional prior at one point: the posterior mean, and the vector-Jacobian product by the embedding.

    `pull(v)` is J^T v with J = d x0_hat / d embedding, row by row, and may be called once.
    """

    x0: Tensor
    pull: Callable[[Tensor], Tensor]


def linearize_prompt(prior: Any, x: Tensor, t: Level, embedding: Tensor) -> LinearizedPrompt:
    """One forward pass of a conditional prior at x (B, *X) given embedding (B, *E), as `linearize` but by the embedding."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone() if x.is_inference() else x.detach()
        embedding = (embedding.clone() if embedding.is_inference() else embedding.detach()).requires_grad_()
        x0 = prior.conditioned(embedding).denoise(x, t)

    def pull(v: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(x0, embedding, v)
        return grad

    return LinearizedPrompt(x0.detach(), pull)
