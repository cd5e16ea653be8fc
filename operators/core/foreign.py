"""How deepinv's classes state and hold things: shapes, masks, precisions; and copies of them."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from deepinv.physics import MRI, BlurFFT, Downsampling, Inpainting, MultiCoilMRI, Physics, Upsampling
from torch import Tensor

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
REAL = {long: short for short, long in COMPLEX.items()}


def stated_shape(physics: Physics) -> tuple[int, ...] | None:
    """The image shape that the physics states, or None. Classes of deepinv mean different things by `img_size`."""
    if isinstance(physics, (MRI, MultiCoilMRI)):
        # MultiCoilMRI states (H, W) until its first update, and MRI in three dimensions (D, H, W), but images have two channels.
        sides = tuple(physics.mask.shape[1:])
        return (2, *physics.mask.shape[-3:]) if getattr(physics, "three_d", False) and len(sides) == 3 else sides
    for name in ("img_size", "imsize"):
        shape = getattr(physics, name, None)
        if isinstance(shape, (tuple, list, torch.Size)) and all(isinstance(n, int) for n in shape):
            if isinstance(physics, Upsampling) and len(shape) == 3:
                # Upsampling states the size of what it gives.
                return (shape[0], *(n // physics.factor for n in shape[1:]))
            # Elsewhere in deepinv a pair may mean (H, W) without the channels.
            return tuple(shape) if len(shape) > 2 or isinstance(physics, Inpainting) else None
    return None


def hidden_by(physics: Physics) -> Tensor | None:
    """Mask over the measurements, where hidden entries are stored as zeros; None if every entry is measured."""
    mask = getattr(physics, "mask", None)
    if not isinstance(mask, Tensor):
        return None
    if isinstance(physics, MultiCoilMRI):
        return mask[:, :, None] != 0
    return mask != 0 if isinstance(physics, (Inpainting, MRI)) else None


def duplicate(physics: Physics) -> Physics:
    """A copy, whatever generators it holds."""
    try:
        return copy.deepcopy(physics)
    except (TypeError, RuntimeError):
        # Generators resist deepcopy; deepinv's clone handles them but takes a quarter of a second.
        return physics.clone()


def converted(physics: Physics, dtype: torch.dtype) -> Physics:
    """A copy in another precision. Module.to would drop the imaginary part of complex buffers."""

    def convert(t: Tensor) -> Tensor:
        if t.is_complex():
            return t.to(COMPLEX.get(dtype, torch.complex64))
        return t.to(dtype) if t.is_floating_point() else t

    result = duplicate(physics)._apply(convert)
    # Tensors and precisions kept as plain attributes, by which some physics cast what they are given.
    for module in result.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[name] = convert(value)
            elif isinstance(value, torch.dtype) and (value in COMPLEX or value in REAL):
                vars(module)[name] = dtype if value in COMPLEX else COMPLEX.get(dtype, torch.complex64)
    # Spectra of the filter were computed in the old precision; the closed forms need them in the new one.
    if isinstance(result, (BlurFFT, Downsampling)) and isinstance(result.filter, Tensor):
        size = result.img_size if isinstance(result, BlurFFT) else result.imsize
        options = {} if isinstance(result, BlurFFT) else {"factor": result.factor}
        if size is not None:
            spectra = result.get_filter_parameters(img_size=size, filter=result.filter, device=result.filter.device, **options)
            for name, value in spectra.items():
                setattr(result, name, value)
    return result


def precision(t: Tensor) -> torch.dtype:
    """The precision of t, for complex numbers that of their parts."""
    return t.real.dtype if t.is_complex() else t.dtype


class Mode(NamedTuple):
    """How a physics takes tensors: which copy of it, in which precision, and whether it wants images that are complex."""

    physics: Physics
    dtype: torch.dtype
    lifted: bool

    def take(self, t: Tensor, image: bool) -> Tensor:
        """`t` as the physics takes it: in its precision, and an image complex where it wants that."""
        dtype = COMPLEX.get(self.dtype, torch.complex64) if t.is_complex() or (image and self.lifted) else self.dtype
        return t.to(dtype)
