"""The exact output law of every sampler on Gaussian problems, against reference values and dense linear algebra.

The table of R1 was computed once by propagating mean and covariance through each sampler in exact arithmetic (to the
digits shown): two unit-variance coordinates with correlation 0.8, the first measured as 1 with sigma 0.1.
"""

import math

import pytest
import torch
from problems import DOUBLE, problem_16, problem_mixture, problem_r1, tensor

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.kernels import reverse
from invsolve.samplers import DPS, Unconditional
from invsolve.schedules import DDPM, Karras, moves

FIXED_SMALL, FIXED_LARGE, ODE = Unconditional(), Unconditional(variance="upper"), Unconditional(kernel="ddim")

R1 = [
    # sampler, what it is run on, steps: mean 1, mean 2, variance 1, covariance, variance 2
    (FIXED_SMALL, "exact", 1000, (0.9901, 0.7921, 0.00918, 0.00783, 0.3615)),
    (FIXED_SMALL, "exact", 100, (0.9901, 0.7921, 0.00625, 0.00712, 0.3266)),
    (FIXED_SMALL, "exact", 20, (0.9901, 0.7921, 0.00210, 0.00512, 0.2323)),
    (FIXED_LARGE, "exact", 1000, (0.9901, 0.7921, 0.01005, 0.00793, 0.3671)),
    (FIXED_LARGE, "exact", 100, (0.9901, 0.7921, 0.01264, 0.00805, 0.3749)),
    (FIXED_LARGE, "exact", 20, (0.9901, 0.7921, 0.03813, 0.00833, 0.4132)),
    (ODE, "exact", 1000, (0.9894, 0.789, 0.00957, 0.00789, 0.3645)),
    (ODE, "exact", 100, (0.9895, 0.789, 0.00772, 0.00757, 0.3485)),
    (ODE, "exact", 20, (0.9897, 0.789, 0.00293, 0.00621, 0.2826)),
    (FIXED_SMALL, "prior", 1000, (0.0, 0.0, 0.99156, 0.79499, 0.9916)),
    (DPS(variant="squared"), "posterior", 1000, (1.0000, 0.9751, 0.00433, 0.00020, 0.2995)),
    (DPS(variant="squared"), "posterior", 100, (1.0000, 0.9752, 0.00181, 0.00006, 0.2881)),
]


def test_exact_posterior_of_r1():
    exact = problem_r1().exact()
    assert torch.allclose(exact.mean, tensor([[1 / 1.01, 0.8 / 1.01]]), atol=1e-14)
    assert torch.allclose(exact.cov, tensor([[0.01 / 1.01, 0.008 / 1.01], [0.008 / 1.01, 1 - 0.64 / 1.01]]), atol=1e-14)


@pytest.mark.parametrize(("sampler", "on", "steps", "expected"), R1, ids=lambda v: str(v)[:40])
def test_r1(sampler, on, steps, expected):
    posterior = problem_r1()
    target = {"exact": posterior.exact(), "prior": posterior.prior, "posterior": posterior}[on]
    mean, cov = output_law(sampler, target, DDPM(steps=steps))
    found = [*mean.tolist(), cov[0, 0].item(), cov[0, 1].item(), cov[1, 1].item()]
    assert found == pytest.approx(expected, abs=1e-3)
    # Half a unit of the last digit shown, where that is finer (means to 3 digits in two rows, hence not for them).
    assert found[2:4] == pytest.approx(expected[2:4], abs=1.1e-5)


def _dense_law(posterior, steps, step):
    """Mean and covariance propagated by independent dense algebra; step(move) gives F, b, root of the noise covariance."""
    plan = moves(DDPM(steps=steps))
    n = posterior.prior.cov.shape[0]
    mean, cov = torch.zeros(n, dtype=DOUBLE), torch.eye(n, dtype=DOUBLE) * plan[0].t.sigma ** 2
    for move in plan:
        F, b, variance = step(move)
        mean, cov = F @ mean + b, F @ cov @ F.mT + variance * torch.eye(n, dtype=DOUBLE)
    return mean, cov


@pytest.mark.parametrize("steps", [20, 100])
def test_dps_squared_in_16_dimensions_against_dense_algebra(steps):
    posterior = problem_16()
    m, C = posterior.prior.mean.flatten(), posterior.prior.cov
    A, y, sigma_y = posterior.likelihood.operator.matrix.to(DOUBLE), posterior.likelihood.y[0], posterior.likelihood.sigma
    eye = torch.eye(16, dtype=DOUBLE)

    def step(move):
        # K1 of Ho et al. in alpha_bar, with the guided posterior mean x0 + (sigma^2/alpha) J^T A^T (y - A x0)/sigma_y^2.
        ab_t, ab_s = move.t.alpha**2, move.s.alpha**2
        J = move.t.alpha * C @ torch.linalg.inv(ab_t * C + (1 - ab_t) * eye)
        guide = (1 - ab_t) / move.t.alpha * J.mT @ A.mT / sigma_y**2
        D, d = J, m - J @ (move.t.alpha * m)
        G, g = D - guide @ A @ D, d + guide @ (y - A @ d)
        beta = 1 - ab_t / ab_s
        c0, ct = math.sqrt(ab_s) * beta / (1 - ab_t), math.sqrt(ab_t / ab_s) * (1 - ab_s) / (1 - ab_t)
        return c0 * G + ct * eye, c0 * g, beta * (1 - ab_s) / (1 - ab_t)

    mean, cov = output_law(DPS(variant="squared"), posterior, DDPM(steps=steps))
    expected_mean, expected_cov = _dense_law(posterior, steps, step)
    assert torch.allclose(mean.flatten(), expected_mean, atol=1e-9)
    assert torch.allclose(cov, expected_cov, atol=1e-9)


@pytest.mark.parametrize("kernel", ["heun", "dpmpp_2m"])
def test_ode_samplers_reach_the_exact_posterior_in_16_dimensions(kernel):
    exact = problem_16().exact()
    mean, cov = output_law(Unconditional(kernel=kernel), exact, Karras(steps=200, sigma_max=300.0, sigma_min=1e-3))
    # The start N(0, sigma_max^2) lacks the mean: an error of |mean| * std / sigma_max.
    assert torch.allclose(mean, exact.mean[0], atol=2e-3)
    assert torch.allclose(cov, exact.cov, atol=1e-3)


def test_ancestral_sampler_reaches_the_exact_posterior_in_16_dimensions_at_first_order():
    exact = problem_16().exact()
    errors = []
    for steps in (250, 500, 1000):
        mean, cov = output_law(Unconditional(), exact, DDPM(steps=steps))
        assert torch.allclose(mean, exact.mean[0], atol=1e-3)
        errors.append(float((cov - exact.cov).norm()))
    assert 0.8 < math.log2(errors[0] / errors[1]) < 1.2
    assert 0.8 < math.log2(errors[1] / errors[2]) < 1.2


def test_the_loop_draws_from_the_law_that_probing_predicts():
    posterior, n = problem_16(sigma=1.0), 4000
    sampler, schedule = DPS(variant="squared"), DDPM(steps=25)
    mean, cov = output_law(sampler, posterior, schedule)
    draws = sample(sampler, posterior, schedule, n=n, progress=False)[0].flatten(1)
    assert draws.shape == (n, 16)
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, (draws - mean.flatten()).mT, upper=False)
    # Whitened, the sample mean is N(0, 1/n) in each of 16 directions and the covariance has entries of std sqrt((1+d)/n).
    assert float(white.mean(1).square().sum()) * n == pytest.approx(16, abs=5 * math.sqrt(2 * 16))
    assert float((white @ white.mT / n - torch.eye(16, dtype=DOUBLE)).abs().max()) < 5 * math.sqrt(2 / n)


def test_mixture_weights_with_the_exact_denoiser():
    # 4000 draws: a standard error of 0.0078 on the weight of a mode.
    exact = problem_mixture().exact()
    weight = float(exact.weights[0, 0])
    assert weight == pytest.approx(0.405, abs=5e-4)
    n = 4000
    draws = sample(Unconditional(), exact, DDPM(steps=200), n=n, progress=False)[0]
    error = math.sqrt(weight * (1 - weight) / n)
    assert float((draws[:, 1] > 0).to(DOUBLE).mean()) == pytest.approx(weight, abs=4 * error)


def test_zero_guidance_and_infinite_noise_give_the_prior():
    posterior = problem_r1()
    prior_law = output_law(FIXED_SMALL, posterior.prior, DDPM(steps=50))
    for target in (
        posterior,
        Posterior(posterior.prior, type(posterior.likelihood)(posterior.likelihood.operator, posterior.likelihood.y, 1e8)),
    ):
        zeta = 0.0 if target is posterior else 1.0
        mean, cov = output_law(DPS(zeta=zeta, variant="squared"), target, DDPM(steps=50))
        assert torch.allclose(mean, prior_law[0], atol=1e-12) and torch.allclose(cov, prior_law[1], atol=1e-12)
    ours = sample(DPS(zeta=0.0), posterior, DDPM(steps=50), n=3, progress=False)
    plain = sample(FIXED_SMALL, posterior, DDPM(steps=50), n=3, progress=False)
    assert torch.equal(ours, plain)


def test_probing_refuses_a_sampler_that_is_not_affine():
    with pytest.raises(ValueError, match="not affine"):
        output_law(DPS(variant="norm"), problem_r1(), DDPM(steps=10))


def test_norm_step_of_dps_against_finite_differences():
    """x_s = x' - zeta grad ||y - A x0_hat(x_t)||, and with clamping no gradient through clamped entries."""
    pass
    from invsolve.samplers import State
    from invsolve.streams import GivenNoise

    posterior = problem_16(rows=3)
    move = moves(DDPM(steps=20))[12]
    x = 1.5 * torch.randn(3, 1, 4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    z = torch.zeros_like(x)
    for variant in ("norm", "official"):
        clamp = (lambda v: v.clamp(-1, 1)) if variant == "official" else (lambda v: v)

        def misfit(x, clamp=clamp):
            x0 = clamp(posterior.prior.denoise(x, move.t))
            return posterior.likelihood.residual(x0).flatten(1).norm(dim=1)

        gradient = torch.empty_like(x).flatten(1)
        for i in range(16):
            e = torch.zeros(16, dtype=DOUBLE)
            e[i] = 1e-6
            e = e.reshape(1, 4, 4)
            gradient[:, i] = (misfit(x + e) - misfit(x - e)) / 2e-6
        x0 = clamp(posterior.prior.denoise(x, move.t))
        if variant == "official":
            assert 0 < int((x0.abs() == 1).sum()) < x0.numel(), "the problem must clamp some entries and not others"
        expected = reverse.ancestral(x, x0, move, z) - 0.7 * gradient.reshape(x.shape)
        sampler = DPS(zeta=0.7, variant=variant, variance="posterior")
        found = sampler.step(posterior, State(x), move, GivenNoise(z))
        assert torch.allclose(found.x, expected, atol=1e-7)
        assert torch.equal(found.x0, x0)
