"""Blur with one kernel for the whole image: any kernel, and the Gaussian as a pair of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from operators.blur.convolution import BOUNDARIES, CircularConvolution, Convolution
from operators.blur.kernels import gaussian_taps, make_kernel
from operators.core.base import LinearOperator
from operators.core.spectral import SeparableOperator
from operators.core.tensors import shape_of


class Blur(LinearOperator):
    """True convolution of every channel with a kernel, (B, C, H, W) -> (B, C, H, W), or smaller if boundary="valid".

    `kernel` names one, each with options of its own, in pixels; what is not given has the default in parentheses:
    "motion": a random camera path drawn from `seed`, in a square of `taps` (61) pixels, of `intensity` (0.5) in (0, 1];
    "uniform": the mean of `taps` (9) pixels squared; "gaussian": `std` (3), or [along, across] an axis that stands `angle`
    (0) degrees counter-clockwise from the horizontal, cut at `taps` (4 std); "disk": defocus of `radius` (3), antialiased.
    Or it is a tensor (kh, kw), a .npy file, which has to sum to 1, or an image file, which is divided by its sum; `normalise`
    says otherwise: true divides by the sum, false takes the numbers as they are (grey values / 255). See `operators.blur.kernels` for
    the definitions. The blurred pixel is centred on tap (kh // 2, kw // 2).

    `boundary`: pixels beyond the border repeat the image ("circular"), mirror it about the border pixels ("reflect", DPS's
    padding: Chung et al., arXiv:2209.14687), are 0 ("zero"), or are never needed ("valid": only pixels whose whole
    neighbourhood lies in the image are measured, (H - kh + 1, W - kw + 1)). A and A^T are exact transposes for each. Prox and
    pseudo-inverse are in closed form for "circular" (by FFT), by conjugate gradients
    for the others. Buffer `map.kernel`. `GaussianBlur` has closed forms for every boundary.

    Raises ValueError for an unknown kernel or boundary, options of another kernel or out of range, a file that cannot be
    read, a kernel that is not a real, finite, nonzero matrix, and a kernel larger than the image (for "reflect": one that
    reaches as far as a side). `operators.blur.convolution.CircularConvolution` wraps kernels of any size.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        kernel: str | Path | Tensor = "motion",
        boundary: str = "circular",
        taps: int | None = None,
        intensity: float | None = None,
        std: float | Sequence[float] | None = None,
        angle: float | None = None,
        radius: float | None = None,
        normalise: bool | None = None,
        seed: int = 0,
    ) -> None:
        options = {"taps": taps, "intensity": intensity, "std": std, "angle": angle, "radius": radius, "normalise": normalise}
        weights = make_kernel(kernel, seed, **options)
        _, height, width = shape_of(image_shape, 3)
        if boundary in ("circular", "zero") and (weights.shape[0] > height or weights.shape[1] > width):
            shown = "x".join(map(str, weights.shape))
            raise ValueError(f"a kernel of {shown} is larger than the image of {height}x{width}; take fewer taps or a larger image")
        convolution: CircularConvolution | Convolution
        if boundary == "circular":
            convolution = CircularConvolution(image_shape, weights)
        else:
            convolution = Convolution(image_shape, weights, boundary)
        super().__init__(image_shape, convolution.measurement_shape)
        self.map = convolution
        self.closed_form, self.closed_form_inverse = convolution.closed_form, convolution.closed_form_inverse
        self.boundary = boundary

    @property
    def kernel(self) -> Tensor:
        """The kernel (kh, kw), float64."""
        return self.map.kernel

    def _forward(self, x: Tensor) -> Tensor:
        return self.map._forward(x)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.map._adjoint(y)

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        return self.map._prox(z, y, gamma)

    def _pseudo_inverse(self, y: Tensor, tol: float | None, max_iter: int) -> Tensor:
        return self.map._pseudo_inverse(y, tol, max_iter)


def convolution_matrix(weights: Tensor, size: int, boundary: str) -> Tensor:
    """Matrix (size, size) of the 1-D filter out[i] = sum_d weights[d + r] x[index(i + d)], float64.

    `index` wraps around ("circular", kernels longer than the signal wrap as often as needed) or mirrors about the end samples
    without repeating them ("reflect", as torch.nn.ReflectionPad2d); samples outside count as zero for "zero". For "valid"
    only the rows that stay inside are kept, (size - 2 r, size).
    Raises ValueError if r >= size for "reflect" or 2 r >= size for "valid", or for an unknown boundary.
    """
    radius = len(weights) // 2
    at = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    inside = (at >= 0) & (at < size)
    if boundary == "circular":
        at = at % size
    elif boundary == "reflect":
        if radius >= size:
            raise ValueError(f"reflecting a kernel of radius {radius} needs sides larger than {radius}, got {size}")
        at = at.abs()
        at = (size - 1) - (size - 1 - at).abs()
    elif boundary == "valid" and 2 * radius >= size:
        raise ValueError(f"boundary 'valid' needs sides of at least the kernel's {2 * radius + 1} taps, got {size}")
    values = weights.expand(size, -1)
    if boundary in ("zero", "valid"):
        values, at = values * inside, at.clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, at, values.contiguous())
    return matrix[inside.all(1)] if boundary == "valid" else matrix


class GaussianBlur(SeparableOperator):
    """Convolution of every channel with a Gaussian of `std` pixels truncated at 4 std, (B, C, H, W) -> (B, C, H, W).

    The defaults are the blur of DPS (Chung et al., arXiv:2209.14687, App. D; its 61 x 61 kernel of std 3 is zero beyond
    radius 12), with boundary="reflect" for DPS's reflection padding. As the kernel is separable, the boundary included, A is
    a pair of 1-D matrices: the adjoint is exact and prox and pseudo-inverse are in closed form for all boundaries,
    "circular", "reflect", "zero" and "valid" (as `Blur`; the last measures r pixels less on each side).

    Raises ValueError for a std or taps out of range, an unknown boundary, or a kernel too large for "reflect" or "valid".
    """

    def __init__(self, image_shape: Sequence[int], std: float = 3.0, taps: int | None = None, boundary: str = "circular") -> None:
        _, height, width = shape_of(image_shape, 3)
        weights = gaussian_taps(std, taps)
        super().__init__(image_shape, convolution_matrix(weights, height, boundary), convolution_matrix(weights, width, boundary))
        self.std, self.taps, self.boundary = std, taps, boundary
