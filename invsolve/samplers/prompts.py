"""What tuning a prompt needs of a conditional prior: that it can be, where to start, its scale and spread, and steps among classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invsolve.likelihoods import GaussianLikelihood


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
    slopes = torch.where(largest > 0, slopes / largest, 0.0)
    size = torch.where(largest > 0, slopes.square().mean(1, keepdim=True).sqrt(), 1.0)
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
