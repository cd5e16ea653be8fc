"""The likelihood of photon counts with read-out noise, by the Gaussian of the same mean and variance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from invsolve.likelihoods.base import MeasuredLikelihood, _norm, _per_sample


class PoissonGaussianLikelihood(MeasuredLikelihood):
    """y = gain * Poisson(A(u) / gain) + N(0, sigma^2), u = (x + 1)/2 in [0, 1], as y ~ N(A(u), v) with v = gain A(u) + sigma^2.

    log p(y | x) = -sum ((y - A(u))^2 / v + log v) / 2 + const, the heteroscedastic approximation of Foi et al., IEEE TIP
    2008, sec. II: exact mean and variance, and close to the density from about ten photons on or where sigma exceeds gain.

    Args:
        operator: as in GaussianLikelihood; it acts on the [0, 1] image u.
        y: (B, *Y), of any sign.
        gain: value of one photon in the units of y, > 0.
        sigma: standard deviation of the read-out noise in the units of y, where images span [0, 1]; >= 0.
        floor: the variance counts at least so many photons, so that it stays positive where A(u) does not.
    """

    def __init__(self, operator: Any, y: Tensor, gain: float, sigma: float, floor: float = 0.1):
        super().__init__(operator, y)
        self.gain, self.sigma, self.floor = float(gain), float(sigma), float(floor)
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain={gain}; a finite number > 0 is needed (the value of one photon in the units of y)")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma={sigma}; a finite number >= 0 is needed (in the units of y, [0, 1] for images)")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise ValueError(f"floor={floor}; a finite number of photons > 0 is needed")
        if self.y.is_complex():
            raise ValueError("y is complex; photon counts are real")

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of y, both (B, *Y)."""
        mean = self.operator.A((x + 1) / 2)
        return mean, self.gain * mean.clamp_min(self.floor * self.gain) + self.sigma**2

    def log_prob(self, x: Tensor) -> Tensor:
        """-sum ((y - A(u))^2 / v + log v) / 2, (B,)."""
        mean, variance = self._moments(x)
        return ((self.y - mean).square() / variance + variance.log()).flatten(1).sum(1) / -2

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p(y | x), (B, *X); v is differentiated too."""
        mean, variance = self._moments(x)
        r = self.y - mean
        slope = self.gain * (mean > self.floor * self.gain).to(mean)
        return self._vjp(x, r / variance + slope * (r.square() / variance - 1) / (2 * variance)) / 2

    def misfit_grad(self, x: Tensor) -> Tensor:
        """grad_x of ||(y - A(u)) / sqrt(gain max(y, gain) + sigma^2)||, the residual in units of its noise, (B, *X).

        As for `PoissonLikelihood`, the variance is taken from y and pixels without photons count as one.
        """
        weight = (self.y.clamp_min(self.gain) * self.gain + self.sigma**2).rsqrt()
        r = (self.y - self.operator.A((x + 1) / 2)) * weight
        length = _norm(r).clamp_min(torch.finfo(r.dtype).tiny)
        return self._vjp(x, r * weight) / _per_sample(-2 * length, x)

    def discrepancy(self, x: Tensor) -> Tensor:
        """Root mean square of (y - A(u)) / sqrt(v), (B,)."""
        mean, variance = self._moments(x)
        return self._rms(self.operator.restrict((self.y - mean) / variance.sqrt()))

    def _vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.A_adjoint(v) if self.operator.linear else self.operator.A_vjp((x + 1) / 2, v)


class PoissonLikelihood(MeasuredLikelihood):
    """y = gain * Poisson(A(u) / gain) with u = (x + 1)/2 in [0, 1]: photon counts scaled by the gain.

    Args:
        operator: as in GaussianLikelihood; it acts on the [0, 1] image u.
        y: (B, *Y), non-negative.
        gain: value of one photon in the units of y, > 0.
        floor: below this many expected photons the log-likelihood is continued by its second-order Taylor polynomial,
            which keeps it concave, twice differentiable and finite where a sampler's A(u) is zero or negative.
    """

    def __init__(self, operator: Any, y: Tensor, gain: float, floor: float = 0.1):
        super().__init__(operator, y)
        self.gain, self.floor = float(gain), float(floor)
        if not (math.isfinite(self.gain) and self.gain > 0):
            raise ValueError(f"gain={gain}; a finite number > 0 is needed (the value of one photon in the units of y)")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise ValueError(f"floor={floor}; a finite number of photons > 0 is needed")
        if self.y.is_complex():
            raise ValueError("y is complex; photon counts are real")
        if bool((self.y < 0).any()):
            raise ValueError(f"y holds negative values (lowest {float(self.y.min()):g}); photon counts cannot be negative")

    def _rate(self, x: Tensor) -> Tensor:
        """Expected photons A((x + 1)/2) / gain."""
        return self.operator.A((x + 1) / 2) / self.gain

    def log_prob(self, x: Tensor) -> Tensor:
        """sum_i k_i log(rate_i) - rate_i with k = y / gain (the factorial is left out), (B,)."""
        k, rate = self.y / self.gain, self._rate(x)
        safe = rate.clamp_min(self.floor)
        below = rate - safe
        taylor = below * (k / safe - 1) - below.square() * k / (2 * safe.square())
        return (torch.xlogy(k, safe) - safe + taylor).flatten(1).sum(1)

    def _rate_grad(self, rate: Tensor) -> Tensor:
        k, safe = self.y / self.gain, rate.clamp_min(self.floor)
        return k / safe - 1 - (rate - safe) * k / safe.square()

    def score(self, x: Tensor) -> Tensor:
        """grad_x log p(y | x), (B, *X)."""
        rate = self._rate(x)
        return self._vjp(x, self._rate_grad(rate)) / (2 * self.gain)

    def misfit_grad(self, x: Tensor) -> Tensor:
        """grad_x of ||(y - A(u)) / sqrt(max(y, gain) gain)||, the norm of the residual in units of its noise, (B, *X).

        Chung et al. 2023 (DPS), section 3.2 weigh the residual by 1/sqrt(y); here pixels without photons count as one.
        """
        weight = (self.y.clamp_min(self.gain) * self.gain).rsqrt()
        r = (self.y - self._rate(x) * self.gain) * weight
        length = _norm(r).clamp_min(torch.finfo(r.dtype).tiny)
        return self._vjp(x, r * weight) / _per_sample(-2 * length, x)

    def discrepancy(self, x: Tensor) -> Tensor:
        """Root mean square of (y - A(u)) in units of the model's noise sqrt(gain A(u)), (B,)."""
        rate = self._rate(x)
        r = (self.y / self.gain - rate) / rate.clamp_min(self.floor).sqrt()
        return self._rms(self.operator.restrict(r))

    def _vjp(self, x: Tensor, v: Tensor) -> Tensor:
        if self.operator.linear:
            return self.operator.A_adjoint(v)
        return self.operator.A_vjp((x + 1) / 2, v)
