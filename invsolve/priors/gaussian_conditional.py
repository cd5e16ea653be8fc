"""A conditional Gaussian prior, in which everything about the condition has a closed form."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from invsolve.levels import Level
from invsolve.priors.base import PixelPrior
from invsolve.priors.conditional import checked_embedding, checked_guidance, for_rows, rows_of
from invsolve.priors.gaussian import GaussianPrior


class ConditionLaw(NamedTuple):
    """A Gaussian over conditions: mean (B, d), covariance (d, d)."""

    mean: Tensor
    cov: Tensor


class ConditionalGaussianPrior(PixelPrior):
    """x_0 | c ~ N(mean + B c, cov), with a condition c of d numbers.

    Args:
        mean: X.
        B: (n, d) with n the number of entries of X.
        cov: (n, n).
        null: (d,), the condition that stands for none; zero by default.
        guidance: see `ConditionalNetworkPrior`. As the denoiser is affine in c, guidance is the condition null + w (c - null).

    The gradient of the denoiser in c is (I - alpha J) B with J its Jacobian in x: strong in noise, zero at sigma = 0.
    """

    def __init__(self, mean: Tensor, B: Tensor, cov: Tensor, null: Tensor | None = None, guidance: float = 1.0):
        self.image_shape = tuple(mean.shape)
        n = math.prod(self.image_shape)
        if B.ndim != 2 or len(B) != n:
            raise ValueError(f"B has shape {tuple(B.shape)}; ({n}, d) is needed for a mean of shape {self.image_shape}")
        if null is not None and tuple(null.shape) != (B.shape[1],):
            raise ValueError(f"null has shape {tuple(null.shape)}; ({B.shape[1]},) is needed")
        self._centred = GaussianPrior(torch.zeros_like(mean), cov)
        self.guidance = checked_guidance(guidance)
        with torch.inference_mode(False):
            self._mean, self.B = mean.detach().clone(), B.detach().to(mean).clone()
            self.null = B.new_zeros(B.shape[1]).to(mean) if null is None else null.detach().to(mean).clone()
        self.embedding: Tensor | None = None

    @property
    def cov(self) -> Tensor:
        """(n, n), the same for every condition."""
        return self._centred.cov

    @property
    def mean(self) -> Tensor:
        """mean + B c under the present condition and guidance, X or (B, *X)."""
        c = self.null if self.embedding is None else self.null + self.guidance * (self.embedding - self.null)
        return self._mean + (c @ self.B.mT).unflatten(-1, self.image_shape or ())

    @property
    def magnitude(self) -> float:
        """About the largest value a draw holds."""
        return float(self.mean.detach().abs().amax()) + self._centred.magnitude

    @property
    def rows(self) -> int | None:
        """How many rows the prior is for, if it differs from row to row."""
        return rows_of(self.embedding, self.null)

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | alpha x_0 + sigma z = x, c], (B, *X) -> (B, *X); differentiable in x and c."""
        mean = for_rows(self.mean.to(x), self._mean, len(x))
        return mean + self._centred.denoise(x - t.alpha * mean, t)

    def embed(self, prompt: Any) -> Tensor:
        """(d,) from d numbers."""
        return checked_embedding(torch.as_tensor(prompt).to(self.null), self.null)

    def conditioned(self, embedding: Tensor) -> Self:
        """The prior given c, (d,) for all rows or (B, d); differentiable in it."""
        other = copy.copy(self)
        other.embedding = checked_embedding(embedding, self.null)
        return other

    def select(self, index: Tensor) -> Self:
        """The prior of the given rows."""
        if self.embedding is None or self.rows is None:
            return self
        return self.conditioned(self.embedding[index.to(self.embedding.device)])

    def law(self) -> GaussianPrior:
        """The distribution under the present condition."""
        return GaussianPrior(self.mean.detach(), self.cov, self.image_shape)

    def condition_given(
        self, G: Tensor, y: Tensor, sigma: float, mean: Tensor | None = None, cov: Tensor | None = None, marginal: bool = True
    ) -> ConditionLaw:
        """What y = G x_0 + sigma n, n ~ N(0, I), says about c.

        Args:
            G: (m, n), of signals as vectors; y: (B, m).
            mean, cov: of a Gaussian p(c), (d,) and (d, d). Without them the law's mean is the maximum-likelihood condition
                argmax_c p(y | c), and its covariance the inverse of the information.
            marginal: False leaves the spread of x_0 given c out, S = sigma^2 I: the mean is then the least-squares fit
                argmin_c ||y - G (mean + B c)||, where prompt tuning ends that looks at the noisiest level alone.

        p(y | c) = N(G (mean + B c), G cov G^T + sigma^2 I).
        """
        H, r = G @ self.B, y - self._mean.flatten() @ G.mT
        S = sigma**2 * torch.eye(len(G)).to(G) + (G @ self.cov @ G.mT if marginal else 0)
        weighted = torch.linalg.solve(S, H).mT
        precision, pull = weighted @ H, r @ weighted.mT
        if mean is not None and cov is not None:
            inverse = torch.linalg.inv(cov)
            precision, pull = precision + inverse, pull + mean @ inverse
        return ConditionLaw(torch.linalg.solve(precision, pull.mT).mT, torch.linalg.inv(precision))
