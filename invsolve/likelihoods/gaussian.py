"""The likelihood of Gaussian noise."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor

from invsolve.likelihoods.base import MeasuredLikelihood, _norm, _per_sample
from invsolve.streams import NoiseSource


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
