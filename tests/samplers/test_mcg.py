"""MCG: single steps and whole laws against dense linear algebra, what each projection promises, and refusals."""

import math

import pytest
import torch
from problems import DOUBLE, Squares, problem_16, problem_r1, randn, tensor

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.kernels import reverse
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianPrior
from invsolve.samplers import DPS, MCG, State, Unconditional
from invsolve.schedules import DDPM, Karras, moves
from invsolve.streams import GivenNoise
from operators import Identity, Inpainting, Matrix

EYE = torch.eye(16, dtype=DOUBLE)


def masked(rows=1, sigma=0.2):
    """problem_16 with 7 of the 16 pixels measured."""
    prior = problem_16().prior
    op = Inpainting((1, 4, 4), kind="random", fraction=9 / 16, seed=3)
    return Posterior(prior, GaussianLikelihood(op, op.measure(prior.draw(rows, seed=3), sigma), sigma))


def dense(posterior):
    """(m, C, A, A^+, y (B, m), sigma) as plain matrices."""
    operator = posterior.likelihood.operator
    A = operator.A(EYE.reshape(16, 1, 4, 4)).flatten(1).mT
    y = posterior.likelihood.y.flatten(1)
    return posterior.prior.mean.flatten(), posterior.prior.cov, A, torch.linalg.pinv(A, rtol=1e-10), y, posterior.likelihood.sigma


def soft_parts(A, sigma, t, s):
    """(I - W, G, factor of n): G maps y to the part that replaces W v, from the singular value decomposition."""
    U, values, Vt = torch.linalg.svd(A, full_matrices=False)
    rho2 = t.ratio**2 / (1 + t.ratio**2) - s.ratio**2 / (1 + s.ratio**2)
    w = rho2 * values**2 / (rho2 * values**2 + sigma**2)
    G = Vt.mT @ (torch.where(values > 1e-9, w / values.clamp_min(1e-9), 0.0)[:, None] * U.mT)
    return EYE - Vt.mT @ (w[:, None] * Vt), G, math.sqrt(max(2 * s.ratio**2 / rho2 - 1, 1))


def projected(setting, x, y, A, sigma, move, z, n):
    """x (B, 16) with its measured part taken from y, by dense algebra."""
    at = move.t if setting.level == "t" else move.s
    noise = 0.0 if setting.level == "clean" else at.sigma
    if setting.projection == "none":
        return x
    if setting.projection == "soft":
        keep, G, c = soft_parts(A, sigma, move.t, move.s)
        return x @ keep.mT + at.alpha * (y + c * sigma * n) @ G.mT + at.sigma * z @ A.mT @ G.mT
    y_s = at.alpha * y + noise * z @ A.mT
    if setting.projection == "hard":
        return x + (y_s - x @ A.mT) @ torch.linalg.pinv(A, rtol=1e-10).mT
    relax = 1 - 0.4 * move.index / (move.total - 1)
    return x + relax * ((y_s - x @ A.mT) @ A) / (A.mT @ A @ torch.ones(16, dtype=DOUBLE)).clamp_min(1e-5)


def gradient(setting, x0, J, A, pinv, y):
    """-g, by the chain rule written out."""
    W = pinv if setting.weighting == "pseudo_inverse" else torch.eye(len(A), dtype=DOUBLE)
    r = (y - x0 @ A.mT) @ W.mT
    scale = 2.0 if setting.gradient == "squared" else 1 / r.norm(dim=1, keepdim=True)
    return scale * (r @ W @ A @ J)


STEPS = [
    (problem, MCG(weight=0.3, **options))
    for problem in (problem_16, masked)
    for options in (
        {},
        {"gradient": "squared"},
        {"weighting": "pseudo_inverse"},
        {"gradient": "squared", "weighting": "pseudo_inverse", "projection": "hard"},
        {"projection": "hard"},
        {"projection": "hard", "level": "t"},
        {"projection": "hard", "level": "clean"},
        {"projection": "none"},
    )
] + [(masked, MCG(weight=0.3, projection="sirt", level=level)) for level in ("s", "t", "clean")]


@pytest.mark.parametrize(("problem", "setting"), STEPS, ids=lambda v: getattr(v, "__name__", repr(v)))
def test_one_step_against_dense_algebra(problem, setting):
    posterior, move = problem(rows=3), moves(DDPM(steps=20))[12]
    m, C, A, pinv, y, sigma = dense(posterior)
    x, z, z2, n = randn(3, 16, seed=5), randn(3, 16, seed=6), randn(3, 16, seed=7), randn(3, A.shape[0], seed=8)
    ab_t, ab_s = move.t.alpha**2, move.s.alpha**2
    J = move.t.alpha * C @ torch.linalg.inv(ab_t * C + (1 - ab_t) * EYE)
    x0 = m + (x - move.t.alpha * m) @ J.mT
    beta = 1 - ab_t / ab_s
    plain = math.sqrt(ab_s) * beta / (1 - ab_t) * x0 + math.sqrt(ab_t / ab_s) * (1 - ab_s) / (1 - ab_t) * x
    plain = plain + math.sqrt(beta * (1 - ab_s) / (1 - ab_t)) * z
    expected = projected(setting, plain + 0.3 * gradient(setting, x0, J, A, pinv, y), y, A, sigma, move, z2, n)
    given = [v.reshape(3, 1, 4, 4) for v in (z, z2)]
    noise = GivenNoise(*given, n.reshape(posterior.likelihood.y.shape))
    found = setting.step(posterior, setting.init(posterior, x.reshape(3, 1, 4, 4)), move, noise)
    assert torch.allclose(found.x.flatten(1), expected, atol=1e-10, rtol=0)
    assert torch.allclose(found.x0.flatten(1), x0, atol=1e-12, rtol=0)
    assert noise.used == 1 + (setting.projection != "none" and setting.level != "clean") + (setting.projection == "soft")


def test_clipped_entries_pass_no_gradient():
    posterior, move = masked(rows=3), moves(DDPM(steps=20))[12]
    x, z = 3 * randn(3, 1, 4, 4, seed=5), torch.zeros(3, 1, 4, 4, dtype=DOUBLE)

    def misfit(x):
        x0 = posterior.prior.denoise(x, move.t).clamp(-1, 1)
        return posterior.likelihood.residual(x0).flatten(1).norm(dim=1)

    x0 = posterior.prior.denoise(x, move.t).clamp(-1, 1)
    assert 0 < int((x0.abs() == 1).sum()) < x0.numel()
    slope = torch.stack([(misfit(x + e) - misfit(x - e)) / 2e-6 for e in 1e-6 * EYE.reshape(16, 1, 4, 4)], 1)
    expected = reverse.ancestral(x, x0, move, z) - 0.3 * slope.reshape(x.shape)
    found = MCG(weight=0.3, projection="none", clip=True).step(posterior, State(x), move, GivenNoise(z))
    assert torch.allclose(found.x, expected, atol=1e-7)


# -- laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["soft", "hard"])
@pytest.mark.parametrize("problem", [problem_16, masked], ids=lambda p: p.__name__)
def test_the_law_of_the_squared_variant_against_dense_propagation(problem, projection):
    posterior, weight = problem(), 0.05
    m, C, A, pinv, y, sigma = dense(posterior)
    plan, y = moves(DDPM(steps=30)), y[0]
    mean, cov = torch.zeros(16, dtype=DOUBLE), plan[0].t.sigma ** 2 * EYE
    for move in plan:
        ab_t, ab_s = move.t.alpha**2, move.s.alpha**2
        J = move.t.alpha * C @ torch.linalg.inv(ab_t * C + (1 - ab_t) * EYE)
        d, beta = m - J @ (move.t.alpha * m), 1 - ab_t / ab_s
        c0, ct = math.sqrt(ab_s) * beta / (1 - ab_t), math.sqrt(ab_t / ab_s) * (1 - ab_s) / (1 - ab_t)
        pull = 2 * weight * J.mT @ A.mT
        F, b = c0 * J + ct * EYE - pull @ A @ J, c0 * d + pull @ (y - A @ d)
        Q = beta * (1 - ab_s) / (1 - ab_t) * EYE
        if projection == "hard":
            P = pinv @ A
            F, b, Q = (EYE - P) @ F, (EYE - P) @ b + move.s.alpha * pinv @ y, (EYE - P) @ Q @ (EYE - P) + (1 - ab_s) * P
        elif not move.last:
            keep, G, c = soft_parts(A, sigma, move.t, move.s)
            F, b = keep @ F, keep @ b + move.s.alpha * G @ y
            Q = keep @ Q @ keep.mT + (c * sigma * move.s.alpha) ** 2 * G @ G.mT + move.s.sigma**2 * (G @ A) @ (G @ A).mT
        mean, cov = F @ mean + b, F @ cov @ F.mT + Q
    found = output_law(MCG(weight=weight, gradient="squared", projection=projection), posterior, DDPM(steps=30))
    assert torch.allclose(found[0].flatten(), mean, atol=1e-9)
    assert torch.allclose(found[1], cov, atol=1e-9)


R1 = [
    # setting, steps: mean 1, mean 2, variance 1, covariance, variance 2; exact: .9901, .7921, .00990, .00792, .3663
    (MCG(weight=0), 100, (0.9835, 0.4807, 0.00485, 0.01019, 0.4651)),
    (MCG(weight=0.03, gradient="squared"), 100, (0.9904, 0.6481, 0.00326, 0.00639, 0.3947)),
    (MCG(weight=1, gradient="squared"), 100, (1.0, 1.2491, 0.00382, 0.00003, 0.1703)),
    (MCG(weight=0, projection="hard"), 100, (1.0, 0.4903, 0.0, 0.0, 0.4564)),
    (MCG(weight=0, form="predictor_corrector"), 300, (0.9832, 0.5954, 0.0100, 0.0121, 0.4640)),
]


@pytest.mark.parametrize(("setting", "steps", "expected"), R1)
def test_the_bias_on_r1_is_what_it_is_said_to_be(setting, steps, expected):
    """Without a gradient the unmeasured number hardly learns of y (0.49 for 0.79); with all of it y is all that it heeds (1/0.8)."""
    mean, cov = output_law(setting, problem_r1(), DDPM(steps=steps))
    assert [*mean.tolist(), cov[0, 0].item(), cov[0, 1].item(), cov[1, 1].item()] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("steps", [20, 450])
def test_soft_projection_denoises_whatever_the_steps_and_hard_projection_does_not(steps):
    """With everything measured (A = I) the exact posterior is known; "hard" returns y itself."""
    prior = problem_r1().prior
    posterior = Posterior(prior, GaussianLikelihood(Identity((2,)), tensor([[1.0, 0.3]]), 0.3))
    exact = posterior.exact()
    mean, cov = output_law(MCG(weight=0), posterior, DDPM(steps=steps))
    assert torch.allclose(mean, exact.mean[0], atol=0.03)
    if steps == 450:
        assert torch.allclose(cov, exact.cov, atol=0.007)
    mean, cov = output_law(MCG(weight=0, projection="hard"), posterior, DDPM(steps=steps))
    assert torch.allclose(mean, tensor([1.0, 0.3]), atol=1e-12) and float(cov.abs().max()) < 1e-12


def test_no_weight_and_no_projection_is_ancestral_sampling():
    posterior = problem_16()
    ours = sample(MCG(weight=0, projection="none"), posterior, DDPM(steps=20), n=3, progress=False)
    assert torch.equal(ours, sample(Unconditional(), posterior, DDPM(steps=20), n=3, progress=False))


def test_without_projection_the_norm_step_is_that_of_dps():
    posterior = problem_16()
    ours = sample(MCG(weight=0.3, projection="none"), posterior, DDPM(steps=20), n=2, progress=False)
    assert torch.allclose(ours, sample(DPS(zeta=0.3), posterior, DDPM(steps=20), n=2, progress=False), atol=1e-12)


@pytest.mark.parametrize("problem", [problem_16, masked], ids=lambda p: p.__name__)
@pytest.mark.parametrize("form", ["ancestral", "predictor_corrector"])
def test_the_last_projection_makes_the_measured_part_y(problem, form):
    posterior = problem(rows=2)

    def misfit(**options):
        draws = sample(MCG(weight=0.1, form=form, **options), posterior, DDPM(steps=20), progress=False)[:, 0]
        return float(posterior.likelihood.residual(draws).abs().max())

    assert misfit(projection="hard") < 1e-12
    assert misfit(projection="hard", paste=False) > 1e-3
    assert misfit(projection="soft") > 1e-2
    # The official level leaves the noise of the last one, sqrt(beta_0) = 0.01, and scales by alpha.
    assert 1e-3 < misfit(projection="hard", level="t") < 0.06
    clean = Posterior(posterior.prior, GaussianLikelihood(posterior.likelihood.operator, posterior.likelihood.y, 0.0))
    draws = [sample(MCG(projection=p, form=form), clean, DDPM(steps=20), progress=False) for p in ("soft", "hard")]
    assert torch.equal(*draws)


@pytest.mark.parametrize("rho", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("r", [0.05, 0.7, 30.0])
def test_soft_renewal_keeps_the_law_of_a_noisy_signal_and_hard_renewal_adds_the_noise_of_y(r, rho):
    """v = x_0 + r e and y = A x_0 + sigma n lead to x_0 + r e' for any x_0: a linear map, probed one argument at a time."""
    posterior = problem_16()
    operator, sigma = posterior.likelihood.operator, 0.2

    def matrices(**options):
        sizes = {"v": 16, "y": 7, "z": 16, "n": 7}
        out = {}
        for name, size in sizes.items():
            parts = {k: torch.eye(s, dtype=DOUBLE) if k == name else torch.zeros(size, s, dtype=DOUBLE) for k, s in sizes.items()}
            likelihood = GaussianLikelihood(operator, parts["y"], sigma)
            noise = GivenNoise(parts["z"].reshape(-1, 1, 4, 4), parts["n"])
            out[name] = likelihood.renew(parts["v"].reshape(-1, 1, 4, 4), r, noise, **options).flatten(1).mT
        return out

    def spread(F):
        return r**2 * F["v"] @ F["v"].mT + sigma**2 * F["y"] @ F["y"].mT + F["z"] @ F["z"].mT + F["n"] @ F["n"].mT

    soft, A = matrices(rho=rho), dense(posterior)[2]
    assert torch.allclose(soft["v"] + soft["y"] @ A, EYE, atol=1e-10)
    excess = torch.linalg.eigvalsh(spread(soft) - r**2 * EYE)
    tiny = 1e-9 * max(1, r**2)
    # Replaced faster than that (rho > r), y is no better than its noise, drawn once more: at most 2 sigma^2/s^2.
    assert excess.abs().max() < tiny if rho <= r else 0.01 * sigma**2 < excess.max() and excess.min() > -tiny
    hard, pinv = matrices(), torch.linalg.pinv(A)
    assert torch.allclose(hard["v"] + hard["y"] @ A, EYE, atol=1e-10)
    assert torch.allclose(spread(hard), r**2 * EYE + sigma**2 * pinv @ pinv.mT, atol=tiny)


# -- predictor and corrector ----------------------------------------------------------------------------------------------

PC = MCG(weight=0.2, form="predictor_corrector")


def test_one_step_of_predictor_and_corrector_on_the_variance_exploding_path():
    """Song et al. 2021, algorithms 2 and 4, then the gradient at the new level, then the projection."""
    posterior, move = problem_16(rows=3), moves(Karras(steps=12, sigma_max=20.0, sigma_min=0.05))[5]
    m, C, A, pinv, y, sigma = dense(posterior)
    x, z, z1, z2, n = (randn(3, d, seed=20 + k) for k, d in enumerate((16, 16, 16, 16, 7)))
    t2, s2 = move.t.sigma**2, move.s.sigma**2
    score = (m - x) @ torch.linalg.inv(C + t2 * EYE)
    predicted = x + (t2 - s2) * score + math.sqrt(t2 - s2) * z
    score = (m - predicted) @ torch.linalg.inv(C + s2 * EYE)
    step = 2 * 0.16**2 * s2
    corrected = predicted + step * score + math.sqrt(2 * step) * z1
    J, x0 = C @ torch.linalg.inv(C + s2 * EYE), predicted + s2 * score
    expected = projected(PC, corrected + 0.2 * gradient(PC, x0, J, A, pinv, y), y, A, sigma, move, z2, n)
    noise = GivenNoise(*(v.reshape(3, 1, 4, 4) for v in (z, z1, z2)), n)
    found = PC.step(posterior, State(x.reshape(3, 1, 4, 4)), move, noise)
    assert torch.allclose(found.x.flatten(1), expected, atol=1e-10, rtol=0)
    assert torch.allclose(found.x0.flatten(1), x0, atol=1e-10, rtol=0)


@pytest.mark.parametrize("form", ["ancestral", "predictor_corrector"])
def test_the_projection_and_the_corrector_are_the_same_on_every_path(form):
    """Without a gradient step (whose weight is in units of x), a move of x/alpha does not depend on alpha."""
    posterior, setting = problem_16(), MCG(weight=0, form=form, variance="posterior")
    exploding = Move(Level(1.0, 1.2), Level(1.0, 0.7), 2, 9)
    preserving = Move(
        Level(1 / math.hypot(1, 1.2), 1.2 / math.hypot(1, 1.2)), Level(1 / math.hypot(1, 0.7), 0.7 / math.hypot(1, 0.7)), 2, 9
    )
    x, given = randn(1, 1, 4, 4, seed=1), [randn(1, 1, 4, 4, seed=2 + k) for k in range(3 if form == "predictor_corrector" else 2)]
    n = randn(1, 7, seed=9)
    one = setting.step(posterior, State(x), exploding, GivenNoise(*given, n)).x
    other = setting.step(posterior, State(x * preserving.t.alpha), preserving, GivenNoise(*given, n)).x
    assert torch.allclose(other / preserving.s.alpha, one, atol=1e-12, rtol=0)


def test_predictor_and_corrector_reach_the_prior_and_the_corrector_mends_what_the_predictor_errs():
    """Without a measurement: the law tends to N(m, C) at first order, from closer by the more the corrector does."""
    target = problem_16().prior
    free = Posterior(target, GaussianLikelihood(Identity((1, 4, 4)), torch.zeros(1, 1, 4, 4, dtype=DOUBLE), 1.0))

    def error(snr, steps):
        setting = MCG(weight=0, projection="none", form="predictor_corrector", snr=snr)
        mean, cov = output_law(setting, free, Karras(steps=steps, sigma_max=100.0, sigma_min=0.002))
        # The start N(0, sigma_max^2) lacks the mean.
        assert torch.allclose(mean, target.mean, atol=1e-2)
        return float((cov - target.cov).norm() / target.cov.norm())

    few, many = [[error(snr, steps) for snr in (1e-6, 0.16, 0.3)] for steps in (40, 80)]
    assert few[0] > 1.2 * few[1] > 1.5 * few[2] and many[0] > 1.2 * many[1] > 1.5 * many[2]
    assert all(a > 1.7 * b for a, b in zip(few, many, strict=True)) and many[2] < 0.07


def test_network_calls():
    class Counting(GaussianPrior):
        calls = 0

        def denoise(self, x, t):
            self.calls += 1
            return super().denoise(x, t)

    plain = problem_16()
    for setting, expected in ((MCG(), 20), (PC, 39)):
        prior = Counting(plain.prior.mean, plain.prior.cov)
        sample(setting, Posterior(prior, plain.likelihood), DDPM(steps=20), progress=False)
        assert prior.calls == expected


# -- rows, refusals -------------------------------------------------------------------------------------------------------

SETTINGS = [
    MCG(weight=0.3),
    MCG(weight=0.05, gradient="squared", weighting="pseudo_inverse", projection="hard"),
    MCG(weight=0.3, projection="hard", level="t", clip=True),
    MCG(weight=0.1, projection="sirt"),
    MCG(weight=0.1, form="predictor_corrector"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
def test_a_batch_equals_single_runs(setting):
    posterior = masked(rows=3)
    together = sample(setting, posterior, DDPM(steps=20), n=2, progress=False)
    for b in range(3):
        alone = sample(setting, posterior.select(torch.tensor([b])), DDPM(steps=20), n=2, ids=[b], progress=False)
        assert torch.allclose(together[b], alone[0], atol=1e-10, rtol=0)


def test_refusals():
    for options, message in (
        ({"weight": -1.0}, r"weight=-1\.0; a number >= 0"),
        ({"snr": 0.0}, r"snr=0\.0; a number > 0"),
        ({"gradient": "l2"}, r"gradient='l2'; one of norm, squared is needed"),
        ({"projection": "mixed"}, r"projection='mixed'; one of soft, hard, sirt, none"),
        ({"level": "u"}, "level='u'; one of s, t, clean"),
        ({"form": "pc"}, "form='pc'; one of ancestral, predictor_corrector"),
        ({"level": "t"}, "level='t' belongs to projection='hard' or 'sirt'"),
    ):
        with pytest.raises(ValueError, match=message):
            MCG(**options)
    prior, y = problem_16().prior, torch.ones(1, 1, 4, 4, dtype=DOUBLE)
    squares = Posterior(prior, GaussianLikelihood(Squares((1, 4, 4)), y, 0.1))
    photons = Posterior(prior, PoissonLikelihood(Identity((1, 4, 4)), y, 0.1))

    def run(target, **options):
        return sample(MCG(**options), target, DDPM(steps=5), progress=False)

    with pytest.raises(TypeError, match="Squares is not linear; projection='none'"):
        run(squares)
    with pytest.raises(TypeError, match="GaussianLikelihood, not a PoissonLikelihood"):
        run(photons)
    with pytest.raises(TypeError, match="GaussianLikelihood, not a PoissonLikelihood"):
        run(photons, projection="none", gradient="squared")
    with pytest.raises(ValueError, match=r"divides by A\^T A 1, which Matrix makes negative"):
        run(
            Posterior(prior, GaussianLikelihood(Matrix(-randn(7, 16, seed=2), (1, 4, 4)), torch.ones(1, 7, dtype=DOUBLE), 0.1)),
            projection="sirt",
        )
    for target in (squares, photons):
        assert run(target, projection="none", weight=0.01).isfinite().all()
