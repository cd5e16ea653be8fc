"""High dynamic range: the measurement is overexposed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from operators.core.base import Operator
from operators.core.tensors import shape_of


class HDR(Operator):
    """Overexposure, y = clip(scale x, -1, 1) entry by entry: (B, *image_shape) -> (B, *image_shape), nonlinear.

    scale=2 is the HDR task of DAPS (Zhang et al., arXiv:2407.01521, App. D) and RED-diff. The derivative is `scale` where
    |scale x| <= 1 and exactly zero where it is clipped: a guided sampler gets no information from a pixel whose estimate is
    clipped, also where y is not, so an estimate that starts out saturated stays so as far as the data go.

    Raises ValueError if scale is not a finite number > 0.
    """

    takes_light = False

    def __init__(self, image_shape: Sequence[int], scale: float = 2.0) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a finite number > 0, got {scale!r}")
        super().__init__(shape_of(image_shape), image_shape)
        self.scale = float(scale)

    def _forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).clamp(-1, 1)
