"""Operators made of operators: one after the other (`a @ b`), side by side (`stack`), and behind a decoder (`pullback`)."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from operators.core.adapter import as_operator
from operators.core.base import LinearOperator, Operator
from operators.core.custom import from_callable

_GAP = 2  # pixels between the pictures of a stacked measurement


def _measures(op: Operator, what: str) -> tuple[int, ...]:
    """The measurement shape of a part; ValueError if the operator does not know its image shape."""
    if op.image_shape is None:
        raise ValueError(f"{what} needs operators of known image_shape; that of {type(op).__name__} is unknown (as_operator takes one)")
    if op.measurement_shape is None:
        with torch.no_grad():
            return tuple(op.A(torch.zeros(1, *op.image_shape)).shape[1:])
    shape: tuple[int, ...] = op.measurement_shape
    return shape


class _Parts(Operator):
    """What compositions and stacks share: a list of operators as submodules, so that devices and states follow."""

    parts: Any  # an nn.ModuleList of operators

    def _adopt(self, parts: Sequence[Operator]) -> None:
        self.parts = nn.ModuleList(parts)
        # An attribute of the class elsewhere; here it depends on the parts.
        self.picklable = all(op.picklable for op in parts)  # type: ignore[misc]
        self.straight_through = any(op.straight_through for op in parts)
        self.complex_signals = all(op.complex_signals for op in parts)
        self.takes_light = all(op.takes_light for op in parts)
        bound = {op.ids for op in parts if op.ids is not None}
        if len(bound) > 1:
            raise ValueError(f"the parts are bound to different image ids: {', '.join(map(str, bound))}")
        self.ids = next(iter(bound), None)

    def _over(self, change: Callable[[Any], Operator]) -> Operator:
        """The same arrangement of changed parts; itself if none changes."""
        changed = [change(op) for op in self.parts]
        if all(new is old for new, old in zip(changed, self.parts, strict=True)):
            return self
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._adopt(changed)
        return other

    def select(self, index: Tensor) -> Operator:
        """The operator for rows `index` of the batch: each part's."""
        return self._over(lambda op: op.select(index))

    def for_ids(self, ids: Sequence[int | str]) -> Operator:
        """The operator for a batch with these image ids: each part's."""
        return self._over(lambda op: op.for_ids(ids))


class ComposedOperator(_Parts):
    """x -> A_k(... A_2(A_1(x))): (B, *image_shape of A_1) -> (B, *measurement_shape of A_k), `parts` in the order they act.

    Made by `compose` or `@`. `restrict`, `measured` and `view` are those of the last part. A_vjp is the chain rule with the
    parts' own, so that a part with a Jacobian of its own (straight-through) keeps it.

    Raises ValueError if a part does not take what the one before it gives.
    """

    def __init__(self, parts: Sequence[Operator]) -> None:
        shapes = _chained(parts)
        super().__init__(*shapes)
        self._adopt(parts)

    def _forward(self, x: Tensor) -> Tensor:
        for op in self.parts:
            x = op.A(x)
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        """The parts' surrogates, one after the other (exact where they are the parts themselves)."""
        for op in self.parts:
            x = op.surrogate(x)
        return x

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J_1^T ... J_k^T v, each J_i at the signal that reaches part i."""
        self._expect(v, self.measurement_shape, "v")
        reached = [x]
        for op in self.parts[:-1]:
            reached.append(op.A(reached[-1]))
        for op, at in zip(reversed(self.parts), reversed(reached), strict=True):
            v = op.A_vjp(at, v)
        return v

    def restrict(self, y: Tensor) -> Tensor:
        """y with the entries that the last part does not measure set to zero."""
        result: Tensor = self.parts[-1].restrict(y)
        return result

    @property
    def measured(self) -> int:
        """Number of entries that the last part measures."""
        count: int = self.parts[-1].measured
        return count

    def view(self, y: Tensor) -> Tensor:
        """The last part's picture of y."""
        picture: Tensor = self.parts[-1].view(y)
        return picture


class ComposedLinearOperator(ComposedOperator, LinearOperator):
    """x -> A_k ... A_1 x of linear parts: exact adjoint A_1^T ... A_k^T, prox and pseudo-inverse by conjugate gradients.

    Raises ValueError as `ComposedOperator`, and if a part is not linear.
    """

    def __init__(self, parts: Sequence[Operator]) -> None:
        LinearOperator.__init__(self, *_chained(parts), max_iter=_linear(parts))
        self._adopt(parts)

    def _adjoint(self, y: Tensor) -> Tensor:
        for op in reversed(self.parts):
            y = op.A_adjoint(y)
        return y

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """A^T v, the same at every x."""
        return self.A_adjoint(v)


class StackedOperator(_Parts):
    """x -> (A_1(x), ..., A_k(x)), all of the same x: (B, *image_shape) -> (B, m_1 + ... + m_k), flattened and joined.

    `split(y)` gives the measurements of the parts in their own shapes, `join` the inverse. Entries that a part does not
    measure stay hidden. Complex and real measurements are not mixed.

    Raises ValueError for no parts or parts of different image_shape, and on use if some measurements are complex, some real.
    """

    def __init__(self, parts: Sequence[Operator]) -> None:
        shapes = _side_by_side(parts)
        super().__init__(parts[0].image_shape, (sum(map(math.prod, shapes)),))
        self._adopt(parts)
        self.shapes = shapes

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements (B, *measurement_shape) of the parts in y (B, m)."""
        pieces = y.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [piece.reshape(-1, *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def join(self, measurements: Sequence[Tensor]) -> Tensor:
        """One y (B, m) from a measurement (B, *measurement_shape) of each part; ValueError for complex ones beside real ones."""
        if len({y.is_complex() for y in measurements}) > 1:
            both = zip(self.parts, measurements, strict=True)
            found = ", ".join(f"{type(op).__name__} {'complex' if y.is_complex() else 'real'}" for op, y in both)
            raise ValueError(f"complex and real measurements cannot be stacked, got {found}")
        return torch.cat([y.flatten(1) for y in measurements], dim=1)

    def _each(self, y: Tensor) -> list[tuple[Any, Tensor]]:
        return list(zip(self.parts, self.split(y), strict=True))

    def _forward(self, x: Tensor) -> Tensor:
        return self.join([op.A(x) for op in self.parts])

    def surrogate(self, x: Tensor) -> Tensor:
        """The parts' surrogates, joined."""
        return self.join([op.surrogate(x) for op in self.parts])

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Sum of the parts' J_i(x)^T v_i."""
        self._expect(v, self.measurement_shape, "v")
        return torch.stack([op.A_vjp(x, piece) for op, piece in self._each(v)]).sum(0)

    def restrict(self, y: Tensor) -> Tensor:
        """y with the entries that its part does not measure set to zero."""
        return self.join([op.restrict(piece) for op, piece in self._each(y)])

    @property
    def measured(self) -> int:
        """Number of entries that the parts measure together."""
        return sum(int(op.measured) for op in self.parts)

    def view(self, y: Tensor) -> Tensor:
        """The parts' pictures side by side, top-aligned on mid-grey."""
        pictures = [op.view(piece) for op, piece in self._each(y)]
        channels, height = max(p.shape[1] for p in pictures), max(p.shape[2] for p in pictures)
        last = len(pictures) - 1
        padded = [
            nn.functional.pad(p.expand(-1, channels, -1, -1), (0, _GAP if k < last else 0, 0, height - p.shape[2]))
            for k, p in enumerate(pictures)
        ]
        return torch.cat(padded, dim=3)


class StackedLinearOperator(StackedOperator, LinearOperator):
    """x -> (A_1 x, ..., A_k x) of linear parts: adjoint sum of A_i^T y_i, prox and pseudo-inverse by conjugate gradients.

    Raises ValueError as `StackedOperator`, and if a part is not linear.
    """

    def __init__(self, parts: Sequence[Operator]) -> None:
        shapes = _side_by_side(parts)
        LinearOperator.__init__(self, parts[0].image_shape, (sum(map(math.prod, shapes)),), max_iter=_linear(parts))
        self._adopt(parts)
        self.shapes = shapes

    def _adjoint(self, y: Tensor) -> Tensor:
        return torch.stack([op.A_adjoint(piece) for op, piece in self._each(y)]).sum(0)

    def A_vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """A^T v, the same at every x."""
        return self.A_adjoint(v)


def _linear(parts: Sequence[Operator]) -> int:
    """The largest max_iter of linear parts; ValueError if one is not linear."""
    for op in parts:
        if not isinstance(op, LinearOperator):
            raise ValueError(f"{type(op).__name__} is not linear")
    return max(int(op.max_iter) for op in parts)


def _chained(parts: Sequence[Operator]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(image shape, measurement shape) of parts in the order they act."""
    if not parts:
        raise ValueError("a composition needs at least one operator")
    shapes = [_measures(op, "a composition") for op in parts]
    for before, given, op in zip(parts, shapes, parts[1:], strict=False):
        if op.image_shape != given:
            raise ValueError(f"{type(op).__name__} acts on signals {op.image_shape}, but {type(before).__name__} before it gives {given}")
    return parts[0].image_shape, shapes[-1]


def _side_by_side(parts: Sequence[Operator]) -> list[tuple[int, ...]]:
    """The measurement shapes of parts that act on the same signals."""
    if not parts:
        raise ValueError("a stack needs at least one operator")
    shapes = [_measures(op, "a stack") for op in parts]
    if len({op.image_shape for op in parts}) > 1:
        found = ", ".join(f"{type(op).__name__} {op.image_shape}" for op in parts)
        raise ValueError(f"stacked operators must act on signals of one shape, got {found}")
    return shapes


def _as_operators(ops: Sequence[object]) -> list[Operator]:
    return [as_operator(op) for op in ops]


def compose(*ops: Any) -> Operator:
    """The operator x -> ops[0](ops[1](... x)), the last one acting first, as in mathematics; also `a @ b`.

    Each of `ops` is an `Operator` or a deepinv physics of known image shape. All linear: a `LinearOperator` with the exact
    adjoint, its solves by conjugate gradients; otherwise a non-linear one. Compositions inside are flattened. The parts are
    shared, not copied. (deepinv's `compose(a, b)` lets the first act first; its `a * b` is our `a @ b`.)

    Raises ValueError naming the shapes if a part does not take what the next gives; TypeError for other objects.
    """
    parts: list[Operator] = []
    for op in reversed(_as_operators(ops)):
        parts += op.parts if isinstance(op, ComposedOperator) else [op]
    kind = ComposedLinearOperator if all(isinstance(op, LinearOperator) for op in parts) else ComposedOperator
    return kind(parts)


def stack(*ops: Any) -> Operator:
    """The operator x -> (ops[0](x), ops[1](x), ...), measurements flattened and joined into (B, m_1 + m_2 + ...).

    Each of `ops` is an `Operator` or a deepinv physics of known image shape; linear if all are (`StackedLinearOperator`),
    else a `StackedOperator`. See there for `split` and `join`. The parts are shared, not copied.

    Raises ValueError as `StackedOperator`; TypeError for other objects.
    """
    parts = _as_operators(ops)
    kind = StackedLinearOperator if all(isinstance(op, LinearOperator) for op in parts) else StackedOperator
    return kind(parts)


def pullback(op: Any, decode: Callable[[Tensor], Tensor], latent_shape: Sequence[int]) -> Operator:
    """The non-linear operator z -> op(decode(z)), (B, *latent_shape) -> (B, *measurement_shape).

    `decode` maps (B, *latent_shape) to images (B, *image_shape): a network (a private frozen copy is taken) or any function
    that autograd can differentiate, such as a prior's `decode`. Where it scales its output, sigma keeps the units of y.

    Raises ValueError if decode does not give op's image_shape.
    """
    return compose(op, from_callable(decode, latent_shape))


def _build(part: str | Mapping[str, Any], shape: Sequence[int], place: int) -> Operator:
    """The operator of one entry of a configured list: a name, or a mapping with `name` and the constructor's values."""
    from operators import OPERATORS, find

    values: dict[str, Any] = {"name": part} if isinstance(part, str) else dict(part)
    name = values.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"parts[{place}] needs a name, got {part!r}; known: {', '.join(sorted(OPERATORS))}")
    factory = find(OPERATORS, name)
    try:
        inspect.signature(factory).bind(image_shape=shape, **values)
    except TypeError as error:
        raise ValueError(f"parts[{place}] ({name}): {error}") from error
    op: Operator = factory(image_shape=shape, **values)
    return op


def compose_parts(image_shape: Sequence[int], parts: Sequence[str | Mapping[str, Any]]) -> Operator:
    """Operators one after the other, the first listed acting first: parts=[{name: gaussian_blur, std: 1.0}, ...].

    Each entry is a name of `OPERATORS` or a mapping of `name` and the values of its constructor; it is built for the
    measurement shape of the one before. In Python, `b @ a` is the same as parts=[a, b]. Linear if all parts are.

    Raises ValueError for an unknown name or value, no parts, or a part that cannot take what the one before gives.
    """
    shape: tuple[int, ...] = tuple(image_shape)
    built: list[Operator] = []
    for place, part in enumerate(parts):
        built.append(_build(part, shape, place))
        shape = _measures(built[-1], "a composition")
    return compose(*reversed(built))


def stack_parts(image_shape: Sequence[int], parts: Sequence[str | Mapping[str, Any]]) -> Operator:
    """Several operators on the same image, their measurements joined: parts=[{name: inpainting, size: 16}, ...].

    Each entry is a name of `OPERATORS` or a mapping of `name` and the values of its constructor. The measurement is flat,
    (B, m_1 + m_2 + ...); see `StackedOperator`. Linear if all parts are.

    Raises ValueError for an unknown name or value, or no parts.
    """
    return stack(*(_build(part, tuple(image_shape), place) for place, part in enumerate(parts)))
