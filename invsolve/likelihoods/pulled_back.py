"""Likelihoods made of others: behind a decoder, or with a bounded score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invsolve.likelihoods.base import Likelihood


class PulledBack:
    """A likelihood of z through x = decode(z): what turns a pixel likelihood into a latent one.

    Values are those of the inner likelihood at decode(z); gradients are pulled through decode by autograd.
    """

    def __init__(self, inner: Likelihood, decode: Callable[[Tensor], Tensor]):
        self.inner, self.decode = inner, decode

    @property
    def y(self) -> Tensor:
        """The measurement."""
        return self.inner.y

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(y | decode(z)), (B,)."""
        return self.inner.log_prob(self.decode(z))

    def discrepancy(self, z: Tensor) -> Tensor:
        """The discrepancy of decode(z), (B,)."""
        return self.inner.discrepancy(self.decode(z))

    def score(self, z: Tensor) -> Tensor:
        """grad_z log p(y | decode(z)), (B, *Z)."""
        return self._pull(z, self.inner.score)

    def misfit_grad(self, z: Tensor) -> Tensor:
        """grad_z of the residual's norm at decode(z), (B, *Z)."""
        return self._pull(z, self.inner.misfit_grad)

    def select(self, index: Tensor) -> PulledBack:
        """The likelihood of the given rows of y."""
        return PulledBack(self.inner.select(index), self.decode)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> PulledBack:
        """The same likelihood on another device or in another precision; decode is left as it is."""
        move = getattr(self.inner, "to", None)
        return PulledBack(move(device, dtype) if move else self.inner, self.decode)

    def with_sigma(self, sigma: float) -> PulledBack:
        """The same measurement, read as if its noise had another standard deviation."""
        return PulledBack(self.inner.with_sigma(sigma), self.decode)  # type: ignore[attr-defined]

    def with_hidden(self, hidden: Tensor) -> PulledBack:
        """The same measurement with `hidden` (B, *Y) in the entries that are not measured."""
        return PulledBack(self.inner.with_hidden(hidden), self.decode)  # type: ignore[attr-defined]

    def _pull(self, z: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        # Also where the caller runs under inference mode, whose tensors autograd refuses.
        with torch.inference_mode(False), torch.enable_grad():
            z = (z.clone() if z.is_inference() else z.detach()).requires_grad_()
            x = self.decode(z)
        (grad,) = torch.autograd.grad(x, z, gradient(x.detach()))
        return grad


@dataclass(frozen=True)
class Clipped:
    """A likelihood whose score is bounded entry by entry."""

    likelihood: Any
    limit: float

    def log_prob(self, x: Tensor) -> Tensor:
        """That of the likelihood, (B,)."""
        value: Tensor = self.likelihood.log_prob(x)
        return value

    def score(self, x: Tensor) -> Tensor:
        """That of the likelihood, each entry within -limit and limit, (B, *X)."""
        score: Tensor = self.likelihood.score(x)
        return score.clamp(-self.limit, self.limit)
