"""What a sampler costs beyond its network: this project, the bare network calls, and the peers that are installed.

    python scripts/benchmark.py                                  # the photo prior, 64x64, batch 4
    python scripts/benchmark.py --size 256 --precision bf16 --device cuda --json runs/bench.json

In every round each contender runs the same number of steps in turn, on the same network, operator and batch. A ratio is
its time over that of as many bare calls of the network as it made (forward passes, and forward with backward passes) in
the same round; the table shows the median and the range over rounds. Peers, where installed: deepinv's DPS and azula's DPS
(pip install deepinv azula), each in its default setting but for the steps, with one forward and one backward pass a step.

Kernels are counted by dispatch: every operation that is neither a view nor an allocation, outside network and operator,
averaged over a run of 100 steps. Host reads are calls that bring values to Python (item, tolist, cpu, numpy, bool), likewise;
on CUDA the loop copies them asynchronously, and the synchronisations that torch itself reports are shown instead.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tables_common import precision_option
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invsolve import Posterior, load_prior, sample
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.priors import NetworkPrior
from invsolve.samplers import DAPS, DPS, MCG, PnPULA, Unconditional
from invsolve.schedules import DDPM, Karras
from operators import Inpainting

SIGMA = 0.05
COUNTED_STEPS = 100
SYNCS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2"}
NOT_KERNELS = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "lift_fresh", "set_"}


class DispatchCount(TorchDispatchMode):
    """Counts operations that compute, and those that make the host wait, unless paused."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.syncs, self.paused = 0, 0, False
        self.names: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if not self.paused:
            if name in SYNCS:
                self.syncs += 1
            elif name not in NOT_KERNELS and not func.is_view:
                self.kernels += 1
                self.names[name] = self.names.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def reads(self) -> Iterator[None]:
        """Counts what brings a tensor's values to Python, which dispatch does not see."""
        names = ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__")
        held = {name: getattr(torch.Tensor, name) for name in names}

        def counted(inner: Any) -> Any:
            def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                self.syncs += not self.paused
                with self.pause():
                    return inner(tensor, *args, **kwargs)

            return call

        for name, inner in held.items():
            setattr(torch.Tensor, name, counted(inner))
        try:
            yield
        finally:
            for name, inner in held.items():
                setattr(torch.Tensor, name, inner)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Nothing inside is counted."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


def uncounted(count: DispatchCount) -> torch.nn.Module:
    """A network whose forward and backward passes are not counted."""

    class Quiet(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            with count.pause():
                return x * 0.1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            with count.pause():
                return grad * 0.1

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return Quiet.apply(x)  # type: ignore[no-untyped-call]

    return Network()


def count_dispatches(prior: NetworkPrior, operator: Any, y: Tensor, sampler: Any, schedule: Any) -> tuple[float, float]:
    """(kernels, synchronisations) per step outside network and operator, averaged over a run."""
    count = DispatchCount()
    light = NetworkPrior(uncounted(count), prior.table, prior.prediction)
    likelihood = GaussianLikelihood(operator, y.cpu(), SIGMA)
    quiet = type("Quiet", (type(likelihood.operator),), {})
    likelihood.operator.__class__ = quiet

    def uncounted_call(inner: Any) -> Any:
        def call(self: Any, v: Tensor) -> Tensor:
            with count.pause():
                return inner(self, v)  # type: ignore[no-any-return]

        return call

    for name in ("A", "A_adjoint"):
        setattr(quiet, name, uncounted_call(getattr(type(operator), name)))
    target = Posterior(light, likelihood)
    sample(sampler, target, schedule, ids=range(len(y)), progress=False)  # what is done once a process is not of a step
    with count.reads(), count:
        sample(sampler, target, schedule, ids=range(len(y)), progress=False)
    likelihood.operator.__class__ = quiet.__mro__[1]
    return count.kernels / COUNTED_STEPS, count.syncs / COUNTED_STEPS


FORWARD, BOTH = "network forward", "network forward + backward"


def samplers(steps: int) -> dict[str, tuple[Any, Any]]:
    """name -> (sampler, schedule), each with about `steps` steps."""
    return {
        "unconditional DDIM": (Unconditional(kernel="ddim"), DDPM(steps=steps)),
        "DPS": (DPS(), DDPM(steps=steps)),
        "MCG": (MCG(), DDPM(steps=steps)),
        "DAPS": (DAPS(prior_std=0.15), Karras(steps, 10.0, 0.02)),
        # L is given, for its estimate costs network calls once a chain, not once a step.
        "PnP-ULA": (PnPULA(steps=steps, lipschitz=1.0, start="pseudo_inverse"), DDPM(steps=steps)),
    }


def contenders(prior: NetworkPrior, operator: Any, y: Tensor, steps: int) -> dict[str, tuple[int, int, Callable[[], Any]]]:
    """name -> (its forward passes, how many of them have a backward pass, a function that runs it)."""
    posterior, ids = Posterior(prior, GaussianLikelihood(operator, y, SIGMA)), range(len(y))
    x = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(steps):
                prior._forward(x, 500.0)

    def both() -> None:
        for _ in range(steps):
            inside = x.detach().requires_grad_()
            torch.autograd.grad(prior._forward(inside, 500.0)[0], inside, x)

    runs: dict[str, tuple[int, int, Callable[[], Any]]] = {FORWARD: (steps, 0, forward), BOTH: (steps, steps, both)}
    for name, (sampler, schedule) in samplers(steps).items():

        def run(sampler: Any = sampler, schedule: Any = schedule) -> None:
            sample(sampler, posterior, schedule, ids=ids, progress=False)

        before = copy.copy(prior.calls)
        run()
        runs[f"invsolve {name}"] = (prior.calls.forward - before.forward, prior.calls.backward - before.backward, run)
    if importlib.util.find_spec("azula"):
        runs["azula DPS"] = (steps, steps, azula_dps(prior, operator, y, steps))
    if importlib.util.find_spec("deepinv"):
        runs["deepinv DPS"] = (steps, steps, deepinv_dps(prior, operator, y, steps))
    return runs


def azula_dps(prior: NetworkPrior, operator: Any, y: Tensor, steps: int) -> Callable[[], Any]:
    """azula's DPS on the same network (its output is read as v, whatever it is: only the time is measured)."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.noise import VPSchedule

    class Shared(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(alpha * x_t - sigma * prior._forward(x_t, 500.0)[0])

    sampler = DPSSampler(Shared().to(y.device), y=y, A=operator.A, zeta=1.0, steps=steps, silent=True)
    return lambda: sampler(torch.randn(y.shape, device=y.device))


def deepinv_dps(prior: NetworkPrior, operator: Any, y: Tensor, steps: int) -> Callable[[], Any]:
    """deepinv's DPS on the same network, by a denoiser on [0, 1] images with sigma in those units."""
    import deepinv

    class Shared(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, *args: Any, **kwargs: Any) -> Tensor:
            x = 2 * x - 1
            ratio = (2 * torch.as_tensor(sigma, device=x.device, dtype=x.dtype)).reshape(-1, 1, 1, 1)
            alpha = (1 + ratio**2).rsqrt()
            x0 = alpha * (alpha * x) - alpha * ratio * prior._forward(alpha * x, 500.0)[0]
            return (x0 + 1) / 2

    physics = deepinv.physics.Inpainting(img_size=operator.image_shape, mask=operator.mask.float(), device=y.device)
    model = deepinv.sampling.DPS(Shared(device=y.device), num_steps=steps, device=y.device)
    return lambda: model(y, physics)


def measure(runs: dict[str, tuple[int, int, Callable[[], Any]]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round of warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 1):
        for name, (*_, run) in runs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if k:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory_mb(run: Callable[[], Any], device: torch.device) -> float:
    """Peak memory of a run: allocated on the device on CUDA; elsewhere resident in the process (Linux only, else nan)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return float("nan")
    reset.write_text("5")  # the high-water mark starts anew
    run()
    (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10


def cuda_syncs(run: Callable[[], Any], steps: int) -> float:
    """Synchronisations per step that torch reports on CUDA, network and operator included."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="photo")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    precision_option(parser, default="float32")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here too")
    args = parser.parse_args()

    prior = load_prior(args.prior, device=args.device, precision=args.precision)
    shape = (3, args.size, args.size)
    operator = Inpainting(image_shape=shape, kind="box", size=args.size // 3, seed=0)
    truth = torch.rand(args.batch, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    y = operator.measure(truth, SIGMA).to(prior.device)
    counts = {
        f"invsolve {name}": count_dispatches(prior, operator, y, sampler, schedule)
        for name, (sampler, schedule) in samplers(COUNTED_STEPS).items()
    }
    operator = operator.to(prior.device)
    runs = contenders(prior, operator, y, args.steps)
    seconds = measure(runs, args.rounds, prior.device)
    rows = []
    for name, (forward, backward, run) in runs.items():
        bare = [((forward - backward) * f + backward * b) / args.steps for f, b in zip(seconds[FORWARD], seconds[BOTH], strict=True)]
        ratios = [a / b for a, b in zip(seconds[name], bare, strict=True)]
        row: dict[str, Any] = {"what": name, "forward": forward, "backward": backward}
        row |= {"ms_per_step": 1e3 * statistics.median(seconds[name]) / args.steps}
        row |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        if name in counts:
            reads = counts[name][1] if prior.device.type != "cuda" else cuda_syncs(run, args.steps)
            row |= {"kernels": counts[name][0], "syncs": reads}
        row["peak_mb"] = peak_memory_mb(run, prior.device)
        rows.append(row)
    print(
        f"{args.prior} {args.size}x{args.size} batch {args.batch}, {args.steps} steps, {args.rounds} rounds, "
        f"{prior.device}, {args.precision}, {torch.get_num_threads()} threads"
    )
    print(f"{'':28s} {'calls':>9s} {'ms/step':>8s} {'ratio':>7s} {'range':>13s} {'kernels/step':>13s} {'reads/step':>11s} {'peak MB':>8s}")
    for row in rows:
        spread = f"{row['lowest']:.2f}-{row['highest']:.2f}"
        extra = f"{row['kernels']:13.1f} {row['syncs']:11.2f}" if "kernels" in row else f"{'':13s} {'':11s}"
        calls = f"{row['forward']}+{row['backward']}"
        print(f"{row['what']:28s} {calls:>9s} {row['ms_per_step']:8.1f} {row['ratio']:7.3f} {spread:>13s} {extra} {row['peak_mb']:8.0f}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"settings": {k: str(v) for k, v in vars(args).items()}, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
