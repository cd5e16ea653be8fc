"""What samplers on codes share: the likelihood of images behind the decoder, what they need of it, and its misfit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor

from invsolve.engine.protocol import HiddenState, State
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.priors.base import PixelPrior
from invsolve.streams import NoiseSource

Gradient = Literal["norm", "squared"]
Norm = Literal["measured", "all"]


def image_likelihood(target: Any) -> Any:
    """The likelihood of images: what stands behind the decoder with a latent prior, else the target's own.

    Raises TypeError for one that was pulled back through a decoder of which the prior knows nothing.
    """
    if isinstance(target.likelihood, PulledBack) and getattr(type(target.prior), "decode", None) is PixelPrior.decode:
        raise TypeError(
            "this sampler goes from codes to images and back by the prior, which has no decoder, while the likelihood has one; pass "
            "LatentPrior(prior, autoencoder) and the likelihood of images"
        )
    return of_images(target.likelihood)


def of_images(likelihood: Any) -> Any:
    """What stands behind the decoder, where the likelihood is one of codes, else the likelihood itself."""
    return getattr(likelihood, "inner", likelihood)


def closed(likelihood: Any) -> bool:
    """Whether the likelihood is Gaussian with a linear operator, so that it has prox and exact draws."""
    return isinstance(likelihood, GaussianLikelihood) and bool(likelihood.operator.linear)


def needs_linear_gaussian(likelihood: Any, what: str, instead: str) -> None:
    """Raises TypeError unless the likelihood is Gaussian with a linear operator."""
    if not isinstance(likelihood, GaussianLikelihood):
        raise TypeError(f"{what} needs a GaussianLikelihood, not a {type(likelihood).__name__}; {instead}")
    if not likelihood.operator.linear:
        raise TypeError(f"{what} needs a linear operator; {type(likelihood.operator).__name__} is not linear; {instead}")


def begin(likelihood: Any, x: Tensor, norm: Norm) -> State:
    """The state before the first move of a sampler whose misfit is a `norm`. Raises TypeError where y has no such noise."""
    if norm == "measured":
        return State(x)
    if not isinstance(of_images(likelihood), GaussianLikelihood):
        kind = type(of_images(likelihood)).__name__
        raise TypeError(
            f"norm='all' counts noise of hidden entries, which is that of a GaussianLikelihood, not of a {kind}; take 'measured'"
        )
    return HiddenState(x)


def as_counted(likelihood: Any, state: State, noise: NoiseSource) -> tuple[Any, Callable[[Tensor, Tensor], State]]:
    """The likelihood as the state's misfit counts it, and what makes the next state of x and x0_hat.

    The noise of hidden entries is drawn at the first step and handed on in the state, so that it is the same at every step, in
    every batch and after a restart.
    """
    if not isinstance(state, HiddenState):
        return likelihood, State
    hidden = of_images(likelihood).hidden_noise(noise) if state.hidden is None else state.hidden
    return likelihood.with_hidden(hidden), partial(HiddenState, hidden=hidden)


def check_gradient(likelihood: Any, gradient: Gradient) -> None:
    """Raises TypeError or ValueError unless `misfit_grad` exists for a likelihood of images."""
    if gradient == "squared" and not isinstance(likelihood, GaussianLikelihood):
        raise TypeError(f"gradient='squared' needs a GaussianLikelihood, not a {type(likelihood).__name__}; 'norm' takes any")
    if gradient == "squared" and likelihood.sigma == 0:
        raise ValueError("gradient='squared' is taken from log p(y | x), which needs sigma > 0; 'norm' does not")


def misfit_grad(likelihood: Any, x: Tensor, gradient: Gradient) -> Tensor:
    """The gradient of ||y - A(x)||, or of its square, by x (B, *X): an image, or a code if the likelihood is one of codes."""
    if gradient == "norm":
        return likelihood.misfit_grad(x)
    return likelihood.score(x) * (-2 * of_images(likelihood).sigma ** 2)
