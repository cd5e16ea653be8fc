"""A sampler as one of deepinv's reconstruction models, for deepinv's own test loops and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from deepinv.models import Reconstructor
from deepinv.physics.noise import GaussianNoise, PoissonGaussianNoise, PoissonNoise, ZeroNoise
from torch import Tensor

from invsolve.engine.loop import sample
from invsolve.engine.protocol import Sampler
from invsolve.likelihoods.base import MeasuredLikelihood
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonGaussianLikelihood, PoissonLikelihood
from invsolve.posterior import Posterior
from invsolve.priors.base import Prior
from invsolve.schedules import Schedule
from operators import Operator, as_operator, from_callable


class SamplerReconstructor(Reconstructor):
    """``model(y, physics)``: a posterior sample, or the mean of several, as deepinv's models give an estimate.

    Args:
        sampler, prior, schedule: as for `invsolve.sample`.
        n: samples for each measurement.
        estimate: "mean" of the n, or the first, a single "sample"; "all" gives (B, n, C, H, W), which deepinv's metrics do not take.
        sigma: standard deviation of Gaussian noise of y, in the units of y, whatever the physics' noise model is; by default
            the likelihood is that of the noise model: deepinv's GaussianNoise, or, for images in [0, 1], its PoissonNoise
            (normalised) and PoissonGaussianNoise, which have our gain and sigma.
        range: "unit" for images in [0, 1], as most of deepinv's are; "signed" for [-1, 1].
        image_shape: (C, H, W), where the physics does not state it; by default that of `physics.A_adjoint(y)`.
        seed, ids: seed of the sampling, and a prefix for the names of the rows, so that two calls draw different noise:
            each call numbers its rows on from where the last one ended. `reset` begins again.

    A physics A on images u in [0, 1] is one on x = 2 u - 1 after y -> 2 y - A(1) where it is linear (with A(0) = 0), with twice the
    sigma; any other is composed with x -> (x + 1) / 2. Without sigma, raises ValueError for any other noise model (subclasses of
    these three too, and none or ZeroNoise: y without noise has no likelihood), and for one with a level per measurement or pixel.
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

    def _likelihood(self, y: Tensor, physics: Any) -> MeasuredLikelihood:
        noise: Any = getattr(physics, "noise_model", None)
        # The classes themselves: a subclass may do anything, and other noise than Gaussian has a sigma too.
        kind = GaussianNoise if self.sigma is not None else type(noise)
        if kind is ZeroNoise or kind is type(None):
            raise ValueError(f"{type(physics).__name__} states no sigma of Gaussian noise; pass sigma=")
        if kind not in (GaussianNoise, PoissonNoise, PoissonGaussianNoise):
            raise ValueError(
                f"{type(physics).__name__} has noise of class {kind.__name__}; GaussianNoise, PoissonNoise or PoissonGaussianNoise of"
                " deepinv, and no subclass, is needed (or sigma=, to take it as Gaussian)"
            )
        operator = as_operator(physics, self.image_shape)
        shape = tuple(operator.image_shape_for(y))
        sigma = 0.0 if kind is PoissonNoise else _level("sigma", noise.sigma if self.sigma is None else self.sigma)
        if kind is not GaussianNoise:
            return self._counts(y, operator, noise, sigma)
        if self.range == "signed":
            return GaussianLikelihood(operator, y, sigma=sigma)
        if not operator.linear:
            return GaussianLikelihood(from_callable(lambda x: operator.A((x + 1) / 2), shape), y, sigma=sigma)
        ones = operator.A(torch.ones((1, *shape), device=y.device, dtype=y.real.dtype))
        return GaussianLikelihood(operator, 2 * y - ones, sigma=2 * sigma)

    def _counts(self, y: Tensor, operator: Operator, noise: Any, sigma: float) -> MeasuredLikelihood:
        """The likelihood of y = gain Poisson(A(u) / gain) + N(0, sigma^2), u in [0, 1]: the same formula as deepinv's."""
        name = type(noise).__name__
        if self.range == "signed":
            raise ValueError(f"{name} counts light, so images span [0, 1]: range='unit' is needed")
        if not bool(getattr(noise, "normalize", True)):
            raise ValueError(
                f"{name}(normalize=False) gives y in counts, not in the units of the image: multiply y by its gain and normalise"
            )
        gain = _level("gain", noise.gain)
        if type(noise) is PoissonNoise:
            return PoissonLikelihood(operator, y, gain=gain)
        return PoissonGaussianLikelihood(operator, y, gain=gain, sigma=sigma)


def _level(name: str, value: Any) -> float:
    """A noise parameter as one number. Raises ValueError for one that differs between measurements or pixels."""
    level = torch.as_tensor(value)
    if level.numel() != 1 and bool((level != level.flatten()[0]).any()):
        raise ValueError(f"one {name} for all measurements of a batch is needed; take them one by one")
    return float(level.flatten()[0])
