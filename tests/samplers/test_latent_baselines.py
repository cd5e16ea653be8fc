"""DAPS on codes (LatentDAPS): chains through the decoder against exact draws behind it, the published loop, its settings."""

import math
from dataclasses import replace

import pytest
import torch
from problems import DOUBLE, randn, tensor

from invsolve import Posterior, sample
from invsolve.config.load import load
from invsolve.diagnostics.affine import output_law
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.priors import GaussianPrior, LatentPrior, LinearAutoencoder
from invsolve.samplers import DAPS, DPS
from invsolve.samplers.daps import Annealed
from invsolve.schedules import DDPM, Karras
from invsolve.streams import GivenNoise
from operators import Identity, Matrix

SHAPE, CODE, SIGMA = (1, 3, 4), (3,), 0.3
W = torch.linalg.qr(randn(12, 3, seed=1))[0]
OFFSET = 0.2 * randn(*SHAPE, seed=2)
A = randn(5, 12, seed=5) / 2
COV = tensor([[1.0, 0.3, 0.0], [0.3, 0.6, 0.2], [0.0, 0.2, 0.8]])
PRIOR = GaussianPrior(tensor([0.5, -0.4, 0.2]), COV)
LATENT = LatentPrior(PRIOR, LinearAutoencoder(W, SHAPE, CODE, offset=OFFSET))


def problem(rows=1, prior=LATENT):
    operator = Matrix(A, SHAPE)
    return Posterior(prior, GaussianLikelihood(operator, operator.measure(LATENT.decode(PRIOR.draw(rows, seed=6)), SIGMA), SIGMA))


def behind(posterior):
    """The same problem in the space of codes, where the inner draw is exact."""
    y = posterior.likelihood.y - A @ OFFSET.flatten()
    return Posterior(PRIOR, GaussianLikelihood(Matrix(A @ W, CODE), y, SIGMA))


def whitened(draws, mean, cov):
    """Mean error in standard deviations, and eigenvalues of the covariance relative to `cov`."""
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, (draws - mean).mT, upper=False)
    return float(white.mean(1).norm()), torch.linalg.eigvalsh(torch.cov(white))


@pytest.mark.parametrize("inner", ["hmc", "underdamped"])
def test_chains_through_the_decoder_draw_what_exact_draws_behind_it_do(inner):
    posterior, schedule, n = problem(), Karras(12, 10.0, 0.05), 1500
    sampler = DAPS(inner=inner, inner_steps=40, leapfrogs=8)
    images = sample(sampler, posterior, schedule, n=n, progress=False)[0]
    # W is orthonormal: images lie on its range, and hold the code whole.
    codes = LATENT.encode(images)
    torch.testing.assert_close(LATENT.decode(codes), images, rtol=0, atol=1e-10)
    off, ratios = whitened(codes, *output_law(DAPS(), behind(posterior), schedule))
    # Monte Carlo alone gives sqrt(3/n) = 0.045 and eigenvalues within about 2 sqrt(3/n) = 0.09 of 1; short chains add a little.
    assert off < 0.15
    assert 0.85 < float(ratios[0]) <= float(ratios[-1]) < 1.15


def test_it_is_near_the_exact_posterior_where_latent_dps_is_not():
    posterior = problem()
    exact = posterior.exact_of_code()
    root = torch.linalg.cholesky(exact.cov)

    def compared(mean, cov):
        half = torch.linalg.solve_triangular(root, cov, upper=False)
        off = torch.linalg.solve_triangular(root, (mean - exact.mean[0])[:, None], upper=False).norm()
        return float(off), torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))

    off, ratios = compared(*output_law(DAPS(), behind(posterior), Karras(200, 10.0, 0.02)))
    assert off < 0.03 and float((ratios - 1).abs().max()) < 0.01
    # With its theoretical weight: half a standard deviation off, and variances of half the right size.
    off, ratios = compared(*output_law(DPS(variant="squared"), posterior, DDPM(steps=300)))
    assert off > 0.3 and float(ratios[0]) < 0.6


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_published_loop_step_by_step(clip):
    """Two Euler steps of the ODE, then Langevin with momentum on -||y - A D z||^2/tau^2, its gradient clamped entry by entry."""
    posterior, x, steps, tau, m, ratio = problem(rows=2).in_prior_space(), 3 * randn(2, 3, seed=7), 5, 0.05, 0.6, 0.1
    move = Move(Level(1.0, 2.0), Level(1.0, 1.5), 7, 50)
    z, last = [randn(2, 3, seed=20 + k) for k in range(steps + 1)], randn(2, 3, seed=40)
    v, times = x, [2.0, None, 0.001]
    times[1] = ((2.0 ** (1 / 7) + 0.001 ** (1 / 7)) / 2) ** 7
    for a, b in ((times[0], times[1]), (times[1], times[2])):
        v = v + (b - a) * (v - PRIOR.denoise(v, Level(1.0, a))) / a
    estimate, lr = v, 1e-5 * (1 + (ratio - 1) * 7 / 51)
    u, p = estimate, z[0]
    for k in range(steps):
        grad = -2 * (posterior.likelihood.y - LATENT.decode(u).flatten(1) @ A.mT) @ A @ W
        grad = grad if clip is None else grad.clamp(-clip, clip)
        score = -grad / tau**2 + (estimate - u) / 2.0**2
        p = m * p + math.sqrt(lr) * score + math.sqrt(2 * (1 - m)) * z[k + 1]
        u = u + math.sqrt(lr) * p
    options = {"inner_steps": steps, "lr": 1e-5, "lr_min_ratio": ratio, "momentum": m, "likelihood": "official", "tau": tau, "clip": clip}
    sampler = DAPS(estimate="ode", ode_steps=2, ode_sigma_min=0.001, inner="underdamped", **options)
    found = sampler.step(posterior, sampler.init(posterior, x), move, GivenNoise(*z, last))
    torch.testing.assert_close(found.x, u + 1.5 * last, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.x0, estimate, rtol=0, atol=1e-10)
    # The clamp does something here, and only by option.
    assert float(grad.abs().max()) == 1 if clip else float(grad.abs().max()) > 1
    assert posterior.likelihood.inner.sigma == SIGMA


def test_a_bound_that_is_never_reached_changes_nothing():
    posterior, schedule = problem(rows=2), Karras(6, 3.0, 0.1)
    sampler = DAPS(inner_steps=20, leapfrogs=5)
    wide = sample(replace(sampler, clip=1e6), posterior, schedule, progress=False)
    torch.testing.assert_close(wide, sample(sampler, posterior, schedule, progress=False), rtol=0, atol=1e-12)


def test_published_settings():
    config = load("photo_inpaint", ["sampler=latent_daps_official"])
    sampler, schedule = config.sections["sampler"].build(), config.sections["schedule"].build()
    assert (sampler.inner_steps, sampler.lr, sampler.lr_min_ratio, sampler.momentum) == (15, 9.02e-6, 0.13, 0.74)
    assert (sampler.tau, sampler.clip, sampler.likelihood, sampler.ode_steps) == (0.01, 1.0, "official", 2)
    levels = schedule.levels()
    # 51 points from 10 to 0.1, of which the last is replaced by 0.
    grid = [(10 ** (1 / 7) + k / 50 * (0.1 ** (1 / 7) - 10 ** (1 / 7))) ** 7 for k in range(50)]
    assert [t.sigma for t in levels] == pytest.approx([*grid, 0.0], rel=1e-12)
    assert [Karras(3, s, 0.001).levels()[1].sigma for s in (10.0, 0.1)] == pytest.approx([0.41, 0.0145], rel=0.01)
    assert load("photo_sr4", ["sampler=latent_daps_official_sd"]).sections["sampler"].build().momentum == 0.45
    ours = load("photo_inpaint", ["sampler=latent_daps"]).sections["sampler"].build()
    assert isinstance(ours, DAPS) and ours.likelihood == "correct"


class Bent(LinearAutoencoder):
    """A decoder that is not linear."""

    def decode(self, z):
        return super().decode(z).tanh()


@pytest.mark.parametrize("sampler", [DAPS(inner_steps=10, leapfrogs=5), DAPS(inner="underdamped", inner_steps=10, likelihood="legacy")])
def test_a_batch_equals_single_runs_behind_a_curved_decoder(sampler):
    posterior = problem(rows=3, prior=LatentPrior(PRIOR, Bent(W, SHAPE, CODE, offset=OFFSET)))
    together = sample(sampler, posterior, Karras(6, 3.0, 0.1), n=2, progress=False)
    for b in range(3):
        alone = sample(sampler, posterior.select(torch.tensor([b])), Karras(6, 3.0, 0.1), n=2, ids=[b], progress=False)
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-9)


def test_refusals():
    photons = PoissonLikelihood(Identity(SHAPE), torch.ones(1, *SHAPE, dtype=DOUBLE), 0.1)
    for options, message in (
        ({"likelihood": "official"}, "likelihood='official' is for Gaussian noise, not for a PoissonLikelihood"),
        ({"clip": 1.0}, "clip=1.0 is for Gaussian noise, not for a PoissonLikelihood"),
        ({"inner": "exact"}, "inner='exact' needs a linear operator"),
    ):
        for likelihood in (photons, PulledBack(photons, LATENT.decode)):
            with pytest.raises(TypeError, match=message):
                DAPS(**options).init(Posterior(PRIOR, likelihood), torch.zeros(1, 3, dtype=DOUBLE))
    with pytest.raises(TypeError, match="inner='exact' needs a linear operator"):
        sample(DAPS(inner="exact"), problem(), Karras(5), progress=False)
    with pytest.raises(ValueError, match=r"clip=0\.0; a finite number > 0"):
        DAPS(clip=0.0)
    assert isinstance(DAPS().init(problem().in_prior_space(), torch.zeros(1, 3, dtype=DOUBLE)), Annealed)
