"""How well a chain has mixed: autocorrelation, split R-hat and effective sample size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

R_HAT, ESS_PER_CHAIN = 1.1, 10
"""Gelman et al., "Bayesian data analysis", 3rd edition, section 11.5: R-hat at most 1.1, and 5 effective draws a half-chain."""


def autocorrelation(chain: Tensor) -> Tensor:
    """Autocorrelation at lags 0 .. N-1 of chains (..., N), around each chain's own mean; NaN for a chain that stands still.

    The estimate that divides each lag's sum by N (biased towards 0, and of small variance at large lags), by FFT.
    """
    centred = chain - chain.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * chain.shape[-1])
    sums = torch.fft.irfft(spectrum.abs().square(), n=2 * chain.shape[-1])[..., : chain.shape[-1]]
    return sums / sums[..., :1]


def split_r_hat(chains: Tensor) -> Tensor:
    """Split R-hat of M chains of N draws (M, N, ...), (...): about 1 if all halves of all chains tell the same.

    Gelman et al. 2013, section 11.4. NaN for fewer than 4 draws, or if nothing moves.
    """
    half = chains.shape[1] // 2
    if half < 2:
        return chains.new_full(chains.shape[2:], math.nan)
    halves = torch.cat([chains[:, :half], chains[:, -half:]])
    within = halves.var(1).mean(0)
    return ((half - 1) / half + halves.mean(1).var(0) / within).sqrt()


def effective_sample_size(chains: Tensor) -> Tensor:
    """Number of independent draws that estimate the mean as well as M chains of N draws (M, N, ...), (...).

    M N / (1 + 2 sum rho_t), where rho_t combines the autocorrelations of the chains with the spread between them, summed
    over Geyer's initial positive monotone sequence (Vehtari et al., Bayesian Analysis 16, 2021, on whole chains).
    NaN for fewer than 4 draws, or if nothing moves. M N / ESS is the integrated autocorrelation time.
    """
    count, draws = chains.shape[:2]
    if draws < 4:
        return chains.new_full(chains.shape[2:], math.nan)
    variances = chains.var(1)
    within = variances.mean(0)
    between = chains.mean(1).var(0) if count > 1 else torch.zeros_like(within)
    total = within * (draws - 1) / draws + between
    rho = autocorrelation(chains.movedim(1, -1)).movedim(-1, 1)
    rho = 1 - (within - (variances.unsqueeze(1) * (draws - 1) / draws * rho).mean(0)) / total
    rho[0] = 1
    pairs = rho[: draws // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).to(pairs.dtype).cumprod(0)
    monotone = pairs.cummin(0).values * positive
    # Vehtari et al.: a chain that swings about its mean would otherwise claim any number.
    time = (2 * monotone.sum(0) - 1).clamp_min(1 / math.log10(count * draws))
    return torch.where(within > 0, count * draws / time, math.nan)
