"""Exact samplers are called calibrated and wrong ones are not, with the bias that theory gives them."""

import json
import math

import pytest
import torch
from problems import DOUBLE

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.diagnostics.calibrate import MEASURED, OPEN, Calibration, Finding, calibrate, sampler_draws
from invsolve.diagnostics.problems import (
    Problem,
    axes,
    gaussian_noise_likelihood,
    image_problem,
    plane_problem,
    problem_r1,
    smooth_prior,
    two_modes,
)
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.priors import GaussianPrior
from invsolve.samplers import DAPS, DPS, Unconditional
from invsolve.schedules import DDPM, Karras
from operators import HDR, Inpainting

HALF = Inpainting(image_shape=(1, 6, 6), kind="half")


def half_problem(kind="gaussian"):
    return image_problem(kind, HALF, 0.1, gaussian_noise_likelihood(0.1), 0.1)


def exact_draws(posterior, n, seed):
    rows = len(posterior.likelihood.y)
    return posterior.exact().draw(n, seed).reshape(rows, n, *posterior.likelihood.image_shape)


def prior_draws(posterior, n, seed):
    return posterior.prior.draw(n * len(posterior.likelihood.y), seed).unflatten(0, (-1, n))


EXACT = {"plane": plane_problem("gaussian"), "plane modes": plane_problem("mixture"), "image modes": half_problem("mixture")}


def p_values(found):
    return {f.key: f.p for f in found.findings if f.p is not None}


@pytest.mark.parametrize("problem", EXACT.values(), ids=EXACT)
def test_exact_draws_are_calibrated(problem):
    found = calibrate(exact_draws, problem, tolerance=0.0)
    assert found.passed and found.verdict == "calibrated" and not found.reasons
    p = p_values(found)
    # A p-value of several is below 0.01 sooner than one is.
    assert len(p) >= 7 and min(p.values()) > 0.01 / len(p)
    assert p["ranks_the_likelihood"] > 0.01 and p["tarp"] > 0.01
    for key, nominal in (("coverage_pixels_0", 0.5), ("coverage_pixels_1", 0.9), ("coverage_region_1", 0.9)):
        assert abs(found[key].value - nominal) < 4.5 * found[key].error


def test_the_exact_posterior_as_a_prior_is_an_exact_sampler():
    # The reverse process from the posterior's own denoiser, which Heun's method walks nearly exactly.
    def draw(posterior, n, seed):
        heun, schedule = Unconditional(kernel="heun"), Karras(steps=25, sigma_max=50.0, sigma_min=1e-3)
        return sample(heun, posterior.exact(), schedule, n=n, seed=seed, progress=False)

    found = calibrate(draw, plane_problem("gaussian"))
    assert found.passed and min(p_values(found).values()) > 0.01 / 8, found.verdict


def test_daps_with_the_true_conditional_covariance_is_exact():
    # Cov(x_0 | x_t) of a white prior is the r of prior_std, so that every draw of DAPS is one of p(x_0 | x_t, y).
    prior = GaussianPrior(torch.zeros(1, 6, 6, dtype=DOUBLE), 0.09 * torch.eye(36, dtype=DOUBLE))
    problem = Problem("gaussian", prior, HALF, 0.1, gaussian_noise_likelihood(0.1))
    schedule = Karras(steps=8, sigma_max=10.0, sigma_min=0.02)
    found = calibrate(sampler_draws(DAPS(prior_std=0.3), schedule), problem, tolerance=0.02, draws=19)
    assert found.passed, found.verdict
    wrong = calibrate(sampler_draws(DAPS(prior_std=0.15), schedule), problem, draws=19)
    assert "over-confident in what y leaves open" in wrong.verdict


def test_halved_variances_are_called_over_confident():
    def draw(posterior, n, seed):
        mean = posterior.exact().mean[:, None]
        return mean + (exact_draws(posterior, n, seed) - mean) * math.sqrt(0.5)

    for problem in (plane_problem("gaussian"), half_problem()):
        found = calibrate(draw, problem)
        assert not found.passed and found.verdict.startswith("not calibrated: over-confident")
        for key in ("measured", "open"):
            assert found[f"spread_{key}"].value == pytest.approx(math.sqrt(0.5), abs=4.5 * found[f"spread_{key}"].error)
            assert not found[f"mean_{key}"].off and found[f"mean_{key}"].value < 0.1
        # A 90 % interval reaches 1.645 standard deviations, so those of the draws hold 1.163 of the exact ones.
        covered = found["coverage_pixels_1"]
        assert covered.off and covered.value == pytest.approx(math.erf(1.163 / math.sqrt(2)), abs=4.5 * covered.error + 0.01)
    assert found["ranks_the_likelihood"].off and found["spread_error"].off


def test_a_shift_is_called_biased_where_it_is_and_its_ranks_lean():
    def draw(posterior, n, seed):
        one = half_problem()
        found = axes(one.prior.dense().cov, HALF, (1, 6, 6), 0.1)
        # Half an exact standard deviation along everything that y leaves open.
        step = found.vectors @ (0.5 * ~found.measured / (1 + found.gains).sqrt())
        return exact_draws(posterior, n, seed) + step.reshape(1, 6, 6)

    found = calibrate(draw, half_problem(), draws=19)
    assert found["mean_open"].value == pytest.approx(0.5, abs=4.5 * found["mean_open"].error)
    assert found["mean_open"].off and not found["mean_measured"].off
    assert not any(found[f"spread_{key}"].off for key in ("measured", "open"))
    assert found.reasons[0].startswith(f"biased in {OPEN}: its mean is off by 0.")


def test_dps_has_the_bias_that_is_computed_without_monte_carlo():
    # On R1: a mean of .9751 and variances of .00433 and .2995 instead of .7921, .0099 and .3663, here by 100 steps.
    posterior, schedule = problem_r1(), DDPM(steps=100)
    mean, cov = output_law(DPS(variant="squared"), posterior, schedule)
    exact = posterior.exact()
    seen = axes(posterior.prior.cov, posterior.likelihood.operator, (2,), 0.1)
    ratios = {}
    for key, f in (("measured", seen.functionals[seen.measured][0]), ("open", seen.functionals[~seen.measured][0])):
        ratios[key] = float(f @ cov @ f / (f @ exact.cov @ f))
    found = calibrate(sampler_draws(DPS(variant="squared"), schedule), plane_problem("gaussian"), draws=19)
    assert not found.passed and "over-confident in what y measures" in found.verdict
    for key, ratio in ratios.items():
        value = found[f"spread_{key}"]
        assert value.value == pytest.approx(math.sqrt(ratio), abs=4.5 * value.error)
    assert found["mean_open"].off and found["mean_open"].value > 0.2


def test_dps_leaves_the_weights_of_modes():
    found = calibrate(sampler_draws(DPS(), DDPM(steps=50)), plane_problem("mixture"), draws=19)
    assert found["modes"].off and found["modes"].value > 0.15
    assert any("the weights of the modes" in reason for reason in found.reasons)


def test_only_the_likelihood_tells_a_sampler_that_ignores_y_by_ranks():
    found = calibrate(prior_draws, half_problem(), draws=19)
    ranks = {f.key for f in found.findings if f.p is not None and f.off}
    assert ranks == {"ranks_the_likelihood"}
    assert found["mean_measured"].value > 1 and f"biased in {MEASURED}" in found.verdict


def test_operators_that_are_not_linear_are_held_against_truths():
    problem = image_problem("gaussian", HDR((1, 6, 6)), 0.1, gaussian_noise_likelihood(0.1), None)

    found = calibrate(prior_draws, problem, images=64, draws=19)
    assert found.measured is None and not any(f.key.startswith(("mean", "spread_measured", "modes", "crps")) for f in found.findings)
    assert not found.passed and [f.key for f in found.findings if f.off and f.p is not None] == ["ranks_the_likelihood"]


def test_results_depend_on_the_seed_alone():
    draw, problem = sampler_draws(DAPS(), Karras(steps=5, sigma_max=10.0, sigma_min=0.1)), half_problem()
    first, second, other = (calibrate(draw, problem, images=32, draws=9, seed=s).as_dict() for s in (1, 1, 2))
    assert first == second != other
    assert json.loads(json.dumps(first, allow_nan=False))["passed"] is first["passed"]


def test_refusals():
    problem = plane_problem("gaussian")
    for settings, text in (({"images": 8}, "images = 8"), ({"draws": 3}, "draws = 3"), ({"level": 1.5}, "level = 1.5")):
        with pytest.raises(ValueError, match=text):
            calibrate(exact_draws, problem, **settings)
    with pytest.raises(ValueError, match="the draws have shape"):
        calibrate(lambda p, n, s: exact_draws(p, n, s)[:, :5], problem, images=32)
    with pytest.raises(ValueError, match="NaN"):
        calibrate(lambda p, n, s: exact_draws(p, n, s) * math.nan, problem, images=32, draws=9)
    each = Inpainting(image_shape=(1, 6, 6), kind="box", size=3, per_image=True)
    with pytest.raises(ValueError, match="differs from image to image"):
        Problem("gaussian", smooth_prior((1, 6, 6)), each, 0.1, gaussian_noise_likelihood(0.1)).simulate(2)


def test_the_verdict_names_one_coverage_for_each_kind_and_ranks_where_nothing_else_is_off():
    def found(*findings):
        return Calibration("gaussian", 128, 39, None, findings)

    low = Finding("coverage_pixels_0", "coverage of 50.0% intervals of pixels", 0.45, 0.01, None, 0.46, 0.54, off=True)
    lower = Finding("coverage_pixels_1", "coverage of 90.0% intervals of pixels", 0.7, 0.01, None, 0.86, 0.94, off=True)
    rank = Finding("ranks_the_norm", "ranks of the norm", 0.2, p=1e-9, off=True)
    assert found(low, lower, rank).reasons == ["over-confident by coverage: 90.0% intervals of pixels hold 70.0% of the truths"]
    assert found(rank).reasons == ["ranks of the norm are not uniform (p = 1e-09)"]


# -- the problems ----------------------------------------------------------------------------------------------------------


def test_the_axes_make_prior_and_posterior_diagonal():
    prior = smooth_prior((1, 6, 6))
    found = axes(prior.dense().cov, HALF, (1, 6, 6), 0.1)
    exact = Posterior(prior, GaussianLikelihood(HALF, torch.zeros(1, 1, 6, 6, dtype=DOUBLE), 0.1)).exact()
    F = found.functionals
    torch.testing.assert_close(F @ prior.dense().cov @ F.mT, torch.eye(36, dtype=DOUBLE), atol=1e-9, rtol=0)
    torch.testing.assert_close(F @ exact.cov @ F.mT, torch.diag(1 / (1 + found.gains)), atol=1e-9, rtol=0)
    torch.testing.assert_close(F @ found.vectors, torch.eye(36, dtype=DOUBLE), atol=1e-9, rtol=0)
    assert int((found.gains < 1e-9).sum()) == 18, "half of the pixels are not measured"


def test_two_modes_are_far_apart_and_y_hardly_tells_them_from_each_other():
    mixture = two_modes(smooth_prior((1, 6, 6)).dense(), HALF, 0.1)
    gap = (mixture.means[0] - mixture.means[1]).flatten()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(mixture.covs[0]), gap[:, None], upper=False)
    assert float(white.norm()) == pytest.approx(2 * math.hypot(5, 0.8))
    problem = Problem("mixture", mixture, HALF, 0.1, gaussian_noise_likelihood(0.1))
    weights = problem.simulate(400)[1].exact().weights[:, 0]
    assert float(weights.mean()) == pytest.approx(0.3, abs=4.5 * float(weights.std()) / 20)
    assert float(((weights > 0.02) & (weights < 0.98)).double().mean()) > 0.5
