"""Networks that take a condition: any continuous embedding, with classifier-free guidance."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from invsolve.priors.network import NetworkPrior, Prediction, TrainingTable


class ConditionalNetworkPrior(NetworkPrior):
    """A network called as network(x, time, embeddings) behind the `ConditionalPrior` protocol.

    Args:
        network, table, prediction: see `NetworkPrior`; the network's embeddings are (B, *E).
        null: (*E), the embedding that stands for no condition.
        embedder: from a prompt to its embedding (*E), for `embed`.
        guidance: w of classifier-free guidance, out = out(null) + w (out(C) - out(null)) (Ho and Salimans 2022, whose weight is
            w - 1). 1 is the conditional network, 0 the null one; any other costs two calls. It holds for every kind of
            prediction, for all are affine in the noise. A learned variance is that of the conditional call.
        options: see `NetworkPrior`.

    Until it is conditioned, the prior denoises with the null embedding, which costs one call whatever the guidance.
    """

    def __init__(
        self,
        network: Any,
        table: TrainingTable,
        prediction: Prediction = "epsilon",
        *,
        null: Tensor,
        embedder: Callable[[Any], Tensor] | None = None,
        guidance: float = 1.0,
        **options: Any,
    ):
        super().__init__(network, table, prediction, **options)
        self.guidance = checked_guidance(guidance)
        with torch.inference_mode(False):
            self.null = null.detach().clone().to(device=self.device, dtype=self.dtype)
        self.embedding: Tensor | None = None
        self._embedder = embedder

    def embed(self, prompt: Any) -> Tensor:
        """The embedding (*E) of a prompt. Raises TypeError or ValueError for one that the embedder does not take."""
        if self._embedder is None:
            raise TypeError("this prior has no embedder; pass embeddings to conditioned()")
        return self._embedder(prompt).to(self.null)

    def conditioned(self, embedding: Tensor) -> Self:
        """The prior given an embedding, (*E) for all rows or (B, *E) with one for each row; differentiable in it.

        It shares network and call counter with this one. Raises ValueError for any other shape.
        """
        other = copy.copy(self)
        other.embedding = checked_embedding(embedding, self.null).to(self.null)
        return other

    @property
    def class_embeddings(self) -> Tensor | None:
        """(N, *E), those of the classes that the network was trained on, without null; None where conditions are no classes."""
        table = getattr(self._embedder, "table", None)
        return None if table is None or len(table) < 2 else table[:-1].to(self.null)

    @property
    def rows(self) -> int | None:
        """How many rows the prior is for, if it differs from row to row."""
        return rows_of(self.embedding, self.null)

    def select(self, index: Tensor) -> Self:
        """The prior of the given rows."""
        if self.embedding is None or self.rows is None:
            return self
        return self.conditioned(self.embedding[index.to(self.embedding.device)])

    def to(self, device: torch.device | str) -> Self:
        """Moves network and embeddings, and returns the prior."""
        super().to(device)
        self.null = self.null.to(device)
        self.embedding = None if self.embedding is None else self.embedding.to(device)
        if hasattr(self._embedder, "to"):
            self._embedder.to(device)  # type: ignore[union-attr]
        return self

    def _forward(self, x: Tensor, time: float, *conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        null = for_rows(self.null, self.null, len(x))
        if self.embedding is None or self.guidance == 0:
            return super()._forward(x, time, null)
        out, fraction = super()._forward(x, time, for_rows(self.embedding, self.null, len(x)))
        if self.guidance == 1:
            return out, fraction
        free, _ = super()._forward(x, time, null)
        return torch.add(free, out - free, alpha=self.guidance), fraction


def checked_guidance(guidance: float) -> float:
    """The weight as a float. Raises ValueError unless it is finite and at least 0."""
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance={guidance}; a number that is at least 0 is needed (1 for the plain conditional network)")
    return float(guidance)


def checked_embedding(embedding: Tensor, null: Tensor) -> Tensor:
    """An embedding that autograd can save. Raises ValueError unless its shape is that of `null`, or of rows of it."""
    shape = tuple(null.shape)
    if tuple(embedding.shape) != shape and tuple(embedding.shape[1:]) != shape:
        raise ValueError(f"an embedding of shape {tuple(embedding.shape)}; {shape}, or one such for each row, is needed")
    if embedding.is_inference():
        with torch.inference_mode(False):
            return embedding.clone()
    return embedding


def rows_of(embedding: Tensor | None, null: Tensor) -> int | None:
    """The number of rows of an embedding (B, *E); None for one (*E) that is for all rows."""
    return None if embedding is None or embedding.ndim == null.ndim else len(embedding)


def for_rows(embedding: Tensor, null: Tensor, rows: int) -> Tensor:
    """The embedding as (rows, *E). Raises ValueError if it is of another number of rows."""
    if embedding.ndim == null.ndim:
        return embedding.expand(rows, *embedding.shape)
    if len(embedding) != rows:
        raise ValueError(f"{len(embedding)} embeddings for {rows} rows; one for each row, or one for all, is needed")
    return embedding
