"""Tuning the prompt of a conditional prior to a measurement, for P2L: by Adam, or among the classes of the prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from invsolve.engine.protocol import State
from invsolve.kernels.linearize import linearize_prompt
from invsolve.levels import Level
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.numerics.adam import Adam, adam_step
from invsolve.samplers.parts.latent import image_likelihood


@dataclass(frozen=True)
class Prompted(State):
    """The code, the embedding of each row (B, *E) with the running means of its Adam, and the embedding again for observers.

    `log_weights` (B, N), up to a constant, of the classes that the embedding mixes.
    """

    statistics: ClassVar[tuple[str, ...]] = ("prompt",)

    embedding: Tensor | None = None
    mean: Tensor | None = None
    square: Tensor | None = None
    count: int = 0
    prompt: Tensor | None = None
    log_weights: Tensor | None = None


Step = Callable[[Prompted, Tensor], Prompted]
"""From a state and the gradient by its embedding (B, *E)."""


def begin(setting: Any, prior: Any, likelihood: Any, x: Tensor) -> Prompted:
    """The code x (B, *X), and for each row the embedding that the prior has been given, or its null.

    `setting` is a P2L. Raises TypeError or ValueError if the prompt cannot be tuned so.
    """
    check_tunable(prior, likelihood, setting.spread)
    c, classes = start(prior, x), class_embeddings(prior)
    if setting.within == "classes":
        check_mixable(prior)
    if classes is not None and setting.within != "anywhere" and given(prior) is None:
        check_mixture(setting)
        return Prompted(x, embedding=c, prompt=c, log_weights=c.new_zeros(len(c), len(classes)))
    if setting.lr_unit == "rms" and not bool(unit(prior) > 0):
        raise ValueError("lr_unit='rms' measures lr by the entries of the null embedding, which are all zero; take 'absolute'")
    if setting.penalty and not bool((statistics(prior, c)[1] > 0).all()):
        raise ValueError(f"penalty={setting.penalty} is divided by the variance of the embeddings, which is zero here; take radius")
    zero = torch.zeros_like(c)
    return Prompted(x, None, c, zero, zero, 0, c)


def tune(setting: Any, target: Any, state: Prompted, t: Level) -> Prompted:
    """K steps against the gradient of -log p(y | D(z0_hat)) + the penalty, z_t held; `setting` is a P2L."""
    step = _adam(setting, target.prior, state.x) if state.log_weights is None else _mixture(setting, target.prior)
    if setting.adam == "fresh" and state.mean is not None:
        state = replace(state, mean=torch.zeros_like(state.mean), square=torch.zeros_like(state.mean), count=0)
    for _ in range(setting.K):
        assert state.embedding is not None
        x0, pull = linearize_prompt(target.prior, state.x, t, state.embedding)
        state = step(state, pull(target.likelihood.score(x0)) * -_sharpness(setting.spread, target, t))
    return replace(state, prompt=state.embedding)


def _mixture(setting: Any, prior: Any) -> Step:
    """A step on the weights of the classes."""

    def step(state: Prompted, grad: Tensor) -> Prompted:
        c, log_weights = mix(classes.to(grad), cast(Tensor, state.log_weights), grad, setting.class_lr)
        return replace(state, embedding=c, log_weights=log_weights)

    classes = cast(Tensor, class_embeddings(prior))
    return step


def _adam(setting: Any, prior: Any, x: Tensor) -> Step:
    """A step of Adam."""
    begun, scale = start(prior, x), unit(prior) if setting.lr_unit == "rms" else 1.0
    m, variance = statistics(prior, begun) if setting.penalty else (begun, begun)

    def step(state: Prompted, grad: Tensor) -> Prompted:
        c, mean, square = state.embedding, state.mean, state.square
        assert c is not None and mean is not None and square is not None
        if setting.penalty:
            grad = grad + setting.penalty * (c - m) / variance
        moved, adam = adam_step(torch.zeros_like(c), grad, Adam(mean, square, state.count), setting.lr)
        c = c + scale * moved
        if setting.radius is not None:
            length = torch.linalg.vector_norm(c - begun, dim=-1, keepdim=True)
            c = begun + (c - begun) * (setting.radius / length.clamp_min(setting.radius))
        return replace(state, embedding=c, mean=adam.mean, square=adam.square, count=adam.count)

    return step


def _sharpness(spread: float, target: Any, t: Level) -> float:
    """sigma_y^2 / (sigma_y^2 + r^2)."""
    if spread == 0:
        return 1.0
    r = t.ratio * spread / math.hypot(t.ratio, spread)
    return 1 / (1 + (r / image_likelihood(target).sigma) ** 2)


def mix(classes: Tensor, log_weights: Tensor, grad: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One step of exponentiated gradient on the weights w (B, N) of C = sum_k w_k e_k, the classes e (N, *E).

    log w_k falls by lr d_k, d the derivatives of the objective towards each class, from its gradient by C (B, *E), less their mean and
    scaled to the standard deviation 1 over the classes (0 stays 0): every step says as much as any other, whatever the
    objective's unit. Returns C (B, *E) and the new log w, up to a constant.

    Kivinen, Warmuth, "Exponentiated gradient versus gradient descent for linear predictors", Inf. Comput. 132, 1997; there
    without the scaling.
    """
    slopes = grad.flatten(1) @ (classes - classes.mean(0)).flatten(1).mT
    # Scaled by the largest first, so that squares neither vanish nor overflow; where nothing is said, nothing moves.
    largest = slopes.abs().amax(1, keepdim=True)
    slopes = torch.where(largest == 0, 0.0, slopes / largest)
    size = torch.where(largest == 0, 1.0, slopes.square().mean(1, keepdim=True).sqrt())
    log_weights = torch.sub(log_weights, slopes / size, alpha=lr)
    return torch.einsum("bn,n...->b...", log_weights.softmax(1), classes), log_weights


def check_tunable(prior: Any, likelihood: Any, spread: float) -> None:
    """Raises TypeError or ValueError unless a prompt of the prior can be tuned by log p(y | x), softened by `spread`."""
    if not getattr(prior, "conditional", hasattr(prior, "conditioned")):
        kind = type(conditional(prior)).__name__
        raise TypeError(f"P2L tunes the prompt, and a {kind} takes none; K=0 leaves it alone (latent DPS with range projection)")
    if spread and not isinstance(likelihood, GaussianLikelihood):
        raise TypeError(f"spread={spread} needs a GaussianLikelihood, not a {type(likelihood).__name__}; 0 takes any")
    if getattr(conditional(prior), "guidance", 1.0) == 0:
        raise ValueError("guidance=0 keeps the prompt from the network, so that there is nothing to tune; K=0 leaves it alone")
    if getattr(likelihood, "sigma", 1.0) == 0:
        raise ValueError("the prompt is tuned by log p(y | x), which needs sigma > 0; K=0 leaves it alone")


def check_mixable(prior: Any) -> None:
    """Raises TypeError or ValueError unless a prompt of the prior can be a mixture of its classes that starts from null."""
    if class_embeddings(prior) is None:
        raise TypeError("within='classes' needs a prior with a table of classes, and this one has none; take 'anywhere'")
    if given(prior) is not None:
        raise ValueError("within='classes' starts from null, and the prior has been given a prompt; take 'anywhere', which starts there")


def check_mixture(setting: Any) -> None:
    """Raises ValueError for a setting of P2L that means nothing to a mixture of classes."""
    for name in ("adam", "radius", "penalty", "spread"):
        if (value := getattr(setting, name)) != (default := getattr(type(setting), name)):
            raise ValueError(f"{name}={value!r} is of within='anywhere'; leave it at {default!r} for a mixture of classes")


def start(prior: Any, x: Tensor) -> Tensor:
    """The embedding that the prior has been given, else its null, for each row of x: (B, *E), in single precision at least."""
    embedding, null = given(prior), prior.null
    c = null if embedding is None else embedding
    c = (c if c.ndim > null.ndim else c[None]).expand(len(x), *null.shape)
    return c.to(device=x.device, dtype=torch.promote_types(c.dtype, torch.float32))


def given(prior: Any) -> Tensor | None:
    """The embedding that the prior has been given, (*E) or (B, *E)."""
    return getattr(conditional(prior), "embedding", None)


def conditional(prior: Any) -> Any:
    """The conditional prior, behind the autoencoder where there is one."""
    return getattr(prior, "prior", prior)


def class_embeddings(prior: Any) -> Tensor | None:
    """The embeddings of the classes that the prior was trained on (N, *E), if it has any."""
    table = getattr(conditional(prior), "class_embeddings", None)
    return None if table is None else table.detach()


def unit(prior: Any) -> Tensor:
    """The root mean square of an entry of the table of classes, else of the null embedding."""
    classes = class_embeddings(prior)
    return (prior.null if classes is None else classes).square().mean().sqrt()


def statistics(prior: Any, begun: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of an embedding that began as `begun` (B, *E), each of a shape that broadcasts to (B, *E)."""
    classes = class_embeddings(prior)
    if classes is None:
        return begun, begun.flatten(1).square().mean(1).view(-1, *[1] * (begun.ndim - 1))
    return classes.mean(0), classes.var(0, correction=0)
