"""Every operator inside inference mode, autograd, vmap, jvp and autocast, and some of each kind compiled and in half precision."""

import copy

import pytest
import torch
from operator_cases import BATCHES, CASES, rand
from operator_cases.adapted import CASES as FOREIGN

from operators import Operator

# What deepinv's own physics do inside transforms is theirs to test.
OURS = [name for name in CASES if name not in FOREIGN]
COMPILED = [
    "identity", "matrix wide", "blur circular", "blur reflect", "box", "bicubic", "motion circular, odd", "motion reflect",
    "space varying circular", "downsampling bicubic", "colourisation", "demosaicing odd", "hdr", "compressed sensing",
    "structured sensing", "jpeg", "tomography", "network",
]  # fmt: skip
# Rounding in JPEG turns a small error into a large one, and convolutions of networks have their own bounds.
HALVED = [name for name in COMPILED if name not in ("jpeg", "network")]


def signal(op: Operator, name: str) -> torch.Tensor:
    return 2 * rand(BATCHES.get(name, (2,))[0], *op.image_shape).float() - 1


@pytest.mark.parametrize("name", OURS)
def test_modes_of_torch(name: str) -> None:
    op = CASES[name]()
    fresh, x = copy.deepcopy(op), signal(op, name)
    with torch.inference_mode():
        y = fresh.A(x)
    if op.ids is None:
        lifted = torch.func.vmap(lambda u: fresh.A(u[None])[0])(x)
        assert torch.allclose(lifted, y, atol=1e-5)
    other = copy.deepcopy(op)
    torch.func.vjp(other.A, x)
    # Buffers first converted inside inference mode or inside a transform must serve autograd afterwards.
    for used in (fresh, other):
        u = x.clone().requires_grad_()
        used.A(u).abs().square().sum().backward()
        assert u.grad is not None
        assert torch.allclose(u.grad, 2 * op.A_vjp(x, y), rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(op.A, (x,), (x.flip(0),))
    paired = (tangent.conj() * y).real.sum() - (x.flip(0) * op.A_vjp(x, y)).sum()
    assert abs(float(paired)) < 1e-4 * float(tangent.norm() * y.norm())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(op.A(x), y)
        assert op.A_vjp(x, y).dtype == torch.float32


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_in_one_piece(name: str) -> None:
    op = CASES[name]()
    x = signal(op, name)
    # Dynamo counts the classes that one function was compiled for, over all tests of the process, and then gives up.
    torch._dynamo.reset()
    assert torch.allclose(torch.compile(op.A, backend="eager", fullgraph=True)(x), op.A(x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALVED)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    op = CASES[name]()
    x = signal(op, name).to(dtype)
    exact = op.A(x.double())
    y = op.A(x)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert float((y.double() - exact).norm()) < 4 * eps * float(exact.norm())
    if op.linear:
        best = op.prox_l2(x, y, 2.0)  # type: ignore[attr-defined]
        assert best.dtype == dtype
        assert float((best.double() - op.prox_l2(x.double(), y.double(), 2.0)).norm()) < 4 * eps * float(best.double().norm())  # type: ignore[attr-defined]
