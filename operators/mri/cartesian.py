"""Cartesian MRI of complex images, held as two real channels (real, imaginary).

Everything inside is real: an image is (B, 2, H, W), k-space (B, 2, H, W) or with coils (B, 2, N, H, W), as in
`deepinv.physics.MRI` and `MultiCoilMRI`. `to_channels` and `to_complex` convert at the edges. The Fourier transform is
orthonormal with the zero frequency at (H // 2, W // 2), so that noise of standard deviation sigma per channel in k-space is
noise of the same sigma in image units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from operators.blur.convolution import widened
from operators.core.base import LinearOperator, Operator
from operators.core.fourier import fft2c, ifft2c
from operators.core.picture import as_picture
from operators.core.spectral import SpectralOperator
from operators.core.tensors import shape_of
from operators.mri.coils import sensitivities
from operators.mri.masks import KINDS, mask_of, sampling_mask


def to_channels(z: Tensor) -> Tensor:
    """Complex (B, ...) as real (B, 2, ...): the real part, then the imaginary part. ValueError for a real tensor."""
    if not z.is_complex():
        raise ValueError(f"to_channels expects a complex tensor (B, ...), got {z.dtype} of shape {tuple(z.shape)}")
    return torch.stack([z.real, z.imag], dim=1)


def to_complex(x: Tensor) -> Tensor:
    """Real (B, 2, ...) as complex (B, ...). ValueError for a complex tensor or another number of channels."""
    if x.is_complex() or x.ndim < 2 or x.shape[1] != 2:
        raise ValueError(f"to_complex expects real channels (B, 2, ...), got {x.dtype} of shape {tuple(x.shape)}")
    return torch.complex(x[:, 0], x[:, 1])


def magnitude_picture(x: Tensor) -> Tensor:
    """Modulus (B, 1, H, W) of two-channel images as a picture: 0 black at -1, 1 and above white at 1."""
    return 2 * torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(max=1) - 1


class ComplexImages(Operator):
    """Operators on complex images held as two channels: complex tensors are refused with a word on how to convert them."""

    # k-space is no light that could be counted.
    takes_light = False

    def _expect(self, t: Tensor, shape: tuple[int, ...] | None, name: str) -> None:
        if t.is_complex():
            raise ValueError(
                f"{type(self).__name__} expects {name} as two real channels (B, 2, ...), got a complex {tuple(t.shape)};"
                " convert with operators.to_channels (and back with operators.to_complex)"
            )
        super()._expect(t, shape, name)


class _KSpace(ComplexImages, LinearOperator):
    """What single and multi coil share: two-channel images, the mask (1, H, W) and what is said of them."""

    mask: Tensor

    def _set_mask(self, kind: str, acceleration: float, centre_fraction: float, mask: str | Path | Tensor | None, seed: int) -> None:
        _, height, width = self.image_shape
        if kind not in (*KINDS, "full", "file"):
            raise ValueError(f"kind of the mask must be one of {', '.join(KINDS)}, full, file; got {kind!r}")
        if (kind == "file") != (mask is not None):
            raise ValueError(f"mask and kind='file' go together, got mask={'None' if mask is None else 'given'}, kind={kind!r}")
        if mask is not None:
            known = mask_of(mask, height, width)
        elif kind == "full":
            known = torch.ones(height, width, dtype=torch.float64)
        else:
            known = sampling_mask(kind, height, width, acceleration, centre_fraction, seed)
        if not bool(known.any()):
            raise ValueError("the mask measures no frequency at all")
        self.register_buffer("mask", known[None])
        self.kind = kind

    @property
    def measured(self) -> int:
        """Number of measured frequencies times 2 channels times the number of coils."""
        return math.prod(self.measurement_shape[:-2]) * int(self.mask.count_nonzero())

    @property
    def acceleration(self) -> float:
        """H W over the number of measured frequencies."""
        return self.mask.numel() / int(self.mask.count_nonzero())

    def restrict(self, y: Tensor) -> Tensor:
        """y with the frequencies that are not measured set to zero."""
        return self._as("mask", y) * y

    def view(self, y: Tensor) -> Tensor:
        """The zero-filled image A^T y, its modulus from black (0) to white (1)."""
        return magnitude_picture(self._adjoint(y))

    def log_kspace(self, y: Tensor) -> Tensor:
        """Picture (B, 1, H, W) of log(1 + 100 |y| / max |y|), over coils by root sum of squares."""
        modulus = torch.linalg.vector_norm(self.restrict(y).flatten(1, -3), dim=1, keepdim=True)
        top = modulus.amax(dim=(1, 2, 3), keepdim=True)
        return 2 * as_picture(torch.log1p(100 * modulus / torch.where(top > 0, top, 1.0)), normalise=True) - 1


def complex_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """`image_shape` as (2, H, W); ValueError for another number of channels."""
    shape = shape_of(image_shape, 3)
    if shape[0] != 2:
        raise ValueError(f"MRI images are complex, held as 2 channels (real, imaginary); got image_shape {tuple(image_shape)}")
    return shape


class MRI(_KSpace, SpectralOperator):
    """Single-coil MRI: (B, 2, H, W) -> (B, 2, H, W), y = mask * F(x), F the centred orthonormal Fourier transform.

    `kind` is that of the mask: "equispaced", "random" or "gaussian" lines (columns), "gaussian_2d" or "poisson" points,
    "radial" spokes on the grid, drawn once, here, from `seed` at `acceleration` with `centre_fraction`
    (`operators.mri.masks.sampling_mask`); "full"; or "file", `mask` from a .npy or .pt file or a tensor, (H, W) or (W,) for lines.
    Buffer `mask` (1, H, W), 1 = measured. Frequencies that are not measured are zero in y and count neither in `measured` nor
    in the noise. Prox and pseudo-inverse (the zero-filled image) are closed forms.

    Raises ValueError for an image_shape that is not (2, H, W), an unknown kind, a mask of another shape, an acceleration
    that does not leave the centre; and on any call with a complex tensor.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        kind: str = "gaussian",
        acceleration: float = 4,
        centre_fraction: float = 0.08,
        mask: str | Path | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        shape = complex_shape(image_shape)
        super().__init__(shape, shape)
        self._set_mask(kind, acceleration, centre_fraction, mask, seed)
        # conj(exp(2 pi i k (n // 2) / n)) on the uncentred grid: what the centred origin of images does to their spectrum.
        rows, columns = (torch.arange(n, dtype=torch.float64) * (n // 2) % n / n for n in shape[1:])
        angle = -2 * math.pi * (rows[:, None] + columns)
        self.register_buffer("origin", torch.stack([torch.cos(angle), torch.sin(angle)]), persistent=False)

    def _singular_values(self, like: Tensor) -> Tensor:
        return self._as("mask", like)

    def _right(self, c: Tensor) -> Tensor:
        return to_channels(ifft2c(to_complex(widened(c)))).to(c.dtype)

    def _right_adjoint(self, x: Tensor) -> Tensor:
        return to_channels(fft2c(to_complex(widened(x)))).to(x.dtype)

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        # The formula of SpectralOperator on the uncentred grid, where images need not be shifted: half the time.
        wide = widened(z)
        weight = gamma.reshape(-1, 1, 1).to(wide) if isinstance(gamma, Tensor) else gamma
        known = torch.fft.ifftshift(self._as("mask", wide), dim=(-2, -1)) * (weight / (1 + weight))
        measured = to_complex(self._as("origin", wide)[None]) * torch.fft.ifftshift(to_complex(widened(y)), dim=(-2, -1))
        gap = known * (measured - torch.fft.fft2(to_complex(wide), norm="ortho"))
        return (wide + to_channels(torch.fft.ifft2(gap, norm="ortho"))).to(z.dtype)


class MultiCoilMRI(_KSpace):
    """Multi-coil MRI: (B, 2, H, W) -> (B, 2, N, H, W), y_n = mask * F(s_n x) with coil sensitivities s_n.

    The mask is that of `MRI`. `coils` is "birdcage" (`n_coils` wires around the picture), "smooth" (random lobes from `seed`),
    both with sum over n of |s_n|^2 = 1, or "file": `coil_maps` complex (N, H, W) from a .npy or .pt file or a tensor, used as
    they are. Buffers `mask` (1, H, W) and `maps` (2, N, H, W), real and imaginary part.
    Prox and pseudo-inverse by conjugate gradients. Source of the model: K. P. Pruessmann et al., "SENSE", MRM 42, 1999.

    Raises ValueError as `MRI` does, and for unknown coils, n_coils < 1 and maps that are real or of another size.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        kind: str = "gaussian",
        acceleration: float = 4,
        centre_fraction: float = 0.08,
        mask: str | Path | Tensor | None = None,
        coils: str = "birdcage",
        n_coils: int = 8,
        coil_maps: str | Path | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        shape = complex_shape(image_shape)
        maps = sensitivities(shape[1], shape[2], coils, n_coils, coil_maps, seed)
        super().__init__(shape, (2, len(maps), *shape[1:]))
        self._set_mask(kind, acceleration, centre_fraction, mask, seed)
        self.register_buffer("maps", torch.stack([maps.real, maps.imag]).contiguous())

    def _maps(self, like: Tensor) -> Tensor:
        """Complex maps (1, N, H, W) in the precision of `like`."""
        return to_complex(self._as("maps", like)[None])

    def _forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        return (self._as("mask", wide) * to_channels(fft2c(self._maps(wide) * to_complex(wide)[:, None]))).to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        wide = widened(y)
        seen = ifft2c(to_complex(self._as("mask", wide) * wide))
        return to_channels((self._maps(wide).conj() * seen).sum(1)).to(y.dtype)
