"""Single- and multi-coil MRI."""

from collections.abc import Callable

from operators import MRI, MultiCoilMRI, Operator
from operators.mri.coils import smooth_maps

from . import rand

CASES: dict[str, Callable[[], Operator]] = {
    "mri gaussian lines": lambda: MRI((2, 8, 12), acceleration=3, centre_fraction=0.1),
    "mri equispaced, odd": lambda: MRI((2, 7, 9), kind="equispaced", acceleration=2, centre_fraction=0.2),
    "mri random": lambda: MRI((2, 6, 10), kind="random", seed=3),
    "mri poisson": lambda: MRI((2, 10, 8), kind="poisson"),
    "mri radial, odd": lambda: MRI((2, 9, 11), kind="radial", acceleration=3),
    "mri mask tensor": lambda: MRI((2, 6, 5), kind="file", mask=rand(6, 5) > 0.5),
    "mri full": lambda: MRI((2, 5, 6), kind="full"),
    "multicoil mri birdcage": lambda: MultiCoilMRI((2, 6, 8), acceleration=2, n_coils=4),
    "multicoil mri smooth, odd": lambda: MultiCoilMRI((2, 7, 5), kind="gaussian_2d", acceleration=2, coils="smooth", n_coils=3),
    "multicoil mri one coil": lambda: MultiCoilMRI((2, 6, 6), kind="random", acceleration=2, n_coils=1),
    "multicoil mri maps tensor": lambda: MultiCoilMRI((2, 6, 4), acceleration=2, coils="file", coil_maps=2 * smooth_maps(2, 6, 4)),
}
