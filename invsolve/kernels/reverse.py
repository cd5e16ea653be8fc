"""Update formulas, each standing once: free functions of tensors, a move and explicit noise.

No formula here assumes a path: alpha and sigma are any two levels. Coefficients are Python floats in double precision,
so no scalar tensor arithmetic and no synchronisation happens inside a step. x, x0 and z are (B, *X).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from invsolve.levels import Level, Move

Variance = Literal["posterior", "upper"]


def diffuse(x0: Tensor, t: Level, z: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma z."""
    return torch.add(x0 * t.alpha, z, alpha=t.sigma)


def renoise(x_s: Tensor, move: Move, z: Tensor) -> Tensor:
    """A draw of q(x_t | x_s): back from the level s to the noisier t of a move (the "undo" of RePaint and time travel).

    To renoise a clean estimate to a level, use `diffuse`.
    """
    return torch.add(x_s * (move.t.alpha / move.s.alpha), z, alpha=math.sqrt(move.forward_variance))


def noise_of(x: Tensor, x0: Tensor, t: Level) -> Tensor:
    """The noise that x_t holds if the clean image is x0: (x_t - alpha x0) / sigma."""
    return torch.sub(x / t.sigma, x0, alpha=t.alpha / t.sigma)


def score(x: Tensor, x0: Tensor, t: Level) -> Tensor:
    """grad log p_t(x_t) from the posterior mean (Tweedie's formula): (alpha x0 - x_t) / sigma^2."""
    return torch.sub(x0 * (t.alpha / t.sigma**2), x, alpha=1 / t.sigma**2)


def tweedie(x: Tensor, score: Tensor, t: Level) -> Tensor:
    """The inverse of `score`: the posterior mean (x_t + sigma^2 score) / alpha."""
    return torch.add(x / t.alpha, score, alpha=t.sigma**2 / t.alpha)


def _deterministic_part(x: Tensor, x0: Tensor, move: Move, variance: float) -> Tensor:
    """alpha_s x0 + sqrt(sigma_s^2 - variance) noise_of(x_t): where x_s lies once `variance` of its noise is drawn anew."""
    kept = math.sqrt(max(move.s.sigma**2 - variance, 0.0)) / move.t.sigma
    return torch.add(x0 * (move.s.alpha - kept * move.t.alpha), x, alpha=kept)


def ddim(x: Tensor, x0: Tensor, move: Move, z: Tensor | None = None, eta: float = 0.0) -> Tensor:
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) noise_of(x_t) + c z with c^2 = eta^2 posterior variance.

    Song, Meng, Ermon, "Denoising diffusion implicit models", ICLR 2021, equations 12 and 16, for any alpha and sigma.
    eta = 0 is the Euler step of the probability-flow ODE in (x/alpha, sigma/alpha); eta = 1 the ancestral step with the
    posterior variance. Raises ValueError if noise is needed and z is None.
    """
    variance = eta**2 * move.posterior_variance
    out = _deterministic_part(x, x0, move, variance)
    if variance == 0.0:
        return out
    if z is None:
        raise ValueError(f"eta={eta} needs noise z")
    return torch.add(out, z, alpha=math.sqrt(variance))


def euler(x: Tensor, x0: Tensor, move: Move) -> Tensor:
    """The Euler step of the probability-flow ODE, which is DDIM with eta = 0; first order."""
    return ddim(x, x0, move)


def ancestral(x: Tensor, x0: Tensor, move: Move, z: Tensor, variance: Variance | Tensor = "posterior") -> Tensor:
    """A draw of q(x_s | x_t, x_0 = x0), with a choice of variance; no noise when the move ends at sigma = 0.

    Ho et al. 2020, equation 7 ("posterior" is their fixed-small, "upper" their fixed-large variance beta, rescaled where the
    path is not variance preserving). A tensor is the raw output v of a network with learned variance: log variance =
    f log upper + (1 - f) log posterior with f = (v + 1)/2 (Nichol and Dhariwal 2021, equation 15).
    """
    mean = _deterministic_part(x, x0, move, move.posterior_variance)
    if move.last:
        return mean
    if isinstance(variance, Tensor):
        low, high = 0.5 * math.log(move.posterior_variance), 0.5 * math.log(move.upper_variance)
        std = torch.exp(variance * ((high - low) / 2) + (high + low) / 2)
        return torch.addcmul(mean, std, z)
    chosen = {"posterior": move.posterior_variance, "upper": move.upper_variance}
    if variance not in chosen:
        raise ValueError(f"variance={variance!r}; one of {sorted(chosen)} or a tensor is needed")
    return torch.add(mean, z, alpha=math.sqrt(chosen[variance]))


def reverse_diffusion(x: Tensor, x0: Tensor, move: Move, z: Tensor) -> Tensor:
    """The reverse-diffusion predictor: the mean of `ancestral` with the noise of the reverse SDE, none at sigma = 0.

    Song et al., "Score-based generative modeling through stochastic differential equations", ICLR 2021, algorithm 2, in
    u = x/alpha: u_s = u_t + (ratio_t^2 - ratio_s^2) score(u_t) + sqrt(ratio_t^2 - ratio_s^2) z.
    """
    mean = _deterministic_part(x, x0, move, move.posterior_variance)
    return mean if move.last else torch.add(mean, z, alpha=math.sqrt(move.forward_variance) * move.s.alpha / move.t.alpha)


def transport(x: Tensor, direction: Tensor, move: Move) -> Tensor:
    """Moves x_t along d(x/alpha)/d(sigma/alpha) = direction to the level s; with direction = noise_of(x_t) this is `euler`."""
    return torch.add(x * (move.s.alpha / move.t.alpha), direction, alpha=move.s.alpha * (move.s.ratio - move.t.ratio))


def heun(x: Tensor, x0: Tensor, x_s: Tensor, x0_s: Tensor, move: Move) -> Tensor:
    """The trapezoidal corrector of the probability-flow ODE; second order.

    x_s is the Euler prediction from (x, x0), and x0_s the posterior mean there. Karras et al. 2022, algorithm 1 (without
    churn). The first step must not be too large in sigma/alpha, which Karras grids are made for. Not defined for a move
    that ends at sigma = 0, where the Euler step is taken as it is.
    """
    direction = torch.add(noise_of(x, x0, move.t), noise_of(x_s, x0_s, move.s)) / 2
    return transport(x, direction, move)


def multistep(x0: Tensor, x0_before: Tensor, move: Move, before: Level) -> Tensor:
    """The extrapolated posterior mean of DPM-Solver++(2M), to be handed to `ddim`; second order.

    Lu et al., "DPM-Solver++", 2022, algorithm 2: D = x0 + h/(2 h_before) (x0 - x0_before), with h the steps in
    log(alpha/sigma) and `before` the level at which x0_before was computed. At sigma = 0 (h infinite) D = x0.
    """
    if move.last:
        return x0
    h = math.log(move.t.ratio / move.s.ratio)
    h_before = math.log(before.ratio / move.t.ratio)
    w = h / (2 * h_before)
    return torch.sub(x0 * (1 + w), x0_before, alpha=w)
