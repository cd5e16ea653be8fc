"""Likelihoods: log p(y | x), bound to a measurement, and the only place where the noise level sigma_y stands.

All values and gradients are per sample, (B, *X) -> (B,) or (B, *X); none is summed or averaged over a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from invsolve.noise import NoiseSource
from operators.adapter import as_operator


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

    def pullback(self, decode: Callable[[Tensor], Tensor]) -> PulledBack:
        """The likelihood of z under x = decode(z)."""
        return PulledBack(self, decode)  # type: ignore[arg-type]

    def _rms(self, r: Tensor) -> Tensor:
        """Root mean square of each row over its measured values, (B, *Y) -> (B,)."""
        return _norm(r) / self.measured.clamp_min(1).to(r.real.dtype).sqrt()


class GaussianLikelihood(MeasuredLikelihood):
    """y = A(x) + N(0, sigma^2 I): log p(y | x) = -||y - A(x)||^2 / (2 sigma^2) + const.

    Args:
        operator: one of `operators`, or any deepinv physics; linear or not.
        y: (B, *Y); B = 1 serves every image.
        sigma: noise standard deviation in the units of y ([-1, 1] for images; 0.05 there is 0.025 in [0, 1]). 0 is
            accepted for samplers that never divide by it; the methods that do raise ValueError.
    """

    def __init__(self, operator: Any, y: Tensor, sigma: float):
        super().__init__(operator, y)
        if isinstance(sigma, Tensor) and sigma.numel() != 1:
            raise ValueError(f"sigma of shape {tuple(sigma.shape)}; one number for all rows is needed")
        self.sigma = float(sigma)
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma={sigma}; a finite number >= 0 is needed (in the units of y, [-1, 1] for images)")
        if self.sigma and not 1e-150 < self.sigma < 1e150:
            raise ValueError(
                f"sigma={sigma}; its square is no number in double precision: 0, or a number far from 1e-150 and 1e150, is needed"
            )

    def with_sigma(self, sigma: float) -> Self:
        """The same measurement, read as if its noise had another standard deviation."""
        other = copy.copy(self)
        other.sigma = sigma
        return other

    def _positive_sigma(self, what: str) -> float:
        if self.sigma == 0:
            raise ValueError(f"{what} divides by sigma^2, but sigma = 0; give the noise level of y, or use a sampler without it")
        return self.sigma

    def hidden_noise(self, noise: NoiseSource) -> Tensor:
        """Noise of y's level in the entries of y that are not measured, 0 in the others, (B, *Y); from a stream of its own."""
        n = self._noise(noise, 1)
        return self.sigma * (n - self.operator.restrict(n))

    def with_hidden(self, hidden: Tensor) -> Self:
        """The same measurement with `hidden` (B, *Y) in the entries that are not measured: lengths count it, gradients do not."""
        other = copy.copy(self)
        other.y = self.y + hidden
        return other

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x), (B, *Y)."""
        return self.y - self.operator.A(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """-||y - A(x)||^2 / (2 sigma^2), (B,)."""
        return _norm(self.residual(x)).square() / (-2 * self._positive_sigma("log_prob") ** 2)

    def score(self, x: Tensor) -> Tensor:
        """A'(x)^T (y - A(x)) / sigma^2, (B, *X)."""
        return self._vjp(x, self.residual(x)) / self._positive_sigma("score") ** 2

    def misfit_grad(self, x: Tensor) -> Tensor:
        """grad_x ||y - A(x)|| of each sample: -A'(x)^T r / ||r||; 0 where r = 0. Does not depend on sigma."""
        r = self.residual(x)
        length = _norm(r).clamp_min(torch.finfo(r.dtype).tiny)
        return self._vjp(x, r) / _per_sample(-length, x)

    def discrepancy(self, x: Tensor) -> Tensor:
        """||y - A(x)|| / (sigma sqrt(m)), (B,); with sigma = 0 the root mean square of the residual itself."""
        return self._rms(self.residual(x)) / (self.sigma or 1.0)

    def _vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.A_adjoint(v) if self.operator.linear else self.operator.A_vjp(x, v)

    def _linear(self, what: str) -> Any:
        if not self.operator.linear:
            raise TypeError(f"{what} needs a linear operator; {type(self.operator).__name__} is not linear")
        return self.operator

    def _gamma(self, what: str, rho: float) -> float:
        """rho^2 / sigma^2: how much the data weigh against N(v, rho^2 I)."""
        sigma = self._positive_sigma(what)
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho={rho}; a finite number >= 0 is needed")
        return (rho / sigma) ** 2

    def _noise(self, noise: NoiseSource, *stream: int) -> Tensor:
        """Unit noise in the shape of y; real and imaginary parts each of unit variance, as in the model.

        `stream`: sides of 1 put before the shape that is drawn, for numbers that advance no other stream.
        """
        shape = (*stream, *self.y.shape[1:])
        n = torch.view_as_complex(noise.normal((*shape, 2))) if self.y.is_complex() else noise.normal(shape)
        return n.reshape(-1, *self.y.shape[1:]).to(self.y)

    def prox(self, v: Tensor, rho: float) -> Tensor:
        """argmin_x ||y - A x||^2 / (2 sigma^2) + ||x - v||^2 / (2 rho^2), (B, *X).

        Closed form where the operator has one, conjugate gradients otherwise; the posterior mean under N(v, rho^2 I).
        """
        operator, gamma = self._linear("prox"), self._gamma("prox", rho)
        return operator.prox_l2(v, self.y, gamma)

    def sample_given(self, v: Tensor, rho: float, noise: NoiseSource) -> Tensor:
        """A draw of p(x | y) under the prior N(v, rho^2 I), exact up to the solver's tolerance, (B, *X).

        Perturbation sampling (Papandreou and Yuille, NeurIPS 2010): the prox of a perturbed centre and measurement.
        Draws from `noise` first in the shape of x, then in the shape of y (of its real and imaginary parts, if complex).
        """
        operator, gamma = self._linear("sample_given"), self._gamma("sample_given", rho)
        centre = torch.add(v, noise.normal(v.shape[1:]).to(v), alpha=rho)
        y = torch.add(self.y, self._noise(noise), alpha=self.sigma)
        return operator.prox_l2(centre, y, gamma)

    def renew(self, v: Tensor, r: float, noise: NoiseSource, rho: float | None = None) -> Tensor:
        """v (B, *X), read as x_0 + N(0, r^2 I), with its measured part taken from y and noised to the same r.

        Without rho, y counts as free of noise and replaces all that A sees: v + A^+ (y + r A z - A v) (Chung et al., NeurIPS
        2022). Noise that y does hold then comes on top of r, divided by the singular values of A.

        With rho (our derivation), a component of singular value s is replaced by the part w = rho^2 s^2/(rho^2 s^2 + sigma^2):
        prox(v, rho) at y + r A z + sigma c n, c^2 = max(2 r^2/rho^2 - 1, 1). For rho <= r that is x_0 + N(0, r^2 I) again, where
        the errors of v and y are independent. A walk down the levels whose rho^2 in each step is what the variance of x_0 loses
        in it follows y down to r = sigma/s, where y is as noisy as v, and not below, however many steps it takes.

        The two agree at sigma = 0; with r = 0 < sigma v has nothing to learn and is returned, unless rho is None. Draws in the
        shape of x, then (with rho) of y.
        """
        operator = self._linear("projection onto the measurement")
        exact = rho is None or self.sigma == 0
        if r == 0 and not exact:
            return v
        z = noise.normal(v.shape[1:]).to(v) if r > 0 else torch.zeros_like(v)
        if exact or rho is None:
            return v + operator.A_dagger(self.y + operator.A(torch.sub(r * z, v)))
        spread = self.sigma * math.sqrt(max(2 * (r / rho) ** 2 - 1, 1.0))
        y = torch.add(self.y + operator.A(r * z), self._noise(noise), alpha=spread)
        return operator.prox_l2(v, y, self._gamma("projection", rho))

    def guide(self, x0: Tensor, r2: float) -> Tensor:
        """A^T (r2 A A^T + sigma^2 I)^-1 (y - A x0), (B, *X): the score of y under N(x0, r2 I) pushed through A.

        Song et al., "Pseudoinverse-guided diffusion models", ICLR 2023, equation 7. Equal to (prox(x0, sqrt(r2)) - x0)/r2,
        computed from the residual, so that nothing cancels where r2 is small.
        """
        if not r2 > 0:
            raise ValueError(f"r2={r2}; a number > 0 is needed")
        operator, gamma = self._linear("guide"), self._gamma("guide", math.sqrt(r2))
        return operator.prox_l2(torch.zeros_like(x0), self.residual(x0), gamma) / r2


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
