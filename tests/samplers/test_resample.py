"""ReSample: whole trajectories and laws against dense algebra, its solvers, what its fits reach, the departures of the code, refusals."""

import math

import pytest
import torch
from problems import DOUBLE, problem_16, randn, tensor

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.kernels import resample, reverse
from invsolve.levels import Level, Move
from invsolve.likelihoods import fits
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.likelihoods.pulled_back import PulledBack
from invsolve.numerics.adam import descend
from invsolve.priors import GaussianMixturePrior, GaussianPrior, LatentPrior, LinearAutoencoder
from invsolve.samplers import ReSample, State, Unconditional
from invsolve.samplers.resample import Ahead
from invsolve.schedules import DDPM, Karras, ScaledLinear, moves
from invsolve.streams import GivenNoise
from operators import Blur, GaussianBlur, Identity, Inpainting, Matrix, MultiCoilMRI, Operator, SuperResolution

SHAPE, CODE, SIGMA = (1, 3, 4), (4,), 0.1
W = torch.linalg.qr(randn(12, 4, seed=1))[0]
OFFSET = 0.2 * randn(*SHAPE, seed=2)
SKEW = W.mT + 0.1 * randn(4, 12, seed=9)
"""An encoder that is no inverse of the decoder."""
EYE = torch.eye(4, dtype=DOUBLE)
ROOT = randn(4, 4, seed=3) / 2
GAUSSIAN = GaussianPrior(0.5 * randn(4, seed=4), ROOT @ ROOT.mT + 0.2 * EYE)
MIXTURE = GaussianMixturePrior(tensor([0.4, 0.6]), randn(2, 4, seed=8), 0.1 * EYE.repeat(2, 1, 1))
A = randn(3, 12, seed=5)
OFFICIAL = {"variance": "official", "estimate": "official", "zeta": 0.5, "travel": 5}


def problem(rows=1, prior=GAUSSIAN, encoder=None, W=W, offset=OFFSET, matrix=A, sigma=SIGMA):
    latent = LatentPrior(prior, LinearAutoencoder(W, SHAPE, CODE, encoder=encoder, offset=offset))
    y = latent.decode(prior.draw(rows, seed=6)).flatten(1) @ matrix.mT + sigma * randn(rows, len(matrix), seed=7)
    return Posterior(latent, GaussianLikelihood(Matrix(matrix, SHAPE), y, sigma))


def run(sampler, posterior, schedule=None, **options):
    return sample(sampler, posterior, schedule or DDPM(steps=30), progress=False, **options)


# -- the whole algorithm, written down a second time -------------------------------------------------------------------------


def reference(setting, posterior, schedule, z, noises):
    """Sections 3.1 and 3.2 of the paper and its code in abar and matrices, with the prox of fixed rho as solver."""
    latent, y = posterior.prior, posterior.likelihood.y
    m, C, E = GAUSSIAN.mean, GAUSSIAN.cov, latent.autoencoder.E
    G, target = A @ W, y - OFFSET.flatten() @ A.mT
    lam = (SIGMA / setting.rho) ** 2
    abar = [level.alpha**2 for level in schedule.levels()]
    N, noises = len(abar) - 1, list(noises)
    official = setting.estimate == "official"

    def jacobian(a):
        return math.sqrt(a) * C @ torch.linalg.inv(a * C + (1 - a) * EYE)

    def eps(z, a):
        mean = m + (z - math.sqrt(a) * m) @ jacobian(a)
        return (z - math.sqrt(a) * mean) / math.sqrt(1 - a)

    def estimate(z, e, a):
        return (z - ((1 - a) if official else math.sqrt(1 - a)) * e) / math.sqrt(a)

    def ddim(z, e, a, after):
        return math.sqrt(after) * (z - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - after) * e

    for i in range(N):
        index, a, after = N - 1 - i, abar[i], abar[i + 1]
        e = eps(z, a)
        p0, moved = estimate(z, e, a), ddim(z, e, a, after)
        if setting.zeta:
            slope = (EYE - math.sqrt(a) * jacobian(a)) / math.sqrt(1 - a)
            slope = (EYE - ((1 - a) if official else math.sqrt(1 - a)) * slope) / math.sqrt(a)
            r = p0 @ G.mT - target
            moved = moved - setting.zeta * a * (r / r.norm(dim=1, keepdim=True)) @ G @ slope
        if index <= N - N // 3 and index % setting.skip == 0 and (index > 0 or setting.final):
            ahead = moved
            for k in range(i, min(i + setting.travel, N - 1)):
                e = eps(ahead, abar[k + 1])
                label, to = (abar[k], abar[k + 1]) if official else (abar[k + 1], abar[k + 2])
                p0, ahead = estimate(ahead, e, label), ddim(ahead, e, label, to)
            if index >= N // 3:
                x = p0 @ W.mT
                x = x + (target - x @ A.mT) @ torch.linalg.inv(A @ A.mT + lam * torch.eye(3, dtype=DOUBLE)) @ A
                fitted = x @ E.mT
            else:
                p0 = p0 if index else moved
                fitted = p0 + (target - p0 @ G.mT) @ torch.linalg.inv(G @ G.mT + lam * torch.eye(3, dtype=DOUBLE)) @ G
            if index == 0:
                return fitted
            s2 = setting.gamma * (1 - after) / (a if setting.variance == "paper" else 1 - a) * (1 - a / after)
            mean = (s2 * math.sqrt(after) * fitted + (1 - after) * moved) / (s2 + 1 - after)
            moved = mean + noises.pop(0) / math.sqrt(1 / s2 + 1 / (1 - after))
        z = moved
    assert not noises
    return z


SETTINGS = [
    ReSample(skip=4, rho=0.3),
    ReSample(skip=4, rho=0.3, travel=0, final=False),
    ReSample(skip=1, rho=3.0, travel=3, gamma=1.0),
    ReSample(skip=4, rho=0.3, variance="official"),
    ReSample(skip=4, rho=0.3, zeta=0.3),
    ReSample(skip=4, rho=0.3, travel=0, estimate="official", zeta=0.5),
    ReSample(skip=5, rho=0.3, **OFFICIAL),
]


@pytest.mark.parametrize(("setting", "steps"), [*((s, 24) for s in SETTINGS), (SETTINGS[0], 25), (SETTINGS[-1], 26)])
def test_trajectories_against_the_algorithm_in_matrices(setting, steps):
    posterior, schedule = problem(rows=3, encoder=SKEW), ScaledLinear(steps=steps)
    target, plan = posterior.in_prior_space(), setting.plan(ScaledLinear(steps=steps))
    third = steps // 3
    events = sum(k % setting.skip == 0 for k in range(1, steps - third + 1))
    noises = [randn(3, 4, seed=100 + k) for k in range(events)]
    given = GivenNoise(*noises)
    z = randn(3, 4, seed=10)
    state = setting.init(target, z)
    for move in plan:
        state = setting.step(target, state, move, given)
    assert given.used == events
    expected = reference(setting, posterior, schedule, z, noises)
    # The norm step has a gradient of fixed length, whose direction magnifies rounding.
    assert torch.allclose(setting.result(state), expected, atol=1e-5 if setting.zeta else 1e-9, rtol=0)


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[3]], ids=["paper", "official"])
def test_the_law_of_the_code_against_dense_propagation(setting):
    """With solvers of fixed rho the sampler is affine in its noise: probed in matrices, one column at a time."""
    posterior, schedule = problem(encoder=SKEW), ScaledLinear(steps=24)
    mean, cov = output_law(setting, posterior, schedule)
    events = sum(k % setting.skip == 0 for k in range(1, 17))
    size = 4 * (1 + events)
    basis = torch.cat([torch.zeros(1, size, dtype=DOUBLE), torch.eye(size, dtype=DOUBLE)])
    start, *noises = basis.split(4, 1)
    out = reference(setting, posterior, schedule, start * schedule.levels()[0].sigma, noises)
    columns = (out[1:] - out[:1]).mT
    assert torch.allclose(mean, out[0], atol=1e-9)
    assert torch.allclose(cov, columns @ columns.mT, atol=1e-9)


def whitened(mean, cov, exact):
    """(length of the whitened error of the mean, eigenvalues of the covariance over the exact one)."""
    root = torch.linalg.cholesky(exact.cov)
    error = torch.linalg.solve_triangular(root, (mean - exact.mean[0])[:, None], upper=False).norm()
    half = torch.linalg.solve_triangular(root, cov, upper=False)
    return float(error), torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))


def test_the_bias_is_what_it_is_said_to_be():
    """Before the last fit some directions are too narrow and others too wide at once; after it what y measures has no spread."""
    posterior, schedule = problem(), ScaledLinear(steps=60)
    G, exact = A @ W, posterior.exact_of_code()
    hard = {"rho": 1e3, "skip": 2}
    before, official, after = (
        output_law(ReSample(**options, **hard), posterior, schedule)
        for options in ({"final": False}, {"final": False, "variance": "official"}, {})
    )
    error, spread = whitened(*before, exact)
    assert error > 0.5 and float(spread[0]) < 0.5 and float(spread[-1]) > 1.5
    # The code trusts the fitted estimate to the end, and comes closer to y.
    misfits = [float((G @ cov @ G.mT).trace()) for _, cov in (before, official, after)]
    assert misfits[0] > 1.2 * misfits[1] > 1e6 * misfits[2]
    assert float((posterior.likelihood.y[0] - OFFSET.flatten() @ A.mT - G @ after[0]).abs().max()) < 1e-4


# -- stochastic resampling ---------------------------------------------------------------------------------------------------

VP = Move(Level(math.sqrt(0.5), math.sqrt(0.5)), Level(math.sqrt(0.52), math.sqrt(0.48)), 3, 9)


@pytest.mark.parametrize("gamma", [0.3, 40.0])
@pytest.mark.parametrize("variance", ["paper", "official"])
def test_the_resampling_is_the_product_of_two_gaussians(variance, gamma):
    x0, x, z = (randn(5, 2, seed=k) for k in range(3))
    for move in (VP, Move(Level(0.4, math.sqrt(0.84)), Level(0.9, math.sqrt(0.19)), 0, 2)):
        a, b = move.t.alpha**2, move.s.alpha**2
        s2 = gamma * (1 - b) / (a if variance == "paper" else 1 - a) * (1 - a / b)
        precision = 1 / s2 + 1 / (1 - b)
        mean = (math.sqrt(b) * x0 / (1 - b) + x / s2) / precision
        weight = resample.resampling_weight(move, gamma, variance)
        assert torch.allclose(resample.resample(x0, x, move, weight, 0 * z), mean, atol=1e-12)
        assert torch.allclose(resample.resample(x0, x, move, weight, z) - mean, z / math.sqrt(precision), atol=1e-12)
        # On another path of the same sigma/alpha the draw is the same in units of alpha.
        bent = Move(Level(2 * move.t.alpha, 2 * move.t.sigma), Level(3 * move.s.alpha, 3 * move.s.sigma), 0, 2)
        assert resample.resampling_weight(bent, gamma, variance) == pytest.approx(weight, rel=1e-12)
        assert torch.allclose(resample.resample(x0, 3 * x, bent, weight, z), 3 * resample.resample(x0, x, move, weight, z), atol=1e-12)


def test_limits_of_gamma():
    x0, x, z = (randn(5, 2, seed=k) for k in range(3))
    encoding, none = (resample.resampling_weight(VP, gamma) for gamma in (math.inf, 0.0))
    assert torch.equal(resample.resample(x0, x, VP, encoding, z), reverse.diffuse(x0, VP.s, z))
    assert torch.allclose(resample.resample(x0, x, VP, none, z), x, atol=0)
    ratio = resample.resampling_weight(VP, 40.0) / (1 - resample.resampling_weight(VP, 40.0))
    ratio_official = resample.resampling_weight(VP, 40.0, "official") / (1 - resample.resampling_weight(VP, 40.0, "official"))
    assert ratio / ratio_official == pytest.approx(VP.t.sigma**2 / VP.t.alpha**2)


@pytest.mark.parametrize("variance", ["paper", "official"])
def test_draws_of_a_step_have_the_mean_and_variance_of_the_paper(variance):
    """4000 rows that differ in their noise alone; tolerances of five standard errors."""
    n, setting = 4000, ReSample(skip=1, variance=variance, rho=0.3)
    posterior = problem(encoder=SKEW).in_prior_space()
    move = setting.plan(ScaledLinear(steps=30))[20]
    z = randn(1, 4, seed=3).expand(n, -1)
    state = setting.step(posterior, State(z), move, GivenNoise(randn(n, 4, seed=4)))
    moved = Unconditional(kernel="ddim").step(posterior, State(z[:1]), move, GivenNoise()).x
    a, b = move.t.alpha**2, move.s.alpha**2
    s2 = 40 * (1 - b) / (a if variance == "paper" else 1 - a) * (1 - a / b)
    mean = (s2 * math.sqrt(b) * state.x0[:1] + (1 - b) * moved) / (s2 + 1 - b)
    var = s2 * (1 - b) / (s2 + 1 - b)
    assert float((state.x.mean(0) - mean).abs().max()) < 5 * math.sqrt(var / n)
    assert float((state.x.var(0) / var - 1).abs().max()) < 5 * math.sqrt(2 / n)


def test_the_estimate_of_the_code_keeps_noise_that_tweedie_removes():
    for s in (0.2, 0.618, 0.9):
        t = Level(math.sqrt(1 - s**2), s)
        a, b = resample.unrooted(t)
        # Of a known signal x_0 = 0 and noise 1: E[x_0 | x_t] = 0, x_t = s.
        assert a * s == pytest.approx(s * math.sqrt((1 - s) / (1 + s)))
        assert (a * t.alpha + b, resample.unrooted(Level(2 * t.alpha, 2 * s))) == (pytest.approx(1.0), pytest.approx((a / 2, b)))


# -- which levels, and what they cost -----------------------------------------------------------------------------------------


class Counting(GaussianPrior):
    calls = 0

    def denoise(self, x, t):
        self.calls += 1
        return super().denoise(x, t)


@pytest.mark.parametrize(("travel", "calls"), [(0, 500), (1, 533), (5, 665)])
def test_the_published_count_of_fits_and_network_calls(monkeypatch, travel, calls):
    """17 fits to pixels at 330 ... 170 steps from the end, 16 to codes at 160 ... 10, and one at the end."""
    seen = []
    fit = ReSample._fit

    def noted(self, target, z, pixels):
        seen.append(pixels)
        return fit(self, target, z, pixels)

    monkeypatch.setattr(ReSample, "_fit", noted)
    posterior = problem()
    prior = Counting(GAUSSIAN.mean, GAUSSIAN.cov)
    counted = Posterior(LatentPrior(prior, posterior.prior.autoencoder), posterior.likelihood)
    run(ReSample(travel=travel), counted, ScaledLinear(steps=500))
    assert seen == [True] * 17 + [False] * 17
    assert prior.calls == calls
    seen.clear()
    run(ReSample(switch=0.0, final=False), counted, ScaledLinear(steps=500))
    assert seen == [True] * 33


def test_without_fits_it_is_ddim():
    posterior = problem(rows=2)
    plain = run(Unconditional(kernel="ddim"), posterior)
    assert torch.equal(run(ReSample(begin=0.0, switch=0.0, final=False), posterior), plain)
    assert torch.allclose(run(ReSample(gamma=0.0, final=False), posterior), plain, atol=1e-12)


# -- fits --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("solver", ["prox", "adam"])
def test_the_last_fit_reaches_the_noise_and_moves_only_what_is_measured(prior, solver):
    posterior = problem(rows=4, prior=prior, encoder=SKEW)
    options = {"skip": 5, "solver": solver, "latent_lr": 0.02, "c": 0.5}
    final = run(ReSample(**options), posterior, n=2).flatten(0, 1)
    before = run(ReSample(final=False, **options), posterior, n=2).flatten(0, 1)
    rows = posterior.likelihood.select(torch.arange(4).repeat_interleave(2))
    moved, codes = (final - before).flatten(1) @ W, (before.flatten(1) - OFFSET.flatten()) @ W
    assert torch.allclose(moved @ W.mT, (final - before).flatten(1), atol=1e-10)
    was, now = rows.discrepancy(before), rows.discrepancy(final)
    goal = math.sqrt(0.5)
    assert float(was.max()) > 1.5 * goal and bool((now <= goal * 1.001).all())
    assert bool((moved[was <= goal] == 0).all())
    assert codes.shape == (8, 4)
    if solver == "prox":
        # As far as the noise allows and no further, in the row space of what y sees of the code.
        assert torch.allclose(now[was > goal], torch.full_like(now[was > goal], goal), rtol=1e-3)
        null = torch.linalg.svd(A @ W).Vh[3:]
        assert float((moved @ null.mT).abs().max()) < 1e-10


def test_a_fit_to_pixels_agrees_with_y_before_it_is_encoded_and_not_after():
    posterior = problem(rows=3, sigma=0.02).in_prior_space()
    likelihood, prior = posterior.likelihood.inner, posterior.prior
    z = GAUSSIAN.draw(3, seed=1)
    setting = ReSample()
    limit = likelihood.sigma * likelihood.measured.to(DOUBLE).sqrt()
    image = fits.nearest(likelihood, prior.decode(z), limit)
    assert torch.allclose(likelihood.discrepancy(image), torch.ones(3, dtype=DOUBLE), atol=1e-3)
    assert torch.allclose(setting._fit(posterior, z, pixels=True), prior.encode(image), atol=1e-12)
    assert float(posterior.likelihood.discrepancy(setting._fit(posterior, z, pixels=True)).min()) > 5
    assert torch.allclose(
        posterior.likelihood.discrepancy(setting._fit(posterior, z, pixels=False)), torch.ones(3, dtype=DOUBLE), atol=1e-3
    )


def test_pixels_and_codes_are_fitted_alike_where_the_operator_keeps_the_range_of_the_decoder():
    matrix = torch.diag(tensor([2.0, 1.0, 0.5])) @ W.mT[:3] + randn(3, 12, seed=1) @ (torch.eye(12, dtype=DOUBLE) - W @ W.mT) * 0
    posterior = problem(rows=3, matrix=matrix).in_prior_space()
    z = GAUSSIAN.draw(3, seed=1)
    for setting in (ReSample(rho=0.3), ReSample()):
        pixels, codes = (setting._fit(posterior, z, pixels=p) for p in (True, False))
        if setting.rho:
            assert torch.allclose(pixels, codes, atol=1e-10)
        else:
            # Both stop at the noise: by Tikhonov's path and by that of conjugate gradients.
            for fitted in (pixels, codes):
                assert torch.allclose(posterior.likelihood.discrepancy(fitted), torch.ones(3, dtype=DOUBLE), atol=2e-3)


def test_without_an_autoencoder_every_fit_is_one_to_pixels():
    """On an image prior decode is the identity; with an identity autoencoder the codes are the image."""
    pixel = problem_16(rows=2)
    same = LatentPrior(pixel.prior, LinearAutoencoder(torch.eye(16, dtype=DOUBLE), (1, 4, 4), (1, 4, 4)))
    setting = ReSample(skip=4, rho=0.5)
    drawn = run(setting, pixel, n=2)
    assert torch.allclose(drawn, run(setting, Posterior(same, pixel.likelihood), n=2), atol=1e-9)
    final = run(ReSample(skip=4), pixel, n=2).flatten(0, 1)
    assert float(pixel.likelihood.select(torch.tensor([0, 0, 1, 1])).discrepancy(final).max()) < 1.001


def test_the_official_tolerance_interpolates_the_noise():
    posterior = problem(rows=2)
    drawn = run(ReSample(eps=1e-10, skip=5), posterior)[:, 0]
    assert float(posterior.likelihood.residual(drawn).square().mean(1).max()) < 1.01e-10
    exact = Posterior(posterior.prior, GaussianLikelihood(Matrix(A, SHAPE), posterior.likelihood.y, 0.0))
    drawn = run(ReSample(eps=1e-10, skip=5), exact)[:, 0]
    assert float(exact.likelihood.residual(drawn).square().mean(1).max()) < 1.01e-10


# -- solvers -----------------------------------------------------------------------------------------------------------------

LINEAR = [
    GaussianBlur((1, 16, 16), std=1.5, boundary="reflect"),
    Blur((1, 16, 16), "motion", taps=5),
    SuperResolution((1, 16, 16), 4),
    Inpainting((1, 16, 16), kind="random", fraction=0.5, seed=0),
]


def measured(op, sigma, rows=3):
    v, x = 0.5 + 0.5 * randn(rows, 1, 16, 16, seed=1), 0.5 * randn(rows, 1, 16, 16, seed=2)
    likelihood = GaussianLikelihood(op, op.A(x) + sigma * op.restrict(randn(rows, *op.measurement_shape, seed=3)), sigma)
    return likelihood, v, sigma * likelihood.measured.to(DOUBLE).sqrt()


@pytest.mark.parametrize("sigma", [0.1, 0.01])
@pytest.mark.parametrize("op", LINEAR, ids=lambda op: type(op).__name__)
def test_the_discrepancy_principle_finds_the_smallest_rho(op, sigma):
    likelihood, v, limit = measured(op, sigma)
    found = fits.morozov(likelihood, v, limit, widest=100.0)
    assert torch.allclose(likelihood.discrepancy(found), torch.ones(3, dtype=DOUBLE), atol=1.1e-3)
    for row in range(3):
        one = likelihood.select(torch.tensor([row]))
        low, high = math.log(1e-4), math.log(1e4)
        for _ in range(60):
            middle = (low + high) / 2
            near = float(one.discrepancy(one.prox(v[row : row + 1], math.exp(middle)))) < 1
            low, high = (low, middle) if near else (middle, high)
        # The residual is within 1e-3 of the wanted one, and so is rho times its slope there.
        exact = one.prox(v[row : row + 1], math.exp(low))
        assert float((found[row] - exact[0]).norm() / (exact[0] - v[row]).norm()) < 0.02


@pytest.mark.parametrize(
    "op",
    [Blur((1, 16, 16), "motion", taps=5, boundary="reflect"), MultiCoilMRI((2, 16, 16), n_coils=2, acceleration=2)],
    ids=lambda op: type(op).__name__,
)
def test_operators_without_a_closed_form_take_conjugate_gradients_that_stop_at_the_noise(op):
    assert not op.closed_form
    v, x = (0.5 * randn(3, *op.image_shape, seed=k) for k in (1, 2))
    likelihood = GaussianLikelihood(op, op.measure(x, 0.05, seed=0), 0.05)
    limit = 0.05 * likelihood.measured.to(DOUBLE).sqrt()
    found = fits.nearest(likelihood, v, limit)
    assert torch.allclose(likelihood.discrepancy(found), torch.ones(3, dtype=DOUBLE), atol=1e-3)
    # Not much further from where it began than the nearest such image.
    tikhonov = fits.morozov(likelihood, v, limit, widest=100.0)
    ratio = (found - v).flatten(1).norm(dim=1) / (tikhonov - v).flatten(1).norm(dim=1)
    assert bool((ratio >= 1 - 1e-3).all()) and float(ratio.max()) < 1.3


def test_morozov_leaves_what_agrees_alone_and_does_not_chase_what_nothing_explains():
    likelihood, v, limit = measured(LINEAR[2], 0.1)
    agrees = fits.morozov(likelihood, v, limit, widest=100.0, iterations=8)
    again = fits.morozov(likelihood, agrees, limit, widest=100.0)
    assert torch.equal(again, agrees)
    blind = GaussianLikelihood(Matrix(torch.diag(tensor([1.0, 0.0])), (2,)), tensor([[1.0, 1.0]]), 0.1)
    found = fits.morozov(blind, torch.zeros(1, 2, dtype=DOUBLE), 0.1 * tensor([2.0]).sqrt(), widest=1.0)
    assert torch.allclose(found, blind.prox(torch.zeros(1, 2, dtype=DOUBLE), 1.0), atol=1e-10)


def test_conjugate_gradients_solve_linear_problems_and_stop_at_the_noise():
    posterior = problem(rows=3)
    likelihood, decode = posterior.likelihood, posterior.prior.decode
    G, z = A @ W, randn(3, 4, seed=3)
    r = likelihood.residual(decode(z))
    for rho in (0.05, 0.5):
        found = fits.conjugate_gradients(likelihood, decode, z, limit=None, rho=rho, steps=50)
        exact = torch.linalg.solve(G.mT @ G + (SIGMA / rho) ** 2 * EYE, (r @ G).mT).mT
        assert torch.allclose(found - z, exact, atol=1e-10)
    size = r.norm(dim=1)
    limit = tensor([0.3, 1e-3, 2.0]) * size
    found = fits.conjugate_gradients(likelihood, decode, z, limit=limit, steps=50)
    reached = likelihood.residual(decode(found)).norm(dim=1)
    assert torch.allclose(reached[:2], limit[:2], rtol=1e-3) and torch.equal(found[2], z[2])
    # What cannot be reached ends at least squares: five numbers of a code of two.
    wide = GaussianLikelihood(Matrix(randn(5, 2, seed=4), (2,)), randn(3, 5, seed=5), 0.1)
    M, v = wide.operator.matrix, torch.zeros(3, 2, dtype=DOUBLE)
    found = fits.conjugate_gradients(wide, lambda x: x, v, limit=1e-3 * torch.ones(3, dtype=DOUBLE), steps=50)
    assert torch.allclose(found, wide.y @ torch.linalg.pinv(M).mT, atol=1e-6)


def bent(z):
    """A decoder that is not linear, and not small where it is steep."""
    return (torch.tanh(z @ W.mT) + 0.05 * torch.sin(3 * z @ W.mT)).unflatten(1, SHAPE)


@pytest.mark.parametrize("sigma", [0.1, 0.01])
def test_conjugate_gradients_and_adam_fit_codes_behind_a_decoder_that_is_not_linear(sigma):
    truth = randn(6, 4, seed=1)
    z = truth + 0.5 * randn(6, 4, seed=2)
    y = bent(truth).flatten(1) @ A.mT + sigma * randn(6, 3, seed=3)
    likelihood = GaussianLikelihood(Matrix(A, SHAPE), y, sigma)
    limit = sigma * likelihood.measured.to(DOUBLE).sqrt()
    fitted = fits.conjugate_gradients(likelihood, bent, z, limit=limit, steps=100)
    start, end = (likelihood.discrepancy(bent(v)) for v in (z, fitted))
    assert float(start.median()) > 3 and float(end.max()) <= 1.001
    assert bool((fitted == z).all(1)[start <= 1].all())
    descended = descend(fits.misfit(likelihood, bent), z, goal=1.0, steps=2000, lr=0.02)
    assert float(likelihood.discrepancy(bent(descended)).max()) <= 1.0


def test_the_gradient_of_the_misfit_is_that_of_the_mean_squared_residual():
    z, y = randn(3, 4, seed=1), randn(3, 3, seed=2)
    likelihood = GaussianLikelihood(Matrix(A, SHAPE), y, 0.3)
    held = z.clone().requires_grad_()
    loss = (bent(held).flatten(1) @ A.mT - y).square().mean(1)
    (expected,) = torch.autograd.grad(loss.sum(), held)
    value, grad = fits.misfit(likelihood, bent)(z)
    assert torch.allclose(value, loss.detach().sqrt() / 0.3) and torch.allclose(grad, expected)
    hidden = Inpainting(SHAPE, kind="random", fraction=0.5, seed=0)
    masked = GaussianLikelihood(hidden, hidden.A(randn(3, *SHAPE, seed=4)), 0.3)
    value, grad = fits.misfit(masked, lambda x: x)(randn(3, *SHAPE, seed=5))
    seen = hidden.A(torch.ones(1, *SHAPE, dtype=DOUBLE))
    assert bool((grad[(seen == 0).expand_as(grad)] == 0).all())
    photons = PoissonLikelihood(Identity(SHAPE), torch.ones(3, *SHAPE, dtype=DOUBLE), 0.1)
    value, grad = fits.misfit(photons, bent)(z)
    assert torch.allclose(value, photons.discrepancy(bent(z)))
    assert torch.allclose(grad, PulledBack(photons, bent).misfit_grad(z) * (2 * value / math.sqrt(12))[:, None])


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adam_is_that_of_torch_and_a_row_that_has_arrived_is_frozen(decay):
    target, x = tensor([[1.0, -2.0], [0.3, 0.4]]), randn(2, 2, seed=1)

    def objective(x):
        return (x - target).norm(dim=1), 2 * (x - target)

    held = x.clone().requires_grad_()
    adam = torch.optim.AdamW([held], lr=0.05, weight_decay=decay)
    for _ in range(40):
        held.grad = 2 * (held.detach() - target)
        adam.step()
    assert torch.allclose(descend(objective, x, goal=0.0, steps=40, lr=0.05, decay=decay), held.detach(), atol=1e-12)
    alone = torch.cat([descend(lambda v, r=r: tuple(p[r : r + 1] for p in objective(v.expand(2, 2))), x[r : r + 1], goal=0.3,
        steps=500, lr=0.05, decay=decay) for r in range(2)])  # fmt: skip
    both = descend(objective, x, goal=0.3, steps=500, lr=0.05, decay=decay)
    assert torch.equal(both, alone)
    distance = objective(both)[0]
    assert bool((distance <= 0.3).all()) and bool((distance > 0.2).all())


def test_patience_gives_up_where_nothing_is_gained():
    values = iter([5.0, 4.0, 3.0, 3.5, 2.0, 3.1, 2.9, 2.8])
    steps = []

    def objective(x):
        steps.append(float(x))
        return torch.full((1,), next(values), dtype=DOUBLE), torch.ones_like(x)

    descend(objective, torch.zeros(1, 1, dtype=DOUBLE), goal=0.0, steps=8, lr=1.0, patience=3)
    # The sixth value, 3.1, is above the third, and the sixth step is not taken.
    assert [round(-s) for s in steps] == [0, 1, 2, 3, 4, 5, 5, 5]


# -- other problems, rows, refusals -------------------------------------------------------------------------------------------


class Squares(Operator):
    """y = x^2 + x."""

    def __init__(self, image_shape):
        super().__init__(image_shape, image_shape)

    def _forward(self, x):
        return x**2 + x


def test_operators_that_are_not_linear_and_other_noise_take_adam():
    posterior = problem_16(rows=2)
    squares = Squares((1, 4, 4))
    y = squares.A(posterior.prior.draw(2, seed=5)) + 0.1 * randn(2, 1, 4, 4, seed=6)
    target = Posterior(posterior.prior, GaussianLikelihood(squares, y, 0.1))
    drawn = run(ReSample(skip=5), target)[:, 0]
    assert float(target.likelihood.discrepancy(drawn).max()) <= 1.0
    photons = Posterior(posterior.prior, PoissonLikelihood(Identity((1, 4, 4)), torch.rand(2, 1, 4, 4, dtype=DOUBLE), 0.02))
    drawn = run(ReSample(skip=5, latent_lr=0.02), photons)[:, 0]
    assert float(photons.likelihood.discrepancy(drawn).max()) <= 1.0


@pytest.mark.parametrize(
    "setting",
    [ReSample(skip=3), ReSample(skip=3, solver="adam", pixel_steps=60, latent_steps=60), ReSample(skip=3, eta=1.0, **OFFICIAL)],
    ids=["prox", "adam", "official"],
)
@pytest.mark.parametrize("space", ["pixels", "codes"])
def test_a_batch_equals_single_runs(setting, space):
    posterior = problem_16(rows=3) if space == "pixels" else problem(rows=3, prior=MIXTURE, encoder=SKEW)
    together = run(setting, posterior, DDPM(steps=12), n=2)
    for b in range(3):
        alone = run(setting, posterior.select(torch.tensor([b])), DDPM(steps=12), n=2, ids=[b])
        assert torch.allclose(together[b], alone[0], atol=1e-9, rtol=0)


def test_it_runs_in_inference_mode_and_on_any_path():
    posterior = problem(rows=2)
    for schedule in (DDPM(steps=12), Karras(12, 20.0, 0.02)):
        for setting in (ReSample(skip=3), ReSample(skip=3, solver="adam", zeta=0.1, latent_steps=50)):
            plain = run(setting, posterior, schedule)
            with torch.inference_mode():
                assert torch.allclose(run(setting, posterior, schedule), plain, atol=1e-9)


def test_a_run_that_was_stopped_goes_on_with_the_levels_ahead(tmp_path):
    posterior, setting = problem(rows=2), ReSample(skip=3, travel=3)
    file, expected = tmp_path / "half.pt", run(setting, posterior)

    def stop(event):
        if event.index == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(setting, posterior, observe=stop, checkpoint=file, checkpoint_every=4)
    assert torch.equal(run(setting, posterior, checkpoint=file, checkpoint_every=4), expected)


def test_refusals():
    for options, message in (
        ({"gamma": -1.0}, r"gamma=-1\.0; a number >= 0"),
        ({"skip": 0}, "skip=0; a whole number >= 1"),
        ({"travel": -1}, "travel=-1; a whole number >= 0"),
        ({"c": 0.0}, r"c=0\.0; a finite number > 0"),
        ({"solver": "sgd"}, "solver='sgd'; one of auto, prox, adam"),
        ({"variance": "code"}, "variance='code'; one of paper, official"),
        ({"switch": 0.8}, r"begin=0\.66.*, switch=0\.8; 0 <= switch <= begin <= 1"),
        ({"rho": 1.0, "solver": "adam"}, r"rho=1\.0 belongs to solver='prox'"),
        ({"rho": 1.0, "eps": 1e-6}, r"rho=1\.0 belongs to solver='prox', in the place of c and eps"),
        ({"eta": 2.0}, r"eta=2\.0; a number in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ReSample(**options)
    prior, y = problem_16().prior, torch.ones(1, 1, 4, 4, dtype=DOUBLE)
    squares = Posterior(prior, GaussianLikelihood(Squares((1, 4, 4)), y, 0.1))
    photons = Posterior(prior, PoissonLikelihood(Identity((1, 4, 4)), y, 0.1))
    clean = Posterior(prior, GaussianLikelihood(Identity((1, 4, 4)), y, 0.0))
    with pytest.raises(TypeError, match="solver='prox' needs a linear operator and Gaussian noise"):
        run(ReSample(solver="prox"), squares)
    with pytest.raises(TypeError, match="rho needs a linear operator and Gaussian noise"):
        run(ReSample(rho=1.0), photons)
    with pytest.raises(TypeError, match="eps=1e-06 is for Gaussian noise, not for a PoissonLikelihood"):
        run(ReSample(eps=1e-6), photons)
    with pytest.raises(ValueError, match="sigma_y = 0 leaves no noise at which a fit could end; give eps"):
        run(ReSample(), clean)
    with pytest.raises(TypeError, match="a move of its own plan"):
        ReSample().step(problem_16(), State(y), moves(DDPM(steps=5))[0], GivenNoise())
    assert all(isinstance(m, Ahead) for m in ReSample().plan(DDPM(steps=5)))
