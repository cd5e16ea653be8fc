"""Your own operator: from a function or a network (`from_callable`), or by name from a file of yours (`custom_operator`)."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from operators.core.adapter import as_operator
from operators.core.base import LinearOperator, Operator
from operators.core.streams import generator
from operators.core.tensors import shape_of, transpose
from operators.core.trust import Untrusted, code_is_refused

Map = Callable[[Tensor], Tensor]


def _can_be_pickled(fn: object) -> bool:
    """False for functions that pickle cannot find by name (lambdas, closures), also inside partials and methods."""
    if isinstance(fn, functools.partial):
        return _can_be_pickled(fn.func)
    if isinstance(fn, types.MethodType):
        return _can_be_pickled(fn.__self__)
    if not isinstance(fn, types.FunctionType):
        return True
    found: Any = sys.modules.get(fn.__module__)
    for name in fn.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is fn


class _Function(Operator):
    """What the operators around a function share: calling it in the precision of the input, and refusing what it returns."""

    def _install(self, fn: Map, dtype: torch.dtype) -> None:
        """Keeps the function (of a network a private frozen copy) and finds the measurement shape with one sample."""
        if not callable(fn):
            raise TypeError(f"expected a function or a torch.nn.Module from (B, ...) to (B, ...), got {type(fn).__name__}")
        self.network = copy.deepcopy(fn).eval().requires_grad_(False) if isinstance(fn, nn.Module) else None
        self.function = None if isinstance(fn, nn.Module) else fn
        self.picklable = _can_be_pickled(fn)  # type: ignore[misc]
        with torch.no_grad():
            y = self._call(torch.zeros(1, *self.image_shape, dtype=dtype))
        self.measurement_shape, self.gives_complex = tuple(y.shape[1:]), y.is_complex()

    def _call(self, x: Tensor) -> Tensor:
        # The precision of the input decides; autocast would round inside.
        with torch.autocast(x.device.type, enabled=False):
            y: Any = self.function(x) if self.function is not None else self._apply_network(x)
        name = type(self.network).__name__ if self.function is None else getattr(self.function, "__name__", type(self.function).__name__)
        if not isinstance(y, Tensor):
            raise ValueError(f"{name} gave a {type(y).__name__}; a tensor (B, ...) is needed")
        if y.ndim < 2 or y.shape[0] != x.shape[0]:
            raise ValueError(
                f"{name} gave {tuple(y.shape)} for a batch of {x.shape[0]}; the first axis must be the batch, with more after it"
            )
        return y

    def _apply_network(self, x: Tensor) -> Tensor:
        assert self.network is not None
        network = self.network
        held = itertools.chain(network.named_parameters(), network.named_buffers())
        moved = {name: t.to(device=x.device, dtype=x.dtype if t.is_floating_point() else t.dtype) for name, t in held}
        result: Tensor = torch.func.functional_call(network, moved, (x,))
        return result

    def _forward(self, x: Tensor) -> Tensor:
        return self._call(x)


class CallableOperator(_Function):
    """y = fn(x) for any function of tensors that autograd can differentiate: (B, *image_shape) -> whatever fn gives.

    fn acts on each sample of the batch alone, is deterministic, and computes in the precision of its input. Source of the
    Jacobian: automatic differentiation. `operators.check` tests all of that.

    Args:
        image_shape: of one sample, images in [-1, 1].
        fn: the function, or a `torch.nn.Module`, of which a private frozen copy in evaluation mode is taken.
        dtype: precision of the one call made here, with zeros, to find the measurement shape.

    Raises TypeError if fn cannot be called; ValueError if it does not give a tensor (B, ...).
    """

    # Behind a map that gives complex values fn may be a modulus.
    complex_signals = True

    def __init__(self, image_shape: Sequence[int], fn: Map, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(shape_of(image_shape))
        self._install(fn, dtype)


class NetworkOperator(CallableOperator):
    """y = network(x), a frozen copy of a trained network: moves with `.to(device)`, is in the state dict, can be pickled.

    Weights keep the precision they have and are converted at each call to that of the input, where it is another one.
    Parameters and refusals as `CallableOperator`; TypeError for anything but a `torch.nn.Module`.
    """

    def __init__(self, image_shape: Sequence[int], network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, got {type(network).__name__}; other callables go to from_callable")
        super().__init__(image_shape, network, dtype)


class CallableLinearOperator(_Function, LinearOperator):
    """y = fn(x) for a linear function; its adjoint is the vector-Jacobian product of fn at zero, which is exact.

    Solves by conjugate gradients. Parameters as `CallableOperator`. At construction fn is tested on two random signals:
    fn(0) = 0, fn(100 x - 30 w) = 100 fn(x) - 30 fn(w), and the dot-product test of the derived adjoint, which fails where fn
    leaves autograd (through numpy, `.data`, `detach`). Relative errors must stay below 1e-4 (float32) or 1e-9 (float64).

    Raises ValueError with the error that was found if fn is not linear or its adjoint is wrong, and as `CallableOperator`.
    """

    def __init__(self, image_shape: Sequence[int], fn: Map, dtype: torch.dtype = torch.float32) -> None:
        LinearOperator.__init__(self, shape_of(image_shape))
        self._install(fn, dtype)
        self._refuse_other_maps(dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        real = y.real.dtype if y.is_complex() else y.dtype
        if self.gives_complex and not y.is_complex():
            y = y + 0j
        return transpose(self._call, torch.zeros(y.shape[0], *self.image_shape, dtype=real, device=y.device), y)

    def _refuse_other_maps(self, dtype: torch.dtype) -> None:
        rng = generator(0, "linearity")
        x, w = torch.randn(2, 1, *self.image_shape, generator=rng, dtype=torch.float64).to(dtype)
        bound = 1e-9 if dtype == torch.float64 else 1e-4
        with torch.no_grad():
            y, z, zero = self._call(x), self._call(w), self._call(torch.zeros_like(x))
            size = float((y.abs().square().sum() + z.abs().square().sum()).sqrt())
            offset = float(torch.linalg.vector_norm(zero)) / (size or 1.0)
            gap = float(torch.linalg.vector_norm(self._call(100 * x - 30 * w) - (100 * y - 30 * z))) / (100 * size or 1.0)
        if not (offset <= bound and gap <= bound):
            raise ValueError(
                f"the function is not linear: relative errors {offset:.1e} in f(0) = 0 and {gap:.1e} in f(a x + b w) = a f(x) + b f(w), "
                f"bound {bound:.0e}; leave out linear=True (affine maps: subtract f(0) from y)"
            )
        try:
            left, right = float((z.conj() * y).real.sum()), float((x * self._adjoint(z)).sum())
        except RuntimeError as error:
            raise ValueError(f"the adjoint of the function cannot be derived by autograd: {error}") from error
        if not abs(left - right) <= bound * size**2:
            raise ValueError(
                f"<A x, y> = {left:.6g} but <x, A^T y> = {right:.6g}: autograd does not see all of the function "
                "(does it leave torch, or detach?)"
            )


def from_callable(fn: Map, image_shape: Sequence[int], linear: bool = False, dtype: torch.dtype = torch.float32) -> Operator:
    """Any callable as an operator: non-linear by autograd, or with linear=True a `LinearOperator` with the derived adjoint.

    `fn` maps (B, *image_shape) to (B, ...), each sample alone; a `torch.nn.Module` is taken as a private frozen copy.
    `dtype` is the precision of the calls made here: one for the measurement shape, a few for the test of linearity.

    Raises TypeError if fn cannot be called, ValueError if it gives no tensor (B, ...) or is not linear where that is claimed.
    """
    if linear:
        return CallableLinearOperator(image_shape, fn, dtype)
    if isinstance(fn, nn.Module):
        return NetworkOperator(image_shape, fn, dtype)
    return CallableOperator(image_shape, fn, dtype)


def _load_file(path: Path) -> types.ModuleType:
    """The module of a file; loaded again only after the file changed, as pickle compares classes by identity."""
    path = path.resolve()
    name = f"operator_file_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}_{path.stem}"
    stamp = hashlib.blake2b(path.read_bytes()).hexdigest()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "_operator_file_stamp", None) == stamp:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    module._operator_file_stamp = stamp  # type: ignore[attr-defined]
    return module


def load_target(target: str) -> Any:
    """The object named "package.module:attribute" or "path/to/file.py:attribute". This executes that module's code.

    Raises ValueError for another spelling, a missing file, module or attribute, and code that fails when imported; `Untrusted`
    inside `operators.core.trust.without_code`, before anything is looked at.
    """
    if code_is_refused():
        raise Untrusted(f"{target} is code, which nothing executes where a run is only read (allow it with --trust, trust=True)")
    place, colon, attribute = target.rpartition(":")
    if not colon or not place or not attribute:
        raise ValueError(f"target must be package.module:attribute or path/to/file.py:attribute, got {target!r}")
    is_file = place.endswith(".py")
    if is_file and not Path(place).expanduser().is_file():
        raise ValueError(f"no such file: {place}")
    try:
        module = _load_file(Path(place).expanduser()) if is_file else importlib.import_module(place)
    except Exception as error:  # whatever the user's code raises
        hint = "; a file in this folder is written file.py:attribute" if isinstance(error, ModuleNotFoundError) and not is_file else ""
        raise ValueError(f"importing {place} raised {type(error).__name__}: {error}{hint}") from error
    if not hasattr(module, attribute):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(f"{place} has no {attribute!r}; it has: {', '.join(known) or 'nothing callable'}")
    return getattr(module, attribute)


def custom_operator(image_shape: Sequence[int], target: str, **options: Any) -> Operator:
    """Your own operator, made by target="my_file.py:make" or "package.module:make" (a function or a class).

    Calls make(image_shape=..., **options); in a configuration the options stand beside `target`, under the names and
    types of make's signature. It returns an `Operator` (`from_callable` makes one from any function) or a deepinv physics.
    This executes the code of that file: name none that you do not trust.

    Raises ValueError if the target cannot be loaded, refuses the options, or returns anything else.
    """
    make = load_target(target)
    if not callable(make):
        raise ValueError(f"{target} is a {type(make).__name__}; a function or class is needed that takes image_shape")
    try:
        inspect.signature(make).bind(image_shape=image_shape, **options)
    except TypeError as error:
        raise ValueError(f"{target}: {error}; it is called as make(image_shape=..., **options)") from error
    try:
        made = make(image_shape=tuple(image_shape), **options)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{target} raised {type(error).__name__}: {error}") from error
    try:
        op = as_operator(made, None if isinstance(made, Operator) else image_shape)
    except TypeError as error:
        raise ValueError(f"{target} returned a {type(made).__name__}: {error}; from_callable turns a function into one") from error
    if op.image_shape != tuple(image_shape):
        raise ValueError(f"{target} returned an operator for images {op.image_shape}, asked for {tuple(image_shape)}")
    return op
