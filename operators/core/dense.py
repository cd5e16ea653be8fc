"""A linear operator as a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def _real(y: Tensor) -> Tensor:
    """Real and imaginary parts as separate numbers, each with noise of its own."""
    return torch.view_as_real(y) if y.is_complex() else y


def matrix_of(operator: Any, shape: Sequence[int], like: Tensor) -> Tensor:
    """The matrix (m, n) of a linear operator on signals of a shape with n entries; complex measurements count as two numbers."""
    n = math.prod(shape)
    unit = torch.eye(n, dtype=like.dtype, device=like.device).reshape(n, *shape)
    return _real(operator.A(unit)).reshape(n, -1).mT
