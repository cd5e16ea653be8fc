"""Likelihoods: log p(y | x), bound to a measurement, and the only place where the noise level sigma_y stands.

All values and gradients are per sample, (B, *X) -> (B,) or (B, *X); none is summed or averaged over a batch.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from operators.core.adapter import as_operator


@runtime_checkable
class Likelihood(Protocol):
    """What a guided sampler asks of a measurement."""

    y: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(y | x) up to a constant, (B, *X) -> (B,)."""
        ...

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p(y | x), (B, *X) -> (B, *X)."""
        ...

    def misfit_grad(self, x: Tensor) -> Tensor:
        """grad_x of the norm of the residual of each sample, (B, *X) -> (B, *X)."""
        ...

    def discrepancy(self, x: Tensor) -> Tensor:
        """Root mean square of the residual in units of the noise, (B,): about 1 where x explains y."""
        ...

    def select(self, index: Tensor) -> Self:
        """The likelihood of the given rows of y."""
        ...


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _norm(r: Tensor) -> Tensor:
    """Euclidean norm of each sample, (B, *Y) -> (B,)."""
    return torch.linalg.vector_norm(r.flatten(1), dim=1)


class MeasuredLikelihood:
    """What Gaussian and Poisson likelihoods share: an operator, its measurement, selection of rows and devices.

    `operator` is one of `operators` or any deepinv physics. Entries of y that the operator does not measure (hidden
    pixels) are set to zero and never count; `measured` (B,) is the number m of those that do. Raises ValueError for a y of
    the wrong shape, of integers, or with non-finite entries.
    """

    def __init__(self, operator: Any, y: Tensor):
        if not isinstance(y, Tensor):
            raise TypeError(f"y is a {type(y).__name__}; a torch.Tensor (B, ...) is needed (torch.as_tensor turns arrays into one)")
        self.operator = as_operator(operator)
        expected = self.operator.measurement_shape
        if expected is not None and tuple(y.shape[1:]) != tuple(expected):
            raise ValueError(f"y has shape {tuple(y.shape)}; (B, {', '.join(map(str, expected))}) is needed")
        if not (y.is_floating_point() or y.is_complex()):
            raise ValueError(f"y holds {y.dtype} values; floating point is needed")
        if not bool(torch.isfinite(y).all()):
            bad = int((~torch.isfinite(y)).sum())
            raise ValueError(
                f"y holds {bad} NaN or infinite values of {y.numel()}; remove them first (hidden pixels may hold any number, such as 0)"
            )
        with torch.inference_mode(False):
            # A clone, for y may be an inference tensor (Lightning's default), which autograd refuses.
            self.y = self.operator.restrict(y.detach().clone())
            # By row, for masks may differ from row to row; a complex value is two measured numbers.
            counts = self.operator.restrict(torch.ones_like(self.y)).flatten(1).count_nonzero(1)
            self.measured = counts * 2 if y.is_complex() else counts
        self.image_shape = tuple(self.operator.image_shape_for(self.y))

    def select(self, index: Tensor) -> Self:
        """The likelihood of the given rows of y."""
        chosen = copy.copy(self)
        for name in ("y", "measured"):
            held = getattr(self, name)
            setattr(chosen, name, held if len(held) == 1 else held[index.to(held.device)])
        chosen.operator = self.operator.select(index)
        return chosen

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same likelihood on another device or in another precision; the user's operator is left as it is."""
        moved = copy.copy(self)
        moved.y = self.y.to(device=device, dtype=dtype.to_complex() if dtype and self.y.is_complex() else dtype)
        moved.measured = self.measured.to(device=device)
        if device is not None and any(b.device != device for b in self.operator.buffers()):
            moved.operator = copy.deepcopy(self.operator).to(device)
        return moved

    def _rms(self, r: Tensor) -> Tensor:
        """Root mean square of each row over its measured values, (B, *Y) -> (B,)."""
        return _norm(r) / self.measured.clamp_min(1).to(r.real.dtype).sqrt()
