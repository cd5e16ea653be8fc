"""Latent diffusion: a prior over the codes of an autoencoder, behind the same protocol as a prior over images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from invsolve.levels import Level
from invsolve.priors.base import PixelPrior
from invsolve.priors.network import Calls


class Autoencoder(Protocol):
    """Images to codes and back, both differentiable and row by row; the codes are scaled as the latent prior has them."""

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, *X) to code (B, *Z); the mean, where the encoder gives a distribution."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Code (B, *Z) to image (B, *X)."""
        ...

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Z for images of shape X. Raises ValueError for images that it cannot take."""
        ...


class LinearAutoencoder:
    """decode z = W z + offset, encode x = E (x - offset): for closed-form problems and principal components.

    Args:
        W: (n, k) with n entries of an image and k of a code.
        image_shape, latent_shape: X and Z.
        encoder: E (k, n); by default W^T, the inverse on the range of W where its columns are orthonormal.
        offset: an image (*X), or a number.
    """

    def __init__(
        self,
        W: Tensor,
        image_shape: Sequence[int],
        latent_shape: Sequence[int],
        encoder: Tensor | None = None,
        offset: Tensor | float = 0.0,
    ):
        self.image_shape, self._latent_shape = tuple(image_shape), tuple(latent_shape)
        wanted = (math.prod(self.image_shape), math.prod(self._latent_shape))
        if tuple(W.shape) != wanted:
            raise ValueError(
                f"W has shape {tuple(W.shape)}; {wanted} is needed for images {self.image_shape} and codes {self._latent_shape}"
            )
        if encoder is not None and tuple(encoder.shape) != wanted[::-1]:
            raise ValueError(f"encoder has shape {tuple(encoder.shape)}; {wanted[::-1]} is needed")
        with torch.inference_mode(False):
            self.W = W.detach().clone()
            self.E = self.W.mT if encoder is None else encoder.detach().to(self.W).clone()
            self.offset = torch.as_tensor(offset).detach().to(self.W).expand(self.image_shape).reshape(-1).clone()

    def encode(self, x: Tensor) -> Tensor:
        """E (x - offset), (B, *X) -> (B, *Z)."""
        return ((x.flatten(1) - self.offset.to(x)) @ self.E.mT.to(x)).unflatten(1, self._latent_shape)

    def decode(self, z: Tensor) -> Tensor:
        """W z + offset, (B, *Z) -> (B, *X)."""
        return (z.flatten(1) @ self.W.mT.to(z) + self.offset.to(z)).unflatten(1, self.image_shape)

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Z. Raises ValueError unless image_shape is X."""
        if tuple(image_shape) != self.image_shape:
            raise ValueError(f"this autoencoder is for images of shape {self.image_shape}, not {tuple(image_shape)}")
        return self._latent_shape


class LatentPrior(PixelPrior):
    """A prior over codes z, and the autoencoder that makes images of them: x = decode(z).

    Args:
        prior: any prior in the space of codes: a network, an exact one, a conditional one.
        autoencoder: see `Autoencoder`.

    `sample` hands a sampler the likelihood of z (the user's, pulled back through `decode`; the likelihood of images is its
    `inner`) and decodes what comes out, so that a sampler written for images runs on codes unchanged.
    """

    def __init__(self, prior: Any, autoencoder: Any):
        self.prior, self.autoencoder = prior, autoencoder
        self.card: dict[str, Any] = getattr(prior, "card", {})
        self.weights_sha256: str = getattr(prior, "weights_sha256", "")
        self.calls: Calls = getattr(prior, "calls", None) or Calls()

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[z_0 | z_t = x], (B, *Z) -> (B, *Z)."""
        denoised: Tensor = self.prior.denoise(x, t)
        return denoised

    def denoise_with_variance(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor | None]:
        """The posterior mean of the code, and the learned variance where the network has one."""
        both = getattr(self.prior, "denoise_with_variance", None)
        return both(x, t) if both else (self.prior.denoise(x, t), None)

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, *X) in [-1, 1] to code (B, *Z)."""
        self.calls.encode += 1
        code: Tensor = self.autoencoder.encode(x)
        return code

    def decode(self, z: Tensor) -> Tensor:
        """Code (B, *Z) to image (B, *X) in about [-1, 1]; differentiable."""
        self.calls.decode += 1
        image: Tensor = self.autoencoder.decode(z)
        return image

    def signal_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape Z of the codes of images of this shape."""
        return tuple(self.autoencoder.latent_shape(tuple(image_shape)))

    def image_shape_ok(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if autoencoder or latent prior cannot take images of this shape."""
        inner = self.signal_shape(shape)
        check = getattr(self.prior, "image_shape_ok", None)
        if check:
            check(inner)

    def select(self, index: Tensor) -> Self:
        """The prior of the given rows, where the latent prior differs from row to row."""
        choose = getattr(self.prior, "select", None)
        return self._over(choose(index)) if choose else self

    @property
    def null(self) -> Tensor:
        """The embedding (*E) that stands for no condition. Raises TypeError if the prior takes no condition."""
        null: Tensor = self._conditional().null
        return null

    def embed(self, prompt: Any) -> Tensor:
        """The embedding (*E) of a text, or of a class. Raises TypeError if the prior takes no condition."""
        embedding: Tensor = self._conditional().embed(prompt)
        return embedding

    def conditioned(self, embedding: Tensor) -> Self:
        """The prior given an embedding, (*E) for all rows or (B, *E). Raises TypeError if the prior takes no condition."""
        return self._over(self._conditional().conditioned(embedding))

    @property
    def guidance(self) -> float:
        """The weight of classifier-free guidance, 1 for none. Raises TypeError if the prior takes no condition."""
        return float(self._conditional().guidance)

    @property
    def conditional(self) -> bool:
        """Whether the prior takes a condition."""
        return hasattr(self.prior, "conditioned")

    @property
    def network(self) -> Any:
        """The latent network, where there is one."""
        return getattr(self.prior, "network", None)

    @property
    def precision(self) -> str:
        """That of the latent network."""
        return getattr(self.prior, "precision", "float32")

    @property
    def magnitude(self) -> float | None:
        """About the largest value of a code, if known; a network's own speaks of images."""
        return None if self.network is not None else getattr(self.prior, "magnitude", None)

    @property
    def device(self) -> torch.device | None:
        """Where the latent prior computes; None if it follows its input."""
        return getattr(self.prior, "device", None)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type the latent prior computes in; None if it follows its input."""
        return getattr(self.prior, "dtype", None)

    def to(self, device: torch.device | str) -> Self:
        """Moves what can be moved of the latent prior and of the autoencoder, and returns the prior."""
        for part in (self.prior, self.autoencoder):
            if hasattr(part, "to"):
                part.to(device)
        return self

    def _conditional(self) -> Any:
        if not self.conditional:
            raise TypeError(f"the latent prior is a {type(self.prior).__name__}, which takes no prompt or embedding")
        return self.prior

    def _over(self, prior: Any) -> Self:
        """The same autoencoder over another latent prior, counting into the same counter."""
        if prior is self.prior:
            return self
        other = copy.copy(self)
        other.prior = prior
        return other
