"""PnP-ULA, its projected form and SK-ROCK against the closed forms of their targets and of their own biases."""

import math

import numpy as np
import pytest
import torch
from problems import DOUBLE, assert_drawn_from, problem_16, problem_mixture, problem_r1, randn, tensor

from invsolve import Divergence, Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.engine.chains import Chains
from invsolve.kernels import langevin
from invsolve.levels import Level
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianMixturePrior, GaussianPrior
from invsolve.samplers import PnPULA
from invsolve.samplers.pnp_ula import Chain
from invsolve.schedules import DDPM
from invsolve.streams import GivenNoise, Noise
from operators import Identity, Matrix
from operators.core.base import Operator

SCHEDULE = DDPM(steps=30)
FAR = (-1e3, 1e3)


def target_of(posterior, epsilon, alpha=1.0):
    """Precision P and mean of p(y | x) p_epsilon(x)^alpha for a Gaussian prior, by dense algebra."""
    m, C = posterior.prior.mean.flatten(), posterior.prior.cov
    A, y, sigma = posterior.likelihood.operator.matrix, posterior.likelihood.y[0], posterior.likelihood.sigma
    smooth = alpha * torch.linalg.inv(C + epsilon * torch.eye(len(C), dtype=DOUBLE))
    P = A.mT @ A / sigma**2 + smooth
    return P, torch.linalg.solve(P, A.mT @ y / sigma**2 + smooth @ m)


def skrock_law(delta_w, stages, damping=0.05):
    """R and Q of x' = R x + Q Z' on a quadratic of curvature w: R by Chebyshev's formula, Q by the recursion on numbers."""
    w0 = 1 + damping / stages**2
    series = [np.polynomial.Chebyshev.basis(j) for j in range(stages + 1)]
    T = [float(t(w0)) for t in series]
    w1 = T[stages] / float(series[stages].deriv()(w0))
    R = float(series[stages](w0 - w1 * delta_w)) / T[stages]
    before, now = 0.0, -w1 / w0 * delta_w * (stages * w1 / 2) + stages * w1 / w0
    for j in range(2, stages + 1):
        ratio = T[j - 1] / T[j]
        before, now = now, (2 * w0 * ratio - 2 * w1 * ratio * delta_w) * now + (1 - 2 * w0 * ratio) * before
    return R, now


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("constraint", ["tail", "projected", "none"])
def test_ula_has_the_mean_of_its_target_and_the_predicted_covariance(alpha, constraint):
    posterior, epsilon = problem_16(sigma=0.5), 0.3
    P, mean = target_of(posterior, epsilon, alpha)
    delta = 0.8 / float(torch.linalg.eigvalsh(P)[-1])
    # The slowest direction contracts by 1 - delta w a step: here to 1e-9 in these many.
    steps = int(22 / (delta * float(torch.linalg.eigvalsh(P)[0])))
    sampler = PnPULA(steps, math.sqrt(epsilon), alpha, constraint=constraint, box=FAR, delta=delta, start="pseudo_inverse")
    found_mean, found_cov = output_law(sampler, posterior, SCHEDULE)
    assert torch.allclose(found_mean.flatten(), mean, atol=1e-8)
    expected = torch.linalg.inv(P) @ torch.linalg.inv(torch.eye(16, dtype=DOUBLE) - delta * P / 2)
    assert torch.allclose(found_cov, expected, atol=1e-8)


@pytest.mark.parametrize("kernel", ["ula", "skrock"])
def test_the_law_after_a_few_steps_by_dense_algebra(kernel):
    posterior, epsilon, delta, steps = problem_16(), 0.05, 0.01, 5
    P, mean = target_of(posterior, epsilon)
    sampler = PnPULA(steps, math.sqrt(epsilon), kernel=kernel, stages=6, box=FAR, delta=delta, start="pseudo_inverse")
    w, V = torch.linalg.eigh(P)
    laws = [skrock_law(float(delta * v), 6) if kernel == "skrock" else (1 - float(delta * v), 1.0) for v in w]
    R, Q = (V @ torch.diag(tensor(one)) @ V.mT for one in zip(*laws, strict=True))
    operator, y = posterior.likelihood.operator, posterior.likelihood.y
    x, cov = operator.A_dagger(y).flatten(), epsilon * torch.eye(16, dtype=DOUBLE)
    for _ in range(steps):
        x, cov = mean + R @ (x - mean), R @ cov @ R.mT + 2 * delta * Q @ Q.mT
    found_mean, found_cov = output_law(sampler, posterior, SCHEDULE)
    assert torch.allclose(found_mean.flatten(), x, atol=1e-10) and torch.allclose(found_cov, cov, atol=1e-10)


@pytest.mark.parametrize(("stages", "fraction"), [(10, 0.05), (10, 0.99), (5, 0.1)])
def test_skrock_has_the_mean_of_its_target_and_the_predicted_variances(stages, fraction):
    posterior, epsilon = problem_16(sigma=0.5), 0.3
    P, mean = target_of(posterior, epsilon)
    w, V = torch.linalg.eigh(P)
    delta = fraction * langevin.skrock_limit(stages) / float(w[-1])
    laws = [skrock_law(float(delta * v), stages) for v in w]
    assert max(abs(R) for R, _ in laws) < 1
    steps = int(12 / -math.log(max(abs(R) for R, _ in laws)))
    sampler = PnPULA(steps, math.sqrt(epsilon), kernel="skrock", stages=stages, box=FAR, delta=delta, start="pseudo_inverse")
    found_mean, found_cov = output_law(sampler, posterior, SCHEDULE)
    assert torch.allclose(found_mean.flatten(), mean, atol=1e-4)
    ratios = tensor([2 * delta * Q**2 / (1 - R**2) for R, Q in laws]) * w
    assert torch.allclose(V.mT @ found_cov @ V, torch.diag(ratios / w), atol=1e-4)
    assert float(ratios.max()) < 1


def test_the_documented_bias_and_limit_of_skrock():
    ratios = [2 * q**2 * w / (1 - r**2) for w in (0.3, 1, 2, 3) for r, q in [skrock_law(w, 10)]]
    assert ratios == pytest.approx([0.994, 0.976, 0.930, 0.813], abs=5e-4)
    for stages in (2, 5, 10, 15):
        limit = langevin.skrock_limit(stages)
        assert max(abs(skrock_law(part * limit, stages)[0]) for part in np.linspace(0.01, 1, 200)) < 1
    # Sharp for many stages.
    assert abs(skrock_law(1.1 * langevin.skrock_limit(15), 15)[0]) > 1


def test_default_steps_keep_their_promise_on_the_variance():
    posterior, epsilon = problem_16(), 0.05
    P, _ = target_of(posterior, epsilon)
    for kernel, low, high in (("ula", 1.0, 1 / 0.85), ("skrock", 0.0, 1.0)):
        state = one_step(
            PnPULA(steps=1, level=math.sqrt(epsilon), kernel=kernel, start="noise"), posterior, randn(1, 1, 4, 4), randn(1, 1, 4, 4)
        )
        delta = float(state.constants[0, 2])
        w = torch.linalg.eigvalsh(P)
        if kernel == "ula":
            ratio = 1 / (1 - delta * w / 2)
        else:
            ratio = tensor([2 * delta * Q**2 / (1 - R**2) * float(v) for v in w for R, Q in [skrock_law(delta * float(v), 10)]])
            assert bool((ratio[w <= w[-1] / 4] >= 0.93).all())
        assert low <= float(ratio.min()) and float(ratio.max()) <= high


def one_step(sampler, target, x, z):
    state = Chain(x)
    return sampler.step(target, state, sampler.plan(SCHEDULE)[-1], GivenNoise(z))


@pytest.mark.parametrize("constraint", ["tail", "projected", "none"])
def test_one_step_by_its_formula_inside_and_outside_the_box(constraint):
    posterior, level, delta, lam, box, alpha = problem_16(), 0.3, 2e-3, 0.05, (-0.5, 0.7), 0.8
    sampler = PnPULA(10, level, alpha, constraint=constraint, box=box, delta=delta, lam=lam, start="noise")
    x, z = 2 * randn(3, 1, 4, 4, seed=7), randn(3, 1, 4, 4, seed=8)
    assert bool((x < box[0]).any() and (x > box[1]).any())
    x0 = posterior.prior.denoise(x, Level(1.0, level))
    A, y = posterior.likelihood.operator.matrix, posterior.likelihood.y
    drift = ((y - x.flatten(1) @ A.mT) @ A / 0.2**2).reshape(x.shape) + alpha * (x0 - x) / level**2
    if constraint == "tail":
        outside = torch.where(x > box[1], box[1] - x, torch.where(x < box[0], box[0] - x, torch.zeros_like(x)))
        drift = drift + outside / lam
        assert bool((outside[x > box[1]] < 0).all() and (outside[x < box[0]] > 0).all())
    expected = x + delta * drift + math.sqrt(2 * delta) * z
    if constraint == "projected":
        expected = expected.clamp(*box)
    found = one_step(sampler, posterior, x, z)
    assert torch.allclose(found.x, expected, atol=1e-12) and torch.allclose(found.x0, x0, atol=1e-12)
    assert found.constants.shape == (3, 4) and torch.equal(found.constants[:, 2:], tensor([[delta, lam]]).expand(3, 2))


def test_the_tail_brings_a_chain_back_that_the_denoiser_would_lose():
    class Pushing(GaussianPrior):
        """A residual that points away from the origin beyond 3, as that of a network may, with slope 1/2."""

        def denoise(self, x, t):
            return torch.where(x.abs() > 3, x * 1.5, super().denoise(x, t))

    prior = Pushing(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    posterior = Posterior(prior, GaussianLikelihood(Matrix(tensor([[1.0, 0.0]]), (2,)), tensor([[0.0]]), 1.0))
    options = {"steps": 200, "level": 0.5, "box": (-3.0, 3.0), "start": "noise", "lipschitz": 1.0}
    ends = {}
    for constraint in ("tail", "none"):
        sampler = PnPULA(constraint=constraint, **options)
        state, noise = Chain(torch.full((1, 2), 5.0, dtype=DOUBLE)), Noise(0, [("a", 0)], dtype=DOUBLE)
        for move in sampler.plan(SCHEDULE):
            state = sampler.step(posterior, state, move, noise)
        ends[constraint] = float(state.x.abs().max())
    assert ends["tail"] < 6 and ends["none"] > 1e3


def test_a_far_box_changes_nothing_and_a_near_one_biases_as_its_transition_kernel_says():
    prior = GaussianPrior(torch.zeros(1, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE))
    posterior = Posterior(prior, GaussianLikelihood(Matrix(tensor([[1.0]]), (1,)), tensor([[1.0]]), 0.7))
    level, delta, n, high = 0.3, 0.1, 20_000, 0.6
    options = {"steps": 60, "level": level, "delta": delta, "start": "noise"}
    free = sample(PnPULA(constraint="none", **options), posterior, SCHEDULE, n=500, progress=False)
    far = sample(PnPULA(constraint="projected", box=FAR, **options), posterior, SCHEDULE, n=500, progress=False)
    assert torch.equal(free, far)
    near = run_chain(PnPULA(constraint="projected", box=(-1.0, high), **options), posterior, torch.zeros(n, 1, dtype=DOUBLE))

    # The chain x' = clamp(m + (1 - delta P)(x - m) + sqrt(2 delta) z) on a grid, whose end cells carry the clamped mass.
    P = 1 / 0.49 + 1 / (1 + level**2)
    mean = (1 / 0.49) / P
    edges = np.linspace(-1, high, 801)
    centres = np.concatenate([[-1], (edges[1:] + edges[:-1]) / 2, [high]])
    ends = torch.special.ndtr(
        torch.from_numpy((edges - (mean + (1 - delta * P) * (centres[:, None] - mean))) / math.sqrt(2 * delta))
    ).numpy()
    kernel = np.diff(ends, axis=1, prepend=0, append=1)
    kernel = np.concatenate([ends[:, :1], np.diff(ends, axis=1), 1 - ends[:, -1:]], axis=1)
    law = np.full(len(centres), 1 / len(centres))
    for _ in range(200):
        law = law @ kernel
    first, second, clamped = law @ centres, law @ centres**2, law[-1]
    draws = near.flatten()
    assert float(draws.mean()) == pytest.approx(first, abs=4 * math.sqrt((second - first**2) / n))
    assert float((draws == high).double().mean()) == pytest.approx(clamped, abs=4 * math.sqrt(clamped * (1 - clamped) / n))
    assert first < mean - 0.3, "the box cuts off half of the mass, and the bias is large"


def test_chains_draw_from_the_predicted_law():
    posterior, n = problem_r1(), 2000
    sampler = PnPULA(steps=60, level=0.2, box=FAR, fraction=0.8, start="pseudo_inverse")
    mean, cov = output_law(sampler, posterior, SCHEDULE)
    draws = sample(sampler, posterior, SCHEDULE, n=n, progress=False)[0]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (draws - mean).mT, upper=False)
    assert float(white.mean(1).square().sum()) * n < 2 + 5 * 2
    assert float((white @ white.mT / n - torch.eye(2, dtype=DOUBLE)).abs().max()) < 5 * math.sqrt(2 / n)


class OneStream:
    """Noise for thousands of rows from one generator, for a stream each would take most of the time."""

    def __init__(self, rows):
        self.rows, self.generator = rows, torch.Generator().manual_seed(0)

    def normal(self, shape):
        return torch.randn(self.rows, *shape, dtype=DOUBLE, generator=self.generator)


def run_chain(sampler, target, x):
    """All steps by hand from x (R, *X)."""
    state, noise = Chain(x), OneStream(len(x))
    for move in sampler.plan(SCHEDULE):
        state = sampler.step(target, state, move, noise)
    return state.x


@pytest.mark.parametrize("start", [(0.3, 1.0), (-0.3, -1.0)])
@pytest.mark.parametrize("kernel", ["ula", "skrock"])
def test_the_weights_of_two_modes_from_either_of_them(start, kernel):
    posterior, epsilon, n = problem_mixture(), 0.3, 4000
    prior = posterior.prior
    smooth = GaussianMixturePrior(prior.weights, prior.means, prior.covs + epsilon * torch.eye(2, dtype=DOUBLE))
    exact = Posterior(smooth, posterior.likelihood).exact()
    # The share of x_2 > 0, to which both modes contribute.
    spread = exact.covs[:, 1, 1].sqrt()
    share = float((exact.weights[0] * torch.special.ndtr(exact.means[0, :, 1] / spread)).sum())
    # Steps so short that their bias (at most 2 % of the variance along x_2) is below the sampling error of the share.
    delta, steps = (0.015, 500) if kernel == "ula" else (0.04, 200)
    sampler = PnPULA(steps, math.sqrt(epsilon), kernel=kernel, stages=3, box=FAR, delta=delta, start="noise")
    draws = run_chain(sampler, posterior, tensor([start]).repeat(n, 1))
    assert float((draws[:, 1] > 0).double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n))
    # The mixture as a whole.
    root = torch.linalg.cholesky(exact.cov[0])
    white = torch.linalg.solve_triangular(root, (draws - exact.mean[0]).mT, upper=False)
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(n)
    assert float((torch.cov(white) - torch.eye(2, dtype=DOUBLE)).abs().max()) < 0.02 + 4 * math.sqrt(2 / n)


@pytest.mark.parametrize("constraint", ["tail", "projected", "none"])
@pytest.mark.parametrize("kernel", ["ula", "skrock"])
def test_within_each_mode_the_law_is_the_predicted_one_and_the_weights_are_those_of_the_start(kernel, constraint):
    posterior, epsilon, n, share = problem_mixture(), 0.0025, 8000, 0.25
    delta = 0.01 if kernel == "ula" else 0.06
    prior = posterior.prior
    smooth = GaussianMixturePrior(prior.weights, prior.means, prior.covs + epsilon * torch.eye(2, dtype=DOUBLE))
    exact = Posterior(smooth, posterior.likelihood).exact()
    w, V = torch.linalg.eigh(torch.linalg.inv(exact.covs))
    laws = [[skrock_law(delta * float(v), 4) if kernel == "skrock" else (1 - delta * float(v), 1.0) for v in mode] for mode in w]
    variances = tensor([[2 * delta * Q**2 / (1 - R**2) for R, Q in mode] for mode in laws])
    predicted = GaussianMixturePrior(tensor([share, 1 - share]), exact.means[0], V @ torch.diag_embed(variances) @ V.mT)
    # The bias of the step is there to be seen: at least 4 % of a variance.
    assert float((variances * w - 1).abs().max()) > 0.04
    sampler = PnPULA(60, math.sqrt(epsilon), kernel=kernel, stages=4, constraint=constraint, delta=delta, start="noise")
    start = exact.means[0].repeat_interleave(torch.tensor([n // 4, 3 * n // 4]), 0)
    draws = run_chain(sampler, posterior, start)
    assert int((draws[:, 1] > 0).sum()) == n // 4
    assert_drawn_from(predicted, draws)


class Wavy(Operator):
    """x -> x + 0.9 sin(2 x) on two numbers: not even monotone."""

    def __init__(self):
        super().__init__((2,), (2,))

    def _forward(self, x):
        return x + 0.9 * torch.sin(2 * x)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_a_non_linear_operator_against_quadrature(alpha):
    prior = GaussianPrior(torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE))
    posterior = Posterior(prior, GaussianLikelihood(Wavy(), tensor([[1.0, -0.5]]), sigma=0.8))
    level, delta, n = 0.4, 0.005, 4000
    draws = run_chain(PnPULA(steps=600, level=level, alpha=alpha, delta=delta, box=FAR), posterior, 0.5 * randn(n, 2))
    grid = torch.linspace(-6, 6, 4001, dtype=DOUBLE)
    for k, y in enumerate((1.0, -0.5)):
        log = -((y - grid - 0.9 * torch.sin(2 * grid)) ** 2) / (2 * 0.64) - alpha * grid**2 / (2 * (1 + level**2))
        p = torch.softmax(log, 0)
        mean = float(p @ grid)
        var = float(p @ grid**2) - mean**2
        # Curvatures are at most about 13, those of the prior about 1: at most delta w/2 = 3 % of bias in the variance.
        assert float(draws[:, k].mean()) == pytest.approx(mean, abs=4 * math.sqrt(var / n))
        assert float(draws[:, k].var()) == pytest.approx(var, rel=0.03 + 5 * math.sqrt(2 / n))


def test_photon_counts_and_the_warm_start_of_what_has_no_prox():
    prior = GaussianPrior(torch.zeros(1, 4, 4, dtype=DOUBLE), 0.1 * torch.eye(16, dtype=DOUBLE))
    y = torch.full((1, 1, 4, 4), 0.6, dtype=DOUBLE)
    posterior = Posterior(prior, PoissonLikelihood(Identity((1, 4, 4)), y, gain=0.05))
    sampler = PnPULA(steps=300, level=0.2, zeta=0.05)
    observer = Chains()
    sample(sampler, posterior, SCHEDULE, n=8, observe=observer, progress=False)
    report = observer.report()
    # One pixel: density on a grid of k log(rate) - rate with k = 12 and rate = (x + 1)/2/gain, times N(0, 0.14).
    grid = torch.linspace(-0.99, 3, 4001, dtype=DOUBLE)
    rate = (grid + 1) / 2 / 0.05
    p = torch.softmax(12 * rate.log() - rate - grid**2 / (2 * 0.14), 0)
    expected = float(p @ grid)
    error = float((p @ grid**2 - expected**2).sqrt()) / math.sqrt(float(report.ess.mean()) * 16)
    assert float(report.mean.mean()) == pytest.approx(expected, abs=5 * error)


def test_the_plan_walks_the_schedule_down_to_the_level_and_stays_there():
    plan = PnPULA(steps=7, level=0.1).plan(SCHEDULE)
    warm = [move for move in plan if move.t != move.s]
    assert all(a.s == b.t for a, b in zip(plan, plan[1:], strict=False)) and [m.index for m in plan] == list(range(len(plan)))
    assert warm[0].t == SCHEDULE.levels()[0] and warm[-1].s == Level(1.0, 0.1) and warm[-1].t.ratio > 0.1
    assert len(plan) - len(warm) == 7 and plan[-1].t == plan[-1].s == Level(1.0, 0.1) and plan[0].total == len(plan)
    assert len(PnPULA(steps=7, start="noise").plan(SCHEDULE)) == 7


def test_the_warm_start_begins_near_the_posterior():
    """The distance of its mean from the posterior's, in standard deviations, rms over all measurements that the problem makes.

    Means are affine in y ~ N(A m, S): those at A m and one step along each column of a root of S say it all. Without a prior's
    help the mean is A^+ y; from noise it is that of the noise, 0.
    """
    posterior, level = problem_16(), 0.2
    operator, m, C = posterior.likelihood.operator, posterior.prior.mean.flatten(), posterior.prior.cov
    A, sigma = operator.matrix, posterior.likelihood.sigma
    S = A @ C @ A.mT + sigma**2 * torch.eye(7, dtype=DOUBLE)
    at = A @ m + torch.cat([torch.zeros(1, 7, dtype=DOUBLE), torch.linalg.cholesky(S).mT])
    each = [Posterior(posterior.prior, GaussianLikelihood(operator, y[None], sigma)) for y in at]
    P, means = target_of(each[0], level**2)[0], torch.stack([target_of(one, level**2)[1] for one in each])

    def distance(starts):
        gap = starts - means
        parts = torch.cat([gap[:1], gap[1:] - gap[:1]])
        return math.sqrt(float(torch.einsum("bi,ij,bj->", parts, P, parts)) / 16)

    found = {}
    for start in ("reverse", "pseudo_inverse", "noise"):
        sampler = PnPULA(steps=1, level=level, start=start, delta=1e-9)
        found[start] = distance(torch.stack([output_law(sampler, one, DDPM(steps=20))[0].flatten() for one in each]))
    assert found["pseudo_inverse"] == pytest.approx(distance(at @ torch.linalg.pinv(A).mT), rel=1e-6)
    assert found["noise"] == pytest.approx(distance(torch.zeros_like(means)), rel=1e-6)
    assert 2 * found["reverse"] < found["pseudo_inverse"] < found["noise"] / 2, found


CHAINS = [
    PnPULA(steps=40, level=0.2),
    PnPULA(steps=40, level=0.2, kernel="skrock", stages=4, start="pseudo_inverse", thinning=3),
    PnPULA(steps=40, level=0.2, constraint="projected", box=(-1.0, 1.0), start="noise"),
]


@pytest.mark.parametrize("sampler", CHAINS, ids=lambda s: s.start)
def test_a_batch_equals_single_runs_and_chunks_change_nothing(sampler):
    posterior = problem_16(rows=3)
    observer, apart = Chains(), Chains()
    together = sample(sampler, posterior, SCHEDULE, n=2, progress=False, observe=observer)
    sample(sampler, posterior, SCHEDULE, n=2, progress=False, observe=apart, memory_gb=1e-9)
    for b in range(3):
        alone = sample(sampler, posterior.select(torch.tensor([b])), SCHEDULE, n=2, ids=[b], progress=False)
        assert torch.allclose(together[b], alone[0], atol=1e-10, rtol=0)
        one, other = observer.report(b), apart.report(b)
        assert torch.allclose(one.mean, other.mean, atol=1e-10) and torch.allclose(one.std, other.std, atol=1e-10)
        assert torch.allclose(one.ess, other.ess, rtol=1e-6) and one.chains == 2


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("sampler", CHAINS, ids=lambda s: s.start)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_resumed_chain_has_the_same_draws_and_the_same_statistics(sampler, chunked, tmp_path):
    posterior, file = problem_16(rows=2), tmp_path / "half.pt"
    options = {"n": 2, "progress": False} | ({"memory_gb": 1e-9} if chunked else {})
    total = len(sampler.plan(SCHEDULE))
    whole = Chains()
    expected = sample(sampler, posterior, SCHEDULE, observe=whole, **options)

    class Stopping(Chains):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def __call__(self, event):
            self.seen += 1
            # In the second chunk, or late enough that statistics have begun.
            if self.seen == (total if chunked else 0) + total - 9:
                raise Interrupted

    with pytest.raises(Interrupted):
        sample(sampler, posterior, SCHEDULE, observe=Stopping(), checkpoint=file, checkpoint_every=5, **options)
    for _ in range(2):  # the second time everything is finished already
        resumed = Chains()
        found = sample(sampler, posterior, SCHEDULE, observe=resumed, checkpoint=file, checkpoint_every=5, **options)
        assert torch.equal(found, expected)
        for b in range(2):
            one, other = resumed.report(b), whole.report(b)
            assert torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std) and torch.equal(one.ess, other.ess)


def test_statistics_are_those_of_the_kept_iterates():
    posterior = problem_16(rows=1)
    sampler = PnPULA(steps=40, level=0.2, burn_in=0.25, thinning=4)
    observer, seen = Chains(), []

    class Both:
        def __call__(self, event):
            seen.append(event.x.clone())

        def finish(self, rows, fields):
            observer.finish(rows, fields)

    sample(sampler, posterior, SCHEDULE, n=3, observe=Both(), progress=False)
    # Ten steps of burn-in, then every fourth of thirty: seven.
    kept = torch.stack(seen[-40:])[10:][3::4]
    assert len(kept) == 7 and observer.report().draws == 7
    pooled = kept.flatten(0, 1)
    assert torch.allclose(observer.report().mean, pooled.mean(0)) and torch.allclose(observer.report().std, pooled.std(0))


def test_long_chains_mix_and_estimate_what_they_should_and_short_ones_say_so():
    posterior, level = problem_16(), 0.3
    P, mean = target_of(posterior, level**2)
    observer = Chains()
    sample(
        PnPULA(steps=1200, level=level, kernel="skrock", stages=5, fraction=0.05),
        posterior,
        SCHEDULE,
        n=4,
        observe=observer,
        progress=False,
    )
    report = observer.report()
    assert report.mixed and report.verdict.startswith("the chains have mixed")
    std = torch.linalg.inv(P).diagonal().sqrt()
    assert float(((report.mean.flatten() - mean) / std).abs().max()) < 5 / math.sqrt(float(report.ess.min()))
    assert torch.allclose(report.std.flatten(), std, rtol=5 / math.sqrt(2 * float(report.ess.min())))
    short = Chains()
    sample(PnPULA(steps=40, level=0.05, start="noise"), posterior, SCHEDULE, n=4, observe=short, progress=False)
    assert not short.report().mixed and short.report().verdict.startswith("NOT MIXED")


def test_under_inference_mode():
    posterior = problem_16(rows=2)
    expected = sample(CHAINS[0], posterior, SCHEDULE, progress=False)
    with torch.inference_mode():
        assert torch.equal(sample(CHAINS[0], posterior, SCHEDULE, progress=False), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "hmc"}, "kernel='hmc'; one of ula, skrock is needed"),
        ({"constraint": "box"}, "constraint='box'; one of tail, projected, none is needed"),
        ({"start": "y"}, "start='y'; one of reverse, pseudo_inverse, noise is needed"),
        ({"level": 0.0}, "level=0.0; a finite number > 0 is needed"),
        ({"alpha": -1.0}, "alpha=-1.0; a finite number > 0"),
        ({"delta": math.inf}, "delta=inf; a finite number > 0"),
        ({"steps": 0}, "steps=0; at least 1 is needed"),
        ({"stages": 1}, "stages=1; at least 2 is needed"),
        ({"thinning": 0}, "thinning=0; at least 1 is needed"),
        ({"thinning": 81, "steps": 100}, "thinning=81; none of the 80 steps after the burn-in would be kept"),
        ({"zeta": -0.1}, "zeta=-0.1; at least 0 is needed"),
        ({"burn_in": 1.0}, r"burn_in=1.0; a share of the steps in \[0, 1\) is needed"),
        ({"box": (1.0, -1.0)}, r"box=\(1.0, -1.0\); an interval \(low, high\) is needed"),
        ({"rule": "best"}, "rule='best'; one of fraction, published, mismatch is needed"),
        ({"fraction": 2.5}, r"fraction=2.5; a number in \(0, 2\)"),
        ({"fraction": 1.5, "kernel": "skrock"}, r"fraction=1.5; a number in \(0, 1\]"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PnPULA(**options)


def test_impossible_problems_are_refused():
    posterior = problem_16()
    blind = Posterior(posterior.prior, GaussianLikelihood(posterior.likelihood.operator, posterior.likelihood.y, 0.0))
    with pytest.raises(ValueError, match="divides by sigma"):
        sample(PnPULA(steps=2), blind, SCHEDULE, progress=False)
    with pytest.raises(ValueError, match="needs a measurement"):
        sample(PnPULA(steps=2), posterior.prior, SCHEDULE, progress=False)
    with pytest.raises(Divergence, match="lower delta or fraction"):
        sample(PnPULA(steps=500, delta=1.0, start="noise"), posterior, SCHEDULE, progress=False)
    curved = Posterior(problem_r1().prior, GaussianLikelihood(Wavy(), tensor([[1.0, 0.0]]), 0.5))
    with pytest.raises(ValueError, match="start='pseudo_inverse' needs a linear operator and Gaussian noise"):
        sample(PnPULA(steps=2, start="pseudo_inverse"), curved, SCHEDULE, progress=False)
