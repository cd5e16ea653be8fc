"""Blurs: any kernel under every boundary, kernels that vary over the image, and the non-linear one."""

from collections.abc import Callable

from operators import Blur, GaussianBlur, NonlinearBlur, Operator, SpaceVaryingBlur
from operators.blur.convolution import CircularConvolution
from operators.blur.kernels import make_kernel

from . import rand

CASES: dict[str, Callable[[], Operator]] = {
    "motion circular, odd": lambda: Blur((3, 9, 11), taps=7, seed=1),
    "motion circular, kernel larger than image": lambda: CircularConvolution((1, 8, 6), make_kernel("motion", 0, taps=21, intensity=1.0)),
    "motion reflect": lambda: Blur((3, 8, 9), boundary="reflect", taps=7),
    "motion zero": lambda: Blur((1, 9, 10), boundary="zero", taps=9, seed=3),
    "motion valid": lambda: Blur((1, 9, 10), boundary="valid", taps=5),
    "uniform circular, even taps, singular": lambda: Blur((1, 8, 12), kernel="uniform", taps=4),
    "uniform zero, even taps": lambda: Blur((1, 6, 9), kernel="uniform", boundary="zero", taps=4),
    "anisotropic reflect": lambda: Blur((1, 9, 8), kernel="gaussian", boundary="reflect", std=[1.4, 0.5], angle=30.0),
    "disk zero": lambda: Blur((1, 6, 7), kernel="disk", boundary="zero", radius=2.2),
    "given kernel circular, one column": lambda: Blur((1, 7, 1), kernel=rand(3, 1)),
    "given kernel reflect, even sides": lambda: Blur((1, 5, 8), kernel=rand(4, 6) - 0.5, boundary="reflect"),
    "given kernel valid, one pixel left": lambda: Blur((1, 4, 6), kernel=rand(4, 6), boundary="valid", normalise=True),
    "blur zero": lambda: GaussianBlur((1, 9, 8), std=1.2, boundary="zero"),
    "blur valid": lambda: GaussianBlur((1, 12, 9), std=0.9, boundary="valid"),
    "space varying circular": lambda: SpaceVaryingBlur((3, 9, 8), grid=2, taps=5),
    "space varying reflect": lambda: SpaceVaryingBlur((1, 8, 9), kernel="gaussian", boundary="reflect", std=1.2),
    "space varying zero": lambda: SpaceVaryingBlur((1, 8, 9), kernel="disk", boundary="zero", radius=2.5, grid=2),
    "space varying valid": lambda: SpaceVaryingBlur((1, 8, 9), kernel=rand(4, 2, 3), boundary="valid", grid=2),
    "non-linear blur": lambda: NonlinearBlur((3, 9, 8), taps=7),
    "non-linear blur, overexposed, valid": lambda: NonlinearBlur((1, 9, 10), boundary="valid", taps=5, exposure=1.6, gamma=1.8),
}
