"""Statistics of Markov chains against closed forms, and constants of Lipschitz against known spectra."""

import math

import pytest
import torch
from problems import DOUBLE, problem_16, problem_mixture, randn, tensor

from invsolve.engine.chains import Chains, draw_number, probes, project, welford
from invsolve.levels import Level
from invsolve.metrics.mixing import autocorrelation, effective_sample_size, split_r_hat
from invsolve.numerics.power import curvature, jacobian_norm, operator_norm, power_iteration
from invsolve.samplers.pnp_ula import step_sizes
from operators import GaussianBlur, Identity, Inpainting, Matrix, SuperResolution


def ar1(rho, chains, draws, seed=0):
    """Stationary AR(1) chains (chains, draws) of unit variance."""
    z = randn(chains, draws, seed=seed)
    x = torch.empty_like(z)
    x[:, 0] = z[:, 0]
    for i in range(1, draws):
        x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * z[:, i]
    return x


def test_welford_is_mean_and_variance_also_far_from_zero():
    x = 1e8 + randn(50, 3, 5)
    mean, m2 = torch.zeros(3, 5, dtype=DOUBLE), torch.zeros(3, 5, dtype=DOUBLE)
    for count, value in enumerate(x, 1):
        mean, m2 = welford(mean, m2, value, count)
    assert torch.allclose(mean, x.mean(0), rtol=1e-15)
    # Values are rounded to 1.5e-8 at 1e8: the formula E x^2 - (E x)^2 would lose everything.
    assert torch.allclose(m2 / 49, x.var(0), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_autocorrelation_and_time_of_an_autoregressive_chain(rho):
    chains = ar1(rho, 32, 10_000)
    time = (1 + rho) / (1 - rho)
    found = autocorrelation(chains)
    assert found.shape == chains.shape and torch.equal(found[:, 0], torch.ones(32, dtype=DOUBLE))
    # Bartlett: the variance of an estimated autocorrelation is at most sum rho^2k / N = (1 + rho^2)/(1 - rho^2)/N.
    spread = math.sqrt((1 + rho**2) / (1 - rho**2) / chains.numel())
    lags = torch.arange(20)
    assert torch.allclose(found.mean(0)[:20], tensor(rho) ** lags, atol=5 * spread + time / 10_000)
    # The relative error of the time is about sqrt(2 (2 W + 1) / N) with a window W of a few times; W = 5 time is generous.
    error = math.sqrt(2 * (10 * time + 1) / chains.numel())
    assert float(chains.numel() / effective_sample_size(chains)) == pytest.approx(time, rel=4 * error)


def test_an_antithetic_chain_counts_for_more_than_its_draws_but_not_without_bound():
    chains = ar1(-0.9, 4, 5000)
    size = float(effective_sample_size(chains))
    assert 20_000 < size <= 20_000 * math.log10(20_000) * (1 + 1e-12)


def test_split_r_hat():
    still = randn(4, 4000)
    # Means of halves differ by chance: R-hat^2 - 1 has mean 1/n and standard deviation sqrt(2/7)/n, n = 2000.
    assert float(split_r_hat(still)) == pytest.approx(1, abs=2e-3)
    shifted = still + tensor([0.0, 0, 0, 2])[:, None]
    # Between halves: six at 0 and two at 2, variance 6/7; within 1.
    assert float(split_r_hat(shifted)) == pytest.approx(math.sqrt(1 + 6 / 7), abs=0.03)
    drift = still[:1] + torch.linspace(0, 4, 4000, dtype=DOUBLE)
    # One chain is enough: halves at 1 and 3 (variance 2), each of variance 1 + 4/12.
    assert float(split_r_hat(drift)) == pytest.approx(math.sqrt(1 + 2 / (4 / 3)), abs=0.05)


def test_chains_that_disagree_have_few_effective_draws():
    still = randn(4, 4000)
    assert float(effective_sample_size(still)) == pytest.approx(16_000, rel=0.1)
    assert float(effective_sample_size(still + tensor([0.0, 0, 0, 2])[:, None])) < 20


def test_statistics_per_component_and_of_too_little():
    both = torch.stack([ar1(0.5, 4, 1000), ar1(0.9, 4, 1000, seed=1)], -1)
    for k in range(2):
        assert torch.allclose(effective_sample_size(both)[k], effective_sample_size(both[..., k]))
        assert torch.allclose(split_r_hat(both)[k], split_r_hat(both[..., k]))
    for of_nothing in (torch.ones(4, 100, 1, dtype=DOUBLE), randn(4, 3, 1)):
        assert bool(effective_sample_size(of_nothing).isnan().all())
    assert bool(split_r_hat(torch.ones(4, 100, 1, dtype=DOUBLE)).isnan().all())
    assert bool(split_r_hat(randn(4, 3, 1)).isnan().all())


@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (1, 4, 4), (3, 16, 8)])
def test_probes_are_distinct_unit_vectors(shape):
    names, vectors = probes(shape, DOUBLE, torch.device("cpu"))
    assert len(names) == len(vectors) == len(set(names)) and vectors.shape[1] == math.prod(shape)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(names), dtype=DOUBLE))
    x = randn(3, *shape)
    assert torch.allclose(project(x)[:, 0], x.flatten(1).sum(1) / math.sqrt(math.prod(shape)))
    if shape == (3, 16, 8):
        assert names == ("0,0", "0,1", "1,0", "8,4", "15,7", "random 0", "random 1")
        gram = vectors[:5] @ vectors[:5].mT
        assert torch.allclose(gram, torch.eye(5, dtype=DOUBLE), atol=1e-12), "the cosines are orthogonal"


def report_of(traces):
    chains, draws, count = traces.shape
    observer = Chains()
    mean, m2 = torch.zeros(chains, 2, dtype=DOUBLE), torch.zeros(chains, 2, dtype=DOUBLE)
    inverse = torch.linalg.pinv(probes((2,), DOUBLE, torch.device("cpu"))[1])
    for k in range(draws):
        mean, m2 = welford(mean, m2, traces[:, k] @ inverse.mT, k + 1)
    fields = {"mean": mean, "m2": m2, "trace": traces, "constants": torch.ones(chains, 4, dtype=DOUBLE)}
    # In two chunks, as a run short of memory hands them over.
    for part in ([1, 3], [0, 2]):
        observer.finish([("a", k) for k in part], {name: value[part] for name, value in fields.items()})
    return observer


def test_the_report_pools_the_chains_and_judges_them():
    vectors = probes((2,), DOUBLE, torch.device("cpu"))[1]
    draws = torch.stack([ar1(0.5, 4, 1000), 3 + ar1(0.9, 4, 1000, seed=1)], -1)
    found = report_of(draws @ vectors.mT).report("a")
    assert torch.allclose(found.mean, draws.flatten(0, 1).mean(0)) and torch.allclose(found.std, draws.flatten(0, 1).std(0))
    assert (found.chains, found.draws) == (4, 1000) and found.mixed and found.verdict.startswith("the chains have mixed")
    # A unit probe sees the variances, hence the times 3 and 19, in the shares of its squared entries.
    slowest = float((vectors.square() @ tensor([3.0, 19.0])).amax())
    assert found.numbers["iact_slow"] == pytest.approx(slowest, rel=3 * math.sqrt(2 * (10 * slowest + 1) / 4000))
    assert found.autocorrelation["slow"].shape == (1000,)
    assert found.autocorrelation["slow"][5] > found.autocorrelation["fast"][5]

    apart = report_of((draws + torch.tensor([0.0, 0, 0, 5])[:, None, None]) @ vectors.mT).report("a")
    assert not apart.mixed and apart.verdict.startswith("NOT MIXED") and "times as many steps" in apart.verdict
    slow = report_of(ar1(0.999, 4, 1000)[..., None].expand(-1, -1, 2) @ vectors.mT).report("a")
    assert not slow.mixed
    still = report_of(torch.ones(4, 100, 2, dtype=DOUBLE) @ vectors.mT).report("a")
    assert not still.mixed and "stands still" in still.verdict


def test_which_steps_are_kept():
    kept = [draw_number(step, 20, 0.25, 4) for step in range(1, 21)]
    assert [(step, k) for step, k in enumerate(kept, 1) if k] == [(9, 1), (13, 2), (17, 3)]
    # About 2000 of a long chain, all of a short one, and none of a warm start (steps up to 0).
    assert draw_number(100_000, 100_000, 0.2, None) == 2000 and draw_number(7, 10, 0.2, None) == 5
    assert [draw_number(step, 10, 0.0, None) for step in (-3, 0, 1)] == [0, 0, 1]
    with pytest.raises(ValueError, match="thinning=9; none of the 8 steps after the burn-in would be kept"):
        draw_number(1, 10, 0.2, 9)


def test_the_report_of_what_is_not_there():
    observer = report_of(randn(4, 10, 4) @ torch.eye(4, dtype=DOUBLE))
    with pytest.raises(ValueError, match="no chain of 'b' has ended; there are: 'a'"):
        observer.report("b")


def test_power_iteration_finds_the_largest_eigenvalue_of_each_row():
    matrices = randn(3, 6, 6)
    matrices = matrices + matrices.mT
    expected = torch.linalg.eigvalsh(matrices).abs().amax(1)
    start = randn(1, 6).expand(3, 6)
    found = power_iteration(lambda v: torch.einsum("bij,bj->bi", matrices, v), start, 2000)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert torch.equal(power_iteration(torch.zeros_like, start, 3), torch.zeros(3, dtype=DOUBLE))
    with pytest.raises(ValueError, match="iterations=0"):
        power_iteration(lambda v: v, start, 0)


@pytest.mark.parametrize(
    ("operator", "norm"),
    [
        (Identity((1, 4, 4)), 1.0),
        (Inpainting((1, 4, 4), kind="random", fraction=0.5), 1.0),
        (Matrix(randn(7, 16), (1, 4, 4)), float(torch.linalg.matrix_norm(randn(7, 16), 2))),
        (GaussianBlur((1, 16, 16)), None),
        (SuperResolution((1, 16, 16), factor=4), None),
    ],
    ids=lambda v: type(v).__name__,
)
def test_norm_of_an_operator(operator, norm):
    like = torch.zeros(2, *operator.image_shape, dtype=DOUBLE)
    found = operator_norm(operator, like, 300)
    if norm is None:
        norm = float(operator._singular_values(like).amax())
    # Many singular values near the largest slow the power method down, and make it matter less.
    assert torch.allclose(found, torch.full((2,), norm, dtype=DOUBLE), rtol=3e-3)
    assert bool((found <= norm * (1 + 1e-12)).all())


def test_constant_of_the_residual_of_a_gaussian_denoiser_and_of_its_likelihood():
    posterior, epsilon = problem_16(rows=3), 0.05
    level = Level(1.0, math.sqrt(epsilon))
    x = randn(3, 1, 4, 4)
    lowest = float(torch.linalg.eigvalsh(posterior.prior.cov)[0])
    found = jacobian_norm(lambda v: posterior.prior.denoise(v, level) - v, x, 500)
    assert torch.allclose(found, torch.full((3,), epsilon / (lowest + epsilon), dtype=DOUBLE), rtol=1e-6)
    data = float(torch.linalg.matrix_norm(posterior.likelihood.operator.matrix, 2)) ** 2 / posterior.likelihood.sigma**2
    for estimate in (curvature(posterior.likelihood.score, x, iterations=500), jacobian_norm(posterior.likelihood.score, x, 500)):
        assert torch.allclose(estimate, torch.full((3,), data, dtype=DOUBLE), rtol=1e-6)
    with torch.inference_mode():
        inside = jacobian_norm(lambda v: posterior.prior.denoise(v, level) - v, randn(3, 1, 4, 4), 500)
    assert torch.allclose(inside, found)


def test_between_two_modes_the_constant_is_larger_than_one():
    prior, epsilon = problem_mixture().prior, 0.01
    level = Level(1.0, math.sqrt(epsilon))
    # J = Cov(x_0 | x) / epsilon with the covariance of the mixture at x, at a point where both modes count.
    x = tensor([[0.01, -0.02]])
    rows = [torch.autograd.functional.jacobian(lambda v: prior.denoise(v, level), x)[0, :, 0]]
    expected = torch.linalg.eigvalsh(rows[0] - torch.eye(2, dtype=DOUBLE)).abs().amax()
    assert float(expected) > 1
    found = jacobian_norm(lambda v: prior.denoise(v, level) - v, x, 300)
    assert torch.allclose(found, expected[None], rtol=1e-6)


def test_step_sizes_are_the_published_numbers():
    # L = 1, ||A|| = 1, epsilon = (5/255)^2, sigma_y = 1/255: the setting of the paper on [0, 1].
    epsilon, data = (5 / 255) ** 2, 255.0**2
    prior = 1 / epsilon
    assert (prior, data) == pytest.approx((2601, 65025))
    tail = step_sizes(1.0, data, epsilon=epsilon, rule="published")
    assert tail.lam == pytest.approx(0.99 / (2 * 2601 + 4 * 65025)) and tail.lam == pytest.approx(3.7315e-6, rel=1e-4)
    assert tail.delta == pytest.approx(0.33 / (2601 + 65025 + 1 / 3.7315e-6), rel=1e-4)
    assert 2 * tail.lam * (data + prior) <= 1, "the condition of the theory"
    free = step_sizes(1.0, data, epsilon=epsilon, rule="published", tail=False)
    assert free.delta == pytest.approx(0.99 / 67626)
    assert 10 < free.delta / tail.delta < 16
    mismatch = step_sizes(1.0, data, epsilon=epsilon, alpha=0.3, rule="mismatch")
    lam = 0.5 / (2 * 65025 + 0.3 * 2601)
    assert mismatch == pytest.approx((1 / 3 / (65025 + 1 / lam + 0.3 * 2601), lam))
    default = step_sizes(1.0, data, epsilon=epsilon)
    assert default == pytest.approx((0.3 / 67626, 0.5 / 67626))
    # SK-ROCK: l_s = (s - 1/2)^2 (2 - 4 eta/3) - 3/2, 173 for ten stages and 405 for fifteen.
    for stages, limit in ((10, 173), (15, 405)):
        sizes = step_sizes(1.0, data, epsilon=epsilon, rule="published", tail=False, stages=stages)
        assert sizes.delta * 67626 / 0.99 == pytest.approx(limit, abs=0.5)
    rows = step_sizes(torch.ones(2), torch.full((2,), data), epsilon=epsilon, rule="published")
    assert torch.allclose(rows.delta, torch.full((2,), tail.delta)) and torch.allclose(rows.lam, torch.full((2,), tail.lam))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "rule='best'; one of fraction, published, mismatch"),
        ({"fraction": 2.0}, r"fraction=2.0; a number in \(0, 2\)"),
        ({"fraction": 1.1, "stages": 10}, r"fraction=1.1; a number in \(0, 1\] of the limit"),
        ({"fraction": 0.3, "rule": "published"}, "fraction=0.3 belongs to rule='fraction'"),
    ],
)
def test_step_sizes_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        step_sizes(1.0, 1.0, epsilon=0.1, **options)


def test_the_norm_of_an_operator_that_is_not_linear_is_refused():
    class Square:
        linear = False

    with pytest.raises(TypeError, match="operator_norm needs a linear operator; Square is not"):
        operator_norm(Square(), torch.zeros(1, 2))
