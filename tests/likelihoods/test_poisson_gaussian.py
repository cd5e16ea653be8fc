"""The likelihood of counts with read-out noise: its gradients, its limits, and that it fits the noise it is meant for."""

import pytest
import torch

from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonGaussianLikelihood, PoissonLikelihood
from operators import GaussianBlur, Identity, Inpainting, Operator, PoissonGaussianNoise, from_callable, generator


def image(*shape: int) -> torch.Tensor:
    return 1.6 * torch.rand(shape, generator=generator(1), dtype=torch.float64) - 0.8


def tone(u: torch.Tensor) -> torch.Tensor:
    return u.square()


OPERATORS: dict[str, Operator] = {
    "blur": GaussianBlur((1, 8, 8), 0.8),
    "box": Inpainting((1, 8, 8), size=4),
    "not linear": from_callable(tone, (1, 8, 8)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.0, 0.05])
def test_score_is_the_gradient_of_the_log_density(name: str, sigma: float) -> None:
    op = OPERATORS[name]
    noise = PoissonGaussianNoise(0.02, 2 * sigma)
    likelihood = PoissonGaussianLikelihood(op, op.measure(image(2, 1, 8, 8), noise), **noise.parameters)
    # Also where A(u) is negative, and the variance stays at its floor.
    for x in (image(2, 1, 8, 8).flip(-1), image(2, 1, 8, 8) - 0.4):
        x.requires_grad_()
        (expected,) = torch.autograd.grad(likelihood.log_prob(x).sum(), x)
        assert torch.allclose(likelihood.score(x.detach()), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OPERATORS)
def test_misfit_grad_is_the_gradient_of_the_weighted_residual(name: str) -> None:
    op, gain, sigma = OPERATORS[name], 0.02, 0.05
    y = op.measure(image(2, 1, 8, 8), PoissonGaussianNoise(gain, 2 * sigma))
    likelihood = PoissonGaussianLikelihood(op, y, gain, sigma)
    x = image(2, 1, 8, 8).flip(-1).requires_grad_()
    weight = (gain * likelihood.y.clamp_min(gain) + sigma**2).sqrt()
    length = torch.linalg.vector_norm(((likelihood.y - op.A((x + 1) / 2)) / weight).flatten(1), dim=1)
    (expected,) = torch.autograd.grad(length.sum(), x)
    assert torch.allclose(likelihood.misfit_grad(x.detach()), expected, rtol=1e-9, atol=1e-12)


def test_without_photon_noise_it_is_gaussian() -> None:
    op = OPERATORS["blur"]
    y, x = op.A((image(2, 1, 8, 8) + 1) / 2), image(2, 1, 8, 8).flip(-1)
    counts = PoissonGaussianLikelihood(op, y, gain=1e-12, sigma=0.05)
    # y = A u + 0.05 n is 2 y - A 1 = A x + 0.1 n in image units; the blur keeps constants.
    plain = GaussianLikelihood(op, 2 * y - 1, sigma=0.1)
    assert torch.allclose(counts.score(x), plain.score(x), rtol=1e-6)
    assert torch.allclose(counts.discrepancy(x), plain.discrepancy(x), rtol=1e-6)


def test_with_many_photons_it_is_poisson() -> None:
    op = Identity((1, 8, 8))
    x = image(1, 1, 8, 8)
    y = op.measure(x, PoissonGaussianNoise(1e-5, 0.0))
    both = [PoissonGaussianLikelihood(op, y, 1e-5, 0.0), PoissonLikelihood(op, y, 1e-5)]
    first, second = (likelihood.score(x) for likelihood in both)
    assert (first - second).norm() < 0.02 * second.norm()


@pytest.mark.parametrize(("gain", "sigma"), [(0.02, 0.02), (0.001, 0.1), (0.05, 0.0)])
def test_it_fits_the_noise_it_is_meant_for(gain: float, sigma: float) -> None:
    """At the truth the residual is one in units of the noise, and the score is zero on average."""
    op, noise = Identity((1, 100, 100)), PoissonGaussianNoise(gain, 2 * sigma)
    x = image(1, 1, 1, 1).expand(1, 1, 100, 100)
    likelihood = PoissonGaussianLikelihood(op, op.measure(x, noise), **noise.parameters)
    assert float(likelihood.discrepancy(x)) == pytest.approx(1, abs=0.04)
    score = likelihood.score(x)
    assert abs(float(score.mean())) < 5 * float(score.std()) / 100


@pytest.mark.parametrize(("gain", "sigma", "floor"), [(0.0, 0.1, 0.1), (0.1, -1.0, 0.1), (0.1, 0.1, 0.0), (float("nan"), 0.1, 0.1)])
def test_refusals(gain: float, sigma: float, floor: float) -> None:
    with pytest.raises(ValueError, match="a finite number"):
        PoissonGaussianLikelihood(Identity((1, 2, 2)), torch.zeros(1, 1, 2, 2), gain, sigma, floor)
