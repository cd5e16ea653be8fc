"""Coil sensitivities for simulated multi-coil MRI, and their normalisation."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from operators.core.files import read_array
from operators.core.fourier import fft2c, ifft2c
from operators.core.streams import generator

_DISTANCE = 1.5  # of the coils from the centre, in half-sides of the picture


def _grid(height: int, width: int) -> Tensor:
    """Pixel centres as complex numbers (H, W), the picture being [-1, 1] x [-1, 1]."""
    v = (2 * torch.arange(height, dtype=torch.float64) + 1) / height - 1
    u = (2 * torch.arange(width, dtype=torch.float64) + 1) / width - 1
    return torch.complex(u.expand(height, width), v[:, None].expand(height, width).contiguous())


def normalise(maps: Tensor) -> Tensor:
    """Complex maps (N, H, W) divided by the root of the sum of |.|^2 over coils; 0 where no coil sees anything."""
    total = torch.linalg.vector_norm(maps, dim=0)
    return maps / torch.where(total > 0, total, 1.0)


def birdcage_maps(coils: int, height: int, width: int) -> Tensor:
    """Complex maps (N, H, W), sum of squares 1: N long straight wires evenly around the picture at 1.5 half-sides.

    The transverse field of a wire at p (Biot-Savart, in the plane and at low frequency) is proportional to
    i / conj(z - p) with z = u + iv; its conjugate, turned by the angle of the wire, is the sensitivity.
    """
    turns = torch.exp(2j * math.pi * torch.arange(coils, dtype=torch.float64) / coils)[:, None, None]
    return normalise(turns / (_DISTANCE * turns - _grid(height, width)))


def smooth_maps(coils: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Complex maps (N, H, W), sum of squares 1, random by seed: Gaussian lobes around places on a jittered ring.

    Each lobe (standard deviation 0.6 to 1.1 half-sides, place 0.8 to 1.2 from the centre) is multiplied by
    exp(i (constant + ramp + slow wave)) and by a slow random gain.
    """
    rng = generator(seed, "coil maps", coils)
    z = _grid(height, width)
    maps = []
    for k in range(coils):
        a, r, s, c, gu, gv = torch.rand(6, generator=rng, dtype=torch.float64).tolist()
        angle, distance, spread = 2 * math.pi * (k + 0.6 * (a - 0.5)) / coils, 0.8 + 0.4 * r, 0.6 + 0.5 * s
        place = complex(distance * math.cos(angle), distance * math.sin(angle))
        waves = torch.randn(2, 4, generator=rng, dtype=torch.float64)
        basis = torch.stack([torch.sin(2 * z.real), torch.sin(2 * z.imag), torch.cos(2 * z.real), torch.cos(2 * z.imag)])
        slow = torch.einsum("km,mhw->khw", waves, basis)
        phase = 2 * math.pi * c + 2 * (gu - 0.5) * z.real + 2 * (gv - 0.5) * z.imag + 0.3 * slow[0]
        lobe = torch.exp(-0.5 * (z - place).abs() ** 2 / spread**2 + 0.15 * slow[1])
        maps.append(torch.polar(lobe, phase))
    return normalise(torch.stack(maps))


def calibrated_maps(images: Tensor, share: float = 0.08) -> Tensor:
    """Sensitivities (N, H, W), sum of squares 1, estimated from coil images (N, H, W) of a fully sampled calibration region.

    Each image is smoothed to the central `share` of its frequencies (Hann window) and divided by the root sum of squares over
    coils: the phase common to all coils stays in the maps, which makes the combined image's phase small and smooth.
    Source: C. A. McKenzie et al., "Self-calibrating parallel imaging with automatic coil sensitivity extraction", MRM 47, 2002.
    """
    spectrum = fft2c(images)
    for axis in (-2, -1):
        side = images.shape[axis]
        offset = (torch.arange(side, dtype=torch.float64) - side // 2).abs() / max(share * side, 1.0)
        window = torch.where(offset < 1, torch.cos(0.5 * math.pi * offset) ** 2, 0.0)
        spectrum = spectrum * (window[:, None] if axis == -2 else window)
    return normalise(ifft2c(spectrum))


def coil_maps_of(maps: str | Path | Tensor, height: int, width: int) -> Tensor:
    """Complex maps (N, H, W), complex128, as they are stored in a .npy or .pt file or a tensor (no normalisation).

    Raises ValueError if there is no such file, if the maps are real, of another size, or not finite.
    """
    found, name = read_array(maps, "coil map", images=False, complex_values=True)
    if found.ndim != 3 or tuple(found.shape[1:]) != (height, width):
        raise ValueError(f"{name} has shape {tuple(found.shape)}; coil maps (N, {height}, {width}) are needed, of the size of the image")
    return found


def sensitivities(height: int, width: int, coils: str, n_coils: int, maps: str | Path | Tensor | None, seed: int) -> Tensor:
    """Complex maps (N, H, W) by name: "birdcage" and "smooth" of `n_coils`, or "file" with `maps`. ValueError otherwise."""
    if coils not in ("birdcage", "smooth", "file"):
        raise ValueError(f"coils must be 'birdcage', 'smooth' or 'file', got {coils!r}")
    if (coils == "file") != (maps is not None):
        raise ValueError(f"coil_maps and coils='file' go together, got coil_maps={maps is not None}, coils={coils!r}")
    if n_coils < 1:
        raise ValueError(f"n_coils must be at least 1, got {n_coils!r}")
    if maps is not None:
        return coil_maps_of(maps, height, width)
    return birdcage_maps(n_coils, height, width) if coils == "birdcage" else smooth_maps(n_coils, height, width, seed)
