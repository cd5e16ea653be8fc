"""The autoencoders of latent diffusion pipelines (diffusers' AutoencoderKL and VQModel), whole or tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.numerics.recompute import recomputed
from invsolve.priors.base import check_sides
from invsolve.priors.network import check_precision, in_precision, revive


class DiffusersAutoencoder:
    """An AutoencoderKL or VQModel of diffusers as an `Autoencoder`: z = scale (encoder(x) - shift), x = decoder(z / scale + shift).

    Args:
        network: the module.
        scale, shift: of the codes, as the latent network was trained on them (`scaling_factor`, `shift_factor`).
        multiple: what both sides of an image must be divisible by; by default the reduction of the encoder.
        quantize: of a VQModel, whether a code is brought to its nearest codebook entries before it is decoded. True is what
            the pipelines do; the gradient then passes as if it were not (straight through), and is not that of the decoder.
        tile: side of a tile in image pixels. Larger images are encoded and decoded in overlapping tiles that are blended
            linearly, and a derivative keeps the activations of one tile at a time (each is computed again). The result is
            near that of the whole image, not equal: statistics of normalisation and attention are of a tile.
        precision: "float32", or "bf16" for autocast inside the network (codes and images are float32 either way).
        channels_last: its memory layout.

    The encoder's distribution is represented by its mean, so that encode is deterministic. A VQModel encodes to what stands
    before quantisation, as in its training. The network is frozen and put into evaluation mode.
    """

    def __init__(
        self,
        network: Any,
        scale: float = 1.0,
        shift: float = 0.0,
        *,
        multiple: int | None = None,
        quantize: bool = True,
        tile: int | None = None,
        precision: Literal["float32", "bf16"] = "float32",
        channels_last: bool = False,
    ):
        check_precision(precision)
        if scale == 0:
            raise ValueError("scale=0; the codes of an autoencoder need a scaling factor other than 0")
        self.network: Any = revive(network).eval().requires_grad_(False)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.precision, self.channels_last = precision, channels_last
        self.scale, self.shift, self.quantize = float(scale), float(shift), quantize
        self.vector_quantized = hasattr(network, "quantize")
        self.reduction = 2 ** (len(network.config.block_out_channels) - 1)
        self.image_multiple = multiple or self.reduction
        self.channels, self.latent_channels = int(network.config.in_channels), int(network.config.latent_channels)
        if tile is not None and (tile % self.reduction or tile < 8 * self.reduction):
            raise ValueError(f"tile={tile}; a multiple of {self.reduction} that is at least {8 * self.reduction} is needed")
        self.tile = tile

    def encode(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) in [-1, 1] to code (B, c, H/f, W/f)."""
        return (self._by_tiles(self._encode, x, self.reduction, 1) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """Code (B, c, h, w) to image (B, C, f h, f w) in about [-1, 1]."""
        return self._by_tiles(self._decode, z / self.scale + self.shift, 1, self.reduction)

    def latent_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """(c, H/f, W/f). Raises ValueError unless image_shape is (C, H, W) with sides that are multiples of `image_multiple`."""
        shape = tuple(image_shape)
        check_sides(shape, self.channels, self.image_multiple)
        return (self.latent_channels, shape[1] // self.reduction, shape[2] // self.reduction)

    def to(self, device: torch.device | str) -> DiffusersAutoencoder:
        """Moves the network, and returns the autoencoder."""
        self.network.to(device)
        return self

    def _encode(self, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            out = self.network.encode(x)
            code: Tensor = out.latents if self.vector_quantized else out.latent_dist.mean
            return code

        return in_precision(run, x, self.precision, self.channels_last)

    def _decode(self, h: Tensor) -> Tensor:
        options = {"force_not_quantize": not self.quantize} if self.vector_quantized else {}
        return in_precision(lambda h: self.network.decode(h, return_dict=False, **options)[0], h, self.precision, self.channels_last)

    def _by_tiles(self, run: Callable[[Tensor], Tensor], x: Tensor, unit_in: int, unit_out: int) -> Tensor:
        """run(x), in tiles if x is larger than one; units are pixels per latent pixel, before and after."""
        rows, columns = (side // unit_in for side in x.shape[-2:])
        if self.tile is None or max(rows, columns) * self.reduction <= self.tile:
            return run(x)
        size = self.tile // self.reduction
        overlap = size // 4
        down, right = _starts(rows, size, overlap), _starts(columns, size, overlap)
        out, total = None, None
        for r in down:
            for c in right:
                height, width = min(size, rows), min(size, columns)
                part = x[..., r * unit_in : (r + height) * unit_in, c * unit_in : (c + width) * unit_in]
                image = recomputed(run, part)
                weight = _ramp(height, overlap, unit_out, x)[:, None] * _ramp(width, overlap, unit_out, x)
                if out is None or total is None:
                    shape = (*image.shape[:-2], rows * unit_out, columns * unit_out)
                    out, total = image.new_zeros(shape), weight.new_zeros(shape[-2:])
                place = (..., slice(r * unit_out, (r + height) * unit_out), slice(c * unit_out, (c + width) * unit_out))
                out[place] += weight * image
                total[place] += weight
        assert out is not None and total is not None
        return out / total


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin that cover a side: as few as overlap by at least `overlap`, evenly spread."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(k * (length - size) / (count - 1)) for k in range(count)]


def _ramp(size: int, overlap: int, unit: int, like: Tensor) -> Tensor:
    """The weight of a tile along one side: rising linearly over `overlap` at both ends, 1 between, positive everywhere."""
    place = torch.arange(size * unit, dtype=like.dtype, device=like.device) + 0.5
    return torch.minimum(place, size * unit - place).div(overlap * unit).clamp(max=1.0)
