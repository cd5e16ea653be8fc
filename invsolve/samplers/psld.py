"""Posterior sampling with latent diffusion, and latent DPS with its fixed-point term.

Rout, Raoof, Daras, Caramanis, Dimakis, Shakkottai, "Solving linear inverse problems provably via posterior sampling with
latent diffusion models", NeurIPS 2023 (arXiv 2307.00619).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from invsolve.engine.protocol import State, Stateless
from invsolve.kernels import reverse
from invsolve.kernels.linearize import linearize
from invsolve.levels import Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.numerics.rows import unit
from invsolve.samplers.parts.checks import check_settings
from invsolve.samplers.parts.latent import (
    Gradient,
    Norm,
    as_counted,
    begin,
    check_gradient,
    image_likelihood,
    misfit_grad,
    needs_linear_gaussian,
)
from invsolve.streams import NoiseSource


@dataclass(frozen=True)
class PSLD(Stateless):
    """DDIM steps on codes z, guided by the misfit of the decoded image and by how far its code is from agreeing with y.

    z_s = z' - g (omega ||y - A D(z0_hat)|| + gamma ||E(M D(z0_hat)) - z0_hat||), with z' the DDIM step, g the gradient with
    respect to z_t through network, decoder D and encoder E, and M x = x + T (y - A x) the image with its measured part glued in
    (the paper's algorithm 2, whose two updates its code takes at once). Both norms are of each sample by itself.

    Args:
        omega: of the data term. The authors' code has 1, and 0.1 to 0.9 in single tasks.
        gamma: of the gluing term; 0 is latent DPS with a DDIM step, and with eta = 1 `DPS` to the last digit.
        gluing: T: "adjoint", A^T, the paper's, for operators with orthonormal rows (masks, scaled averages); for others M
            is no projection, and "pseudo_inverse", A^+, is meant. "goodness": T = 0, the fixed-point term of GML-DPS in the same
            paper, ||E(D(z0_hat)) - z0_hat||, which knows nothing of y: any operator and likelihood. "official": the `transpose` of
            the code: nothing at all where y has the shape of the image (blur, masks), else nearest-neighbour upsampling.
        gradient: "norm", as above (published), or "squared", both norms squared.
        fresh_noise: adds noise of y's level to A D(z0_hat) in the data term at every step, as the code does by oversight.
        eta: of the DDIM step; 0 published.
        norm: which entries of y count: "measured" ones, or "all", as in the code, whose y has noise in hidden pixels too (drawn here
            once for a trajectory, and kept; with fresh_noise, the fresh noise is in them as well). It lengthens the norm that the
            data term's step is divided by, as in `DPS`: at equal omega sqrt(m/d) of the step where y is fitted, for m of d entries
            measured. With gluing="official" it also stands in the hidden pixels of the glued image. Gaussian noise alone (TypeError).

    The last move ends at sigma 0, as every schedule here does; the code's path ends at the least noise of its network's training
    (0.029 for Stable Diffusion), whose remainder it decodes. Two things of the code are not offered: norms over a whole
    batch, and a code drawn from the encoder's distribution instead of its mean. Costs a forward and a backward pass of
    network, decoder and encoder a step. Gluing needs a linear operator and Gaussian noise (TypeError otherwise). With an
    orthonormal linear decoder (G = A D) the term is ||G^T (y - G z0_hat)||: the data once more, differently weighted, so that
    the bias of DPS stays.
    """

    remedy: ClassVar[str] = "lower omega and gamma"
    omega: float = 1.0
    gamma: float = 0.1
    gluing: Literal["adjoint", "pseudo_inverse", "goodness", "official"] = "adjoint"
    gradient: Gradient = "norm"
    fresh_noise: bool = False
    eta: float = 0.0
    norm: Norm = "measured"

    def __post_init__(self) -> None:
        check_settings(self, omega="a number >= 0", gamma="a number >= 0", eta="a number in [0, 1]")
        if self.norm == "all" and self.gradient == "squared" and self.gluing != "official":
            raise ValueError("norm='all' belongs to gradient='norm' or gluing='official'; the gradient of a square knows no hidden entries")

    def init(self, target: Any, x: Tensor) -> State:
        """The code, once the likelihood has been found fit. Raises TypeError or ValueError where it is not."""
        likelihood = image_likelihood(target)
        if self.gamma > 0 and self.gluing != "goodness":
            needs_linear_gaussian(likelihood, f"gluing={self.gluing!r}", "gluing='goodness' takes any")
            if self.gluing == "official":
                _upsampling(likelihood)
        if self.fresh_noise and not isinstance(likelihood, GaussianLikelihood):
            raise TypeError(f"fresh_noise=True needs Gaussian noise, not a {type(likelihood).__name__}")
        check_gradient(likelihood, self.gradient)
        return begin(likelihood, x, self.norm)

    def step(self, target: Any, state: State, move: Move, noise: NoiseSource) -> State:
        """One move: DDIM step, and the gradient of both terms."""
        x, t = state.x, move.t
        x0, pull, _ = linearize(target.prior, x, t)
        x_s = reverse.ddim(x, x0, move, noise.normal(x.shape[1:]) if self.eta else None, self.eta)
        likelihood, then = as_counted(image_likelihood(target), state, noise)
        seen = likelihood
        if self.fresh_noise:
            seen, fresh = copy.copy(likelihood), likelihood._noise(noise)
            fresh = fresh if self.norm == "all" else likelihood.operator.restrict(fresh)
            seen.y = torch.sub(likelihood.y, fresh, alpha=likelihood.sigma)
        # Also where the caller runs under inference mode, whose tensors autograd refuses.
        with torch.inference_mode(False), torch.enable_grad():
            z = x0.clone().requires_grad_()
            image = target.prior.decode(z)
        slope = self.omega * misfit_grad(seen, image.detach(), self.gradient)
        if self.gamma == 0:
            return then(x_s - pull(torch.autograd.grad(image, z, slope)[0]), x0)
        back, off = self._off(target.prior, likelihood, image.detach(), x0)
        return then(x_s - pull(torch.autograd.grad(image, z, slope + back)[0] - off), x0)

    def _off(self, prior: Any, likelihood: Any, image: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of the gluing term, the gradient by the image D(z0_hat), and minus that by z0_hat where it stands alone."""
        glue, transposed = self._gluing(likelihood)
        with torch.inference_mode(False), torch.enable_grad():
            glued = glue(image).requires_grad_()
            code = prior.encode(glued)
        off = code.detach() - z
        off = self.gamma * (2 * off if self.gradient == "squared" else unit(off))
        return transposed(torch.autograd.grad(code, glued, off)[0]), off

    def _gluing(self, likelihood: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """x -> M x = x + T (y - A x), and the transpose of its linear part, v - A^T T^T v."""
        if self.gluing == "goodness":
            return (lambda x: x.clone()), (lambda v: v)
        A = likelihood.operator
        if self.gluing == "official":
            up, down = _upsampling(likelihood)
            return (lambda x: x + up(likelihood.residual(x))), (lambda v: v - A.A_adjoint(down(v)))
        # A^T A and A^+ A are symmetric.
        back = A.A_adjoint if self.gluing == "adjoint" else A.A_dagger
        return (lambda x: x + back(likelihood.residual(x))), (lambda v: v - back(A.A(v)))


def _upsampling(likelihood: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The official stand-in for A^T, and its transpose. Raises TypeError where it is not defined."""
    small, large = tuple(likelihood.y.shape[1:]), likelihood.image_shape
    if likelihood.y.is_complex():
        raise TypeError("gluing='official' puts y in the place of pixels, and y is complex; take 'adjoint' or 'pseudo_inverse'")
    if small == large:
        return (lambda r: r), (lambda v: v)
    k = large[-1] // small[-1]
    if len(small) != 3 or (small[0], k * small[1], k * small[2]) != tuple(large):
        raise TypeError(f"gluing='official' is for y of the image's shape, or smaller by a whole factor, not {small} for {large}")
    return (
        lambda r: functional.interpolate(r, scale_factor=k, mode="nearest"),
        lambda v: functional.avg_pool2d(v, k, divisor_override=1),
    )
