"""Taking any deepinv physics as an operator."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from deepinv.physics import DecomposablePhysics, Downsampling, LinearPhysics, Physics
from torch import Tensor

from operators.core import claims
from operators.core.base import LinearOperator, Operator
from operators.core.foreign import COMPLEX, REAL, Mode, converted, duplicate, hidden_by, precision, stated_shape
from operators.core.tensors import shape_of, transpose

# A claim that fails by more than this is wrong, and not only rounded somewhere in single precision.
_ROUNDING = 1e-4

# Entries of a signal beyond which claims are tested in single precision.
_LARGE = 2**13


@dataclass(frozen=True)
class _Found:
    """What was found of a linear physics: the relative error of linearity, and whether its adjoint and closed forms are right."""

    nonlinearity: float
    adjoint: bool
    prox: bool
    inverse: bool


class _Wrapped(Operator):
    """What linear and non-linear wrappers share: a private copy of the physics, never the caller's object."""

    picklable: ClassVar[bool] = False
    # What a physics takes is its own business.
    complex_signals = True

    def _adopt(self, physics: Physics, like: _Wrapped | None = None) -> None:
        """Takes a copy; `like` is a wrapper of a physics of the same kind, of which what was found holds here."""
        self.physics = duplicate(physics)
        self.noise_model = self.physics.noise_model
        self._copies: dict[torch.dtype, Physics] = {}
        self._modes: dict[torch.dtype, Mode] = {}
        # Whether the physics writes into its inputs or its earlier results, and how many samples its parameters are for.
        self._guarded: bool = like is not None and like._guarded
        self._rows: int = 1 if like is None else like._rows
        if like is not None:
            self.measurement_shape = like.measurement_shape
        elif self.image_shape is not None:
            self._measurement_shape()
            with claims.quietly():
                self._try_out(self.image_shape)

    def _in(self, dtype: torch.dtype) -> Physics:
        """The physics with its tensors in a precision; deepinv's own refuse or round inputs of another."""
        buffers = [b for b in self.physics.buffers() if b.is_floating_point() or b.is_complex()]
        present = {precision(b) for b in buffers if b.ndim}
        present |= {
            REAL.get(v, v) for m in self.physics.modules() for k, v in vars(m).items() if k == "dtype" and isinstance(v, torch.dtype)
        }
        if present <= {dtype}:
            return self.physics
        if dtype not in self._copies:
            with torch.inference_mode(False), torch.no_grad():
                self._copies[dtype] = converted(self.physics, dtype)
        return self._copies[dtype]

    def _mode(self, t: Tensor) -> Mode:
        """How the physics takes tensors of the precision of t: in that one, if it can, else in its own."""
        dtype = precision(t)
        if self.image_shape is None:
            return Mode(self._in(dtype), dtype, False)
        if dtype not in self._modes:
            with claims.quietly():
                self._modes[dtype] = self._working(dtype, t.device)
        return self._modes[dtype]

    def _working(self, dtype: torch.dtype, device: torch.device) -> Mode:
        own = next((precision(b) for b in self.physics.buffers() if (b.is_floating_point() or b.is_complex()) and b.ndim), torch.float32)
        refusal: Exception | None = None
        # Parameters per sample turn one image into as many measurements, or are taken with as many images only.
        batches = dict.fromkeys([1, *(b.shape[0] for b in self.physics.buffers() if b.ndim >= 3)])
        for lifted, rows, work in itertools.product((False, True), batches, dict.fromkeys((dtype, own, torch.float32, torch.float64))):
            try:
                mode = Mode(self._in(work), work, lifted)
                y: Any = mode.physics.A(mode.take(torch.zeros(rows, *self.image_shape, dtype=work, device=device), image=True))
                if self.linear and isinstance(y, Tensor):
                    mode.physics.A_adjoint(y)
            except Exception as error:  # noqa: BLE001 - a foreign physics may raise anything; none may work
                refusal = refusal or error
                continue
            if not isinstance(y, Tensor):
                raise ValueError(
                    f"{type(self.physics).__name__} gives a {type(y).__name__}; only tensor measurements are supported"
                    " (operators.stack joins the parts of a stacked physics into one)"
                )
            if precision(y) == work:
                self._rows = y.shape[0]
                return mode
        raise ValueError(
            f"{type(self.physics).__name__} does not take images {(1, *self.image_shape)}: {' '.join(str(refusal).split())}"
        ) from refusal

    def _ask(self, method: str, *tensors: Tensor, images: int = 1) -> Tensor:
        """A method of the physics on tensors, the first `images` of them signals; the result in the precision of the first."""
        mode = self._mode(tensors[0])
        given = [mode.take(t, place < images) for place, t in enumerate(tensors)]
        if self._guarded:
            given = [t.clone() for t in given]
        result: Any = getattr(mode.physics, method)(*given)
        if not isinstance(result, Tensor):
            raise ValueError(f"{type(self.physics).__name__} gives a {type(result).__name__}; only tensor measurements are supported")
        if self._guarded:
            result = result.clone()
        dtype = precision(tensors[0])
        return result.to(COMPLEX.get(dtype, torch.complex64) if result.is_complex() else dtype)

    def _probes(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Two batches of signals, of as many rows as the parameters are for, at least 2."""
        device = next((b.device for b in self.physics.buffers()), torch.device("cpu"))
        rows = 2 if self._rows == 1 else self._rows
        # Double precision is many times slower where deepinv convolves; errors of large signals are found without it.
        dtype = torch.float64 if math.prod(shape) <= _LARGE else torch.float32
        first, second = (claims.signals(rows, shape, name, dtype, device) for name in ("claims 1", "claims 2"))
        return first, second

    def _try_out(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns x, w, A(x), A(w), signals tried on it. Raises ValueError if A is random, or couples the rows of a batch."""
        name = type(self.physics).__name__
        x, w = self._probes(shape)
        if not self.linear:
            x, w = x.sigmoid(), w.sigmoid()  # images in [0, 1], where logarithms and counts are defined
        self._guarded, y, z = claims.writes(lambda t: self._mode(t).physics.A(self._mode(t).take(t, image=True)), x, w)
        apart = torch.cat([self._forward(row) for row in x.split(1)]) if self._rows == 1 else self._forward(x)
        if claims.off(apart, y) > _ROUNDING:
            if self._rows > 1 or claims.off(self._forward(x), y) > _ROUNDING:
                raise ValueError(
                    f"{name} measures the same image differently each time; A must be deterministic (noise belongs to noise_model)"
                )
            raise ValueError(f"{name} measures the images of a batch otherwise than each alone; samples must be independent of each other")
        return x, w, y.to(apart.dtype), z.to(apart.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Operator:
        super()._apply(fn, recurse)
        self._copies, self._modes = {}, {}
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._copies, self._modes = {}, {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Wrapped:
        return type(self)(self.physics, self.image_shape, self)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        """The wrapped physics' own measurement: A(x) with its noise and sensor models."""
        return self._ask("__call__", x)

    def _forward(self, x: Tensor) -> Tensor:
        return self._ask("A", x)

    def restrict(self, y: Tensor) -> Tensor:
        """y with the entries that an Inpainting or MRI mask hides set to zero; y itself for other physics."""
        mask = hidden_by(self.physics)
        return y if mask is None else y * mask

    @property
    def measured(self) -> int:
        """Number of measured entries per sample; ValueError if the image shape is unknown or differs between samples."""
        shape = self._measurement_shape()
        mask = hidden_by(self.physics)
        if mask is None:
            return math.prod(shape)
        counts = mask.expand(self._rows, *shape).flatten(1).count_nonzero(1)
        if len(set(counts.tolist())) > 1:
            raise ValueError(f"the masks of the samples measure different numbers of entries: {counts.tolist()}; select() one")
        return int(counts[0])

    def _measurement_shape(self) -> tuple[int, ...]:
        if self.image_shape is None:
            raise ValueError(f"the image shape of {type(self.physics).__name__} is unknown: pass image_shape to as_operator")
        if self.measurement_shape is None:
            like = next((b for b in self.physics.buffers() if b.is_floating_point() and b.ndim), torch.zeros(()))
            with claims.quietly():
                self._mode(like)
                self.measurement_shape = tuple(self._forward(like.new_zeros(self._rows, *self.image_shape)).shape[1:])
        shape: tuple[int, ...] = self.measurement_shape
        return shape

    def image_shape_for(self, y: Tensor) -> tuple[int, ...]:
        """Shape of the signals behind y: the known one, else that of A^T y, which is then remembered."""
        if self.image_shape is None:
            if not hasattr(self.physics, "A_adjoint"):
                raise ValueError(f"{type(self.physics).__name__} has no A_adjoint: pass image_shape to as_operator")
            with claims.quietly():
                self.image_shape = tuple(self._ask("A_adjoint", y[:1], images=0).shape[1:])
                self._measurement_shape()
                self._try_out(self.image_shape)
            self.measurement_shape = tuple(y.shape[1:])
        shape: tuple[int, ...] = self.image_shape
        return shape

    def select(self, index: Tensor) -> Operator:
        """Rows `index` of parameters given per sample (buffers such as mask, filter or coil_maps, of more than one row)."""
        held = {
            name: b for name, b in self.physics.named_buffers(recurse=False) if b.ndim >= 3 and self._rows > 1 and b.shape[0] == self._rows
        }
        if "filter" in held:
            # From which the physics computes the others.
            held = {"filter": held["filter"]}
        if not held:
            return self
        chosen = duplicate(self.physics)
        chosen.update(**{name: b[index.to(b.device)] for name, b in held.items()})
        other = type(self)(chosen, self.image_shape, self)  # type: ignore[call-arg]
        other._rows = len(index)
        return other


class WrappedOperator(_Wrapped):
    """A non-linear deepinv physics as an `Operator`; A and A_vjp are the physics' own."""

    def __init__(self, physics: Physics, image_shape: Sequence[int] | None = None, like: _Wrapped | None = None) -> None:
        super().__init__(image_shape)
        self._adopt(physics, like)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^T v by automatic differentiation; real for real x (deepinv's PhaseRetrieval.A_vjp gives complex there)."""
        return Operator.A_vjp(self, x, v)


class WrappedLinearOperator(_Wrapped, LinearOperator):
    """A linear deepinv physics as a `LinearOperator`.

    What the physics claims is tested on two random signals, of a fixed seed, as soon as the image shape is known: its adjoint
    against <A x, y> = <x, A^T y>, its closed-form prox (of decomposable physics, and of circular downsampling with a filter no
    larger than the image and a factor that divides its sides) against the equation that defines it, its pseudo-inverse against
    Penrose's four. A prox or pseudo-inverse that fails, such as where V V^T is not 1 (SinglePixelCamera(fast=False), Decolorize),
    is by our conjugate gradients instead, as any other, for deepinv's stop at 1e-4 by default; `closed_form` says so. An adjoint
    that fails is replaced by A's exact transpose, from autograd, with a warning.

    A physics that cannot compute in the precision of its input does so in its own; signals are real where its adjoint makes complex
    ones of them, and A_adjoint is the real part then.
    """

    def __init__(self, physics: LinearPhysics, image_shape: Sequence[int] | None = None, like: _Wrapped | None = None) -> None:
        LinearOperator.__init__(self, image_shape)
        self._found: _Found | None = None
        if isinstance(like, WrappedLinearOperator):
            self._found, self.closed_form, self.complex_signals = like._found, like.closed_form, like.complex_signals
        self._adopt(physics, like)

    def _circular(self, shape: tuple[int, ...]) -> bool:
        p = self.physics
        if not isinstance(p, Downsampling) or p.padding != "circular" or p.filter is None:
            return False
        sides, taps = shape[-2:], p.filter.shape[-2:]
        # With a filter larger than the image, deepinv 0.5's prox solves another problem (off by 100 % on 8x8, 15 taps).
        return all(n % p.factor == 0 and k <= n for n, k in zip(sides, taps, strict=True))

    def _try_out(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, w, y, z = tried = super()._try_out(shape)
        self._found = None
        exact, solved = claims.tolerances(self._mode(x).dtype)
        v = claims.signals(len(y), tuple(y.shape[1:]), "claims 3", precision(y), y.device, y.is_complex())
        back = self._ask("A_adjoint", v, images=0)
        self.complex_signals = not (back.is_complex() or self._mode(x).lifted)
        back = self._signal(back)
        nonlinearity = claims.nonlinearity(self._forward, x, w, y, z)
        mismatch = claims.mismatch(x, y, v, back)
        self._found = _Found(nonlinearity, mismatch <= exact, False, False)
        if nonlinearity > _ROUNDING:
            return tried
        if mismatch > exact:
            told = f"{type(self.physics).__name__}.A_adjoint is not the adjoint of its A (relative error {mismatch:.1e})"
            try:
                back = self._adjoint(v)
            except RuntimeError as error:
                raise ValueError(f"{told}, and A has no transpose by automatic differentiation: {error}") from error
            warnings.warn(f"{told}; the transpose of A by automatic differentiation is used instead", stacklevel=2)
        decomposable = isinstance(self.physics, DecomposablePhysics)
        prox, inverse = decomposable or self._circular(shape), decomposable
        if prox:
            prox = claims.attempt(lambda: claims.prox_error(self._forward, self._adjoint, self._own_prox, w, v, back)) <= solved
        if inverse:
            found = claims.attempt(lambda: claims.inverse_error(self._forward, self._own_inverse, x, w, y, v))
            inverse = found <= claims.INVERSE
        self.closed_form = prox
        self._found = _Found(nonlinearity, mismatch <= exact, prox, inverse)
        return tried

    def _checked(self, shape: Sequence[int]) -> _Found:
        """What was found of the physics, on images of this shape where none was known yet."""
        if self._found is None:
            known = self.image_shape
            with claims.quietly():
                self.image_shape = tuple(shape)
                try:
                    self._try_out(tuple(shape))
                finally:
                    self.image_shape = known
        assert self._found is not None
        if self._found.nonlinearity > _ROUNDING:
            raise ValueError(
                f"{type(self.physics).__name__} says that it is linear, but is not (relative error {self._found.nonlinearity:.1e});"
                " pass image_shape to as_operator, which then takes it as not linear"
            )
        return self._found

    def image_shape_for(self, y: Tensor) -> tuple[int, ...]:
        """As of any wrapper; ValueError if the physics is then found not to be linear."""
        shape = super().image_shape_for(y)
        self._checked(shape)
        return shape

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._found = None

    def _signal(self, x: Tensor) -> Tensor:
        return x.real if x.is_complex() and not self.complex_signals else x

    def _own_adjoint(self, y: Tensor) -> Tensor:
        return self._signal(self._ask("A_adjoint", y, images=0))

    def _own_prox(self, z: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
        return self._signal(self._ask("prox_l2", z, y, gamma))

    def _own_inverse(self, y: Tensor) -> Tensor:
        return self._signal(self._ask("A_dagger", y, images=0))

    def _adjoint(self, y: Tensor) -> Tensor:
        if self._found is not None and not self._found.adjoint and self.image_shape is not None:
            return transpose(self._forward, torch.zeros(len(y), *self.image_shape, dtype=precision(y), device=y.device), y)
        return self._own_adjoint(y)

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        closed = self._checked(z.shape[1:]).prox
        work = self._mode(z).dtype
        if not closed and work != precision(z):
            # Conjugate gradients cannot reach a tolerance beyond the precision in which the physics computes.
            given = gamma.to(work) if isinstance(gamma, Tensor) else gamma
            return super()._prox(z.to(work), self._mode(z).take(y, image=False), given).to(z.dtype)
        if not closed:
            return super()._prox(z, y, gamma)
        # deepinv divides by gamma.
        weight = torch.as_tensor(gamma, dtype=z.real.dtype, device=z.device)
        result = self._own_prox(z, y, torch.where(weight > 0, weight, 1.0))
        return torch.where(weight > 0, result, z)

    def _pseudo_inverse(self, y: Tensor, tol: float | None, max_iter: int) -> Tensor:
        if self._found is None:
            self._checked(self._own_adjoint(y[:1]).shape[1:])
        if self._found is not None and self._found.inverse:
            return self._own_inverse(y)
        mode = self._mode(y)
        return super()._pseudo_inverse(mode.take(y, image=False), tol, max_iter).to(precision(y))


def as_operator(obj: object, image_shape: Sequence[int] | None = None) -> Operator:
    """`obj` as an `Operator`: itself if it is one, else a wrapper around a copy of a `deepinv.physics.Physics`.

    Later changes to the physics are not seen by the wrapper, and the wrapper never changes it. `image_shape` is taken from
    the physics where it states one; otherwise it stays None, no shape is checked, and `image_shape_for(y)` finds it. As soon as
    it is known, what the physics claims is tested (`WrappedLinearOperator`); a `LinearPhysics` that is not linear (an affine
    one, with a background) is taken as an operator that is not, with a warning.

    Raises TypeError for any other object; ValueError if image_shape contradicts the operator's, and for a physics that cannot
    measure such images, measures them differently each time, or depends on what else is in the batch.
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
    known = stated_shape(obj)
    if known is not None and image_shape is not None and tuple(image_shape) != known:
        raise ValueError(f"image_shape {tuple(image_shape)} contradicts the physics' {known}")
    shape = known if image_shape is None else shape_of(image_shape)
    if not isinstance(obj, LinearPhysics):
        return WrappedOperator(obj, shape)
    linear = WrappedLinearOperator(obj, shape)
    error = 0.0 if linear._found is None else linear._found.nonlinearity
    if error <= _ROUNDING:
        return linear
    warnings.warn(
        f"{type(obj).__name__} says that it is linear, but is not (relative error {error:.1e}); it is taken as not linear", stacklevel=2
    )
    return WrappedOperator(obj, shape)
