"""Ranges and channels of a signal: how it is looked at and compared, in [0, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def as_shown(image: Any) -> Any:
    """An image (C, H, W), array or tensor, as it is looked at and compared, (1 or 3, H, W).

    A complex one (two channels) becomes its magnitude, 0 at -1 and 1 at 1, as [0, 1] is elsewhere; others stay as they are.
    """
    return 2 * (image[:1] ** 2 + image[1:] ** 2) ** 0.5 - 1 if image.shape[0] == 2 else image


def magnitude(values: Array) -> Array:
    """Root mean square over channels, (C, H, W) -> (H, W)."""
    found: Array = np.sqrt(np.mean(np.square(values.astype(np.float64)), axis=0))
    return found


def unit_range(image: Tensor) -> Tensor:
    """An image (C, H, W) as metrics see it, (1, 1 or 3, H, W): clipped to [0, 1], a complex one as its magnitude."""
    shown: Tensor = as_shown(image)
    return ((shown[None] + 1) / 2).clamp(0, 1)
