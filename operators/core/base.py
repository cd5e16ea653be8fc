"""The two base classes of forward operators: what every measurement model offers."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from deepinv.physics import LinearPhysics, Physics
from deepinv.physics.noise import ZeroNoise
from torch import Tensor

from operators.core.noise import GaussianNoise, Noise
from operators.core.picture import as_picture, is_picture
from operators.core.solve import conjugate_gradient
from operators.core.streams import generator
from operators.core.tensors import per_sample, pull_back, shape_of


def _same(x: Tensor) -> Tensor:
    return x


class Operator(Physics):
    """A deterministic measurement map A from signals (B, *image_shape), images in [-1, 1], to (B, *measurement_shape).

    A subclass sets its shapes through this constructor, keeps its tensors as float64 buffers (`register_buffer`), writes
    `_forward`, and reads buffers through `self._as(name, like)`, which gives them in the precision and on the device of the
    input. `restrict`, `measured`, `view` and `select` have defaults for operators that measure every entry.

    It is a `deepinv.physics.Physics` (`op(x)`, `op.A`, `op.A_vjp`, ...), with these differences: the constructor takes plain
    values, parameters cannot be passed to `A`, buffers keep float64 whatever `.to(dtype)` asks (the input decides the
    precision of the result), and objects can be pickled and deep-copied.

    Raises ValueError for an image_shape that is not positive integers, and on any call with a tensor of the wrong shape.
    """

    linear: ClassVar[bool] = False
    picklable: ClassVar[bool] = True
    # Whether A_vjp is a stand-in for a derivative that is zero or does not exist: that of `surrogate`, not of A.
    straight_through: bool = False
    # Whether A takes complex signals too: elsewhere one is refused, as half of it could be lost without a word.
    complex_signals: bool = False
    # Whether A(u) is what reaches the sensor for light u in [0, 1], which Poisson noise counts; not where A converts from [-1, 1].
    takes_light: bool = True

    def __init__(self, image_shape: Sequence[int] | None, measurement_shape: Sequence[int] | None = None, **physics: Any) -> None:
        # deepinv's defaults are lambdas, which cannot be pickled.
        super().__init__(A=_same, sensor_model=_same, noise_model=ZeroNoise(noise_model=_same), **physics)
        self.image_shape: Any = None if image_shape is None else shape_of(image_shape)
        self.measurement_shape: Any = None if measurement_shape is None else shape_of(measurement_shape)
        self.img_size = self.image_shape
        self.ids: tuple[int | str, ...] | None = None
        self._casts: dict[tuple[str, torch.dtype, torch.device], tuple[Tensor, int, Tensor]] = {}

    # -- what a subclass writes -------------------------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _forward(x)")

    def restrict(self, y: Tensor) -> Tensor:
        """y (B, *measurement_shape) with entries that are not measured set to zero; y itself when all are measured."""
        return y

    @property
    def measured(self) -> int:
        """Number of scalar entries really measured per sample."""
        return math.prod(self.measurement_shape)

    def view(self, y: Tensor) -> Tensor:
        """Picture (B, 1 or 3, H, W) in [-1, 1] of a measurement y: clamped if it is an image, else a normalised raster."""
        return as_picture(y)

    def select(self, index: Tensor) -> Operator:
        """The operator for rows `index` of the batch; itself, as parameters are shared by all samples."""
        return self

    def for_ids(self, ids: Sequence[int | str]) -> Operator:
        """The operator for a batch whose sample b has the name ids[b]; itself, as parameters are shared by all samples.

        One that draws parameters per sample (`Inpainting(per_image=True)`) draws them here, from its seed and each id alone,
        and returns an operator with `ids` set, whose `select` picks rows. `measure` calls it.
        """
        return self

    def surrogate(self, x: Tensor) -> Tensor:
        """The map whose derivative A_vjp is: A itself, unless `straight_through`."""
        return self.A(x)

    def align(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """The signal nearest to `reference` among those that A cannot tell from `estimate`, both (B, *image_shape).

        For comparing and averaging reconstructions where A has symmetries (phase retrieval); here `estimate` itself.
        """
        return estimate

    # -- the map ----------------------------------------------------------------------------------------------------------

    def A(self, x: Tensor) -> Tensor:
        """Noise-free measurement A(x), (B, *image_shape) -> (B, *measurement_shape); ValueError on another shape."""
        self._expect_signal(x, "x")
        return self._forward(x)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J(x)^T v, the adjoint of the Jacobian of A at x (B, *image_shape) applied to v (B, *measurement_shape)."""
        self._expect(v, self.measurement_shape, "v")
        return pull_back(self.A, x, v)

    def measure(self, x: Tensor, noise: float | Noise = 0.05, seed: int = 0, ids: Sequence[int | str] | None = None) -> Tensor:
        """Noisy measurement y (B, *measurement_shape) of x (B, *image_shape).

        A float `noise` is the standard deviation of Gaussian noise in image units ([-1, 1]); an object is called as
        `noise(op, x, generators)`. Sample b draws from `generator(seed, ids[b], "measurement")`, so its noise does not depend
        on the batch it is measured in, and is measured by `for_ids(ids)`. ids default to `self.ids`, or to 0..B-1.

        Raises ValueError for a wrong shape or if there is not one id per sample.
        """
        self._expect_signal(x, "x")
        default = range(x.shape[0]) if self.ids is None else self.ids
        names = list(default if ids is None else ids)
        if len(names) != x.shape[0]:
            raise ValueError(f"ids must name each of the {x.shape[0]} samples, got {len(names)}: {names}")
        model = GaussianNoise(float(noise)) if isinstance(noise, (int, float)) else noise
        return model(self.for_ids(names), x, [generator(seed, name, "measurement") for name in names])

    def image_shape_for(self, y: Tensor) -> tuple[int, ...]:
        """Shape (without batch) of the signals whose measurement is y: `image_shape`, where that is fixed."""
        shape: tuple[int, ...] = self.image_shape
        return shape

    def __matmul__(self, other: object) -> Operator:
        """`self @ other`, the operator x -> self(other(x)) (`operators.compose`); linear if both are."""
        if not isinstance(other, Physics):
            return NotImplemented
        from operators.core.composition import compose

        return compose(self, other)

    def __mul__(self, other: Any) -> Any:
        """deepinv's spelling of `self @ other`; with a foreign physics the result is deepinv's `ComposedPhysics`."""
        return self @ other if isinstance(other, Operator) else super().__mul__(other)

    def extra_repr(self) -> str:
        """The shapes, for `print`."""
        return f"{self.image_shape} -> {self.measurement_shape}"

    # -- shared machinery -------------------------------------------------------------------------------------------------

    def _expect(self, t: Tensor, shape: tuple[int, ...] | None, name: str) -> None:
        if shape is not None and tuple(t.shape[1:]) != shape:
            wanted = ", ".join(map(str, shape))
            raise ValueError(f"{type(self).__name__} expects {name} of shape (B, {wanted}), got {tuple(t.shape)}")
        if not (t.is_floating_point() or t.is_complex()):
            raise ValueError(f"{type(self).__name__} expects {name} in floating point, got {t.dtype}")

    def _expect_signal(self, t: Tensor, name: str) -> None:
        self._expect(t, self.image_shape, name)
        self._expect_real(t, name)

    def _expect_real(self, t: Tensor, name: str) -> None:
        if t.is_complex() and not self.complex_signals:
            hint = "complex images are two real channels (operators.to_channels)"
            raise ValueError(f"{type(self).__name__} expects a real {name}, got {t.dtype} of shape {tuple(t.shape)}; {hint}")

    def _as(self, name: str, like: Tensor) -> Tensor:
        """Buffer `name` in the real precision and on the device of `like`, converted once and remembered."""
        source: Tensor = getattr(self, name)
        dtype = like.real.dtype if like.is_complex() else like.dtype
        if source.dtype == dtype and source.device == like.device and not source.is_inference():
            return source
        if torch.compiler.is_compiling():
            return source.to(dtype=dtype, device=like.device)
        version = 0 if source.is_inference() else source._version
        key = (name, dtype, like.device)
        known = self._casts.get(key)
        if known is not None and known[0] is source and known[1] == version:
            return known[2]
        # A tensor made inside inference mode could not be used by autograd later.
        with torch.inference_mode(False), torch.no_grad():
            cast = source.to(dtype=dtype, device=like.device, copy=True)
        # Inside torch.func transforms the copy belongs to the transform and must not outlive it.
        if not torch._C._functorch.is_functorch_wrapped_tensor(cast):
            self._casts[key] = (source, version, cast)
        return cast

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Operator:
        """Move buffers without changing their dtype: a mask or kernel rounded by `.half()` could not be restored."""

        def move(t: Tensor) -> Tensor:
            if t.is_complex():
                # A cast to a real dtype would drop the imaginary part.
                return t.to(fn(t.real.new_empty(0)).device)
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(move, recurse)
        self._casts = {}
        return self

    def _with_buffers(self, **buffers: Tensor) -> Self:
        """A copy with other values of these buffers, all else shared."""
        other = copy.copy(self)
        other._buffers = {**self._buffers, **buffers}
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_casts": {}}


class LinearOperator(Operator, LinearPhysics):
    """A linear operator: adds the adjoint, the proximal map of the data term and the pseudo-inverse.

    A subclass writes `_forward` and `_adjoint`. Both solves then use conjugate gradients, per sample and to the stated
    tolerance (`operators.core.solve`), with at most `self.max_iter` iterations; a subclass that knows a closed form
    overrides `_prox` or `_pseudo_inverse` and sets `closed_form` or `closed_form_inverse` (see `operators.core.spectral`).
    """

    linear: ClassVar[bool] = True
    closed_form: bool = False
    closed_form_inverse: bool = False

    def __init__(self, image_shape: Sequence[int] | None, measurement_shape: Sequence[int] | None = None, max_iter: int = 2000) -> None:
        super().__init__(image_shape, measurement_shape, max_iter=max_iter, solver="CG")
        self.img_size = self.image_shape

    # -- what a subclass writes -------------------------------------------------------------------------------------------

    def _adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define _adjoint(y)")

    def _prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        system = functools.partial(self._shifted_normal, gamma=gamma)
        return conjugate_gradient(system, z + gamma * self._adjoint(y), start=z.detach(), max_iter=self.max_iter)

    def _pseudo_inverse(self, y: Tensor, tol: float | None, max_iter: int) -> Tensor:
        # Inverting an ill-posed A to the tolerance of the prox would take as many iterations as it has small singular values.
        goal = (1e-8 if y.dtype in (torch.float64, torch.complex128) else 1e-4) if tol is None else tol
        return conjugate_gradient(self._normal, self._adjoint(y), tol=goal, max_iter=max_iter)

    # -- the maps ---------------------------------------------------------------------------------------------------------

    def A_adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (B, *measurement_shape) -> (B, *image_shape); the exact transpose, differentiable in y."""
        self._expect(y, self.measurement_shape, "y")
        return self._adjoint(y)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """A^T v, the same at every x."""
        return self.A_adjoint(v)

    def prox_l2(self, z: Tensor | float | None, y: Tensor, gamma: float | Tensor) -> Tensor:
        """argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2, shape (B, *image_shape) (deepinv's convention for gamma).

        z is (B, *image_shape), a number that fills it, or None for zero; y is (B, *measurement_shape); gamma >= 0 is a float
        or a tensor with one value, or one per sample. Exact where `closed_form`, else by conjugate gradients to a relative
        residual of 1e-11 (float64) or 1e-6 (float32). Differentiable in z and y.

        Raises ValueError for wrong shapes or gamma; RuntimeError if conjugate gradients do not converge.
        """
        self._expect(y, self.measurement_shape, "y")
        if not isinstance(z, Tensor):
            z = torch.full_like(self._adjoint(y), 0.0 if z is None else float(z))
        self._expect_signal(z, "z")
        return self._prox(z, y, per_sample(gamma, z))

    def A_dagger(
        self, y: Tensor, solver: str = "CG", max_iter: int | None = None, tol: float | None = None, verbose: bool = False
    ) -> Tensor:
        """Least-squares solution A^+ y of minimal norm, (B, *measurement_shape) -> (B, *image_shape).

        Closed form where known, singular values below eps * max(sides) * largest counting as zero; else conjugate gradients
        on A^T A x = A^T y, for which `max_iter` and `tol` (relative, default 1e-8 in float64 and 1e-4 in float32) apply.
        `solver` and `verbose` are there because deepinv's callers pass them; they have no effect here.
        """
        self._expect(y, self.measurement_shape, "y")
        return self._pseudo_inverse(y, tol, self.max_iter if max_iter is None else max_iter)

    def view(self, y: Tensor) -> Tensor:
        """Picture of y: y itself if it is an image, else its back-projection A^T y scaled to [-1, 1] per sample."""
        if is_picture(y) or self.image_shape is None:
            return as_picture(y)
        return as_picture(self._adjoint(y), normalise=True)

    def _normal(self, x: Tensor) -> Tensor:
        return self._adjoint(self._forward(x))

    def _shifted_normal(self, x: Tensor, gamma: float | Tensor) -> Tensor:
        return x + gamma * self._normal(x)
