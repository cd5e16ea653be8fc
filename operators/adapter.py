"""Taking any deepinv physics as an operator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from deepinv.physics import MRI, BlurFFT, Decolorize, DecomposablePhysics, Downsampling, Inpainting, LinearPhysics, MultiCoilMRI, Physics
from torch import Tensor

from operators.base import LinearOperator, Operator, shape_of

_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def _known_shape(physics: Physics) -> tuple[int, ...] | None:
    if isinstance(physics, (MRI, MultiCoilMRI)):
        # MultiCoilMRI states (H, W) until its first update, but its images are (2, H, W), as its mask.
        return tuple(physics.mask.shape[1:])
    for name in ("img_size", "imsize"):
        shape = getattr(physics, name, None)
        if isinstance(shape, (tuple, list, torch.Size)) and all(isinstance(n, int) for n in shape):
            # Elsewhere in deepinv a pair may mean (H, W) without the channels.
            return tuple(shape) if len(shape) > 2 or isinstance(physics, Inpainting) else None
    return None


def _mask(physics: Physics) -> Tensor | None:
    """Mask over the measurements, where hidden entries are stored as zeros; None if every entry is measured."""
    mask = getattr(physics, "mask", None)
    if not isinstance(mask, Tensor):
        return None
    if isinstance(physics, MultiCoilMRI):
        return mask[:, :, None] != 0
    return mask != 0 if isinstance(physics, (Inpainting, MRI)) else None


def _decomposable(physics: Physics) -> bool:
    """Whether deepinv's closed forms are right: they need V V^T = 1, which Decolorize, from 3 channels to 1, does not have."""
    return isinstance(physics, DecomposablePhysics) and not isinstance(physics, Decolorize)


def _copy(physics: Physics) -> Physics:
    try:
        return copy.deepcopy(physics)
    except (TypeError, RuntimeError):
        # Generators resist deepcopy; deepinv's clone handles them but takes a quarter of a second.
        return physics.clone()


def _converted(physics: Physics, dtype: torch.dtype) -> Physics:
    """A copy in another precision. Module.to would drop the imaginary part of complex buffers."""

    def convert(t: Tensor) -> Tensor:
        if t.is_complex():
            return t.to(_COMPLEX.get(dtype, torch.complex64))
        return t.to(dtype) if t.is_floating_point() else t

    result = _copy(physics)._apply(convert)
    # Spectra of the filter were computed in the old precision; the closed forms need them in the new one.
    if isinstance(result, (BlurFFT, Downsampling)) and isinstance(result.filter, Tensor):
        size = result.img_size if isinstance(result, BlurFFT) else result.imsize
        options = {} if isinstance(result, BlurFFT) else {"factor": result.factor}
        if size is not None:
            spectra = result.get_filter_parameters(img_size=size, filter=result.filter, device=result.filter.device, **options)
            for name, value in spectra.items():
                setattr(result, name, value)
    return result


class _Wrapped(Operator):
    """What linear and non-linear wrappers share: a private copy of the physics, never the caller's object."""

    picklable: ClassVar[bool] = False
    # What a physics takes is its own business.
    complex_signals = True

    def _adopt(self, physics: Physics) -> None:
        self.physics = _copy(physics)
        self.noise_model = self.physics.noise_model
        self._copies: dict[torch.dtype, Physics] = {}

    def _of(self, t: Tensor) -> Physics:
        """The physics in the precision of t; deepinv's own refuse or round inputs of another precision."""
        dtype = t.real.dtype if t.is_complex() else t.dtype
        buffers = [b for b in self.physics.buffers() if b.is_floating_point() or b.is_complex()]
        present = {b.real.dtype if b.is_complex() else b.dtype for b in buffers if b.ndim}
        if present <= {dtype}:
            return self.physics
        if dtype not in self._copies:
            with torch.inference_mode(False), torch.no_grad():
                self._copies[dtype] = _converted(self.physics, dtype)
        return self._copies[dtype]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Operator:
        super()._apply(fn, recurse)
        self._copies = {}
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._copies = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Wrapped:
        return type(self)(self.physics, self.image_shape)

    def forward(self, x: Tensor) -> Tensor:
        """The wrapped physics' own measurement: A(x) with its noise and sensor models."""
        result: Tensor = self._of(x)(x)
        return result

    def _forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._of(x).A(x)
        if not isinstance(y, Tensor):
            raise ValueError(f"{type(self.physics).__name__} gives a {type(y).__name__}; only tensor measurements are supported")
        return y

    def restrict(self, y: Tensor) -> Tensor:
        """y with the entries that an Inpainting or MRI mask hides set to zero; y itself for other physics."""
        mask = _mask(self._of(y))
        return y if mask is None else y * mask

    @property
    def measured(self) -> int:
        """Number of measured entries per sample; ValueError if the image shape is unknown or differs between samples."""
        shape = self._measurement_shape()
        mask = _mask(self.physics)
        if mask is None:
            return math.prod(shape)
        counts = mask.expand(mask.shape[0], *shape).flatten(1).count_nonzero(1)
        if len(set(counts.tolist())) > 1:
            raise ValueError(f"the masks of the samples measure different numbers of entries: {counts.tolist()}; select() one")
        return int(counts[0])

    def _measurement_shape(self) -> tuple[int, ...]:
        if self.image_shape is None:
            raise ValueError(f"the image shape of {type(self.physics).__name__} is unknown: pass image_shape to as_operator")
        if self.measurement_shape is None:
            like = next((b for b in self.physics.buffers() if b.is_floating_point()), torch.zeros(()))
            with torch.no_grad():
                self.measurement_shape = tuple(self._forward(like.new_zeros(1, *self.image_shape)).shape[1:])
        shape: tuple[int, ...] = self.measurement_shape
        return shape

    def image_shape_for(self, y: Tensor) -> tuple[int, ...]:
        """Shape of the signals behind y: the known one, else that of A^T y, which is then remembered."""
        if self.image_shape is None:
            adjoint = getattr(self._of(y), "A_adjoint", None)
            if adjoint is None:
                raise ValueError(f"{type(self.physics).__name__} has no A_adjoint: pass image_shape to as_operator")
            with torch.no_grad():
                self.image_shape = tuple(adjoint(y[:1]).shape[1:])
            self.measurement_shape = tuple(y.shape[1:])
        shape: tuple[int, ...] = self.image_shape
        return shape

    def select(self, index: Tensor) -> Operator:
        """Rows `index` of parameters given per sample (buffers mask, filter or coil_maps of batch size > 1)."""
        rows = {
            name: b[index.to(b.device)]
            for name in ("mask", "filter", "coil_maps")
            if isinstance(b := getattr(self.physics, name, None), Tensor) and b.ndim >= 4 and b.shape[0] > 1
        }
        if not rows:
            return self
        chosen = _copy(self.physics)
        chosen.update(**rows)
        return type(self)(chosen, self.image_shape)


class WrappedOperator(_Wrapped):
    """A non-linear deepinv physics as an `Operator`; A and A_vjp are the physics' own."""

    def __init__(self, physics: Physics, image_shape: Sequence[int] | None = None) -> None:
        super().__init__(image_shape)
        self._adopt(physics)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^T v by automatic differentiation; real for real x (deepinv's PhaseRetrieval.A_vjp gives complex there)."""
        return Operator.A_vjp(self, x, v)


class WrappedLinearOperator(_Wrapped, LinearOperator):
    """A linear deepinv physics as a `LinearOperator`.

    A and A_adjoint are the physics' own. prox_l2 is too, where deepinv has it in closed form: decomposable physics but
    Decolorize, and circular downsampling with a filter no larger than the image and a factor that divides its sides.
    Otherwise it is by our conjugate gradients, as deepinv's stop at 1e-4 by default.
    """

    def __init__(self, physics: LinearPhysics, image_shape: Sequence[int] | None = None) -> None:
        LinearOperator.__init__(self, image_shape)
        self._adopt(physics)
        self.closed_form = _decomposable(physics) or self._circular()
        if self.image_shape is not None:
            self._measurement_shape()

    def _circular(self) -> bool:
        p = self.physics
        if not isinstance(p, Downsampling) or p.padding != "circular" or p.filter is None or self.image_shape is None:
            return False
        sides, taps = self.image_shape[-2:], p.filter.shape[-2:]
        # With a filter larger than the image, deepinv 0.5's prox solves another problem (off by 100 % on 8x8, 15 taps).
        return all(n % p.factor == 0 and k <= n for n, k in zip(sides, taps, strict=True))

    def _adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = self._of(y).A_adjoint(y)
        return x

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        if not self.closed_form:
            return super()._prox(z, y, gamma)
        # deepinv divides by gamma.
        weight = torch.as_tensor(gamma, dtype=z.dtype, device=z.device)
        result: Tensor = self._of(z).prox_l2(z, y, torch.where(weight > 0, weight, 1.0))
        return torch.where(weight > 0, result, z)

    def _pseudo_inverse(self, y: Tensor, tol: float | None, max_iter: int) -> Tensor:
        physics = self._of(y)
        if not _decomposable(physics):
            return super()._pseudo_inverse(y, tol, max_iter)
        result: Tensor = physics.A_dagger(y)
        return result


def as_operator(obj: object, image_shape: Sequence[int] | None = None) -> Operator:
    """`obj` as an `Operator`: itself if it is one, else a wrapper around a copy of a `deepinv.physics.Physics`.

    Later changes to the physics are not seen by the wrapper, and the wrapper never changes it. `image_shape` is taken from
    the physics where it states one; otherwise it stays None, no shape is checked, and `image_shape_for(y)` finds it.

    Raises TypeError for any other object; ValueError if image_shape contradicts the operator's.
    """
    if isinstance(obj, Operator):
        if image_shape is not None and tuple(image_shape) != obj.image_shape:
            raise ValueError(f"image_shape {tuple(image_shape)} contradicts the operator's {obj.image_shape}")
        return obj
    if not isinstance(obj, Physics):
        raise TypeError(
            f"expected an operators.Operator or a deepinv.physics.Physics, got {type(obj).__name__}; "
            "a matrix becomes an operator with operators.Matrix(A, image_shape)"
        )
    known = _known_shape(obj)
    if known is not None and image_shape is not None and tuple(image_shape) != known:
        raise ValueError(f"image_shape {tuple(image_shape)} contradicts the physics' {known}")
    shape = known if image_shape is None else shape_of(image_shape)
    wrapper = WrappedLinearOperator if isinstance(obj, LinearPhysics) else WrappedOperator
    return wrapper(obj, shape)
