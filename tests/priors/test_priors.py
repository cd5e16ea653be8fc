"""Exact priors and posteriors against dense algebra, quadrature and sampling."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from problems import DOUBLE, randn, tensor

from invsolve import Posterior
from invsolve.diagnostics.problems import smooth_prior, two_modes
from invsolve.kernels.linearize import linearize
from invsolve.levels import CLEAN, Level
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianMixturePrior, GaussianPrior, PixelPrior, Prior, StationaryGaussianPrior
from invsolve.priors.gaussian import symmetric_root
from operators import GaussianBlur, Identity, Inpainting, Matrix

LEVELS = [Level(1.0, 0.3), Level(0.6, 0.8), Level(0.01, 1.0), Level(2.0, 5.0), Level(0.99995, 0.01)]
each_level = pytest.mark.parametrize("t", LEVELS, ids=str)


def covariance(n, seed, rank=None):
    root = randn(n, rank or n, seed=seed)
    return root @ root.mT / n + (0 if rank else 0.05) * torch.eye(n, dtype=DOUBLE)


def gaussian(shape=(2, 2, 3), seed=0, rank=None):
    n = math.prod(shape)
    return GaussianPrior(randn(*shape, seed=seed), covariance(n, seed + 1, rank))


def mixture(shape=(2, 3), seed=0):
    n = math.prod(shape)
    covs = torch.stack([covariance(n, seed + k, rank) * scale for k, rank, scale in ((1, None, 1.0), (2, None, 0.1), (3, 2, 2.0))])
    return GaussianMixturePrior(tensor([1.0, 2.0, 3.0]), 2 * randn(3, *shape, seed=seed + 9), covs)


def spectrum(shape, seed=3):
    """A power spectrum that no symmetry but f -> -f relates."""
    noise = torch.fft.fft2(randn(*shape, seed=seed)).abs().square()
    return noise / noise.mean()


def textbook_denoiser(weights, means, covs, x, t):
    """(posterior means, posterior covariances) of x_0 given x, component by component with scipy; x (B, n)."""
    n = x.shape[1]
    out_mean, out_cov = [], []
    for row in x.numpy():
        logs, centres, spreads = [], [], []
        for w, m, C in zip(weights.numpy(), means.numpy(), covs.numpy(), strict=True):
            S = t.alpha**2 * C + t.sigma**2 * np.eye(n)
            gain = t.alpha * C @ np.linalg.inv(S)
            logs.append(np.log(w) + scipy.stats.multivariate_normal(t.alpha * m, S).logpdf(row))
            centres.append(m + gain @ (row - t.alpha * m))
            spreads.append(C - t.alpha * gain @ C)
        r = np.exp(logs - scipy.special.logsumexp(logs))
        mean = np.einsum("k,ki->i", r, centres)
        out_mean.append(mean)
        out_cov.append(np.einsum("k,kij->ij", r, spreads) + np.einsum("k,ki,kj->ij", r, centres, centres) - np.outer(mean, mean))
    return tensor(np.array(out_mean)), tensor(np.array(out_cov))


def flat(prior):
    return prior._weights[0], prior._means[0], prior.covs


def noisy(prior, t, n=5):
    """Typical inputs of the denoiser, (n, *X)."""
    return t.alpha * prior.draw(n, seed=11) + t.sigma * randn(n, *prior.image_shape, seed=12)


# -- denoisers ------------------------------------------------------------------------------------------------------------


@each_level
@pytest.mark.parametrize(
    "make", [gaussian, mixture, lambda: gaussian((6,), rank=2), lambda: gaussian((1,))], ids=["gauss", "mix", "flat", "1-D"]
)
def test_denoiser_is_the_conditional_mean(make, t):
    prior = make()
    x = noisy(prior, t)
    expected, _ = textbook_denoiser(*flat(prior), x.flatten(1), t)
    # The textbook inverts a matrix of condition up to alpha^2 |C| / sigma^2 ~ 1e5.
    assert torch.allclose(prior.denoise(x, t), expected.reshape(x.shape), atol=1e-9, rtol=0)


@pytest.mark.parametrize("t", LEVELS[:4], ids=str)
def test_mixture_denoiser_by_quadrature(t):
    weights, means, stds = np.array([0.2, 0.5, 0.3]), np.array([-2.0, 0.1, 1.5]), np.array([0.3, 0.6, 0.2])
    prior = GaussianMixturePrior(tensor(weights), tensor(means)[:, None], tensor(stds**2)[:, None, None])
    grid = np.linspace(-8, 8, 40001)
    density = (weights * scipy.stats.norm(means, stds).pdf(grid[:, None])).sum(1)
    for x in (-1.3, 0.0, 0.4, 2.2):
        # The trapezoidal rule on a smooth, decaying integrand is exact to rounding once the grid resolves sigma/alpha.
        p = density * scipy.stats.norm(t.alpha * grid, t.sigma).pdf(x)
        expected = (grid * p).sum() / p.sum()
        assert float(prior.denoise(tensor([[x]]), t)) == pytest.approx(expected, abs=1e-10)


@each_level
@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gauss", "mix"])
def test_jacobian_is_the_posterior_covariance_over_sigma_squared(make, t):
    """d x0_hat / d x = alpha Cov(x_0 | x) / sigma^2, a symmetric matrix (Tweedie's second-order formula)."""
    prior = make()
    x = noisy(prior, t, 2)
    _, cov = textbook_denoiser(*flat(prior), x.flatten(1), t)
    n = cov.shape[-1]
    rows = [linearize(prior, x, t).pull(e.expand(2, n).reshape(x.shape)).flatten(1) for e in torch.eye(n, dtype=DOUBLE)]
    jacobian = torch.stack(rows, 1)
    # Cov is a difference of numbers of size |C|, divided by sigma^2.
    assert torch.allclose(jacobian, t.alpha * cov / t.sigma**2, atol=1e-12 * t.alpha / t.sigma**2 + 1e-10, rtol=1e-9)


def test_linearize_gives_detached_values_and_leaves_its_input_alone():
    prior, t = gaussian(), LEVELS[0]
    x = noisy(prior, t)
    with torch.no_grad():
        out = linearize(prior, x, t)
    assert torch.equal(out.x0, prior.denoise(x, t)) and not out.x0.requires_grad and not x.requires_grad and out.fraction is None
    assert float(out.pull(torch.ones_like(x)).abs().max()) > 0


@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gauss", "mix"])
def test_linearize_works_under_inference_mode(make):
    prior, t = make(), LEVELS[0]
    x, v = noisy(prior, t), randn(5, *prior.image_shape, seed=3)
    expected = linearize(prior, x, t)
    with torch.inference_mode():
        out = linearize(make(), x.clone(), t)
        assert torch.equal(out.x0, expected.x0)
        assert torch.equal(out.pull(v.clone()), expected.pull(v))


@each_level
def test_rows_do_not_see_each_other(t):
    prior = mixture()
    x = noisy(prior, t, 6)
    alone = torch.cat([prior.denoise(x[b : b + 1], t) for b in range(6)])
    assert torch.allclose(prior.denoise(x, t), alone, atol=1e-13, rtol=0)


@each_level
@pytest.mark.parametrize("scaled", [Level(3.0, 0.0), Level(0.2, 0.0)], ids=["3", "0.2"])
def test_only_the_ratio_of_a_level_counts(t, scaled):
    c = scaled.alpha
    for prior in (mixture(), gaussian(), GaussianPrior.stationary(0.2, spectrum((4, 5)), (2, 4, 5))):
        x = noisy(prior, t)
        assert torch.allclose(prior.denoise(c * x, Level(c * t.alpha, c * t.sigma)), prior.denoise(x, t), atol=1e-12)


def test_limits_of_the_noise_level():
    prior = mixture()
    x = randn(4, 2, 3, seed=5)
    assert torch.allclose(prior.denoise(x, Level(1e-9, 1.0)), prior.mean.expand(4, 2, 3), atol=1e-7)
    regular = gaussian((4,))
    assert torch.allclose(regular.denoise(x[:, 0, :1].expand(4, 4), Level(1.0, 1e-7)), x[:, 0, :1].expand(4, 4), atol=1e-10)
    # At sigma = 0 the conditional mean is x / alpha, also where a covariance is singular or a spectrum has zeros.
    for p in (mixture(), gaussian((2, 3), rank=2), GaussianPrior.stationary(0.0, torch.zeros(2, 3, dtype=DOUBLE), (1, 2, 3))):
        assert torch.equal(p.denoise(x.reshape(4, *p.image_shape), Level(2.0, 0.0)).reshape(x.shape), x / 2)
        assert torch.equal(p.denoise(x.reshape(4, *p.image_shape), CLEAN).reshape(x.shape), x)


def test_a_point_mass_is_its_mean_at_every_level():
    for dtype in (DOUBLE, torch.float32):
        prior = GaussianPrior(torch.tensor([1.0, -2.0], dtype=dtype), torch.zeros(2, 2, dtype=dtype))
        for t in LEVELS:
            assert torch.allclose(prior.denoise(randn(3, 2).to(dtype), t), prior.mean.expand(3, 2), atol=1e-6)
        assert torch.equal(prior.draw(2), prior.mean.expand(2, 2))


def test_far_from_every_component_the_responsibilities_do_not_underflow():
    prior, t = mixture(), Level(1.0, 0.3)
    out = prior.denoise(1e3 * torch.ones(1, 2, 3, dtype=DOUBLE), t)
    expected, _ = textbook_denoiser(*flat(prior), 1e3 * torch.ones(1, 6, dtype=DOUBLE), t)
    assert torch.allclose(out.flatten(1), expected, rtol=1e-9)


# -- stationary -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 5, 7), (3, 4, 5), (1, 1, 4)], ids=str)
def test_stationary_prior_equals_its_dense_version(shape):
    mean = randn(*shape, seed=1)
    for power in (spectrum(shape), spectrum(shape[1:])):
        prior = GaussianPrior.stationary(mean, power, shape)
        dense = prior.dense()
        assert isinstance(prior, StationaryGaussianPrior) and torch.equal(dense.mean, mean)
        assert torch.allclose(dense.cov.diagonal().reshape(shape)[0].mean(), prior.power[0].mean(), rtol=1e-12)
        for t in LEVELS:
            x = noisy(dense, t)
            assert torch.allclose(prior.denoise(x, t), dense.denoise(x, t), atol=1e-11)
            v = randn(5, *shape, seed=6)
            assert torch.allclose(linearize(prior, x, t).pull(v), linearize(dense, x, t).pull(v), atol=1e-11)


def test_stationary_covariance_is_a_convolution():
    shape = (1, 4, 5)
    power = spectrum(shape[1:])
    kernel = np.fft.ifft2(power.numpy()).real
    cov = GaussianPrior.stationary(0.0, power, shape).dense().cov.numpy().reshape(4, 5, 4, 5)
    for (i, j), (k, l) in [((0, 0), (0, 0)), ((0, 0), (1, 2)), ((3, 1), (0, 4)), ((2, 2), (1, 0))]:
        assert cov[i, j, k, l] == pytest.approx(kernel[(i - k) % 4, (j - l) % 5], abs=1e-14)


def test_stationary_draws_have_the_power_spectrum():
    shape, n = (2, 4, 6), 4000
    prior = GaussianPrior.stationary(torch.tensor([0.5, -0.5], dtype=DOUBLE)[:, None, None], spectrum(shape), shape)
    x = prior.draw(n, seed=1)
    spectra = torch.fft.fft2(x - prior.mean, norm="ortho").abs().square().mean(0)
    # |F|^2 / power is a mean of n variables of mean 1 and variance at most 2 (at real frequencies).
    assert float((spectra / prior.power - 1).abs().max()) < 5 * math.sqrt(2 / n)
    std = (prior.power.flatten(1).mean(1)[:, None, None] / n).sqrt()
    assert float(((x.mean(0) - prior.mean) / std).abs().max()) < 5


# -- draws and densities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gaussian, mixture, lambda: gaussian((4,), rank=2)], ids=["gauss", "mix", "singular"])
def test_draws_have_the_moments_of_the_prior(make):
    prior, n = make(), 20000
    x = prior.draw(n, seed=2).flatten(1)
    mean, cov = prior.mean.flatten(), prior.cov
    error = (x.mean(0) - mean) / (cov.diagonal() / n).sqrt()
    assert float(error.abs().max()) < 4.5
    centred = x - mean
    products = centred[:, :, None] * centred[:, None, :]
    # Standard errors of the second moments from the draws themselves; directions without variance must stay without.
    error = (products.mean(0) - cov).abs() / (products.std(0) / math.sqrt(n) + 1e-12)
    assert float(error.max()) < 5


def test_mean_and_covariance_of_a_mixture():
    prior = mixture()
    w, m, c = flat(prior)
    w = w / w.sum()
    assert torch.allclose(prior.weights, tensor([1, 2, 3]) / 6)
    mean = sum(w[k] * m[k] for k in range(3))
    second = sum(w[k] * (c[k] + torch.outer(m[k], m[k])) for k in range(3))
    assert torch.allclose(prior.mean.flatten(), mean) and torch.allclose(prior.cov, second - torch.outer(mean, mean))


def test_draws_hit_the_components_in_proportion():
    n = 20000
    prior = GaussianMixturePrior(tensor([0.1, 0.0, 0.3, 0.6]), tensor([-30.0, -10, 10, 30])[:, None], torch.ones(4, 1, 1, dtype=DOUBLE))
    counts = torch.histc(prior.draw(n, seed=5), 4, -40, 40)
    assert counts[1] == 0
    assert scipy.stats.chisquare(counts[[0, 2, 3]].numpy(), np.array([0.1, 0.3, 0.6]) * n).pvalue > 1e-4


def test_draws_depend_on_the_seed_only():
    for prior in (gaussian(), mixture(), GaussianPrior.stationary(0.0, spectrum((3, 4)), (1, 3, 4))):
        state = torch.random.get_rng_state()
        first = prior.draw(3, seed=7)
        torch.manual_seed(1)
        assert torch.equal(first, prior.draw(3, seed=7))
        assert not torch.equal(first, prior.draw(3, seed=8))
        assert not torch.equal(first[0], first[1])
        assert first.shape == (3, *prior.image_shape) and first.dtype == DOUBLE
        torch.random.set_rng_state(state)


def test_log_prob_against_scipy():
    prior = gaussian((2, 2))
    x = prior.draw(5, seed=1)
    expected = scipy.stats.multivariate_normal(prior.mean.flatten().numpy(), prior.cov.numpy()).logpdf(x.flatten(1).numpy())
    np.testing.assert_allclose(prior.log_prob(x).numpy(), expected, rtol=1e-10)
    w, m, c = tensor([0.2, 0.8]), 2 * randn(2, 3, seed=1), torch.stack([covariance(3, 1), covariance(3, 2)])
    mixed = GaussianMixturePrior(w, m, c)
    x = mixed.draw(5, seed=1)
    parts = [scipy.stats.multivariate_normal(m[k].numpy(), c[k].numpy()).pdf(x.numpy()) * float(w[k]) for k in range(2)]
    np.testing.assert_allclose(mixed.log_prob(x).numpy(), np.log(sum(parts)), rtol=1e-10)


def test_score_of_log_prob_agrees_with_the_denoiser_at_little_noise():
    w, m, c = tensor([0.2, 0.8]), randn(2, 3, seed=1), torch.stack([covariance(3, 1), covariance(3, 2)])
    prior, t = GaussianMixturePrior(w, m, c), Level(1.0, 1e-3)
    x = prior.draw(5, seed=1).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    tweedie = (prior.denoise(x, t) - x) / t.sigma**2
    # Smoothing by sigma changes the score by O(sigma^2 / smallest variance) of its third derivatives.
    assert torch.allclose(tweedie, score, rtol=1e-3, atol=1e-3)


def test_a_singular_covariance_has_no_density():
    with pytest.raises(ValueError, match="the density does not exist: a covariance is singular"):
        GaussianPrior(tensor([0.0, 1.0]), tensor([[1.0, 0.0], [0.0, 0.0]])).log_prob(randn(2, 2))


# -- rows -----------------------------------------------------------------------------------------------------------------


def test_a_prior_that_differs_from_row_to_row_equals_one_prior_a_row():
    weights, means, cov = torch.softmax(randn(4, 2, seed=1), 1), randn(4, 2, 3, seed=2), torch.stack([covariance(3, 1), covariance(3, 2)])
    prior = GaussianMixturePrior(weights, means, cov, image_shape=(3,))
    rows = [GaussianMixturePrior(weights[b], means[b], cov) for b in range(4)]
    x, t = randn(4, 3, seed=3), Level(0.8, 0.5)
    together = prior.denoise(x, t)
    for b in range(4):
        assert torch.allclose(together[b], rows[b].denoise(x[b : b + 1], t)[0], atol=1e-13)
        assert torch.allclose(prior.mean[b], rows[b].mean) and torch.allclose(prior.cov[b], rows[b].cov)
        assert torch.allclose(prior.log_prob(x)[b], rows[b].log_prob(x[b : b + 1])[0])
    index = torch.tensor([2, 0, 2])
    chosen = prior.select(index)
    assert torch.equal(chosen.denoise(x[index], t), together[index])
    assert torch.equal(chosen.means, means[index]) and torch.allclose(chosen.weights, weights[index])
    # Selecting leaves the original and what it remembers alone.
    assert torch.equal(prior.denoise(x, t), together)
    draws = prior.draw(5000, seed=1)
    assert draws.shape == (4, 5000, 3)
    error = (draws.mean(1) - prior.mean) / (torch.stack([c.diagonal() for c in prior.cov]) / 5000).sqrt()
    assert float(error.abs().max()) < 4.5


def test_gaussian_means_by_row_and_one_row_serves_all():
    means, cov = randn(3, 1, 2, seed=1), covariance(2, 1)
    prior = GaussianPrior(means, cov, image_shape=(1, 2))
    assert torch.equal(prior.mean, means) and torch.equal(prior.cov, cov)
    assert torch.equal(prior.select(torch.tensor([1])).mean, means[1:2])
    single = GaussianPrior(means[:1], cov, image_shape=(1, 2))
    x, t = randn(5, 1, 2), LEVELS[0]
    assert torch.allclose(single.select(torch.zeros(5, dtype=torch.long)).denoise(x, t), GaussianPrior(means[0], cov).denoise(x, t))
    same = gaussian()
    assert same.select(torch.tensor([0, 0])) is same


# -- modes and dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [gaussian, mixture, lambda: GaussianPrior.stationary(0.1, spectrum((3, 4)), (1, 3, 4))], ids=["g", "m", "s"]
)
def test_priors_made_and_used_under_inference_mode_can_be_differentiated_later(make):
    with torch.inference_mode():
        prior = make()
        prior.denoise(torch.zeros(2, *prior.image_shape, dtype=DOUBLE), LEVELS[0])
        posterior = Posterior(
            make(), GaussianLikelihood(Identity(prior.image_shape), torch.zeros(1, *prior.image_shape, dtype=DOUBLE), 0.5)
        )
        exact = posterior.exact()
    for p in (prior, exact):
        x = randn(2, *prior.image_shape, seed=1).requires_grad_()
        (gradient,) = torch.autograd.grad(p.denoise(x, LEVELS[0]).sum(), x)
        assert float(gradient.abs().max()) > 0


def test_denoiser_follows_the_precision_of_its_input_and_the_priors_stay_apart():
    for prior in (mixture(), GaussianPrior.stationary(0.1, spectrum((3, 4)), (1, 3, 4))):
        x = noisy(prior, LEVELS[0])
        single = prior.denoise(x.float(), LEVELS[0])
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), prior.denoise(x, LEVELS[0]), atol=1e-4)


def test_the_prior_keeps_its_own_copy_of_what_it_was_given():
    mean, cov = torch.zeros(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE)
    prior, mixed = GaussianPrior(mean, cov), GaussianMixturePrior([1.0], mean[None], cov[None])
    mean += 5
    cov *= 9
    assert float(prior.mean.abs().max()) == 0 and torch.equal(mixed.covs[0], torch.eye(2, dtype=DOUBLE))


def test_pixel_priors_speak_the_protocol():
    class Shrink(PixelPrior):
        def denoise(self, x, t):
            return x / 2

    prior, x = Shrink(), randn(2, 3)
    assert isinstance(prior, Prior) and isinstance(mixture(), Prior)
    assert prior.encode(x) is x and prior.decode(x) is x
    out = linearize(prior, x, LEVELS[0])
    assert torch.equal(out.x0, x / 2) and torch.equal(out.pull(x), x / 2) and out.fraction is None
    prior.image_shape_ok((7, 7))
    gaussian().image_shape_ok((2, 2, 3))
    with pytest.raises(ValueError, match=r"signals of shape \(2, 2, 3\), not \(3, 2, 2\)"):
        gaussian().image_shape_ok((3, 2, 2))


EYE = torch.eye(2, dtype=DOUBLE)
REFUSED = [
    (lambda: GaussianPrior(tensor([0.0, 0]), tensor([[1, 0.5], [0.2, 1]])), "must be symmetric; it differs from its transpose by 3.0e-01"),
    (lambda: GaussianPrior(tensor([0.0, 0]), tensor([[1.0, 2], [2, 1]])), "positive semi-definite; its lowest eigenvalue is -5.0e-01"),
    (lambda: GaussianPrior(tensor([0.0, 0, 0]), EYE), r"covs of shape \(1, 2, 2\); \(1, 3, 3\) is needed"),
    (lambda: GaussianPrior(torch.zeros(2, dtype=torch.long), EYE), "means must be floating point, got torch.int64"),
    (lambda: GaussianPrior(tensor([0.0, math.nan]), EYE), "must be finite; they hold NaN"),
    (lambda: GaussianPrior(tensor([0.0, 0.0]), EYE * math.inf), "must be finite; they hold NaN or infinity"),
    (lambda: GaussianMixturePrior([1.0], tensor([[0.0, 0]]), EYE.repeat(2, 1, 1)), r"means of shape \(1, 2\) do not match 2 components"),
    (lambda: GaussianMixturePrior([1.0, -1], torch.zeros(2, 2), EYE.repeat(2, 1, 1)), r"weights must be 2 non-negative numbers.*-1\.0"),
    (lambda: GaussianMixturePrior([0.0, 0], torch.zeros(2, 2), EYE.repeat(2, 1, 1)), "not all zero"),
    (lambda: GaussianMixturePrior([1.0, math.inf], torch.zeros(2, 2), EYE.repeat(2, 1, 1)), "weights must be 2 non-negative numbers"),
    (lambda: GaussianMixturePrior([1.0, 1, 1], torch.zeros(2, 2), EYE.repeat(2, 1, 1)), "weights must be 2 non-negative"),
    (lambda: GaussianPrior.stationary(0.0, torch.ones(4, 4), (4, 4)), r"image_shape=\(4, 4\); \(C, H, W\) is needed"),
    (lambda: GaussianPrior.stationary(0.0, torch.ones(4, 5), (1, 4, 4)), r"power of shape \(4, 5\); \(4, 4\) or \(1, 4, 4\) is needed"),
    (lambda: GaussianPrior.stationary(0.0, -torch.ones(4, 4), (1, 4, 4)), "power must be real, finite and non-negative"),
    (lambda: GaussianPrior.stationary(0.0, torch.full((4, 4), math.inf), (1, 4, 4)), "power must be real, finite and non-negative"),
    (lambda: GaussianPrior.stationary(0.0, torch.rand(4, 4), (1, 4, 4)), "power must be symmetric under f -> -f"),
    (lambda: GaussianPrior.stationary(torch.zeros(3, 1, 1), torch.ones(4, 4), (2, 4, 4)), r"mean of shape \(3, 1, 1\)"),
    (lambda: GaussianPrior.stationary(math.nan, torch.ones(4, 4), (2, 4, 4)), "finite numbers that broadcast"),
    (lambda: GaussianPrior.stationary(0.0, torch.ones(80, 80), (1, 80, 80)).dense(), "6400 x 6400 is too large; at most 4096"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[m[:30] for _, m in REFUSED])
def test_priors_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- exact posteriors -----------------------------------------------------------------------------------------------------


def information_form(m, C, A, y, sigma):
    """Posterior mean and covariance by inverting the precision, for one y (m,) and a regular C."""
    precision = torch.linalg.inv(C) + A.mT @ A / sigma**2
    return torch.linalg.solve(precision, torch.linalg.solve(C, m) + A.mT @ y / sigma**2), torch.linalg.inv(precision)


def dense(operator):
    n = math.prod(operator.image_shape)
    return operator.A(torch.eye(n, dtype=DOUBLE).reshape(n, *operator.image_shape)).reshape(n, -1).mT


OPERATORS = {
    "matrix": lambda shape: Matrix(randn(3, math.prod(shape), seed=4), shape),
    "tall": lambda shape: Matrix(randn(20, math.prod(shape), seed=4), shape),
    "mask": lambda shape: Inpainting(shape, kind="random", fraction=0.5, seed=1),
    "blur": lambda shape: GaussianBlur(shape, std=0.7),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_exact_posterior_of_a_gaussian_is_bayes_formula(name):
    shape = (2, 3, 2)
    prior, operator = gaussian(shape), OPERATORS[name](shape)
    A, sigma = dense(operator), 0.2
    y = operator.A(prior.draw(3, seed=1)) + sigma * operator.restrict(randn(3, *operator.measurement_shape, seed=2))
    exact = Posterior(prior, GaussianLikelihood(operator, y, sigma)).exact()
    assert isinstance(exact, GaussianPrior) and exact.mean.shape == (3, *shape)
    # Hidden pixels are rows of zeros: measured as 0 of nothing, they add no precision.
    for b in range(3):
        mean, cov = information_form(prior.mean.flatten(), prior.cov, A, y[b].flatten(), sigma)
        assert torch.allclose(exact.mean[b].flatten(), mean, atol=1e-10)
        assert torch.allclose(exact.cov, cov, atol=1e-10)


def test_exact_posterior_with_a_singular_prior_stays_on_its_support():
    prior = gaussian((2, 3), rank=2)
    operator = Matrix(randn(3, 6, seed=4), (2, 3))
    y = operator.A(prior.draw(1, seed=1))
    exact = Posterior(prior, GaussianLikelihood(operator, y, 0.1)).exact()
    basis = torch.linalg.eigh(prior.cov)[1][:, :4]
    assert float((basis.mT @ exact.cov @ basis).abs().max()) < 1e-12
    assert float((basis.mT @ (exact.mean - prior.mean).flatten()).abs().max()) < 1e-12
    # Bayes in the two coordinates of the support.
    root = torch.linalg.eigh(prior.cov)[1][:, 4:]
    mean, cov = information_form(
        root.mT @ prior.mean.flatten(),
        root.mT @ prior.cov @ root,
        dense(operator) @ root,
        y[0] - dense(operator) @ (basis @ basis.mT @ prior.mean.flatten()),
        0.1,
    )
    assert torch.allclose(root @ cov @ root.mT, exact.cov, atol=1e-10)
    assert torch.allclose(root.mT @ exact.mean.flatten(), mean, atol=1e-10)


def test_exact_posterior_of_a_stationary_prior():
    prior = GaussianPrior.stationary(0.3, spectrum((3, 4)), (1, 3, 4))
    likelihood = GaussianLikelihood(GaussianBlur((1, 3, 4), std=0.6), randn(2, 1, 3, 4), 0.3)
    exact, expected = Posterior(prior, likelihood).exact(), Posterior(prior.dense(), likelihood).exact()
    assert torch.allclose(exact.mean, expected.mean, atol=1e-12) and torch.allclose(exact.cov, expected.cov, atol=1e-12)


def test_exact_posterior_of_a_mixture_by_quadrature():
    weights, means, stds = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.1, 1.5]), np.array([0.3, 0.6, 0.2])
    prior = GaussianMixturePrior(tensor(weights), tensor(means)[:, None], tensor(stds**2)[:, None, None])
    gain, sigma, y = 1.7, 0.6, np.array([-1.4, 0.6, 2.9])
    exact = Posterior(prior, GaussianLikelihood(Matrix(tensor([[gain]]), (1,)), tensor(y)[:, None], sigma)).exact()
    assert isinstance(exact, GaussianMixturePrior) and exact.weights.shape == (3, 3)
    grid = np.linspace(-8, 8, 40001)
    components = weights * scipy.stats.norm(means, stds).pdf(grid[:, None])
    for b in range(3):
        joint = components * scipy.stats.norm(gain * grid, sigma).pdf(y[b])[:, None]
        p = joint.sum(1) / joint.sum()
        mean = (grid * p).sum()
        assert float(exact.mean[b, 0]) == pytest.approx(mean, abs=1e-10)
        assert float(exact.cov[b, 0, 0]) == pytest.approx(((grid - mean) ** 2 * p).sum(), abs=1e-10)
        np.testing.assert_allclose(exact.weights[b].numpy(), joint.sum(0) / joint.sum(), atol=1e-10)
        # The density itself, and not only its moments.
        row = exact.select(torch.tensor([b]))
        at = tensor(grid[::4000])[:, None]
        np.testing.assert_allclose(row.log_prob(at).exp().numpy(), p[::4000] / (grid[1] - grid[0]), atol=1e-9)


def test_weights_of_the_exact_posterior_of_a_mixture_in_many_dimensions():
    prior, operator, sigma = mixture(), Matrix(randn(4, 6, seed=4), (2, 3)), 0.5
    y = operator.A(prior.draw(3, seed=1)) + sigma * randn(3, 4, seed=2)
    exact = Posterior(prior, GaussianLikelihood(operator, y, sigma)).exact()
    w, m, c = flat(prior)
    A = dense(operator)
    for b in range(3):
        evidence = [
            scipy.stats.multivariate_normal((A @ m[k]).numpy(), (A @ c[k] @ A.mT).numpy() + sigma**2 * np.eye(4)).pdf(y[b].numpy())
            for k in range(3)
        ]
        expected = tensor(evidence) * w
        assert torch.allclose(exact.weights[b], expected / expected.sum(), atol=1e-10)


def test_the_posterior_is_a_prior_whose_denoiser_conditions_on_y_too():
    """E[x_0 | x_t, y] from the joint Gaussian of x_0, x_t and y."""
    prior, operator, sigma, t = gaussian((2, 3)), Matrix(randn(3, 6, seed=4), (2, 3)), 0.3, Level(0.6, 0.8)
    y, x = randn(2, 3, seed=5), randn(2, 2, 3, seed=6)
    exact = Posterior(prior, GaussianLikelihood(operator, y, sigma)).exact()
    stacked = torch.cat([dense(operator) / sigma, t.alpha / t.sigma * torch.eye(6, dtype=DOUBLE)])
    for b in range(2):
        data = torch.cat([y[b] / sigma, x[b].flatten() / t.sigma])
        mean, _ = information_form(prior.mean.flatten(), prior.cov, stacked, data, 1.0)
        assert torch.allclose(exact.denoise(x, t)[b].flatten(), mean, atol=1e-10)
    assert torch.allclose(Posterior(prior, GaussianLikelihood(operator, y, sigma)).select(torch.tensor([1])).exact().mean[0], exact.mean[1])


def test_exact_is_refused_where_there_is_no_closed_form():
    likelihood = GaussianLikelihood(Identity((2,)), randn(1, 2), 0.1)
    ours = GaussianPrior(tensor([0.0, 0]), EYE)

    class Other(PixelPrior):
        pass

    for prior, lik, message in [
        (Other(), likelihood, "needs a Gaussian or a Gaussian mixture prior, not Other"),
        (ours, None, "needs a Gaussian likelihood with a linear operator"),
        (ours, PoissonLikelihood(Identity((2,)), randn(1, 2).abs(), 0.1), "needs a Gaussian likelihood with a linear operator"),
        (GaussianPrior(randn(3, 2), EYE, image_shape=(2,)), likelihood, "needs one prior for all rows"),
    ]:
        with pytest.raises(TypeError, match=message):
            Posterior(prior, lik).exact()
    with pytest.raises(ValueError, match="divides by sigma\\^2, but sigma = 0"):
        Posterior(ours, GaussianLikelihood(Identity((2,)), randn(1, 2), 0.0)).exact()


def test_exact_is_refused_for_an_operator_that_differs_from_row_to_row():
    import deepinv

    # Four rows and four pixels: probing one operator with four unit images would pass for a result.
    masks = torch.ones(4, 1, 2, 2, dtype=DOUBLE)
    masks[0, 0, 0, 0] = masks[1, 0, 1, 1] = 0
    physics = deepinv.physics.Inpainting(mask=masks, img_size=(1, 2, 2))
    physics.update(mask=masks)
    prior = GaussianPrior(torch.zeros(1, 2, 2, dtype=DOUBLE), torch.eye(4, dtype=DOUBLE))
    posterior = Posterior(prior, GaussianLikelihood(physics, randn(4, 1, 2, 2), 0.5))
    with pytest.raises(TypeError, match="needs one operator for all rows"):
        posterior.exact()
    for b in range(4):
        row = posterior.select(torch.tensor([b])).exact()
        expected = 1 / (1 + masks[b].flatten() / 0.25)
        assert torch.allclose(row.cov.diagonal(), expected)


def test_exact_posterior_of_a_complex_measurement():
    """A complex value is two numbers, each with noise of its own."""
    from operators import LinearOperator

    B = torch.complex(randn(2, 3, seed=1), randn(2, 3, seed=2))

    class Complex(LinearOperator):
        def __init__(self):
            super().__init__((3,), (2,))

        def _forward(self, x):
            return x.to(B) @ B.mT

        def _adjoint(self, y):
            return (y @ B.conj()).real

    y = torch.complex(randn(1, 2, seed=3), randn(1, 2, seed=4))
    prior = gaussian((3,))
    exact = Posterior(prior, GaussianLikelihood(Complex(), y, 0.4)).exact()
    mean, cov = information_form(prior.mean, prior.cov, torch.cat([B.real, B.imag]), torch.cat([y.real, y.imag], 1)[0], 0.4)
    assert torch.allclose(exact.mean[0], mean, atol=1e-12) and torch.allclose(exact.cov, cov, atol=1e-12)


@pytest.fixture
def other_eigenvectors(monkeypatch):
    """torch.linalg.eigh as another processor may answer: other signs, and another basis where eigenvalues are equal."""
    plain = torch.linalg.eigh

    def eigh(matrix):
        values, vectors = plain(matrix)
        flat, bases = values.reshape(-1, values.shape[-1]), vectors.clone().reshape(-1, *vectors.shape[-2:])
        for row, basis in zip(flat, bases, strict=True):
            close = (row.diff() > 1e-9 * row[-1].abs()).long()
            ends = [0, *(1 + close.nonzero().flatten()).tolist(), len(row)]
            for a, b in zip(ends, ends[1:], strict=False):
                basis[:, a:b] = -basis[:, a:b] @ torch.linalg.qr(randn(b - a, b - a, seed=a))[0].to(basis)
        return torch.return_types.linalg_eigh((values, bases.reshape(vectors.shape)))

    return lambda: monkeypatch.setattr(torch.linalg, "eigh", eigh)


def test_draws_do_not_depend_on_the_choice_of_eigenvectors(other_eigenvectors):
    """Signs, the basis of equal eigenvalues, and that of a null space, whose eigenvalues are rounding and not 0."""
    full, low = covariance(6, 1), randn(6, 2, seed=2)
    spherical = 0.3 * torch.eye(6, dtype=DOUBLE)
    covs = torch.stack([full, low @ low.mT, spherical])

    def draws():
        each = [GaussianPrior(randn(6, seed=4), cov).draw(20, seed=5) for cov in covs]
        mixture = GaussianMixturePrior([0.2, 0.5, 0.3], randn(3, 6, seed=6), covs)
        single = GaussianPrior(torch.zeros(6), full.float()).draw(20, seed=5).double()
        operator = Matrix(randn(3, 6, seed=7), (6,))
        exact = Posterior(
            GaussianPrior(torch.zeros(6, dtype=DOUBLE), full), GaussianLikelihood(operator, randn(2, 3, seed=8), 1e-9)
        ).exact()
        return [*each, mixture.draw(20, seed=5), exact.draw(20, seed=5)], single

    before, single = draws()
    other_eigenvectors()
    after, of_single = draws()
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert torch.allclose(single, of_single, rtol=0, atol=1e-5)


def test_two_modes_do_not_depend_on_the_choice_of_eigenvectors(other_eigenvectors):
    prior, operator = smooth_prior((1, 4, 4)).dense(), Inpainting((1, 4, 4), kind="box", size=2, seed=0)
    before = two_modes(prior, operator, 0.05).means
    other_eigenvectors()
    assert torch.allclose(two_modes(prior, operator, 0.05).means, before, rtol=0, atol=1e-10)


def test_the_root_of_a_covariance_is_a_root_and_has_no_noise_in_the_null_space():
    low = randn(6, 2, seed=2)
    root = symmetric_root(*torch.linalg.eigh(low @ low.mT))
    assert torch.allclose(root @ root, low @ low.mT, rtol=0, atol=1e-12) and torch.equal(torch.linalg.matrix_rank(root), torch.tensor(2))
    out = torch.linalg.svd(low).U[:, 2:]
    assert float((out.mT @ root).abs().max()) < 1e-14
