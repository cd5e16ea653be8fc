"""Super-resolution: bare decimation, and any circular kernel with decimation."""

from collections.abc import Callable

from operators import KernelDownsampling, Operator, SuperResolution

from . import rand

CASES: dict[str, Callable[[], Operator]] = {
    "decimate": lambda: SuperResolution((3, 8, 12), kind="decimate"),
    "decimate x3": lambda: SuperResolution((1, 9, 15), factor=3, kind="decimate"),
    "bicubic x2": lambda: SuperResolution((1, 12, 8), factor=2),
    "bicubic x8": lambda: SuperResolution((1, 16, 24), factor=8),
    "downsampling bicubic": lambda: KernelDownsampling((3, 16, 12)),
    "downsampling bicubic x3, odd": lambda: KernelDownsampling((1, 9, 15), factor=3, offset=1),
    "downsampling motion x2": lambda: KernelDownsampling((1, 8, 10), factor=2, kernel="motion", taps=7, seed=2),
    "downsampling motion x2, small image odd": lambda: KernelDownsampling((1, 10, 6), factor=2, kernel="motion", taps=5),
    "downsampling uniform, singular": lambda: KernelDownsampling((1, 12, 8), factor=2, kernel="uniform", taps=4, offset=1),
    "downsampling, one pixel left": lambda: KernelDownsampling((1, 4, 8), factor=4, kernel=rand(3, 2)),
    "downsampling x1 is a circular blur": lambda: KernelDownsampling((1, 6, 7), factor=1, kernel="gaussian", std=0.7),
}
