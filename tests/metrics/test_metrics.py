"""Scores, coverage, ranks and closeness against scipy, scoringrules, tarp and formulas written down again; merging of processes."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from problems import randn

from invsolve import metrics
from invsolve.metrics import closeness, ranks, scores


def pairs(images=6, n=9, shape=(2, 4, 4), seed=0):
    """Draws and truths from the same distribution, which differs from image to image."""
    centre, width = randn(images, 1, *shape, seed=seed), 1 + randn(images, 1, *shape, seed=seed + 1).abs()
    both = centre + width * randn(images, n + 1, *shape, seed=seed + 2)
    return both[:, 1:], both[:, 0]


# -- scores -----------------------------------------------------------------------------------------------------------------


def test_crps_and_energy_score_are_their_double_sums():
    draws, truth = pairs()
    n = draws.shape[1]
    between = (draws[:, :, None] - draws[:, None]).abs().sum((1, 2)) / (2 * n * (n - 1))
    torch.testing.assert_close(scores.crps(draws, truth), (draws - truth[:, None]).abs().mean(1) - between)
    x, t = draws.flatten(2), truth.flatten(1)
    apart = sum((x[:, i] - x[:, j]).norm(dim=1) for i in range(n) for j in range(i)) / (n * (n - 1))
    torch.testing.assert_close(scores.energy_score(draws, truth), (x - t[:, None]).norm(dim=2).mean(1) - apart)
    # Of a single entry the energy score is the CRPS; and neither sees the order of the draws.
    one = draws[..., :1, :1, :1], truth[..., :1, :1, :1]
    torch.testing.assert_close(scores.energy_score(*one), scores.crps(*one).flatten())
    torch.testing.assert_close(scores.crps(draws.flip(1), truth), scores.crps(draws, truth))


def test_the_fair_crps_has_the_mean_of_the_closed_form():
    # For N(0, 1) and a truth t: t (2 Phi(t) - 1) + 2 phi(t) - 1/sqrt(pi), whatever n.
    t, phi = 0.7, scipy.stats.norm
    exact = t * (2 * phi.cdf(t) - 1) + 2 * phi.pdf(t) - 1 / math.sqrt(math.pi)
    found = scores.crps(randn(20_000, 3), torch.full((20_000,), t, dtype=torch.float64))
    assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / math.sqrt(20_000)


def test_scores_against_scoringrules():
    rules = pytest.importorskip("scoringrules")
    draws, truth = pairs()
    expected = rules.crps_ensemble(truth.numpy(), draws.numpy(), m_axis=1, estimator="fair")
    np.testing.assert_allclose(scores.crps(draws, truth).numpy(), expected, rtol=1e-10)
    expected = rules.es_ensemble(truth.flatten(1).numpy(), draws.flatten(2).numpy(), m_axis=1, v_axis=2, estimator="fair")
    np.testing.assert_allclose(scores.energy_score(draws, truth).numpy(), expected, rtol=1e-10)


def test_intervals_hold_what_they_say_whatever_the_distribution():
    places, nominal = scores.intervals((0.5, 0.9), 39)
    assert (places, nominal) == ([10, 2], [0.5, 0.9])
    assert scores.intervals((0.5, 0.9), 4)[1] == pytest.approx([0.6]), "4 draws have 0.6 and 0.2 only"
    both = randn(40_000, 10).exp()  # skewed
    places, nominal = scores.intervals((0.25, 0.6, 0.8), 9)
    found = scores.inside(both[:, 1:], both[:, 0], places).mean(0)
    for share, level in zip(found.tolist(), nominal, strict=True):
        assert abs(share - level) < 4.5 * math.sqrt(level * (1 - level) / 40_000)
    with pytest.raises(ValueError, match=r"levels=\[1.5\]"):
        scores.intervals((1.5,), 9)


def test_spread_and_error_agree_for_exchangeable_draws_of_any_number():
    both = randn(40_000, 4)
    spread, error = scores.spread_and_error(both[:, 1:], both[:, 0])
    gap = spread - error
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 200
    totals = torch.stack([spread.sum(), error.sum(), (spread * error).sum()])
    ratio, stderr = scores.spread_ratio(totals, torch.stack([spread.square().sum(), error.square().sum()]), 40_000)
    parts = [torch.sqrt(a.mean() / b.mean()) for a, b in zip(spread.chunk(200), error.chunk(200), strict=True)]
    assert abs(float(ratio) - 1) < 4.5 * float(stderr)
    assert float(stderr) == pytest.approx(float(torch.stack(parts).std()) / math.sqrt(200), rel=0.25)


def test_region_means_are_means_of_blocks():
    x = randn(2, 5, 3, 8, 12)
    found = scores.region_means(x, 2)
    assert found.shape == (2, 5, 48)
    torch.testing.assert_close(found[1, 3, 16 + 5], x[1, 3, 1, 2:4, 3:6].mean())
    assert torch.equal(scores.region_means(randn(4, 7), 1), randn(4, 7).mean(1, keepdim=True))


def test_scores_refuse_what_they_cannot_score():
    draws, truth = pairs()
    with pytest.raises(ValueError, match="are needed"):
        scores.crps(draws, truth[:3])
    with pytest.raises(ValueError, match="at least 2"):
        scores.energy_score(draws[:, :1], truth)
    with pytest.raises(ValueError, match="not the values of a picture"):
        scores.crps((draws * 50).to(torch.uint8), truth)


# -- ranks ------------------------------------------------------------------------------------------------------------------


def test_ranks_are_those_of_scipy_and_ties_are_shared():
    draws, truth = pairs()
    shares = ranks.rank_shares(draws, truth)
    both = torch.cat([truth[:, None], draws], 1).numpy()
    assert np.array_equal(shares.argmax(-1).numpy(), scipy.stats.rankdata(both, axis=1)[:, 0] - 1)
    assert bool((shares.sum(-1) == 1).all())
    tied = ranks.rank_shares(torch.tensor([[0.0, 1.0, 1.0, 2.0]]), torch.tensor([1.0]))
    assert tied.tolist() == [[0, 1 / 3, 1 / 3, 1 / 3, 0]]


def test_uniformity_is_pearsons_test():
    counts = torch.tensor([[5.0, 9, 14, 2, 8, 11], [20, 3, 3, 3, 3, 17]], dtype=torch.float64)
    found = ranks.uniformity(counts, bins=4)
    for q in range(2):
        held = [counts[q, :2].sum(), counts[q, 2:4].sum(), counts[q, 4], counts[q, 5]]
        expected = scipy.stats.chisquare(held, 49 * np.array([2, 2, 1, 1]) / 6)
        assert float(found.chi2[q]) == pytest.approx(expected.statistic)
        assert float(found.p[q]) == pytest.approx(expected.pvalue)
    steps = (counts[1].cumsum(0) / 49 - torch.arange(1, 7) / 6).abs().max()
    assert float(found.deviation[1]) == pytest.approx(float(steps))
    with pytest.raises(ValueError, match="bins=7"):
        ranks.uniformity(counts, bins=7)


def test_the_test_of_ranks_that_go_together_is_hotellings():
    values = randn(30, 4) @ randn(4, 4, seed=1)
    values = torch.cat([values, -values.sum(1, keepdim=True)], 1) + torch.tensor([0.3, 0, 0, 0, -0.3])
    found = ranks.clustered_uniformity(values.mean(0), torch.cov(values.mT), 30)
    v = values[:, :4].numpy()
    t2 = 30 * v.mean(0) @ np.linalg.solve(np.cov(v.T), v.mean(0))
    assert float(found.chi2) == pytest.approx(t2, rel=1e-8)
    assert float(found.p) == pytest.approx(scipy.stats.f.sf(t2 * 26 / (29 * 4), 4, 26), rel=1e-8)
    assert math.isnan(ranks.clustered_uniformity(values.mean(0), torch.cov(values.mT), 4).p)


def test_p_values_of_exact_draws_are_uniform_although_pixels_go_together():
    # 200 evaluations of 24 images whose pixels share most of their value; independent pixels would give p near 0 at once.
    p = []
    for k in range(200):
        both = randn(24, 8, 1, seed=2 * k) + 0.3 * randn(24, 8, 9, seed=2 * k + 1)
        metric = metrics.RankHistogram(7, bins=4)
        metric.update(both[:, 1:], both[:, 0])
        p.append(float(metric.compute()["p"]))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001


def test_tarp_against_its_package_and_by_hand():
    draws, truth = pairs(images=40, n=19, shape=(3,))
    around = ranks.references(range(40), (3,))
    counts = ranks.tarp_shares(draws, truth, around).sum(0)
    f = ((draws - around[:, None]).norm(dim=2) < (truth - around).norm(dim=1)[:, None]).double().mean(1)
    by_hand = torch.stack([(f <= j / 19 + 1e-9).double().mean() for j in range(20)])
    torch.testing.assert_close(ranks.expected_coverage(counts)[1], by_hand)
    assert torch.equal(around[7], ranks.references([7], (3,))[0]), "the point of an image depends on its id alone"
    tarp = pytest.importorskip("tarp")
    coverage, alpha = tarp.get_tarp_coverage(draws.movedim(1, 0).numpy(), truth.numpy(), references=around.numpy(), num_alpha_bins=4)
    expected = [float(counts[torch.arange(20) / 19 < a - 1e-9].sum() / 40) for a in alpha[:-1]]
    np.testing.assert_allclose(coverage, [*expected, 1.0], atol=1e-12)


# -- closeness --------------------------------------------------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift_and_of_projections():
    a, along = randn(3, 50, 4), closeness.directions(16, 4)
    shift = torch.tensor([0.5, 0, -1, 0], dtype=torch.float64)
    expected = (along @ shift).square().mean().sqrt()
    torch.testing.assert_close(closeness.sliced_wasserstein(a, a + shift, along), expected.expand(3))
    b = 2 * randn(3, 50, 4, seed=1)
    one = [np.sort(v[1].numpy() @ along[0].numpy()) for v in (a, b)]
    assert float(closeness.sliced_wasserstein(a, b, along[:1])[1]) == pytest.approx(float(np.sqrt(np.mean((one[0] - one[1]) ** 2))))
    with pytest.raises(ValueError, match="as many draws"):
        closeness.sliced_wasserstein(a, b[:, :40], along)


def test_whitened_moments_are_the_generalised_eigenvalues_and_are_free_of_sampling_error():
    root, of_draws = torch.linalg.cholesky(torch.cov(randn(4, 20))), torch.linalg.cholesky(torch.cov(randn(4, 20, seed=1)))
    mean = randn(300, 1, 4, seed=2)
    draws = mean + randn(300, 6, 4, seed=3) @ of_draws.mT
    found = closeness.moments(closeness.whiten(draws, mean, root))
    centred = (draws - draws.mean(1, keepdim=True)).flatten(0, 1)
    exact = scipy.linalg.eigh((centred.mT @ centred / 1500).numpy(), (root @ root.mT).numpy(), eigvals_only=True)
    np.testing.assert_allclose(closeness.generalised_eigenvalues(found.scatter, 1500).numpy(), exact, rtol=1e-8)
    assert float(found.variance.mean()) == pytest.approx(exact.mean())
    assert abs(float(found.shift.mean())) < 4.5 * float(found.shift.std()) / math.sqrt(300)
    moved = closeness.moments(closeness.whiten(draws + 0.5 * root[:, 0], mean, root))
    expected = scores.average(moved.shift)  # 0.5 exact standard deviations along one of four directions
    assert abs(float(expected.mean) - 0.0625) < 4.5 * float(expected.stderr)


def test_eigenvalues_of_exact_draws_stay_in_their_range_and_others_do_not():
    low, high = closeness.eigenvalue_range(8, 200, 0.001)
    extremes = [torch.linalg.eigvalsh(torch.cov(randn(8, 201, seed=s)))[[0, -1]].tolist() for s in range(300)]
    assert low < min(a for a, _ in extremes) and max(b for _, b in extremes) < high
    # Halved variances, of 128 images with 39 draws, are outside.
    assert closeness.eigenvalue_range(8, 128 * 38, 0.001)[0] > 0.5 * 1.4


def test_errors_of_mode_weights_are_free_of_sampling_error():
    weights = torch.tensor([[0.2, 0.8]], dtype=torch.float64).expand(4000, 2)
    first = (torch.special.ndtr(randn(4000, 10)) < 0.2).double().mean(1)
    found = scores.average(closeness.weight_errors(torch.stack([first, 1 - first], 1), weights, 10))
    assert abs(float(found.mean)) < 4.5 * float(found.stderr)
    wrong = scores.average(closeness.weight_errors(torch.stack([first, 1 - first], 1), weights.flip(1), 10))
    assert abs(float(wrong.mean) - 0.36) < 4.5 * float(wrong.stderr)


# -- torchmetrics ----------------------------------------------------------------------------------------------------------


def made(**kwargs):
    """Each class with a function that gives its update from draws and truths."""

    def white(d, t):
        return (d.flatten(2)[..., :5],)

    def shares(d, t):
        first = (d.flatten(2)[..., 0] > 0).double().mean(1)
        return torch.stack([first, 1 - first], 1), torch.full((len(d), 2), 0.5, dtype=torch.float64), d.shape[1]

    return {
        "CRPS": (metrics.CRPS(**kwargs), lambda d, t: (d, t)),
        "EnergyScore": (metrics.EnergyScore(**kwargs), lambda d, t: (d, t)),
        "Coverage": (metrics.Coverage(9, cells=2, **kwargs), lambda d, t: (d, t)),
        "SpreadError": (metrics.SpreadError(**kwargs), lambda d, t: (d, t)),
        "RankHistogram": (metrics.RankHistogram(9, bins=3, **kwargs), lambda d, t: (d, t)),
        "SBC": (metrics.SBC(9, 4, bins=2, **kwargs), lambda d, t: (d.flatten(2)[..., :4], t.flatten(1)[..., :4])),
        "TARP": (metrics.TARP(9, bins=2, **kwargs), lambda d, t: (d, t, torch.zeros_like(t))),
        "SlicedWasserstein": (metrics.SlicedWasserstein(32, **kwargs), lambda d, t: (d[:, :4], d[:, 1:])),
        "WhitenedMoments": (metrics.WhitenedMoments(5, **kwargs), white),
        "ModeWeights": (metrics.ModeWeights(2, **kwargs), shares),
    }


@pytest.mark.parametrize("name", metrics.__all__)
def test_processes_merge_to_what_one_process_gives(name):
    draws, truth = pairs(images=8)
    whole, args = made()[name]
    for k in (slice(0, 3), slice(3, 8)):
        whole.update(*args(draws[k], truth[k]))
    # Two processes, the second of which torchmetrics asks for its states.
    other = made()[name][0]
    other.update(*args(draws[5:], truth[5:]))
    states = iter([getattr(other, key) for key in other._reductions])
    mine = made(dist_sync_fn=lambda x, group: [x, next(states)], distributed_available_fn=lambda: True)[name][0]
    mine.update(*args(draws[:5], truth[:5]))
    merged, expected = mine.compute(), whole.compute()
    assert all(reduction is not None for reduction in mine._reductions.values())
    for key, value in expected.items():
        torch.testing.assert_close(merged[key], value, rtol=1e-10, atol=1e-12, equal_nan=True)


def test_the_classes_give_the_averages_of_the_functions():
    draws, truth = pairs(images=8)
    values = {}
    for name, (metric, args) in made().items():
        metric.update(*args(draws, truth))
        values[name] = metric.compute()
    crps = scores.crps(draws, truth).flatten(1).mean(1)
    assert float(values["CRPS"]["mean"]) == pytest.approx(float(crps.mean()))
    assert float(values["CRPS"]["stderr"]) == pytest.approx(float(crps.std()) / math.sqrt(8))
    assert float(values["EnergyScore"]["mean"]) == pytest.approx(float(scores.energy_score(draws, truth).mean()))
    spread, error = scores.spread_and_error(draws, truth)
    found = values["SpreadError"]
    assert float(found["ratio"]) == pytest.approx(math.sqrt(float(spread.mean() / error.mean())))
    assert int(found["curve_count"].sum()) == truth.numel()
    busiest = int(found["curve_count"].argmax())
    low, high = (float(metrics.SpreadError().edges[busiest - k]) for k in (1, 0))
    inside = (spread.sqrt() > low) & (spread.sqrt() <= high)
    assert float(found["curve_error"][busiest]) == pytest.approx(math.sqrt(float(error[inside].mean())))
    assert float(values["SlicedWasserstein"]["ratio"]) > 0 and values["Coverage"]["nominal"].tolist() == [0.6, 0.8]
    assert values["TARP"]["coverage"][-1] == 1 and values["WhitenedMoments"]["eigenvalues"].shape == (5,)


def test_the_classes_refuse_another_number_of_draws_and_no_images():
    draws, truth = pairs()
    for name in ("Coverage", "RankHistogram", "SBC", "TARP"):
        metric, args = made()[name]
        with pytest.raises(ValueError, match="made for 9"):
            metric.update(*args(draws[:, :5], truth))
        with pytest.raises(ValueError, match="has seen no image"):
            metric.compute()
