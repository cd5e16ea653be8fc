"""Priors with exact denoisers: Gaussians (dense and stationary) and Gaussian mixtures.

They are what every sampler is tested on, and what calibration is measured on. Closed forms: for N(m, C),
E[x_0 | x] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m); a mixture weighs these by the responsibilities
w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from invsolve.levels import Level
from invsolve.priors.base import PixelPrior
from invsolve.streams import Noise


def _symmetric(cov: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a batch of covariances, refused unless symmetric and positive semi-definite."""
    if cov.ndim < 2 or cov.shape[-1] != cov.shape[-2]:
        raise ValueError(f"{what} must be square, got shape {tuple(cov.shape)}")
    size = cov.abs().amax().clamp_min(torch.finfo(cov.dtype).tiny)
    tolerance = 100 * torch.finfo(cov.dtype).eps * cov.shape[-1]
    gap = float((cov - cov.mT).abs().amax() / size)
    if not gap <= tolerance:
        raise ValueError(f"{what} must be symmetric; it differs from its transpose by {gap:.1e} of its largest entry")
    values, vectors = torch.linalg.eigh((cov + cov.mT) / 2)
    lowest = float(values.amin() / size)
    if not lowest >= -tolerance:
        raise ValueError(f"{what} must be positive semi-definite; its lowest eigenvalue is {lowest:.1e} of its largest entry")
    return values.clamp_min(0), vectors


def symmetric_root(values: Tensor, vectors: Tensor) -> Tensor:
    """V sqrt(L) V^T from eigenvalues (..., n) >= 0 and eigenvectors (..., n, n): the root that no choice of eigenvectors changes.

    Their signs, and their basis where eigenvalues are equal, differ between processors and libraries, and with them V sqrt(L).
    Eigenvalues that rounding may have made, up to n eps of the largest, count as zero, or their root would be noise of 1e-8.
    """
    rounding = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return (vectors * torch.where(values > rounding, values, 0).sqrt()[..., None, :]) @ vectors.mT


class GaussianMixturePrior(PixelPrior):
    """A mixture of Gaussians, sum_k weights_k N(means_k, covs_k).

    Args:
        weights: (K,) or, row by row, (B, K); positive; normalised here.
        means: (K, *X) or (B, K, *X).
        covs: (K, n, n) with n the number of entries of X.
        image_shape: X; needed only when weights or means differ from row to row.

    The dtype of `means` is the precision of the closed forms; use float64 for exact work.
    """

    def __init__(self, weights: Any, means: Any, covs: Any, image_shape: Sequence[int] | None = None):
        # Not inference tensors, whatever the mode we are called in: autograd samplers will differentiate through them.
        with torch.inference_mode(False):
            means = torch.as_tensor(means).detach().clone()
            self._set(
                torch.as_tensor(weights).detach().to(means).clone(), means, torch.as_tensor(covs).detach().to(means).clone(), image_shape
            )
        self._cache: dict[Any, tuple[Tensor, ...]] = {}

    def _set(self, weights: Tensor, means: Tensor, covs: Tensor, image_shape: Sequence[int] | None) -> None:
        if not means.is_floating_point():
            raise ValueError(f"means must be floating point, got {means.dtype}")
        if not bool(torch.isfinite(means).all() and torch.isfinite(covs).all()):
            raise ValueError("means and covariances must be finite; they hold NaN or infinity")
        shape = tuple(image_shape) if image_shape is not None else tuple(means.shape[1:])
        n, components = math.prod(shape), covs.shape[0]
        lead = means.shape[: means.ndim - len(shape)]
        if tuple(means.shape[len(lead) :]) != shape or len(lead) not in (1, 2) or lead[-1] != components:
            raise ValueError(f"means of shape {tuple(means.shape)} do not match {components} components of shape {shape}")
        if tuple(covs.shape) != (components, n, n):
            raise ValueError(f"covs of shape {tuple(covs.shape)}; {(components, n, n)} is needed")
        fits = weights.ndim in (1, 2) and weights.shape[-1] == components
        if not fits or not bool((weights >= 0).all() and torch.isfinite(weights).all() and (weights.sum(-1) > 0).all()):
            raise ValueError(f"weights must be {components} non-negative numbers, not all zero, got {weights.tolist()}")
        self.image_shape = shape
        self._weights = torch.atleast_2d(weights) / torch.atleast_2d(weights).sum(-1, keepdim=True)
        self._means = means.reshape(-1, components, n) if len(lead) == 2 else means.reshape(1, components, n)
        self._covs = covs
        self._values, self._vectors = _symmetric(covs, "a covariance")
        self._per_row = weights.ndim == 2 or len(lead) == 2

    def _buffers(self, x: Tensor) -> tuple[Tensor, ...]:
        key = (x.dtype, x.device)
        if key not in self._cache:
            with torch.inference_mode(False):
                self._cache[key] = tuple(b.to(x) for b in (self._weights.log(), self._means, self._values, self._vectors))
        return self._cache[key]

    @property
    def weights(self) -> Tensor:
        """(K,), or (B, K) where they differ from row to row."""
        return self._weights if self._per_row else self._weights[0]

    @property
    def means(self) -> Tensor:
        """(K, *X), or (B, K, *X) where they differ from row to row."""
        shaped = self._means.unflatten(-1, self.image_shape or ())
        return shaped if self._per_row else shaped[0]

    @property
    def covs(self) -> Tensor:
        """(K, n, n)."""
        return self._covs

    @property
    def mean(self) -> Tensor:
        """The mean of the whole mixture, X or (B, *X)."""
        mean = (self._weights[..., None] * self._means).sum(1).unflatten(-1, self.image_shape or ())
        return mean if self._per_row else mean[0]

    @property
    def cov(self) -> Tensor:
        """The covariance of the whole mixture, (n, n) or (B, n, n)."""
        centred = self._means - (self._weights[..., None] * self._means).sum(1, keepdim=True)
        spread = torch.einsum("bk,bki,bkj->bij", self._weights, centred, centred)
        cov = torch.einsum("bk,kij->bij", self._weights, self._covs) + spread
        return cov if self._per_row else cov[0]

    @property
    def magnitude(self) -> float:
        """About the largest value a draw holds: the largest mean plus six standard deviations."""
        return float(self._means.abs().amax() + 6 * torch.linalg.diagonal(self._covs).amax().sqrt())

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | alpha x_0 + sigma z = x] in closed form, (B, *X) -> (B, *X)."""
        if t.sigma == 0:
            return x / t.alpha
        log_weights, means, values, vectors = self._buffers(x)
        centred = x.flatten(1)[:, None] - t.alpha * means
        # In the eigenbasis of each component: (B, K, n).
        coordinates = torch.einsum("kij,bki->bkj", vectors, centred)
        spread = t.alpha**2 * values + t.sigma**2
        estimates = means + torch.einsum("kij,bkj->bki", vectors, coordinates * (t.alpha * values / spread))
        if values.shape[0] == 1:
            return estimates[:, 0].reshape(x.shape)
        log_density = -0.5 * (coordinates.square() / spread + spread.log()).sum(-1)
        responsibility = torch.softmax(log_weights + log_density, dim=1)
        return torch.einsum("bk,bki->bi", responsibility, estimates).reshape(x.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of clean signals x (B, *X) -> (B,); every covariance must be positive definite."""
        log_weights, means, values, vectors = self._buffers(x)
        if bool((values <= 0).any()):
            raise ValueError("the density does not exist: a covariance is singular")
        coordinates = torch.einsum("kij,bki->bkj", vectors, x.flatten(1)[:, None] - means)
        log_density = -0.5 * (coordinates.square() / values + values.log() + math.log(2 * math.pi)).sum(-1)
        return torch.logsumexp(log_weights + log_density, dim=1)

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n exact draws: (n, *X), or (B, n, *X) where the prior differs from row to row.

        Draw k of row b depends on (seed, b, k) alone, so fewer draws are the first of many.
        """
        rows, shape = len(torch.broadcast_tensors(self._weights[:, :1], self._means[:, :1, 0])[0]), self.image_shape or ()
        weights, means = self._weights.expand(rows, -1), self._means.expand(rows, -1, -1)
        out = torch.empty((rows, n, math.prod(shape)), dtype=means.dtype, device=means.device)
        roots = symmetric_root(self._values, self._vectors)
        for b in range(rows):
            source = Noise(seed, [(f"draw {b}", k) for k in range(n)], dtype=out.dtype, device=out.device, block=1)
            z = source.normal(out.shape[2:])
            # A component by the inverse of the cumulative weights, at a uniform made from one normal number.
            u = torch.special.ndtr(source.normal(()))
            k = torch.searchsorted(weights[b].cumsum(0).contiguous(), u).clamp(max=weights.shape[1] - 1)
            for j in range(weights.shape[1]):
                out[b, k == j] = means[b, j] + z[k == j] @ roots[j].T
        shaped = out.unflatten(-1, shape)
        return shaped if self._per_row else shaped[0]

    def select(self, index: Tensor) -> Self:
        """The prior of the given rows."""
        if not self._per_row:
            return self
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        chosen._cache = {}
        for name in ("_weights", "_means"):
            held = getattr(self, name)
            setattr(chosen, name, held if len(held) == 1 else held[index.to(held.device)])
        return chosen


class GaussianPrior(GaussianMixturePrior):
    """N(mean, cov).

    Args:
        mean: X, or (B, *X) together with `image_shape`.
        cov: (n, n), symmetric positive semi-definite, with n the number of entries of X.
        image_shape: X; needed only when the mean differs from row to row.
    """

    def __init__(self, mean: Any, cov: Any, image_shape: Sequence[int] | None = None):
        mean = torch.as_tensor(mean)
        shape = tuple(mean.shape) if image_shape is None else tuple(image_shape)
        per_row = mean.ndim == len(shape) + 1
        super().__init__(torch.ones(1), mean.unsqueeze(1) if per_row else mean.unsqueeze(0), torch.as_tensor(cov).unsqueeze(0), shape)

    @property
    def mean(self) -> Tensor:
        """The mean, X or (B, *X)."""
        mean = self._means[:, 0].unflatten(-1, self.image_shape or ())
        return mean if self._per_row else mean[0]

    @property
    def cov(self) -> Tensor:
        """The covariance (n, n), the same for every row."""
        return self._covs[0]

    @staticmethod
    def stationary(mean: Any, power: Any, image_shape: Sequence[int]) -> StationaryGaussianPrior:
        """A Gaussian image prior with a circulant covariance; see StationaryGaussianPrior."""
        return StationaryGaussianPrior(mean, power, image_shape)


class StationaryGaussianPrior(PixelPrior):
    """A stationary Gaussian image prior with periodic boundary: covariance F^H diag(power) F, F the orthonormal 2-D FFT.

    Args:
        mean: a number or a tensor that broadcasts to `image_shape`.
        power: (H, W) or (C, H, W) power spectrum in the order of torch.fft.fft2, real, non-negative and symmetric under
            f -> -f; its mean is the variance of a pixel.
        image_shape: (C, H, W). Channels are independent.
    """

    def __init__(self, mean: Any, power: Any, image_shape: Sequence[int]):
        with torch.inference_mode(False):
            power = torch.as_tensor(power).clone()
            self.image_shape = tuple(image_shape)
            if len(self.image_shape) != 3:
                raise ValueError(f"image_shape={self.image_shape}; (C, H, W) is needed")
            if tuple(power.shape) not in (self.image_shape, self.image_shape[1:]):
                raise ValueError(f"power of shape {tuple(power.shape)}; {self.image_shape[1:]} or {self.image_shape} is needed")
            if not power.is_floating_point() or not bool((power >= 0).all() and torch.isfinite(power).all()):
                raise ValueError("power must be real, finite and non-negative")
            mirrored = torch.roll(power.flip(-1, -2), (1, 1), (-1, -2))
            if not torch.allclose(power, mirrored, rtol=1e-6, atol=0):
                raise ValueError("power must be symmetric under f -> -f, or the images would not be real")
            self.power = power.expand(self.image_shape).clone()
            mean = torch.as_tensor(mean).to(self.power)
            fits = mean.ndim <= 3 and all(a in (1, b) for a, b in zip(mean.shape[::-1], self.image_shape[::-1], strict=False))
            if not fits or not bool(torch.isfinite(mean).all()):
                raise ValueError(f"mean of shape {tuple(mean.shape)}; finite numbers that broadcast to {self.image_shape} are needed")
            self.mean = mean.expand(self.image_shape).clone()
        self._cache: dict[Any, tuple[Tensor, Tensor]] = {}

    def _buffers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = (x.dtype, x.device)
        if key not in self._cache:
            with torch.inference_mode(False):
                half = self.power[..., : self.power.shape[-1] // 2 + 1]
                self._cache[key] = (self.mean.to(x), half.to(x))
        return self._cache[key]

    @property
    def magnitude(self) -> float:
        """About the largest value a draw holds: the largest mean plus six standard deviations."""
        return float(self.mean.abs().amax() + 6 * self.power.mean((-1, -2)).amax().sqrt())

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """The Wiener filter, (B, C, H, W) -> (B, C, H, W)."""
        if t.sigma == 0:
            return x / t.alpha
        mean, power = self._buffers(x)
        gain = t.alpha * power / (t.alpha**2 * power + t.sigma**2)
        filtered = torch.fft.irfft2(torch.fft.rfft2(x - t.alpha * mean) * gain, s=x.shape[-2:])
        return mean + filtered

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n exact draws (n, C, H, W)."""
        shape = self.image_shape or ()
        rows = [("draw 0", k) for k in range(n)]
        z = Noise(seed, rows, dtype=self.power.dtype, device=self.power.device, block=1).normal(shape)
        return self.mean + torch.fft.ifft2(torch.fft.fft2(z) * self.power.sqrt()).real

    def dense(self) -> GaussianPrior:
        """The same prior with its covariance as a matrix; refused above 4096 entries (ValueError)."""
        shape = self.image_shape or ()
        n = math.prod(shape)
        if n > 4096:
            raise ValueError(f"a dense covariance of {n} x {n} is too large; at most 4096 entries (such as 3x32x32) are taken")
        unit = torch.eye(n, dtype=self.power.dtype, device=self.power.device).reshape(n, *shape)
        cov = torch.fft.ifft2(torch.fft.fft2(unit) * self.power).real.reshape(n, n)
        return GaussianPrior(self.mean, (cov + cov.T) / 2)
