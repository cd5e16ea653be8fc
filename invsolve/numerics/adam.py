"""Adam on batches whose rows never meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invsolve.numerics.rows import _column

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (B, *X) -> (value (B,), gradient (B, *X))."""


@dataclass(frozen=True)
class Adam:
    """Running means of the gradient and of its square, each in the shape of x, and the number of steps taken."""

    mean: Tensor
    square: Tensor
    count: int = 0

    @classmethod
    def start(cls, x: Tensor) -> Self:
        """Before the first step."""
        return cls(torch.zeros_like(x), torch.zeros_like(x))


def adam_step(
    x: Tensor,
    grad: Tensor,
    adam: Adam,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay: float = 0.0,
) -> tuple[Tensor, Adam]:
    """x after one step of Adam, and the new state; every entry by itself, hence every row.

    Kingma and Ba, "Adam", ICLR 2015, algorithm 1; with `decay` it is AdamW (Loshchilov and Hutter, "Decoupled weight decay
    regularization", ICLR 2019, algorithm 2): x first shrinks by 1 - lr decay. The defaults are those of torch.optim.Adam.
    """
    count = adam.count + 1
    mean = torch.lerp(adam.mean, grad, 1 - betas[0])
    square = torch.lerp(adam.square, grad.square(), 1 - betas[1])
    spread = (square / (1 - betas[1] ** count)).sqrt() + eps
    return torch.addcdiv(x * (1 - lr * decay), mean, spread, value=-lr / (1 - betas[0] ** count)), Adam(mean, square, count)


def descend(
    objective: Objective, x: Tensor, *, goal: float, steps: int, lr: float, decay: float = 0.0, patience: int | None = None
) -> Tensor:
    """x (B, *X) after at most `steps` steps of AdamW; a row stops where its value is at most `goal`.

    With `patience` it also stops where its value is above the one that many steps before.
    """
    adam = Adam.start(x)
    done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    before = torch.full((patience or 1, len(x)), math.inf, dtype=x.dtype, device=x.device)
    for k in range(steps):
        value, grad = objective(x)
        done = done | (value <= goal)
        if patience is not None:
            done = done | (value > before[k % patience])
            before[k % patience] = value
        if k % 25 == 0 and bool(done.all()):
            break
        moved, adam = adam_step(x, grad, adam, lr, decay=decay)
        x = torch.where(_column(done, x), x, moved)
    return x
