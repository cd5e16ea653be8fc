"""Operators travel to other processes: each can be pickled, or says by `picklable` that it cannot."""

import pickle

import pytest
import torch
from operator_cases import CASES
from torch import Tensor


@pytest.mark.parametrize("name", CASES)
def test_an_operator_travels_or_says_that_it_cannot(name: str) -> None:
    op = CASES[name]()
    if not op.picklable:
        with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
            pickle.dumps(op)
        return
    again = pickle.loads(pickle.dumps(op))
    generator = torch.Generator().manual_seed(0)
    x: Tensor = torch.rand((2, *op.image_shape), generator=generator, dtype=torch.float64)
    assert (again.image_shape, again.measurement_shape) == (op.image_shape, op.measurement_shape)
    assert type(again) is type(op) and x.shape[1:] == torch.Size(again.image_shape)
