"""What a prior is: it answers E[x_0 | alpha x_0 + sigma z = x] at a noise level, and nothing else is asked of it."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from invsolve.levels import Level


@runtime_checkable
class Prior(Protocol):
    """A distribution of clean signals, known through its posterior mean at every noise level."""

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | alpha x_0 + sigma z = x], (B, *X) -> (B, *X), differentiable in x, row by row."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Image to the prior's own space; the identity for pixel priors."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The prior's own space to image, differentiable; the identity for pixel priors."""
        ...


class ConditionalPrior(Prior, Protocol):
    """A prior that can be told more: an embedding of shape E, any continuous tensor. Unconditioned, it denoises with `null`.

    Classifier-free guidance, where there is any, is inside the denoiser: `guidance` is its weight, 1 for none.
    """

    guidance: float
    null: Tensor

    def embed(self, prompt: Any) -> Tensor:
        """The embedding (*E) of what a person writes: a text, the name of a class."""
        ...

    def conditioned(self, embedding: Tensor) -> Prior:
        """The prior given an embedding, (*E) for all rows or (B, *E) with one for each row; differentiable in it."""
        ...


class PixelPrior:
    """Base of priors that live in the space of the image. Subclasses write `denoise`."""

    image_shape: tuple[int, ...] | None = None

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | alpha x_0 + sigma z = x], (B, *X) -> (B, *X)."""
        raise NotImplementedError

    def denoise_with_variance(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor | None]:
        """The posterior mean, and the network's raw learned-variance output where it has one (see kernels.ancestral)."""
        return self.denoise(x, t), None

    def encode(self, x: Tensor) -> Tensor:
        """The identity."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """The identity."""
        return z

    def image_shape_ok(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if the prior cannot take images of this shape."""
        if self.image_shape is not None and tuple(shape) != tuple(self.image_shape):
            raise ValueError(f"this prior is for signals of shape {tuple(self.image_shape)}, not {tuple(shape)}")

    def select(self, index: Tensor) -> Self:
        """The prior of the given rows; itself unless the prior differs from row to row."""
        return self

    @property
    def magnitude(self) -> float | None:
        """About the largest value of a clean signal, for telling divergence; None if not known."""
        return None

    @property
    def device(self) -> torch.device | None:
        """Where the prior computes; None if it follows its input."""
        return None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type the prior computes in; None if it follows its input."""
        return None


def check_sides(shape: tuple[int, ...], channels: int, multiple: int) -> None:
    """Raises ValueError unless shape is (channels, H, W) with both sides multiples of `multiple`; it names the nearest."""
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"this prior takes images of shape ({channels}, H, W), not {tuple(shape)}")
    for side in shape[1:]:
        if side % multiple or side < 1:
            below = side // multiple * multiple
            near = f"{below} or {below + multiple}" if below else f"{multiple}"
            raise ValueError(f"this prior takes sides that are multiples of {multiple}; {side} is not (try {near})")
