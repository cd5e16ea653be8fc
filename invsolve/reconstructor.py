"""A sampler as one of deepinv's reconstruction models, for deepinv's own test loops and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from deepinv.models import Reconstructor
from torch import Tensor

from invsolve.likelihoods import GaussianLikelihood
from invsolve.loop import sample
from invsolve.posterior import Posterior
from invsolve.priors.base import Prior
from invsolve.samplers.base import Sampler
from invsolve.schedules import Schedule
from operators import as_operator, from_callable


class SamplerReconstructor(Reconstructor):
    """``model(y, physics)``: a posterior sample, or the mean of several, as deepinv's models give an estimate.

    Args:
        sampler, prior, schedule: as for `invsolve.sample`.
        n: samples for each measurement.
        estimate: "mean" of the n, or the first, a single "sample"; "all" gives (B, n, C, H, W), which deepinv's metrics do not take.
        sigma: standard deviation of the noise of y, in the units of y; by default that of the physics' noise model.
        range: "unit" for images in [0, 1], as most of deepinv's are; "signed" for [-1, 1].
        image_shape: (C, H, W), where the physics does not state it; by default that of `physics.A_adjoint(y)`.
        seed, ids: seed of the sampling, and a prefix for the names of the rows, so that two calls draw different noise:
            each call numbers its rows on from where the last one ended. `reset` begins again.

    A physics A on images u in [0, 1] is one on x = 2 u - 1 after y -> 2 y - A(1) where it is linear (with A(0) = 0), with twice the
    sigma; any other is composed with x -> (x + 1) / 2. Raises ValueError for a physics without a Gaussian noise model and no sigma.
    """

    def __init__(
        self,
        sampler: Sampler,
        prior: Prior,
        schedule: Schedule,
        n: int = 1,
        estimate: Literal["mean", "sample", "all"] = "mean",
        sigma: float | None = None,
        range: Literal["unit", "signed"] = "unit",
        image_shape: Sequence[int] | None = None,
        seed: int = 0,
        ids: str = "",
    ) -> None:
        super().__init__()
        if estimate not in ("mean", "sample", "all"):
            raise ValueError(f"estimate={estimate!r}; 'mean', 'sample' or 'all' is needed")
        if range not in ("unit", "signed"):
            raise ValueError(f"range={range!r}; 'unit' or 'signed' is needed")
        self.sampler, self.prior, self.schedule, self.n, self.estimate = sampler, prior, schedule, n, estimate
        self.sigma, self.range, self.image_shape, self.seed, self.ids = sigma, range, image_shape, seed, ids
        self._used = 0

    def reset(self) -> None:
        """Numbers the rows from 0 again: the next call repeats the first."""
        self._used = 0

    def forward(self, y: Tensor, physics: Any, **options: Any) -> Tensor:
        """The estimate of the images behind y (B, ...) measured by ``physics``, in the range of the images, not clamped.

        ``options`` go to `invsolve.sample`.
        """
        target = Posterior(self.prior, self._likelihood(y, physics))
        first, self._used = self._used, self._used + len(y)
        ids = [f"{self.ids}{first + b}" for b in range(len(y))]
        drawn = sample(self.sampler, target, self.schedule, n=self.n, seed=self.seed, ids=ids, **{"progress": False, **options})
        drawn = drawn if self.range == "signed" else (drawn + 1) / 2
        return {"mean": drawn.mean(1), "sample": drawn[:, 0], "all": drawn}[self.estimate].to(y.device)

    def _likelihood(self, y: Tensor, physics: Any) -> GaussianLikelihood:
        sigma = getattr(getattr(physics, "noise_model", None), "sigma", None) if self.sigma is None else self.sigma
        if sigma is None:
            raise ValueError(f"{type(physics).__name__} states no sigma of Gaussian noise; pass sigma=")
        level = torch.as_tensor(sigma)
        if level.numel() != 1 and bool((level != level.flatten()[0]).any()):
            raise ValueError("one sigma for all measurements of a batch is needed; take them one by one")
        shape = tuple(self.image_shape) if self.image_shape is not None else tuple(physics.A_adjoint(y).shape[1:])
        operator, size = as_operator(physics, shape), float(level.flatten()[0])
        if self.range == "signed":
            return GaussianLikelihood(operator, y, sigma=size)
        if not operator.linear:
            return GaussianLikelihood(from_callable(lambda x: operator.A((x + 1) / 2), shape), y, sigma=size)
        ones = operator.A(torch.ones((1, *shape), device=y.device, dtype=y.real.dtype))
        return GaussianLikelihood(operator, 2 * y - ones, sigma=2 * size)
