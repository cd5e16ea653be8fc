"""A non-linear blur that needs no trained network: motion seen by a camera with a tone curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from operators.blur.blur import Blur
from operators.core.base import Operator


def smooth_power(v: Tensor, power: float, toe: float) -> Tensor:
    """v ((v^2 + toe^2) / (1 + toe^2))^((power - 1) / 2): sign(v) |v|^power for |v| well above `toe`, linear below.

    Odd, increasing and infinitely differentiable on all reals for power > 0, with value 1 at 1.
    """
    return v * ((v * v + toe * toe) / (1 + toe * toe)) ** ((power - 1) / 2)


class NonlinearBlur(Operator):
    """Camera shake recorded by a camera: motion in linear light, sensor saturation, gamma. (B, C, H, W) -> (B, C, H, W).

    With u = (x + 1) / 2 the steps are light v = u^gamma; the exposure's average k * v over the camera's path, times
    `exposure`; a sensor that saturates smoothly at 1, v - (softplus(knee (v - 1)) - softplus(-knee)) / knee with knee 10;
    and back by v^(1 / gamma) and 2 v - 1. Lights bleed as they do in photographs: a bright point leaves a bright streak,
    which a blur of the gamma-encoded values would dim. Powers become linear below u = 0.05 (`smooth_power`, as sRGB's toe
    does) and are odd, so A is infinitely differentiable at all real x, also outside [-1, 1]; measurements stay below about 1.

    What it is not: the learned blur of DPS and DAPS (the BKS kernel-conditioned network of Tran et al., arXiv:2104.00317, a
    checkpoint that cannot be shipped). It takes that operator's place in experiments, being non-linear, of no known
    inverse, and fixed by `seed` (theirs draws a new kernel at every call in DPS); numbers are not comparable. A network of
    your own is taken by the adapter of user functions.

    `kernel`, `boundary`, `taps`, `intensity` and `seed` are those of `Blur`, which does the convolution (taps default to 31).
    Raises ValueError for what `Blur` refuses, and for gamma or exposure that are not finite and > 0.
    """

    takes_light = False
    toe = 0.05
    knee = 10.0

    def __init__(
        self,
        image_shape: Sequence[int],
        kernel: str | Path | Tensor = "motion",
        boundary: str = "reflect",
        taps: int | None = None,
        intensity: float | None = None,
        gamma: float = 2.2,
        exposure: float = 1.0,
        seed: int = 0,
    ) -> None:
        for name, value in (("gamma", gamma), ("exposure", exposure)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, got {value!r}")
        if kernel == "motion" and taps is None:
            taps = 31
        blur = Blur(image_shape, kernel, boundary, taps=taps, intensity=intensity, seed=seed)
        super().__init__(image_shape, blur.measurement_shape)
        self.blur = blur
        self.gamma, self.exposure = gamma, exposure

    def _forward(self, x: Tensor) -> Tensor:
        light = smooth_power((x + 1) / 2, self.gamma, self.toe)
        seen = self.exposure * self.blur._forward(light)
        beyond = torch.nn.functional.softplus(self.knee * (seen - 1)) - math.log1p(math.exp(-self.knee))
        seen = seen - beyond / self.knee
        return 2 * smooth_power(seen, 1 / self.gamma, self.toe**self.gamma) - 1
