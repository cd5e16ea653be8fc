"""What an item has to be before it is sampled: numbers on the scale of images, of a shape that the prior takes."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from invsolve.data.items import Item, check_truth, refusing
from invsolve.errors import ConfigError
from operators.core.files import native, one_line

Array = NDArray[Any]


def read_item(item: Item) -> tuple[Item, Array, str]:
    """The item as it was opened, its array, float32 or complex64, and the sha256 of what was read.

    Raises ConfigError, whatever the code of its source raises. Refused are what holds no numbers, NaN or infinity, or values beyond
    single precision, and a truth on another scale than [-1, 1].
    """
    if item.problem:
        raise ConfigError(item.problem)
    try:
        item = item.opened()
        array, digest = item.read()
    except ConfigError:
        raise
    except Exception as error:  # that of a dataset raises what it likes
        raise ConfigError(f"{item.path} cannot be read: {type(error).__name__}: {one_line(error)}") from error
    with refusing():
        found = native(array, f"{item.path}: {'y' if item.measured else 'x'}")
    if not item.measured and found.ndim == 3 and found.shape[0] != 2:  # complex images have any magnitude
        check_truth(found, f"{item.path}: x")
    return item, found, digest


def accept_any(accept: Callable[[Item, Array | None], Any], items: MutableSequence[Item]) -> None:
    """Raises the first refusal of ``accept`` where it accepts none of the items that can be read: then the configuration is wrong.

    What had to be read of an item to know its shape takes its place among ``items``, so that it is not read again.
    """
    refusal: ConfigError | None = None
    for k, item in enumerate(items):
        y = None
        if item.problem:
            continue
        if item.measured or item.image_shape is None:
            try:
                items[k], y, _ = read_item(item)
            except ConfigError as error:
                items[k] = item if item.filed else replace(item, problem=str(error))
                continue
        try:
            accept(items[k], y)
        except ConfigError as error:
            refusal = refusal or error
        else:
            return
    if refusal is not None:
        raise refusal


def shape_for(prior: Any, name: str, item: Item, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape at which the prior ``name`` takes an item of ``shape``: of one channel where it is grey and the prior wants that.

    Raises ConfigError.
    """
    refuse = getattr(prior, "image_shape_ok", lambda shape: None)
    try:
        refuse(shape)
    except ValueError as error:
        key = "data.image_shape" if item.measured else "data.size"
        one = (1, *shape[1:])
        if not item.measured and shape[0] == 3 and _takes(refuse, one):
            if item.grey:
                return one
            key = "data.channels=1, which reads colour as grey"
        raise ConfigError(f"{item.id}: prior {name}: {error}; set {key}") from error
    return shape


def _takes(refuse: Any, shape: tuple[int, ...]) -> bool:
    try:
        refuse(shape)
    except ValueError:
        return False
    return True


def check_measured(item: Item, y: Array, operator: Any, name: str, noise: Any) -> None:
    """Raises ConfigError for a y that the operator ``name`` cannot have given, nor the noise: complex, or bytes."""
    if np.iscomplexobj(y):
        if not operator.A(torch.zeros(1, *operator.image_shape)).is_complex():
            advice = "complex values are two real channels, np.stack([y.real, y.imag])"
            raise ConfigError(f"{item.path}: y is complex, but {name} measures real numbers; {advice}")
    # Noise that does not count leaves no whole numbers.
    elif not noise.intensity and y.size and float(np.abs(y).max()) > 1 and bool((y == np.round(y)).all()):
        held = f"whole numbers from {float(y.min()):g} to {float(y.max()):g}, as bytes and counts are"
        raise ConfigError(f"{item.path}: y holds {held}; y is in the units of images in [-1, 1] (bytes 0..255 as y / 127.5 - 1)")
