"""Our samplers in deepinv's own test loop."""

import deepinv
import pytest
import torch
from analytic import analytic_prior

from invsolve import Posterior, sample
from invsolve.interop.deepinv import SamplerReconstructor
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonGaussianLikelihood, PoissonLikelihood
from invsolve.samplers import DAPS, DPS
from invsolve.schedules import DDPM
from operators import GaussianBlur

SHAPE = (3, 16, 16)


def physics(sigma=0.02):
    made = deepinv.physics.Inpainting(SHAPE, mask=0.6, rng=torch.Generator().manual_seed(0))
    made.set_noise_model(deepinv.physics.GaussianNoise(sigma, rng=torch.Generator().manual_seed(1)))
    return made


def truths(count=3):
    prior = analytic_prior()
    return ((prior.draw(count, seed=0).float() + 1) / 2).reshape(count, *SHAPE)


def test_deepinv_tests_a_sampler_and_it_beats_the_adjoint():
    model = SamplerReconstructor(DPS(zeta=1.0), analytic_prior(), DDPM(steps=30), n=2)
    data, op = truths(), physics()
    loader = torch.utils.data.DataLoader([(x, y) for x, y in zip(data, op(data), strict=True)], batch_size=3)
    found = deepinv.test(model, loader, op, metrics=[deepinv.metric.PSNR(max_pixel=1.0)], verbose=False, show_progress_bar=False)
    assert found["PSNR"] > found["PSNR no learning"] + 3


def test_a_unit_range_is_ours_up_to_the_affine_map():
    """In [0, 1] with sigma: the same draws as in [-1, 1] with the measurement 2 y - A(1) and 2 sigma."""
    op, data = GaussianBlur(SHAPE, std=1.0), truths(2)
    y = op.A(data) + 0.02 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    ours = SamplerReconstructor(
        DAPS(steps=5) if "steps" in DAPS.__dataclass_fields__ else DAPS(), analytic_prior(), DDPM(steps=6), sigma=0.02
    )
    likelihood = GaussianLikelihood(op, 2 * y - op.A(torch.ones(1, *SHAPE)), sigma=0.04)
    expected = sample(ours.sampler, Posterior(analytic_prior(), likelihood), DDPM(steps=6), ids=["0", "1"], progress=False)
    torch.testing.assert_close(2 * ours(y, op) - 1, expected[:, 0], atol=1e-5, rtol=0)
    again = ours(y, op)
    ours.reset()
    first = ours(y, op)
    torch.testing.assert_close(2 * first - 1, expected[:, 0], atol=1e-5, rtol=0)
    assert (again - first).abs().max() > 1e-3


def test_signed_range_and_all_samples():
    op, x = GaussianBlur(SHAPE, std=1.0), 2 * truths(1) - 1
    model = SamplerReconstructor(DPS(), analytic_prior(), DDPM(steps=4), n=3, estimate="all", range="signed", sigma=0.1)
    assert model(op.A(x), op).shape == (1, 3, *SHAPE)


def test_a_nonlinear_physics_sees_the_unit_range():
    """A(u) = u^2 is the composition with (x + 1) / 2: at the truth the residual is zero."""
    op, data = deepinv.physics.Physics(A=lambda u, **_: u**2), truths(1)
    model = SamplerReconstructor(DPS(), analytic_prior(), DDPM(steps=3), sigma=0.1, image_shape=SHAPE)
    likelihood = model._likelihood(data**2, op)
    assert float(likelihood.discrepancy(2 * data - 1)) < 1e-5
    assert model(data**2, op).shape == data.shape


def test_refusals():
    model = SamplerReconstructor(DPS(), analytic_prior(), DDPM(steps=3))
    with pytest.raises(ValueError, match="states no sigma"):
        model(truths(1), GaussianBlur(SHAPE, std=1.0))
    with pytest.raises(ValueError, match="estimate='median'"):
        SamplerReconstructor(DPS(), analytic_prior(), DDPM(steps=3), estimate="median")
    with pytest.raises(ValueError, match="one sigma"):
        model(truths(2), physics(torch.tensor([0.1, 0.2])))


def model_of(**options):
    return SamplerReconstructor(DPS(), analytic_prior(), DDPM(steps=3), **options)


class Louder(deepinv.physics.GaussianNoise):
    """A Gaussian class whose noise is not what its sigma says."""

    def forward(self, x, **options):
        return super().forward(3 * x, **options)


@pytest.mark.parametrize(
    "noise",
    [
        Louder(0.1), deepinv.physics.LaplaceNoise(0.1), deepinv.physics.UniformNoise(0.1), deepinv.physics.UniformGaussianNoise(),
        deepinv.physics.LogPoissonNoise(), deepinv.physics.GammaNoise(2.0), deepinv.physics.SaltPepperNoise(),
        deepinv.physics.FisherTippettNoise(2.0), deepinv.physics.GaussianNoise(0.1) * deepinv.physics.PoissonNoise(0.1),
    ],
    ids=lambda noise: type(noise).__name__,
)  # fmt: skip
def test_other_noise_is_refused_by_name_unless_sigma_says_to_take_it_as_gaussian(noise):
    noise.sigma = torch.tensor(0.1)  # whatever attribute it has
    op = deepinv.physics.Denoising(noise_model=noise)
    with pytest.raises(ValueError, match=rf"Denoising has noise of class {type(noise).__name__}; GaussianNoise, Poisson"):
        model_of()._likelihood(truths(1), op)
    assert model_of(sigma=0.25)._likelihood(truths(1), op).sigma == 0.5


def test_no_noise_is_refused():
    for noise in (None, deepinv.physics.ZeroNoise()):
        op = deepinv.physics.Denoising()
        op.noise_model = noise
        with pytest.raises(ValueError, match="states no sigma"):
            model_of()._likelihood(truths(1), op)


@pytest.mark.parametrize("sigma", [None, 0.03])
def test_counts_have_the_moments_of_deepinvs_noise(sigma):
    """At the truth, the residual in units of the likelihood's noise has unit variance: gain and sigma have deepinv's units."""
    rng = torch.Generator().manual_seed(0)
    count = deepinv.physics.PoissonNoise(0.02, rng=rng) if sigma is None else deepinv.physics.PoissonGaussianNoise(0.02, sigma, rng=rng)
    op, x = deepinv.physics.Denoising(noise_model=count), 0.2 + 0.6 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    likelihood = model_of()._likelihood(op(x), op)
    assert isinstance(likelihood, PoissonLikelihood if sigma is None else PoissonGaussianLikelihood)
    # 4800 squares of about normal numbers: a standard error of sqrt(2 / 4800) / 2 = 0.0102 in the root; four of them.
    assert abs(float(likelihood.discrepancy(2 * x - 1)) - 1) < 0.041


def test_counts_that_would_be_misread_are_refused():
    y = truths(1)
    poisson = deepinv.physics.PoissonNoise
    with pytest.raises(ValueError, match=r"PoissonNoise counts light.*range='unit'"):
        model_of(range="signed")._likelihood(y, deepinv.physics.Denoising(noise_model=poisson(0.1)))
    with pytest.raises(ValueError, match=r"normalize=False.*multiply y by its gain"):
        model_of()._likelihood(y, deepinv.physics.Denoising(noise_model=poisson(0.1, normalize=False)))
    with pytest.raises(ValueError, match="one gain"):
        model_of()._likelihood(truths(2), deepinv.physics.Denoising(noise_model=poisson(torch.tensor([0.1, 0.2]))))
