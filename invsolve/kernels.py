"""Update formulas, each standing once: free functions of tensors, a move and explicit noise.

No formula here assumes a path: alpha and sigma are any two levels. Coefficients are Python floats in double precision,
so no scalar tensor arithmetic and no synchronisation happens inside a step. x, x0 and z are (B, *X).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
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


def langevin(x: Tensor, score: Tensor, step: float | Tensor, z: Tensor) -> Tensor:
    """x + step score + sqrt(2 step) z: one step of unadjusted Langevin dynamics; step a number, or a tensor per sample."""
    spread = torch.sqrt(2 * step) if isinstance(step, Tensor) else math.sqrt(2 * step)
    return x + step * score + spread * z


def unit(v: Tensor) -> Tensor:
    """Each sample (B, *X) divided by its Euclidean norm; zero stays zero."""
    length = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(v.dtype).tiny)
    return v / length.view(-1, *[1] * (v.ndim - 1))


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


def unrooted(t: Level) -> tuple[float, float]:
    """(a, b) of a x_t + b x0_hat = (x_t - (1 - abar) eps) / sqrt(abar): what the code of ReSample has for x0_hat.

    Tweedie's formula with the root of 1 - abar left out; it keeps noise of standard deviation sigma/alpha (1 - sqrt(1 - abar)).
    On any path, by scaling to the variance-preserving one: abar = alpha^2 / (alpha^2 + sigma^2).
    """
    root = t.sigma / t.scale
    return (1 - root) / t.alpha, root


def resampling_weight(move: Move, gamma: float, variance: Literal["paper", "official"] = "paper") -> float:
    """w = sigma_t^2 / (sigma_t^2 + 1 - abar_s), how far `resample` trusts the estimate that agrees with y.

    Song et al., "Solving inverse problems with latent diffusion models via hard data consistency", ICLR 2024:
    sigma_t^2 = gamma (1 - abar_s)/c (1 - abar_t/abar_s) with c = abar_t ("paper") or 1 - abar_t (the authors' code), so
    w = gamma beta / (gamma beta + c) with beta = 1 - abar_t/abar_s. On any path, by scaling to the variance-preserving one. gamma = inf
    gives 1, gamma = 0 gives 0.
    """
    if gamma == 0:
        return 0.0
    abar_t = (move.t.alpha / move.t.scale) ** 2
    beta = move.forward_variance / move.t.scale**2
    c = abar_t if variance == "paper" else (move.t.sigma / move.t.scale) ** 2
    return 1 / (1 + c / (gamma * beta))


def resample(x0: Tensor, x_s: Tensor, move: Move, weight: float, z: Tensor) -> Tensor:
    """A draw of N(w alpha_s x0 + (1 - w) x_s, w sigma_s^2 I): the estimate x0 noised to s, times a Gaussian around x_s.

    The stochastic resampling of Song et al., ICLR 2024, proposition 1: the product of N(alpha_s x0, sigma_s^2 I) and
    N(x_s, sigma_t^2 I). w = 1 is `diffuse` ("stochastic encoding"), w = 0 leaves x_s.
    """
    return torch.add(x0 * (weight * move.s.alpha) + x_s * (1 - weight), z, alpha=math.sqrt(weight) * move.s.sigma)


def skrock_limit(stages: int, damping: float = 0.05) -> float:
    """l_s: `skrock` is stable for delta < l_s / L with L the Lipschitz constant of its drift."""
    return (stages - 0.5) ** 2 * (2 - 4 / 3 * damping) - 1.5


@lru_cache(maxsize=32)
def _skrock_coefficients(stages: int, damping: float) -> list[tuple[float, float, float]]:
    """(mu, nu, kappa) of each stage."""
    w0 = 1 + damping / stages**2
    # Chebyshev polynomials T_j and their derivatives at w0, by their recurrence.
    T, dT = [1.0, w0], [0.0, 1.0]
    for _ in range(2, stages + 1):
        T.append(2 * w0 * T[-1] - T[-2])
        dT.append(2 * T[-2] + 2 * w0 * dT[-1] - dT[-2])
    w1 = T[stages] / dT[stages]
    first = (w1 / w0, stages * w1 / 2, stages * w1 / w0)
    rest = [(2 * w1 * T[j - 1] / T[j], 2 * w0 * T[j - 1] / T[j], -T[j - 2] / T[j]) for j in range(2, stages + 1)]
    return [first, *rest]


def skrock(x: Tensor, drift: Callable[[Tensor], Tensor], delta: float | Tensor, z: Tensor, stages: int, damping: float = 0.05) -> Tensor:
    """One step of the stochastic Runge-Kutta-Chebyshev method for the Langevin diffusion: `stages` calls of the drift.

    Pereyra, Vargas Mieles, Zygalakis, "Accelerating proximal Markov chain Monte Carlo by using an explicit stabilized method",
    SIAM J. Imaging Sciences 13, 2020. Stable for steps about stages^2 as long as those of `langevin`, but with
    a bias of its own. On a Gaussian target of precision w the mean is exact, and the stationary variance is
    2 delta Q^2 / (1 - R^2), with R = T_s(w0 - w1 delta w)/T_s(w0) and Q the step from x = 0 with z = 1/sqrt(2 delta): with ten
    stages .994, .976, .930, .813 of the true 1/w at delta w = .3, 1, 2, 3, and anything between 0 and 1 beyond.
    """
    (mu, nu, kappa), *rest = _skrock_coefficients(stages, damping)
    noise = (2 * delta) ** 0.5 * z
    before, now = x, x + mu * delta * drift(x + nu * noise) + kappa * noise
    for mu, nu, kappa in rest:
        before, now = now, mu * delta * drift(now) + nu * now + kappa * before
    return now
