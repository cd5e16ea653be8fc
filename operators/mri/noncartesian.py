"""Non-Cartesian MRI: k-space measured along spokes or spirals, through mri-nufft (an optional extra)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.blur.convolution import widened
from operators.core.base import LinearOperator
from operators.core.files import load_npy, plain
from operators.mri.cartesian import ComplexImages, complex_shape, magnitude_picture, to_channels, to_complex
from operators.mri.coils import sensitivities

_GOLDEN = math.pi * (math.sqrt(5) - 1) / 2
# Relative accuracy asked of finufft.
_ACCURACY = {torch.float64: 1e-13, torch.float32: 1e-6}


def spokes(shots: int, samples: int, tilt: str = "golden") -> Tensor:
    """Radial trajectory (shots * samples, 2), float64, in cycles per pixel (rows, columns): diameters from -1/2 to below 1/2.

    Each spoke is turned from the one before by the golden angle of 111 degrees, or by 180 degrees / shots (`tilt` "uniform").
    """
    turn = _GOLDEN if tilt == "golden" else math.pi / shots
    angle = turn * torch.arange(shots, dtype=torch.float64)[:, None]
    along = torch.arange(samples, dtype=torch.float64) / samples - 0.5
    return torch.stack([along * torch.sin(angle), along * torch.cos(angle)], -1).reshape(-1, 2)


def spirals(shots: int, samples: int, tilt: str = "golden", turns: float = 4.0) -> Tensor:
    """Archimedean spirals (shots * samples, 2) from the centre outwards, in `turns` revolutions to below 1/2; see `spokes`."""
    turn = 2 * _GOLDEN if tilt == "golden" else 2 * math.pi / shots
    along = torch.arange(samples, dtype=torch.float64) / samples
    angle = turn * torch.arange(shots, dtype=torch.float64)[:, None] + 2 * math.pi * turns * along
    return torch.stack([0.5 * along * torch.sin(angle), 0.5 * along * torch.cos(angle)], -1).reshape(-1, 2)


def trajectory_of(path: str | Path | Tensor) -> Tensor:
    """Places (S, 2), float64, in cycles per pixel (rows, columns) from a .npy file or a tensor (..., 2).

    Raises ValueError if there is no such file or it cannot be read, for another last axis, and for values outside [-1/2, 1/2].
    """
    if not isinstance(path, Tensor) and not Path(path).expanduser().is_file():
        raise ValueError(f"no trajectory file at {path}")
    found = path if isinstance(path, Tensor) else plain(load_npy(Path(path).expanduser()))
    if found.ndim < 2 or found.shape[-1] != 2 or found.is_complex():
        raise ValueError(f"a trajectory is real, (..., 2): rows and columns of each place in k-space; got {tuple(found.shape)}")
    places = found.detach().cpu().double().reshape(-1, 2)
    if not bool((places.abs() <= 0.5).all()):
        raise ValueError("a trajectory is in cycles per pixel and lies in [-1/2, 1/2]; values beyond (or not finite) were found")
    return places


class _Transform(torch.autograd.Function):
    """The non-uniform transform of complex images, or its adjoint; each is the derivative of the other."""

    @staticmethod
    def forward(z: Tensor, op: NonCartesianMRI, back: bool) -> Tensor:
        return op.transform(z, back)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.options = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        op, back = ctx.options
        result: Tensor = _Transform.apply(grads[0], op, not back)
        return result, None, None


class NonCartesianMRI(ComplexImages, LinearOperator):
    """MRI along a trajectory: (B, 2, H, W) -> (B, 2, N, S), y_n(k) = (H W)^(-1/2) sum_r s_n(r) x(r) exp(-2 pi i k.r).

    r counts pixels from (H // 2, W // 2), k is in cycles per pixel, so that places on the grid give what `MRI` gives. `trajectory`
    is "radial" (`shots` spokes of `samples`, default twice the longer side), "spiral", both with `tilt` "golden" or "uniform", or
    "file": `places` from a .npy file or a tensor (..., 2). `coils` as in `MultiCoilMRI`, or "none" for one coil that
    sees everything alike (N = 1). Buffers `places` (S, 2) and `maps` (2, N, H, W). Prox and pseudo-inverse by conjugate gradients.
    Computes on the CPU with finufft, in the precision of the input (A. H. Barnett et al., SIAM J. Sci. Comput. 41, 2019, through
    mri-nufft).

    Raises ImportError without mri-nufft, and ValueError for an image_shape that is not (2, H, W), unknown names, options
    that do not go together, and trajectories or maps that do not fit.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        trajectory: str = "radial",
        shots: int = 32,
        samples: int | None = None,
        tilt: str = "golden",
        places: str | Path | Tensor | None = None,
        coils: str = "none",
        n_coils: int = 8,
        coil_maps: str | Path | Tensor | None = None,
        seed: int = 0,
    ) -> None:
        _require()
        shape = complex_shape(image_shape)
        if trajectory not in ("radial", "spiral", "file") or tilt not in ("golden", "uniform"):
            raise ValueError(
                f"trajectory must be radial, spiral or file and tilt golden or uniform, got trajectory={trajectory!r}, tilt={tilt!r}"
            )
        if (trajectory == "file") != (places is not None):
            raise ValueError(f"places and trajectory='file' go together, got trajectory={trajectory!r}, places={places is not None}")
        each = 2 * max(shape[1:]) if samples is None else samples
        if min(shots, each) < 1:
            raise ValueError(f"shots and samples must be at least 1, got shots={shots!r}, samples={samples!r}")
        path = trajectory_of(places) if places is not None else (spokes if trajectory == "radial" else spirals)(shots, each, tilt)
        if coils == "none":
            found = torch.ones(1, *shape[1:], dtype=torch.complex128)
        else:
            found = sensitivities(shape[1], shape[2], coils, n_coils, coil_maps, seed)
        super().__init__(shape, (2, len(found), len(path)))
        self.register_buffer("places", path)
        self.register_buffer("maps", torch.stack([found.real, found.imag]).contiguous())
        self._plans: dict[Any, tuple[Tensor, int, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_plans": {}}

    def _plan(self, dtype: torch.dtype, batch: int) -> Any:
        """mri-nufft's operator for this precision and batch size, made once and again when the places change."""
        known = self._plans.get((dtype, batch))
        if known is not None and known[0] is self.places and known[1] == self.places._version:
            return known[2]
        import mrinufft  # type: ignore[import-not-found]

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Samples will be rescaled")  # that is what is meant
            plan = mrinufft.get_operator("finufft")(
                self.places.detach().cpu().to(dtype).numpy(),
                self.image_shape[1:],
                n_coils=self.measurement_shape[1],
                n_batchs=batch,
                squeeze_dims=False,
                eps=_ACCURACY[dtype],
            )
        self._plans[dtype, batch] = (self.places, self.places._version, plan)
        return plan

    def transform(self, z: Tensor, back: bool) -> Tensor:
        """Complex coil images (B, N, H, W) to k-space (B, N, S), or with `back` the adjoint of that; not differentiable."""
        plan = self._plan(z.real.dtype, len(z))
        array = np.ascontiguousarray(z.detach().cpu().resolve_conj().numpy())
        done = plan.adj_op(array) if back else plan.op(array)
        # mri-nufft divides by 2 sqrt(H W).
        return 2 * torch.from_numpy(np.asarray(done)).to(z)

    def _maps(self, like: Tensor) -> Tensor:
        return to_complex(self._as("maps", like)[None])

    def _forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        return to_channels(_Transform.apply(self._maps(wide) * to_complex(wide)[:, None], self, False)).to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        wide = widened(y)
        seen = _Transform.apply(to_complex(wide), self, True)
        return to_channels((self._maps(wide).conj() * seen).sum(1)).to(y.dtype)

    def view(self, y: Tensor) -> Tensor:
        """The back-projection A^T y, its modulus scaled to its largest value."""
        seen = self._adjoint(y)
        top = torch.linalg.vector_norm(seen, dim=1).amax((1, 2))[:, None, None, None]
        return magnitude_picture(seen / torch.where(top > 0, top, 1.0))


def _require() -> None:
    try:
        import finufft  # type: ignore[import-not-found]  # noqa: F401
        import mrinufft  # noqa: F401
    except ImportError as error:
        raise ImportError("non-Cartesian MRI needs mri-nufft with finufft: pip install 'invsolve[nufft]'") from error
