"""Random numbers: one stream per (seed, image id, sample index), whatever the batch, the chunk or the device.

Streams are drawn on the CPU by default, so that they do not depend on the accelerator, and in single precision whatever
the precision of the run, so that runs in float32 and float64 see the same noise; numbers for a block of steps are drawn
at once and moved in one copy. On the CPU they are the same to the last bit on every machine (`operators.core.streams`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from operators.core.streams import generator, standard_normal

Row = tuple[int | str, int]
"""(image id, sample index)."""

_BLOCK_VALUES = 1 << 22


class NoiseSource(Protocol):
    """What a step draws from."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (rows, *shape)."""
        ...


class Noise:
    """Standard normal streams for a batch of rows.

    Args:
        seed: root seed of the run.
        rows: one (image id, sample index) for each row of the batch; ids are ints or strings.
        dtype, device: of the numbers handed out.
        where: "cpu" (the same numbers, bit for bit, on every machine) or "device" (faster for large images on an accelerator;
            the numbers then depend on its kind).
        block: draws made at once for signals of moderate size; part of what fixes the stream.
    """

    def __init__(
        self,
        seed: int,
        rows: Sequence[Row],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        where: Literal["cpu", "device"] = "cpu",
        block: int = 16,
    ):
        if where not in ("cpu", "device"):
            raise ValueError(f"where={where!r}; 'cpu' or 'device' is needed")
        self.seed, self.rows, self.dtype = seed, list(rows), dtype
        self.device, self.where, self.block = torch.device(device), where, block
        self.counts: dict[tuple[int, ...], int] = {}
        self._blocks: dict[tuple[int, ...], tuple[int, Tensor]] = {}

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next standard normal numbers (rows, *shape) of the streams for this shape."""
        key = tuple(shape)
        count = self.counts.get(key, 0)
        self.counts[key] = count + 1
        # The block length fixes the stream, so it depends on the shape alone and never on the batch.
        per_step = max(1, torch.Size(key).numel())
        length = max(1, min(self.block, _BLOCK_VALUES // per_step))
        number, place = divmod(count, length)
        held = self._blocks.get(key)
        if held is None or held[0] != number:
            held = (number, self._draw(key, number, length))
            self._blocks[key] = held
        return held[1][place]

    def _draw(self, shape: tuple[int, ...], number: int, length: int) -> Tensor:
        on_device = self.where == "device" and self.device.type != "cpu"
        label = "x".join(map(str, shape))
        sources = [generator(self.seed, image, k, label, number) for image, k in self.rows]
        if not on_device:
            drawn = standard_normal(length * math.prod(shape), sources).unflatten(1, (length, *shape)).transpose(0, 1)
            # One block of memory that a copy to the accelerator need not wait for.
            out = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=self.device.type == "cuda").copy_(drawn)
        else:
            out = torch.empty((length, len(self.rows), *shape), dtype=torch.float32, device=self.device)
            for b, source in enumerate(sources):
                device_source = torch.Generator(self.device)
                device_source.manual_seed(source.initial_seed())
                out[:, b] = torch.randn((length, *shape), dtype=torch.float32, device=self.device, generator=device_source)
        return out.to(self.device, non_blocking=True).to(self.dtype)


class GivenNoise:
    """Hands out the given tensors in turn; for stepping by hand and for probing a sampler as an affine map.

    Raises IndexError if more is drawn than was given, and ValueError if a shape differs.
    """

    def __init__(self, *tensors: Tensor):
        self.tensors, self.used = tensors, 0

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next given tensor."""
        if self.used >= len(self.tensors):
            raise IndexError(f"the step drew noise {self.used + 1} times, but only {len(self.tensors)} tensors were given")
        z = self.tensors[self.used]
        self.used += 1
        if tuple(z.shape[1:]) != tuple(shape):
            raise ValueError(f"noise of shape {tuple(z.shape[1:])} was given, {tuple(shape)} is needed")
        return z
