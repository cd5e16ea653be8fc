"""The closed-form prox of the data term against conjugate gradients on the same operator, as a Markdown table.

Both solve argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2 for a batch. Conjugate gradients start at z and stop at the
relative residual --tol; by default each case takes the loosest of a ladder of tolerances that is as accurate as the closed
form, or, where rounding keeps them from that, the most accurate one. Errors are relative to the closed form in float64,
times are medians of alternating runs.

    python scripts/benchmark_prox.py --size 256 --batch 4 --device cpu
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from operators import MRI, Blur, GaussianBlur, KernelDownsampling, LinearOperator, SuperResolution, generator
from operators.core.solve import conjugate_gradient

CASES: dict[str, Callable[[int], LinearOperator]] = {
    "motion blur, circular": lambda n: Blur((3, n, n), "motion"),
    "Gaussian blur, circular": lambda n: Blur((3, n, n), "gaussian"),
    "Gaussian blur, reflecting": lambda n: GaussianBlur((3, n, n), boundary="reflect"),
    "bicubic kernel, every 4th pixel": lambda n: KernelDownsampling((3, n, n), 4),
    "motion kernel, every 2nd pixel": lambda n: KernelDownsampling((3, n, n), 2, "motion"),
    "block average x4": lambda n: SuperResolution((3, n, n), 4, "average"),
    "bicubic x4, mirrored": lambda n: SuperResolution((3, n, n), 4),
    "MRI, single coil": lambda n: MRI((2, n, n)),
}
TOLERANCES = [10.0**-k for k in (3, 4, 5, 6)] + [3e-7, 1e-7]


def timed(act: Callable[[], Tensor], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def iterative(op: LinearOperator, z: Tensor, y: Tensor, gamma: float, tol: float) -> tuple[Tensor, int]:
    """(prox by conjugate gradients, number of applications of A^T A)."""
    calls = 0

    def system(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return op._shifted_normal(x, gamma)

    return conjugate_gradient(system, z + gamma * op._adjoint(y), start=z, tol=tol), calls


def compare(op: LinearOperator, batch: int, gamma: float, tol: float | None, device: torch.device, repeats: int) -> tuple[str, ...]:
    rng = generator(0, "benchmark prox")
    x, z = (torch.rand((batch, *op.image_shape), generator=rng, dtype=torch.float64).to(device) * 2 - 1 for _ in range(2))
    op = op.to(device)
    y = op.A(x) + 0.05 * torch.randn((batch, *op.measurement_shape), generator=rng, dtype=torch.float64).to(device)
    reference = op.prox_l2(z, y, gamma)
    z, y = z.float(), y.float()

    def error(found: Tensor) -> float:
        return float((found.double() - reference).norm() / reference.norm())

    closed = error(op.prox_l2(z, y, gamma))
    best, chosen, calls = float("inf"), 1e-6, 0
    for candidate in [tol] if tol else TOLERANCES:
        try:
            found, count = iterative(op, z, y, gamma, candidate)
        except RuntimeError:
            break
        if error(found) < best:
            best, chosen, calls = error(found), candidate, count
        if best <= closed:
            break
    pairs = [
        (timed(lambda: op.prox_l2(z, y, gamma), device), timed(lambda: iterative(op, z, y, gamma, chosen)[0], device))
        for _ in range(repeats + 1)
    ][1:]
    fast, slow = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{1e3 * fast:.2f}", f"{1e3 * slow:.2f}", f"{slow / fast:.1f}", str(calls), f"{closed:.0e}", f"{best:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--gamma", type=float, nargs="+", default=[10.0, 400.0], help="weight of the data term, prior over noise variance")
    parser.add_argument("--tol", type=float, help="relative residual of conjugate gradients, for all cases")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    args = parser.parse_args()
    device = torch.device(args.device)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{args.batch} images of {args.size} x {args.size}, float32, {place}\n")
    print("| operator | gamma | closed form, ms | CG, ms | ratio | CG applications of A^T A | error, closed form | error, CG |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with torch.no_grad():
        for name, build in CASES.items():
            if args.only not in name:
                continue
            op = build(args.size)
            for gamma in args.gamma:
                row = compare(op, args.batch, gamma, args.tol, device, args.repeats)
                print(f"| {name} | {gamma:g} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
