"""Compositions, stacks and pullbacks, and operators made from functions and networks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from operators import (
    GaussianBlur,
    Identity,
    Inpainting,
    Matrix,
    NetworkOperator,
    Operator,
    SuperResolution,
    compose,
    from_callable,
    pullback,
    stack,
)

from . import rand


def tone(x: Tensor) -> Tensor:
    """A smooth tone curve, at module level so that it can be pickled."""
    return torch.tanh(x) + 0.1 * x**2


def differences(x: Tensor) -> Tensor:
    """Horizontal differences: linear, with the adjoint left to autograd."""
    return x[..., 1:] - x[..., :-1]


def spectrum(x: Tensor) -> Tensor:
    """Half of the Fourier coefficients: linear over the reals, with a complex measurement."""
    return torch.fft.rfft2(x, norm="ortho")


class Doubled(nn.Module):
    """A convolution and batch normalisation, with fixed weights; it doubles the sides."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 2, stride=2)
        self.norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(rand(*p.shape) - 0.5)
            self.norm.running_var.copy_(rand(3) + 0.5)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.up(z)))


def blur() -> GaussianBlur:
    return GaussianBlur((3, 8, 8), std=0.8)


CASES: dict[str, Callable[[], Operator]] = {
    "blur then bicubic": lambda: SuperResolution((3, 8, 8), 2) @ blur(),
    "blur then box": lambda: Inpainting((3, 8, 8), size=4) @ blur(),
    "three linear parts": lambda: compose(Matrix(rand(11, 27) - 0.5, (3, 3, 3)), SuperResolution((3, 6, 6), 2), Identity((3, 6, 6))),
    "linear after tone curve": lambda: Inpainting((3, 5, 6)) @ from_callable(tone, (3, 5, 6)),
    "tone curve after blur": lambda: from_callable(tone, (3, 8, 8)) @ blur(),
    "stack of linear parts": lambda: stack(Inpainting((3, 8, 8), size=4), SuperResolution((3, 8, 8), 4), blur()),
    "stack with a tone curve": lambda: stack(Inpainting((3, 5, 6)), from_callable(tone, (3, 5, 6))),
    "stack of compositions": lambda: stack(Inpainting((1, 6, 7)) @ Identity((1, 6, 7)), from_callable(differences, (1, 6, 7), linear=True)),
    "pullback of box through a network": lambda: pullback(Inpainting((3, 8, 8), size=4), Doubled(), (2, 4, 4)),
    "function": lambda: from_callable(tone, (3, 5, 6)),
    "function that cannot be pickled": lambda: from_callable(lambda x: x.sin().flatten(1)[:, ::2], (1, 5, 6)),
    "linear function": lambda: from_callable(differences, (3, 5, 6), linear=True),
    "network": lambda: NetworkOperator((2, 4, 5), Doubled()),
    "linear network": lambda: from_callable(nn.Conv2d(2, 3, 3, stride=2, bias=False), (2, 7, 6), linear=True),
    "complex linear function": lambda: from_callable(spectrum, (1, 5, 6), linear=True),
}
