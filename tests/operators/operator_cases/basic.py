"""The first operators: identity, matrix, blur, inpainting, super-resolution."""

from collections.abc import Callable

from operators import GaussianBlur, Identity, Inpainting, Matrix, Operator, SuperResolution

from . import rand

CASES: dict[str, Callable[[], Operator]] = {
    "identity": lambda: Identity((1, 5, 6)),
    "identity vector": lambda: Identity((7,)),
    "matrix wide": lambda: Matrix(rand(7, 30) - 0.5, (1, 5, 6)),
    "matrix tall, rank 3": lambda: Matrix((rand(9, 3) - 0.5) @ (rand(3, 5) - 0.5), (5,)),
    "blur circular": lambda: GaussianBlur((3, 8, 8), std=1.0),
    "blur circular, kernel larger than image": lambda: GaussianBlur((1, 5, 8), std=2.0),
    "blur circular, odd": lambda: GaussianBlur((1, 9, 12), std=0.8, taps=61),
    "blur reflect": lambda: GaussianBlur((3, 9, 8), std=1.2, boundary="reflect"),
    "blur reflect, few taps": lambda: GaussianBlur((1, 6, 7), std=10.0, taps=5, boundary="reflect"),
    "box": lambda: Inpainting((3, 8, 9), size=(3, 4), margin=1, seed=2),
    "box grey": lambda: Inpainting((1, 7, 7)),
    "random": lambda: Inpainting((3, 7, 10), kind="random", fraction=0.7),
    "mask tensor": lambda: Inpainting((3, 6, 6), kind="file", mask=rand(6, 6) > 0.5),
    "bicubic": lambda: SuperResolution((3, 16, 12)),
    "bicubic x3 odd": lambda: SuperResolution((1, 15, 9), factor=3),
    "bicubic, one pixel left": lambda: SuperResolution((1, 4, 8), factor=4),
    "average": lambda: SuperResolution((3, 8, 12), kind="average"),
    "average x3": lambda: SuperResolution((1, 9, 15), factor=3, kind="average"),
}
