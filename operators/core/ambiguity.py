"""Choosing, among the signals that a measurement cannot tell apart, the one nearest to a reference."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_equivalent(
    estimate: Tensor, reference: Tensor, flip: bool = False, sign: bool = False, max_shift: int = 0, fill: float = 0.0
) -> Tensor:
    """The transform of `estimate` (B, C, H, W) with the least squared distance to `reference`, per sample and per channel.

    Allowed are, as asked for: the point reflection u(p) -> u(-p) in the frame (`flip`), the global sign (`sign`), and shifts
    of up to `max_shift` whole pixels along each side, with `fill` moved in and what leaves the frame lost. All combinations
    are searched (shifts by FFT, in float64); with equal distances the estimate as it is comes first. The choice is piecewise
    constant, so gradients pass through the transform chosen.
    """
    e, r = estimate.detach().double() - fill, reference.detach().double() - fill
    forms = [(estimate, e)] + ([(estimate.flip(-2, -1), e.flip(-2, -1))] if flip else [])
    best, least = estimate, None
    for signal, form in forms:
        inner, energy = _over_shifts(form, r, max_shift)
        factor = torch.where(inner < 0, -1.0, 1.0) if sign else torch.ones_like(inner)
        # ||t - r||^2 without ||r||^2, which all transforms t share.
        distance, at = (energy - 2 * factor * inner).min(dim=-1)
        moved = signal
        if max_shift:
            side = 2 * max_shift + 1
            moved = fill + _shifted(signal - fill, at // side - max_shift, at % side - max_shift)
        if sign:
            moved = moved * factor.gather(-1, at[..., None])[..., None].to(moved.dtype)
        if least is None:
            best, least = moved, distance
        else:
            best = torch.where((distance < least)[..., None, None], moved, best)
    return best


def _over_shifts(e: Tensor, r: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """<e shifted, r> and the energy of e shifted that stays in the frame, (B, C, H, W) -> (B, C, (2 most + 1)^2)."""
    if most == 0:
        return (e * r).sum((-2, -1))[..., None], e.square().sum((-2, -1))[..., None]
    # Room for `most` more pixels, so that the circular correlation does not wrap within the shifts looked at.
    size = [n + most for n in e.shape[-2:]]
    shifts = torch.arange(-most, most + 1, device=e.device)

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        product = torch.fft.rfft2(b, s=size) * torch.fft.rfft2(a, s=size).conj()
        whole = torch.fft.irfft2(product, s=size)
        return whole[..., shifts % size[0], :][..., shifts % size[1]].flatten(-2)

    return correlate(e, r), correlate(e.square(), torch.ones_like(e))


def _shifted(e: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """e (B, C, H, W) moved by whole pixels (B, C), zeros moved in."""
    for dim, by in ((-2, down), (-1, right)):
        n = e.shape[dim]
        source = torch.arange(n, device=e.device) - by[..., None]
        inside = ((source >= 0) & (source < n)).to(e.dtype)
        index, inside = (t[..., None] if dim == -2 else t[..., None, :] for t in (source.clamp(0, n - 1), inside))
        e = e.gather(dim, index.expand_as(e)) * inside
    return e
