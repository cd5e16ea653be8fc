"""Random streams that depend on a seed and on names, never on call order or batch composition."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Taylor coefficients of artanh(s)/s, sin(x)/x and cos(x) in the square of their argument: 1e-13 where they are used.
_ARTANH = [1 / (2 * k + 1) for k in range(8)]
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(8)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(8)]
_LOG2 = 0.6931471805599453
_ROOT_HALF = 0x3FE6A09E << 32  # sqrt(1/2) as the bits of a double, to 21 of them
_PAIRS = 1 << 15  # at once in each thread: what stays in a cache, and what torch gives a thread at least


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """CPU generator of the stream named by `seed` and `keys`.

    The state is seeded with 63 bits of the BLAKE2b hash of the seed and the keys, in order. Each key enters with its type
    and length, so `1` and `"1"`, or `("ab",)` and `("a", "b")`, name different streams. Two calls with equal arguments give
    generators in equal states; no global generator is read or advanced.

    Raises ValueError if the seed or a key is not an int or (keys only) a str; bool is refused as it would pass for 0 or 1.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed must be an int, got {seed!r}")
    digest = hashlib.blake2b(digest_size=8)
    for key in (seed, *keys):
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise ValueError(f"a stream key must be an int or a str, got {key!r} of type {type(key).__name__}")
        text = str(key).encode()
        digest.update(f"{'i' if isinstance(key, int) else 's'}{len(text)}:".encode() + text)
    return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big") >> 1)


def standard_normal(count: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal numbers (len(generators), count) in single precision, the same to the last bit on every CPU.

    They are those of torch.randn to 2e-6: its uniform numbers, in its order, but made normal (G. E. P. Box, M. E. Muller, 1958)
    by sums, products, quotients and roots of doubles alone, which IEEE 754 fixes; torch's logarithm and cosine in single
    precision follow the instructions of the processor. Fewer than 16 numbers torch makes in double precision, number by number.
    """
    if count < 16:
        return torch.stack([torch.randn(count, dtype=torch.float32, generator=source) for source in generators])
    u, tails = torch.empty((len(generators), count)), []
    for row, source in zip(u, generators, strict=True):
        torch.rand(count, generator=source, out=row)
        if count % 16:  # torch draws the last 16 anew
            tails.append(torch.rand(16, generator=source))
    whole = u[:, : count // 16 * 16]
    out = torch.empty_like(u)
    out[:, : whole.shape[1]] = _box_muller(whole)
    if tails:
        out[:, -16:] = _box_muller(torch.stack(tails))
    return out


def _box_muller(u: Tensor) -> Tensor:
    """Normal numbers from multiples of 2^-24 in [0, 1): in each 16, the first 8 give the radii and the others the angles."""
    pairs = u.reshape(-1, 2, 8)
    out = torch.empty_like(pairs)
    many = _PAIRS // 8 * torch.get_num_threads()
    for first in range(0, len(pairs), many):
        part = slice(first, first + many)
        out[part, 0], out[part, 1] = _of_pairs(pairs[part])
    return out.reshape(u.shape)


def _of_pairs(u: Tensor) -> tuple[Tensor, Tensor]:
    u = u.double()
    rest, turn = 1 - u[:, 0], u[:, 1].contiguous()
    # rest = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh((m - 1)/(m + 1)).
    bits = rest.view(torch.int64)
    exponent = (bits - _ROOT_HALF) >> 52
    m = (bits - (exponent << 52)).view(torch.float64)
    s = (m - 1).div_(m + 1)
    log = _polynomial(_ARTANH, s * s).mul_(s).mul_(2).add_(exponent.double().mul_(_LOG2))
    radius = log.mul_(-2).sqrt_()
    quarter = (4 * turn).add_(0.5).floor_()
    x = turn.sub_(quarter / 4).mul_(2 * math.pi)  # within pi/4 of 0
    square, place = x * x, quarter.to(torch.int64)
    sin, cos = _polynomial(_SIN, square).mul_(x).mul_(radius), _polynomial(_COS, square).mul_(radius)
    swapped = (place & 1).bool()
    first = torch.where(swapped, sin, cos).mul_(1.0 - ((place + 1) & 2))
    second = torch.where(swapped, cos, sin).mul_(1.0 - (place & 2))
    return first, second


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        # Two roundings, as everywhere: never a fused product and sum, which not every processor has.
        value.mul_(x).add_(c)
    return value
