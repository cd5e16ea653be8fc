"""Random streams that depend on a seed and on names, never on call order or batch composition."""

from __future__ import annotations

import hashlib

import torch


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
