"""Ptychography: diffraction patterns of overlapping illuminated patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from operators.core.fourier import fft2c
from operators.core.tensors import shape_of
from operators.phase.retrieval import Phaseless, whole


def _starts(side: int, probe: int, step: int) -> list[int]:
    """Places of the probe along one side: every `step` pixels, and the last one that fits."""
    last = side - probe
    return [*range(0, last, step), last]


class Ptychography(Phaseless):
    """Far-field ptychography, y_j = |F (p T_j u)|: (B, C, H, W) -> (B, C, positions, probe_size, probe_size).

    T_j takes the patch of the object at scan position j, a square grid of spacing `step` that reaches a quarter of a probe
    beyond the image (zeros there), so that every pixel is lit; F is the centred orthonormal Fourier transform. The object is
    real: an amplitude (range="unit" is the physical one; no phase object). The probe p, of side `probe_size`, is a disk of
    amplitude 1 and diameter probe_size, or a Gaussian (probe="gaussian") of standard deviation probe_size / 5, with the phase
    curvature * (r / radius)^2 of a defocused beam. Every pattern is measured with that probe at full strength, so a pixel is
    measured as often as probes overlap on it. Buffers: `probe` (n, n, 2), real and imaginary part, `places` (positions, 2),
    rows and columns of the patches in the padded image. Left over is the global sign (range="signed").
    Source: Rodenburg and Faulkner, "A phase retrieval algorithm for shifting illumination", Appl. Phys. Lett. 85 (2004).
    deepinv's `Ptychography` measures one channel in single precision, and is what the tests compare with.

    Raises ValueError for another probe, a probe_size < 2 or larger than the image, a step < 1 or so large that some pixel is
    never lit (for disks more than about 0.7 probe_size), or a curvature that is not finite.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        probe_size: int = 16,
        step: int = 6,
        probe: str = "disk",
        curvature: float = 3.0,
        output: str = "magnitude",
        range: str = "signed",
    ) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if whole(probe_size, 2, "probe_size") > min(height, width):
            raise ValueError(f"a probe of {probe_size}x{probe_size} does not fit an image of {height}x{width}")
        whole(step, 1, "step")
        if probe not in ("disk", "gaussian"):
            raise ValueError(f"probe must be 'disk' or 'gaussian', got {probe!r}")
        if not math.isfinite(curvature):
            raise ValueError(f"curvature must be a finite number (radians at the edge of the probe), got {curvature!r}")
        margin = -(-probe_size // 4)
        rows, cols = (_starts(n + 2 * margin, probe_size, step) for n in (height, width))
        super().__init__(image_shape, (channels, len(rows) * len(cols), probe_size, probe_size), output, range)
        self.margin = margin
        self.register_buffer("places", torch.cartesian_prod(torch.tensor(rows), torch.tensor(cols)))
        offset = (torch.arange(probe_size, dtype=torch.float64) - (probe_size - 1) / 2) / (probe_size / 2)
        square = offset[:, None] ** 2 + offset**2
        amplitude = (square <= 1).double() if probe == "disk" else torch.exp(-square * (5 / 2) ** 2 / 2)
        self.register_buffer("probe", torch.view_as_real(torch.polar(amplitude, curvature * square)))
        # What a flat object sends back of the probe itself is how strongly each pixel is lit.
        light = self.field_adjoint(self.field(torch.ones(1, *self.image_shape, dtype=torch.float64)))
        if bool((light < 1e-6).any()):
            raise ValueError(f"step={step} leaves pixels dark between {probe} probes of {probe_size}x{probe_size}; choose a smaller step")

    def field(self, u: Tensor) -> Tensor:
        """The centred orthonormal spectra of the illuminated patches."""
        window = torch.arange(self.probe.shape[0], device=u.device)
        rows, cols = (self.places[:, k, None].to(u.device) + window for k in (0, 1))
        patches = pad(u, [self.margin] * 4)[:, :, rows[:, :, None], cols[:, None, :]]
        return fft2c(self._complex("probe", u) * patches)
