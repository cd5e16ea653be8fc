"""A diffusion network as a prior: any noise level in, posterior mean out.

The network's own training table (a discrete list of sigma/alpha against network time) is private to this module. A level
is brought to the network by scaling x and interpolating the table in log(sigma/alpha). A level that is one of the training
grid but for rounding gets the very time of that grid point.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from invsolve.levels import Level
from invsolve.priors.base import PixelPrior, check_sides

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]

# How far from a grid point rounding can carry a level of the grid, in steps of the grid, at most: log(sigma/alpha) of numbers in
# double precision, and in single precision, where 1 - alpha^2 loses most of its digits at the least noise.
_ROUNDING, _SINGLE_ROUNDING = 1e-9, 4e-3


@dataclass
class Calls:
    """How often the network ran, and the autoencoder of a latent prior; reading it never touches the device."""

    forward: int = 0
    backward: int = 0
    encode: int = 0
    decode: int = 0


@dataclass(frozen=True)
class TrainingTable:
    """Network time against noise level, on the grid the network was trained on.

    Args:
        log_ratios: log(sigma/alpha) at each time, increasing.
        times: the network's time at each, increasing.
        path: "vp" if the network expects alpha^2 + sigma^2 = 1, "flow" if alpha + sigma = 1, "ve" if alpha = 1.
        single: whether the grid was computed in single precision, so that its levels are known to no more digits.
    """

    log_ratios: tuple[float, ...]
    times: tuple[float, ...]
    path: Literal["vp", "flow", "ve"] = "vp"
    single: bool = False

    @staticmethod
    def from_alpha_bars(alpha_bars: Sequence[float]) -> TrainingTable:
        """The table of a DDPM-like network with times 0 .. T-1, `single` where each alpha_bar is a number in single precision.

        Raises ValueError unless 0 < alpha_bar < 1 and decreasing.
        """
        if not all(0 < a < 1 for a in alpha_bars):
            raise ValueError(f"alpha_bar must lie strictly between 0 and 1, but runs from {alpha_bars[0]:g} to {alpha_bars[-1]:g}")
        log_ratios = tuple(0.5 * math.log((1 - a) / a) for a in map(float, alpha_bars))
        return TrainingTable(log_ratios, tuple(map(float, range(len(alpha_bars)))), single=_are_single(*alpha_bars))

    @staticmethod
    def flow(train_steps: int = 1000) -> TrainingTable:
        """The table of a rectified-flow network whose time is train_steps times sigma."""
        sigmas = [(i + 1) / train_steps for i in range(train_steps - 1)]
        return TrainingTable(tuple(math.log(s / (1 - s)) for s in sigmas), tuple(map(float, range(1, train_steps))), "flow")

    def __post_init__(self) -> None:
        rising = all(a < b for row in (self.log_ratios, self.times) for a, b in pairwise(row))
        if not self.times or len(self.times) != len(self.log_ratios) or not rising:
            raise ValueError("a training table needs as many log_ratios as times, at least one, both strictly increasing")

    def time(self, t: Level) -> float:
        """The network time of a level: that of the grid point which the level is but for rounding, else between two of them.

        Linear between grid points in log(sigma/alpha), or for a "flow" table in sigma, in which the network's clock is linear;
        held constant beyond the ends. Rounding is that of double precision; of single precision, if the table is `single` or
        alpha and sigma are numbers in single precision. Continuous and increasing but for that rounding.
        """
        if t.sigma == 0:
            return self.times[0]
        wanted = math.log(t.ratio)
        k = bisect.bisect_left(self.log_ratios, wanted)
        if k == 0:
            return self.times[0]
        if k == len(self.times):
            return self.times[-1]
        lo, hi = self.log_ratios[k - 1], self.log_ratios[k]
        if self.path == "flow":
            lo, hi, wanted = (1 / (1 + math.exp(-v)) for v in (lo, hi, wanted))
        part = (wanted - lo) / (hi - lo)
        end, rounding = round(part), _SINGLE_ROUNDING if self.single or _are_single(*t) else _ROUNDING
        off = abs(part - end)
        if off <= rounding:
            return self.times[k - 1 + end]
        if off < 2 * rounding:
            # From the plateau back to the line, at twice its slope.
            part = end + math.copysign(2 * (off - rounding), part - end)
        return self.times[k - 1] + part * (self.times[k] - self.times[k - 1])

    def inside(self, t: Level) -> Level:
        """The same noise level on the network's own path."""
        scale = {"vp": t.scale, "flow": t.alpha + t.sigma, "ve": t.alpha}[self.path]
        # A level that is on the path but for rounding is left as it is, which saves rescaling x.
        if math.isclose(scale, 1.0, rel_tol=1e-14):
            return t
        return Level(t.alpha / scale, t.sigma / scale)


def _are_single(*values: float) -> bool:
    """Whether all values are numbers in single precision, as next to none is that was computed in double."""
    exact = torch.tensor(values, dtype=torch.float64)
    return bool((exact.float().double() == exact).all())


def check_precision(precision: str) -> None:
    """Raises ValueError for what is not "float32" or "bf16"."""
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision={precision!r}; 'float32' or 'bf16' is needed")


def in_precision(run: Callable[[Tensor], Tensor], x: Tensor, precision: str, channels_last: bool) -> Tensor:
    """run(x) with x in a memory layout, under autocast if `precision` is "bf16"; the result has the type of x either way."""
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    if precision != "bf16":
        return run(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        return run(x).to(x.dtype)


def revive(module: torch.nn.Module) -> torch.nn.Module:
    """The module with every parameter and buffer that was made under inference mode replaced by a normal copy.

    Autograd refuses to save inference tensors, and guided samplers differentiate through the network.
    """
    with torch.inference_mode(False):
        for part in module.modules():
            for name, p in part._parameters.items():
                if p is not None and p.is_inference():
                    part._parameters[name] = torch.nn.Parameter(p.clone(), requires_grad=False)
            for name, b in part._buffers.items():
                if b is not None and b.is_inference():
                    part._buffers[name] = b.clone()
    return module


class Unshuffled(torch.nn.Module):
    """A network of `factor`^2 times as many channels at 1/`factor` of the side, between a pixel-unshuffle and its inverse.

    Called as diffusers' networks are, with return_dict=False: a tuple, of which the first entry is the output.
    """

    def __init__(self, network: torch.nn.Module, factor: int) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor, time: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """(B, C, H, W), and a time for each -> the output of the network, of as many channels (or twice as many) and the same sides."""
        inner = torch.nn.functional.pixel_unshuffle(x, self.factor)
        if x.is_contiguous(memory_format=torch.channels_last):
            inner = inner.contiguous(memory_format=torch.channels_last)
        return (torch.nn.functional.pixel_shuffle(self.network(inner, time, return_dict=return_dict)[0], self.factor),)


def _plain_call(network: Any, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
    return network(x, time, *conditions)


class NetworkPrior(PixelPrior):
    """A denoising network behind the `Prior` protocol.

    Args:
        network: a module called as network(x, time) -> tensor, x (B, C, H, W) on the network's path, time (B,).
        table: its training table.
        prediction: what its output is: "epsilon" (the noise), "v_prediction" (alpha z - sigma x_0), "sample" (x_0), or
            "flow" (the velocity z - x_0). A network with twice as many output as input channels has a learned variance.
        channels: of the image.
        multiple: what the sides of an image must be divisible by.
        precision: "float32", or "bf16" for autocast inside the network (its output is float32 either way).
        channels_last, compile: memory layout, and torch.compile of the network.

    Images live in [-1, 1]. The network is frozen and put into evaluation mode.
    """

    def __init__(
        self,
        network: Any,
        table: TrainingTable,
        prediction: Prediction = "epsilon",
        *,
        channels: int = 3,
        multiple: int = 1,
        precision: Literal["float32", "bf16"] = "float32",
        channels_last: bool = False,
        compile: bool = False,
        call: Callable[..., Tensor] | None = None,
    ):
        if prediction not in ("epsilon", "v_prediction", "sample", "flow"):
            raise ValueError(f"prediction={prediction!r}; one of epsilon, v_prediction, sample, flow is needed")
        check_precision(precision)
        if prediction == "v_prediction" and table.path != "vp":
            raise ValueError(f"prediction='v_prediction' is defined for a 'vp' table, not for {table.path!r}")
        self.network = revive(network).eval().requires_grad_(False)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)
        self.table, self.prediction, self.channels, self.multiple = table, prediction, channels, multiple
        self.precision, self.channels_last = precision, channels_last
        self.calls = Calls()
        self.card: dict[str, Any] = {}
        self.weights_sha256 = ""
        self._run = torch.compile(self.network) if compile else self.network
        self._call = call or _plain_call
        self._times: dict[Level, float] = {}

    @property
    def magnitude(self) -> float:
        """1: images live in [-1, 1]."""
        return 1.0

    @property
    def device(self) -> torch.device | None:
        """Where the network's weights lie; None if it has none."""
        return next((p.device for p in self.network.parameters()), None)

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of the network's weights; None if it has none."""
        return next((p.dtype for p in self.network.parameters()), None)

    def to(self, device: torch.device | str) -> NetworkPrior:
        """Moves the network, and returns the prior."""
        self.network.to(device)
        return self

    def image_shape_ok(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless shape is (channels, H, W) with both sides multiples of `multiple`."""
        check_sides(shape, self.channels, self.multiple)

    def denoise(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | x_t = x], (B, C, H, W) -> (B, C, H, W); not clamped."""
        return self.denoise_with_variance(x, t)[0]

    def denoise_with_variance(self, x: Tensor, t: Level) -> tuple[Tensor, Tensor | None]:
        """The posterior mean, and the raw learned-variance channels where the network has them."""
        inner = self.table.inside(t)
        x = x if inner == t else x * (inner.alpha / t.alpha)
        if t not in self._times:
            self._times[t] = self.table.time(t)
        out, fraction = self._forward(x, self._times[t])
        a, s = inner
        if self.prediction == "epsilon":
            return torch.sub(x / a, out, alpha=s / a), fraction
        if self.prediction == "v_prediction":
            return torch.sub(x * a, out, alpha=s), fraction
        if self.prediction == "flow":
            return torch.sub(x, out, alpha=s) / (a + s), fraction
        return out, fraction

    def _forward(self, x: Tensor, time: float, *conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        self.calls.forward += 1
        # Never in half precision, which cannot tell neighbouring times apart.
        steps = torch.full((x.shape[0],), time, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        out = in_precision(lambda x: self._call(self._run, x, steps, *conditions), x, self.precision, self.channels_last)
        if out.requires_grad:
            # On the output, which no other call shares; a hook on x would stay on a leaf that is used again.
            out.register_hook(self._count_backward)
        if out.shape[1] == 2 * x.shape[1]:
            mean, fraction = out.chunk(2, dim=1)
            return mean, fraction
        if out.shape != x.shape:
            raise ValueError(f"the network maps {tuple(x.shape)} to {tuple(out.shape)}; the same shape (or twice the channels) is needed")
        return out, None

    def _count_backward(self, grad: Tensor) -> None:
        self.calls.backward += 1
