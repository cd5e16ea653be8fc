"""Computed tomography with parallel beams, from few views or a limited range of angles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from operators.core.base import LinearOperator
from operators.core.picture import as_picture
from operators.core.tensors import shape_of

# Entries of one intermediate: enough to keep a processor busy, little enough to stay in memory.
_CHUNK = 2**22


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    return value


def _degrees(views: int | None, first: float | None, last: float | None, angles: Sequence[float] | None) -> Tensor:
    """The angles (V,) in degrees: those given, or `views` of them evenly from first up to last, which is left out."""
    if angles is not None:
        if (views, first, last) != (None, None, None):
            raise ValueError(f"angles are given, so views={views!r}, first={first!r} and last={last!r} must be left out")
        found = torch.as_tensor(angles, dtype=torch.float64)
        if found.ndim != 1 or not len(found) or not bool(found.isfinite().all()):
            raise ValueError(f"angles must be finite numbers (degrees), one for each view, got {angles!r}")
        return found
    views, first, last = _count("views", 60 if views is None else views), 0.0 if first is None else first, 180.0 if last is None else last
    if not (math.isfinite(first) and math.isfinite(last) and last > first):
        raise ValueError(f"angles go from first to last > first (degrees), got first={first!r}, last={last!r}")
    return first + (last - first) / views * torch.arange(views, dtype=torch.float64)


def _centre(side: int, centre: Sequence[float] | None) -> tuple[float, float]:
    """(row, column) of the centre of rotation, a pixel's centre by default."""
    if centre is None:
        return float(side // 2), float(side // 2)
    pair = tuple(float(value) for value in centre) if isinstance(centre, Sequence) and not isinstance(centre, str) else ()
    if len(pair) != 2 or not all(map(math.isfinite, pair)):
        raise ValueError(f"centre must be [row, column] in pixels, from 0 at the centre of the first, got {centre!r}")
    return pair[0], pair[1]


def _shares(degrees: Tensor) -> Tensor:
    """The angle (V,) in degrees that each view stands for: half the gaps to its neighbours among directions, of period 180.

    A gap more than twice the median, as where views do not go round, counts as the median.
    """
    order = degrees.remainder(180).argsort(stable=True)
    sorted_ = degrees.remainder(180)[order]
    gaps = torch.cat([sorted_, sorted_[:1] + 180]).diff()
    usual = gaps[gaps > 1e-9].median()
    gaps = torch.where(gaps > 2 * usual, usual, gaps)
    shares = torch.empty_like(degrees)
    shares[order] = (gaps + gaps.roll(1)) / 2
    return shares


class Tomography(LinearOperator):
    """Line integrals of a square image: (B, C, N, N) -> (B, C, views, detectors), the sinogram, channel by channel.

    View k looks along angle first + k (last - first) / views degrees, k < views: few views of [0, 180) are sparse-view CT, a
    shorter range is limited-angle CT; or along `angles[k]`, where `angles` are given (then views, first, last must be left out).
    Detector d measures the integral along the line u cos(a) + w sin(a) = d - axis, with u to the right and w upwards from the
    centre of rotation, in pixels. `centre` is its (row, column), N // 2 both by default, and `axis` the detector it falls on,
    detectors // 2 by default, counted from 0 at the centres of pixels and detectors and not necessarily whole: by default the
    geometry of skimage.transform.radon and iradon (whose sinograms are transposed), for even and odd N and detectors. In the
    middle of the image and of the detector, as in ASTRA's parallel geometry and in deepinv's, they are both (N - 1) / 2 and
    (detectors - 1) / 2; for even N that is half a pixel away. Other conventions of the angle: a -> -a where w points
    downwards, a -> a + 90 where angle 0 sums along rows.

    `detectors` defaults to the diagonal, the least number >= sqrt(2) N of the parity of N. Lengths are in units of the side of
    the image, so that an image in [-1, 1] gives values within [-1.42, 1.42]; `pixel` sets the length of a pixel's side instead
    (1 for skimage's values).

    Integrals are Joseph's (IEEE Trans. Med. Imaging 1, 1982): linear interpolation between pixels in each row (or each column,
    for flat lines) that a line crosses. A_adjoint gathers the same weights and is the exact transpose; weights are computed on
    the fly in the precision of the input. Prox and pseudo-inverse are by conjugate gradients; `fbp` is filtered back-projection.

    Raises ValueError if the image is not square, for views or detectors < 1, for angles that are not finite with last > first or
    given twice over, for a centre or axis that is not finite, or for a pixel that is not > 0.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        views: int | None = None,
        first: float | None = None,
        last: float | None = None,
        detectors: int | None = None,
        pixel: float | None = None,
        angles: Sequence[float] | None = None,
        centre: Sequence[float] | None = None,
        axis: float | None = None,
    ) -> None:
        channels, height, width = shape_of(image_shape, 3)
        if height != width:
            raise ValueError(f"tomography needs a square image, got {height}x{width}")
        if detectors is None:
            detectors = math.ceil(math.sqrt(2) * width)
            detectors += (detectors - width) % 2
        _count("detectors", detectors)
        degrees = _degrees(views, first, last, angles)
        pixel = 1 / width if pixel is None else pixel
        if not (math.isfinite(pixel) and pixel > 0):
            raise ValueError(f"pixel is the length of a pixel's side and must be a finite number > 0, got {pixel!r}")
        super().__init__(image_shape, (channels, len(degrees), detectors))
        self.side, self.detectors, self.pixel = width, detectors, float(pixel)
        self.centre = _centre(width, centre)
        self.axis = float(detectors // 2 if axis is None else axis)
        if not math.isfinite(self.axis):
            raise ValueError(f"axis must be a finite number of detectors, from 0 at the centre of the first, got {axis!r}")
        self.register_buffer("weight", torch.deg2rad(_shares(degrees)))
        radians = torch.deg2rad(degrees)
        cos, sin = radians.cos(), radians.sin()
        steep = cos.abs() >= sin.abs()
        # Lines that are more horizontal than vertical are those of the transposed image with these cosines and sines.
        self.register_buffer("cos", torch.where(steep, cos, -sin))
        self.register_buffer("sin", torch.where(steep, sin, -cos))
        self._views = [view.flatten().tolist() for view in (steep.nonzero(), (~steep).nonzero())]

    def _forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        found: list[Tensor] = []
        for transposed, views in enumerate(self._views):
            image = torch.nn.functional.pad(rows.mT if transposed else rows, (1, 1)).flatten(1)
            found += [self._integrals(image, chunk, transposed) for chunk in self._chunks(views, len(rows) * self.side * self.detectors)]
        return self._in_order(torch.cat(found, 1)).unflatten(0, (-1, x.shape[1]))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._back(y, linear=False)

    def _chunks(self, views: list[int], entries: int) -> Iterator[list[int]]:
        many = max(_CHUNK // max(entries, 1), 1)
        yield from (views[k : k + many] for k in range(0, len(views), many))

    def _in_order(self, y: Tensor) -> Tensor:
        """Views as they were numbered, from the two groups one after the other."""
        order = [view for views in self._views for view in views]
        back = sorted(range(len(order)), key=order.__getitem__)
        return y if back == list(range(len(order))) else y[:, back]

    def _geometry(self, views: list[int], transposed: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines (V, 1, 1) of views, and the heights w (N, 1) of the rows above the centre."""
        cos, sin = (self._as(name, like)[views][:, None, None] for name in ("cos", "sin"))
        heights = self.centre[transposed] - torch.arange(self.side, dtype=cos.dtype, device=cos.device)
        return cos, sin, heights[:, None]

    def _crossing(self, at: Tensor, cos: Tensor, sin: Tensor, heights: Tensor, transposed: int) -> Tensor:
        """Column where the line of detector `at` crosses each row, the same arithmetic for A and its adjoint."""
        return (at - self.axis - heights * sin) / cos + self.centre[1 - transposed]

    def _integrals(self, image: Tensor, views: list[int], transposed: int) -> Tensor:
        """(R, N (N + 2)) images with a zero on both sides of each row -> (R, V, detectors)."""
        cos, sin, heights = self._geometry(views, transposed, image)
        at = torch.arange(self.detectors, dtype=cos.dtype, device=cos.device)
        column = self._crossing(at, cos, sin, heights, transposed)
        left = column.floor()
        rest = column - left
        start = (self.side + 2) * torch.arange(self.side, device=image.device)[:, None]
        total: Tensor | float = 0.0
        for offset, weight in ((0, 1 - rest), (1, rest)):
            place = (left.long() + offset).clamp(-1, self.side) + 1 + start
            seen = image.index_select(1, place.flatten()).unflatten(1, place.shape)
            total = total + (weight * seen).sum(-2)
        return total * (self.pixel / cos.abs()[:, :, 0])

    def _back(self, y: Tensor, linear: bool) -> Tensor:
        """A^T y, or with `linear` the sum over views of y interpolated linearly between detectors; (B, C, N, N)."""
        rows = torch.nn.functional.pad(y.flatten(0, 1), (1, 1))
        total: Tensor | float = 0.0
        for transposed, views in enumerate(self._views):
            for chunk in self._chunks(views, len(rows) * self.side**2):
                part = self._smear(rows, chunk, transposed, linear)
                total = total + (part.mT if transposed else part)
        assert isinstance(total, Tensor)
        return total.unflatten(0, (-1, y.shape[1]))

    def _smear(self, y: Tensor, views: list[int], transposed: int, linear: bool) -> Tensor:
        """(R, views, detectors + 2) sinograms with a zero on both sides -> (R, N, N), from some of their views."""
        cos, sin, heights = self._geometry(views, transposed, y)
        columns = torch.arange(self.side, dtype=cos.dtype, device=cos.device)
        detector = (columns - self.centre[1 - transposed]) * cos + heights * sin + self.axis
        before = detector.floor()
        start = (self.detectors + 2) * torch.tensor(views, device=y.device)[:, None, None]
        total: Tensor | float = 0.0
        for offset in (0, 1):
            at = before + offset
            if linear:
                weight = 1 - (detector - at).abs()
            else:
                # A line gives to the two pixels of a row nearest to where it crosses it.
                weight = (1 - (self._crossing(at, cos, sin, heights, transposed) - columns).abs()).clamp(min=0) * (self.pixel / cos.abs())
            place = at.long().clamp(-1, self.detectors) + 1 + start
            seen = y.flatten(1).index_select(1, place.flatten()).unflatten(1, place.shape)
            total = total + (weight * seen).sum(1)
        assert isinstance(total, Tensor)
        return total

    def fbp(self, y: Tensor) -> Tensor:
        """Filtered back-projection of a sinogram y (B, C, views, detectors): an estimate of the image (B, C, N, N), its units.

        The ramp filter with the band limit of the detector (Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988,
        Eq. 3.61), then linear interpolation between detectors, each view weighted by half the
        angles to its neighbours. Accurate where the views
        cover 180 degrees densely; a classical baseline otherwise. Raises ValueError for another shape.
        """
        self._expect(y, self.measurement_shape, "y")
        n = 2 * self.detectors
        away = torch.arange(n, dtype=torch.float64).sub(self.detectors).roll(-self.detectors)
        ramp = torch.where(away % 2 == 0, 0.0, -1 / (math.pi * away) ** 2)
        ramp[0] = 0.25
        response = torch.fft.rfft(ramp).real.to(y)
        filtered = torch.fft.irfft(torch.fft.rfft(y, n=n) * response, n=n)[..., : self.detectors]
        return self._back(filtered * self._as("weight", y)[:, None], linear=True) / self.pixel

    def view(self, y: Tensor) -> Tensor:
        """The sinogram, angles downwards, scaled to [-1, 1] per sample."""
        return as_picture(y, normalise=True)
