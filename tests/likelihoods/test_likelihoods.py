"""Likelihoods against autograd, dense algebra and published densities, operator by operator."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from problems import DOUBLE, randn, tensor

from invsolve.likelihoods import PulledBack
from invsolve.likelihoods.base import Likelihood
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.streams import GivenNoise, Noise
from operators import GaussianBlur, Identity, Inpainting, LinearOperator, Matrix, Operator, PoissonNoise, SuperResolution, as_operator

SHAPE = (2, 8, 8)
N = math.prod(SHAPE)


def wrapped(name):
    import deepinv

    physics = deepinv.physics
    kernel = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    return {
        "deepinv inpainting": lambda: physics.Inpainting(mask=(randn(*SHAPE, seed=8) > 0).double(), img_size=SHAPE),
        "deepinv blur": lambda: physics.BlurFFT(img_size=SHAPE, filter=kernel / kernel.sum()),
        "deepinv valid blur": lambda: physics.Blur(filter=kernel / kernel.sum(), padding="valid"),
        "deepinv downsampling": lambda: physics.Downsampling(img_size=SHAPE, filter="bilinear", factor=2, padding="circular"),
    }[name]()


LINEAR = {
    "identity": lambda: Identity(SHAPE),
    "wide matrix": lambda: Matrix(randn(9, N, seed=1) / 8, SHAPE),
    "tall matrix": lambda: Matrix(randn(150, N, seed=1) / 8, SHAPE),
    "circular blur": lambda: GaussianBlur(SHAPE, std=0.8),
    "reflecting blur": lambda: GaussianBlur(SHAPE, std=1.3, boundary="reflect"),
    "box": lambda: Inpainting(SHAPE, kind="box", size=5),
    "random pixels": lambda: Inpainting(SHAPE, kind="random", fraction=0.7, seed=2),
    "mask file": lambda: Inpainting(SHAPE, kind="file", mask=torch.eye(8)),
    "bicubic": lambda: SuperResolution(SHAPE, factor=2, kind="bicubic"),
    "average": lambda: SuperResolution(SHAPE, factor=4, kind="average"),
    **{
        name: (lambda name=name: wrapped(name))
        for name in ("deepinv inpainting", "deepinv blur", "deepinv valid blur", "deepinv downsampling")
    },
}
each_linear = pytest.mark.parametrize("name", LINEAR)


class Bend(Operator):
    """A smooth non-linear measurement of fewer values than the image has."""

    def __init__(self):
        super().__init__(SHAPE, (2, 8, 4))

    def _forward(self, x):
        return torch.sin(x[..., ::2]) * x[..., 1::2].exp() / 2


class Photons(Operator):
    """A non-linear measurement that is positive for images in [0, 1], and negative for some beyond."""

    def __init__(self):
        super().__init__(SHAPE, SHAPE)

    def _forward(self, x):
        return x.square() + x


def dense(likelihood):
    """A as a matrix over the measured entries, and y on them."""
    operator = likelihood.operator
    A = operator.A(torch.eye(N, dtype=DOUBLE).reshape(N, *SHAPE)).reshape(N, -1).mT
    known = (operator.restrict(torch.ones_like(likelihood.y[:1])) != 0).flatten()
    return A[known], likelihood.y.flatten(1)[:, known]


def gaussian(name, rows=3, sigma=0.3):
    operator = LINEAR[name]()
    clean = as_operator(operator).A(torch.zeros(1, *SHAPE, dtype=DOUBLE))
    return GaussianLikelihood(operator, randn(rows, *clean.shape[1:], seed=4), sigma)


def gradient(function, x):
    x = x.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(x).sum(), x)
    return grad


def close(a, b, tol=1e-11):
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


# -- Gaussian: values and gradients ---------------------------------------------------------------------------------------


@each_linear
def test_gaussian_values_and_gradients_of_linear_operators(name):
    likelihood, x = gaussian(name), randn(3, *SHAPE, seed=5)
    A, y = dense(likelihood)
    r = y - x.flatten(1) @ A.mT
    assert isinstance(likelihood, Likelihood) and likelihood.image_shape == SHAPE
    assert close(likelihood.log_prob(x), -r.square().sum(1) / (2 * 0.3**2))
    assert close(likelihood.score(x).flatten(1), r @ A / 0.3**2)
    assert close(likelihood.misfit_grad(x).flatten(1), -r @ A / r.norm(dim=1, keepdim=True))
    assert likelihood.measured.tolist() == [len(A)] * 3
    assert close(likelihood.discrepancy(x), r.norm(dim=1) / (0.3 * math.sqrt(len(A))))
    assert close(likelihood.score(x), gradient(likelihood.log_prob, x))
    assert close(likelihood.misfit_grad(x), gradient(lambda x: likelihood.residual(x).flatten(1).norm(dim=1), x))


def test_gaussian_gradients_of_a_nonlinear_operator():
    likelihood, x = GaussianLikelihood(Bend(), randn(3, 2, 8, 4, seed=4), 0.3), randn(3, *SHAPE, seed=5)
    expected = torch.sin(x[..., ::2]) * x[..., 1::2].exp() / 2
    assert close(likelihood.log_prob(x), -(likelihood.y - expected).square().flatten(1).sum(1) / 0.18)
    for grad, value in (
        (likelihood.score, likelihood.log_prob),
        (likelihood.misfit_grad, lambda x: likelihood.residual(x).flatten(1).norm(dim=1)),
    ):
        expected = gradient(value, x)
        assert close(grad(x), expected)
        with torch.no_grad():
            assert close(grad(x), expected)


def test_log_prob_is_the_normal_density_up_to_a_constant():
    likelihood, x = gaussian("identity", sigma=0.7), randn(3, *SHAPE, seed=5)
    law = torch.distributions.Normal(x, torch.tensor(0.7, dtype=DOUBLE))
    offset = law.log_prob(likelihood.y).flatten(1).sum(1) - likelihood.log_prob(x)
    assert close(offset, torch.full((3,), -N * math.log(0.7 * math.sqrt(2 * math.pi)), dtype=DOUBLE))


def test_misfit_gradient_is_zero_where_the_residual_is():
    operator = LINEAR["circular blur"]()
    x = randn(2, *SHAPE, seed=1)
    likelihood = GaussianLikelihood(operator, operator.A(x), 0.1)
    assert torch.equal(likelihood.misfit_grad(x), torch.zeros_like(x))
    # One row at the minimum does not disturb another.
    moved = torch.stack([x[0], x[1] + 1])
    grad = likelihood.misfit_grad(moved)
    assert float(grad[0].abs().max()) == 0 and float(grad[1].norm()) == pytest.approx(1, abs=1e-12)


LIKELIHOODS = {
    "gaussian": lambda rows: gaussian("reflecting blur", rows),
    "nonlinear": lambda rows: GaussianLikelihood(Bend(), randn(rows, 2, 8, 4, seed=4), 0.3),
    "poisson": lambda rows: PoissonLikelihood(Identity(SHAPE), randn(rows, *SHAPE, seed=4).abs(), 0.1),
    "pulled back": lambda rows: PulledBack(gaussian("box", rows), torch.tanh),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_rows_do_not_see_each_other_and_select_picks_them(name):
    likelihood, x = LIKELIHOODS[name](4), randn(4, *SHAPE, seed=5)
    index = torch.tensor([2, 0, 2])
    chosen = likelihood.select(index)
    assert torch.equal(chosen.y, likelihood.y[index]) and len(likelihood.y) == 4
    for what in ("log_prob", "score", "misfit_grad", "discrepancy"):
        together = getattr(likelihood, what)(x)
        for b in range(4):
            assert close(getattr(likelihood.select(torch.tensor([b])), what)(x[b : b + 1])[0], together[b], 1e-12)
        assert close(getattr(chosen, what)(x[index]), together[index], 1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_measurement_serves_many_signals(name):
    one, x = LIKELIHOODS[name](1), randn(4, *SHAPE, seed=5)
    spread = one.select(torch.zeros(4, dtype=torch.long))
    for what in ("log_prob", "score", "misfit_grad", "discrepancy"):
        found = getattr(spread, what)(x)
        assert found.shape[0] == 4
        assert close(found[3], getattr(one, what)(x[3:])[0], 1e-12)


# -- Gaussian: solves -----------------------------------------------------------------------------------------------------


@each_linear
@pytest.mark.parametrize("rho", [0.02, 0.5, 30.0])
def test_prox_is_the_dense_solve(name, rho):
    likelihood, v = gaussian(name), randn(3, *SHAPE, seed=6)
    A, y = dense(likelihood)
    precision = A.mT @ A / 0.3**2 + torch.eye(N, dtype=DOUBLE) / rho**2
    expected = torch.linalg.solve(precision, (y @ A / 0.3**2 + v.flatten(1) / rho**2).mT).mT
    assert close(likelihood.prox(v, rho).flatten(1), expected, 1e-8)
    # The gradient of the objective vanishes, by the likelihood's own score.
    slope = likelihood.score(likelihood.prox(v, rho)) - (likelihood.prox(v, rho) - v) / rho**2
    assert float(slope.norm()) <= 1e-8 * float(likelihood.score(v).norm())


@each_linear
def test_prox_of_one_measurement_for_many_centres(name):
    likelihood, v = gaussian(name, rows=1), randn(3, *SHAPE, seed=6)
    alone = torch.cat([likelihood.prox(v[b : b + 1], 0.5) for b in range(3)])
    assert close(likelihood.prox(v, 0.5), alone, 1e-9)


@each_linear
def test_sample_given_has_the_exact_mean_and_covariance(name):
    """Every column of the linear map from its noise to the draw, by unit vectors; so the covariance is exact."""
    likelihood, rho = gaussian(name, rows=1), 0.4
    A, _ = dense(likelihood)
    v, size = randn(1, *SHAPE, seed=6), likelihood.y[0].numel()

    def draw(z, n):
        return likelihood.sample_given(
            v.expand(len(z), *SHAPE), rho, GivenNoise(z.reshape(-1, *SHAPE), n.reshape(-1, *likelihood.y.shape[1:]))
        )

    zeros = torch.zeros(1, N + size, dtype=DOUBLE)
    mean = draw(zeros[:, :N], zeros[:, N:])
    assert close(mean, likelihood.prox(v, rho), 1e-9)
    unit = torch.eye(N + size, dtype=DOUBLE)
    G = (draw(unit[:, :N], unit[:, N:]) - mean).flatten(1)
    expected = torch.linalg.inv(A.mT @ A / 0.3**2 + torch.eye(N, dtype=DOUBLE) / rho**2)
    assert close(G.mT @ G, expected, 1e-8)
    # Affine in the noise, so that nothing but mean and covariance is left to know.
    assert close(draw(unit[:1, :N] * 3, unit[:1, N:]) - mean, 3 * G[:1].reshape(1, *SHAPE), 1e-8)


def test_sample_given_draws_differ_from_row_to_row():
    likelihood = gaussian("box", rows=1)
    noise = Noise(0, [("a", 0), ("a", 1)], dtype=DOUBLE)
    draws = likelihood.sample_given(torch.zeros(2, *SHAPE, dtype=DOUBLE), 0.4, noise)
    assert float((draws[0] - draws[1]).abs().min()) > 0


@each_linear
@pytest.mark.parametrize("r2", [1e-12, 0.04, 50.0])
def test_guide_is_the_dense_formula(name, r2):
    likelihood, x0 = gaussian(name), randn(3, *SHAPE, seed=6)
    A, y = dense(likelihood)
    system = r2 * A @ A.mT + 0.3**2 * torch.eye(len(A), dtype=DOUBLE)
    expected = torch.linalg.solve(system, (y - x0.flatten(1) @ A.mT).mT).mT @ A
    assert close(likelihood.guide(x0, r2).flatten(1), expected, 1e-8)


def test_guide_does_not_cancel_in_single_precision():
    """(prox(x0) - x0)/r2 would lose 6e-8 |x0| / r2, here 6 %; the score is the limit."""
    likelihood, x0 = gaussian("circular blur"), randn(3, *SHAPE, seed=6)
    found = likelihood.to(dtype=torch.float32).guide(x0.float(), 1e-6)
    assert close(found.double(), likelihood.score(x0), 1e-4)


def test_prox_and_guide_agree():
    likelihood, x0 = gaussian("bicubic"), randn(3, *SHAPE, seed=6)
    assert close(likelihood.guide(x0, 0.3), (likelihood.prox(x0, math.sqrt(0.3)) - x0) / 0.3, 1e-10)


def test_solves_need_a_linear_operator():
    likelihood, x = GaussianLikelihood(Bend(), randn(1, 2, 8, 4), 0.3), randn(1, *SHAPE)
    for call in (lambda: likelihood.prox(x, 1.0), lambda: likelihood.guide(x, 1.0), lambda: likelihood.sample_given(x, 1.0, GivenNoise())):
        with pytest.raises(TypeError, match="needs a linear operator; Bend is not linear"):
            call()


# -- the truth, and hidden pixels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "random pixels", "reflecting blur", "bicubic", "deepinv inpainting"])
def test_discrepancy_is_one_at_the_truth(name):
    operator, x, rows = LINEAR[name](), randn(400, *SHAPE, seed=1), 400
    clean = operator.A(x)
    y = clean + 0.2 * randn(*clean.shape, seed=2)
    likelihood = GaussianLikelihood(operator, y, 0.2)
    m = int(likelihood.measured[0])
    # The square is chi-squared with m degrees of freedom over m.
    assert float(likelihood.discrepancy(x).square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / m / rows))
    assert scipy.stats.kstest(likelihood.discrepancy(x).square().numpy() * m, scipy.stats.chi2(m).cdf).pvalue > 1e-4
    assert float(likelihood.discrepancy(x + 1).mean()) > 2 or name == "bicubic"


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("name", ["box", "random pixels", "mask file", "deepinv inpainting"])
def test_hidden_pixels_never_count(name, kind):
    operator = LINEAR[name]()
    y = randn(2, *SHAPE, seed=3).abs()
    hidden = GaussianLikelihood(operator, torch.ones_like(y), 1.0).y == 0
    assert 0 < int(hidden.sum()) < y.numel()
    build = {"gaussian": lambda y: GaussianLikelihood(operator, y, 0.2), "poisson": lambda y: PoissonLikelihood(operator, y, 0.1)}[kind]
    clean, spoilt = build(y), build(torch.where(hidden, 1e6, y))
    x = randn(2, *SHAPE, seed=4)
    elsewhere = torch.where(hidden, x + 7, x)
    for what in ("log_prob", "discrepancy", "score", "misfit_grad"):
        expected = getattr(clean, what)(x)
        assert torch.equal(getattr(spoilt, what)(x), expected)
        # Nor does what the image is there.
        assert close(getattr(clean, what)(elsewhere), expected, 1e-14)
        if expected.ndim > 1:
            assert float(expected[hidden].abs().max()) == 0 and float(expected[~hidden].abs().min()) > 0
    if kind == "gaussian":
        found = spoilt.prox(x, 0.5)
        assert torch.equal(found, clean.prox(x, 0.5))
        # To the last bit with our operators; deepinv's own prox divides by 1.
        assert close(found[hidden], x[hidden], 1e-15 if name.startswith("deepinv") else 0.0)
        assert float(spoilt.guide(x, 0.5)[hidden].abs().max()) == 0
        m = int((~hidden[0]).sum())
        assert close(clean.discrepancy(x), ((x - y) * ~hidden).flatten(1).norm(dim=1) / (0.2 * math.sqrt(m)))


def test_masks_that_differ_from_row_to_row():
    """deepinv keeps one mask per sample; their numbers of known pixels differ."""
    import deepinv

    masks = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > tensor([0.2, 0.5, 0.8])[:, None, None, None]).double()
    physics = deepinv.physics.Inpainting(mask=masks, img_size=(1, 8, 8))
    physics.update(mask=masks)
    y, x = randn(3, 1, 8, 8, seed=1), randn(3, 1, 8, 8, seed=2)
    likelihood = GaussianLikelihood(physics, y, 0.5)
    m = masks.flatten(1).sum(1)
    assert likelihood.measured.tolist() == m.tolist() and len(set(m.tolist())) == 3
    expected = ((y - x) * masks).flatten(1).norm(dim=1) / (0.5 * m.sqrt())
    assert close(likelihood.discrepancy(x), expected)
    chosen = likelihood.select(torch.tensor([2, 0]))
    assert close(chosen.discrepancy(x[[2, 0]]), expected[[2, 0]]) and close(chosen.score(x[[2, 0]]), likelihood.score(x)[[2, 0]])
    assert close(likelihood.prox(x, 0.7), torch.where(masks == 1, (y / 0.25 + x / 0.49) / (1 / 0.25 + 1 / 0.49), x), 1e-9)


# -- Poisson --------------------------------------------------------------------------------------------------------------


def poisson(rows=3, gain=0.05, floor=0.1, operator=None):
    operator = operator or GaussianBlur(SHAPE, std=0.8)
    truth = torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) * 2 - 1
    return PoissonLikelihood(operator, operator.measure(truth, PoissonNoise(gain)), gain, floor), truth


def test_poisson_log_prob_is_scipys_up_to_the_factorial():
    likelihood, x = poisson()
    k = likelihood.y / 0.05
    rate = likelihood.operator.A((x + 1) / 2) / 0.05
    assert float(rate.min()) > 0.1
    expected = scipy.stats.poisson(rate.numpy()).logpmf(k.round().numpy()) + scipy.special.gammaln(k.round().numpy() + 1)
    np.testing.assert_allclose(likelihood.log_prob(x).numpy(), expected.reshape(3, -1).sum(1), rtol=1e-12)


def test_poisson_below_the_floor_is_the_taylor_polynomial():
    gain, floor = 0.5, 0.8
    for k in (0.0, 1.0, 6.0):
        likelihood = PoissonLikelihood(Identity((1,)), tensor([[k * gain]]), gain, floor)
        for rate in (0.79, 0.3, 0.0, -2.0):
            x = tensor([[2 * gain * rate - 1]])
            d = rate - floor
            value = (k * math.log(floor) if k else 0.0) - floor + (k / floor - 1) * d - k / floor**2 * d**2 / 2
            slope = (k / floor - 1) - k / floor**2 * d
            assert float(likelihood.log_prob(x)) == pytest.approx(value, abs=1e-12)
            assert float(likelihood.score(x)) == pytest.approx(slope / (2 * gain), abs=1e-12)


def test_poisson_is_twice_continuously_differentiable_at_the_floor_and_concave():
    gain, floor, k = 0.5, 0.8, 3.0
    likelihood = PoissonLikelihood(Identity((1,)), tensor([[k * gain]]), gain, floor)

    def at(rate):
        return tensor([[2 * gain * rate - 1]])

    h = 1e-7
    below, above = at(floor - h), at(floor + h)
    slope, bend = (k / floor - 1) / (2 * gain), -k / floor**2 / (2 * gain) ** 2
    step = 2 * gain * h
    # What is left after value, slope and bend is third order: a jump in any of them would be orders of magnitude larger.
    assert float(likelihood.log_prob(above) - likelihood.log_prob(below)) == pytest.approx(2 * step * slope, abs=1e-13)
    assert float(likelihood.score(above) - likelihood.score(below)) == pytest.approx(2 * step * bend, rel=1e-5)
    assert float(likelihood.score(at(floor))) == pytest.approx(slope, rel=1e-12)
    grid = torch.linspace(-3, 10, 500, dtype=DOUBLE)
    scores = torch.cat([likelihood.score(at(float(r))) for r in grid]).flatten()
    assert bool((scores.diff() < 0).all()), "the score must fall everywhere: the log-likelihood is strictly concave for k > 0"


@pytest.mark.parametrize(
    "operator", [GaussianBlur(SHAPE, std=0.8), Inpainting(SHAPE, kind="random", fraction=0.4), Photons()], ids=lambda o: type(o).__name__
)
def test_poisson_gradients_are_autograds_on_both_sides_of_the_floor(operator):
    likelihood, truth = poisson(operator=operator)
    x = truth - 0.5 + 2 * randn(3, *SHAPE, seed=9)
    rate = operator.A((x + 1) / 2) / 0.05
    assert 50 < int((rate < 0.1).sum()) < rate.numel() - 50
    assert close(likelihood.score(x), gradient(likelihood.log_prob, x), 1e-10)

    def misfit(x):
        r = (likelihood.y - operator.A((x + 1) / 2)) / (likelihood.y.clamp_min(0.05) * 0.05).sqrt()
        return r.flatten(1).norm(dim=1)

    assert close(likelihood.misfit_grad(x), gradient(misfit, x), 1e-10)


def test_poisson_discrepancy_is_one_at_the_truth():
    operator, rows, gain = Inpainting(SHAPE, kind="random", fraction=0.4), 400, 0.01
    x = torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) * 1.6 - 0.8
    likelihood = PoissonLikelihood(operator, operator.measure(x, PoissonNoise(gain)), gain)
    values = likelihood.discrepancy(x).square()
    # Mean 1 exactly; each of m terms has variance 2 + 1/rate, with at least 10 photons.
    m = int(likelihood.measured[0])
    assert float(values.mean()) == pytest.approx(1, abs=5 * math.sqrt(2.1 / m / rows))


def test_the_score_at_the_truth_has_mean_zero_and_the_fisher_information():
    """E score = 0 and Var score = A^T diag(1 / rate) A / (2 gain)^2: fails for any wrong constant in the likelihood."""
    gain, rows = 0.02, 6000
    x = tensor([[0.5, -0.2, 0.9, -0.6]]).expand(rows, 4)
    A = Matrix(randn(5, 4, seed=2).abs(), (4,))
    likelihood = PoissonLikelihood(A, A.measure(x, PoissonNoise(gain), ids=list(range(rows))), gain)
    scores = likelihood.score(x)
    M, rate = A.matrix, A.A((x[:1] + 1) / 2)[0] / gain
    fisher = M.mT @ (M / rate[:, None]) / (2 * gain) ** 2
    assert float((scores.mean(0) / (fisher.diagonal() / rows).sqrt()).abs().max()) < 5
    root = torch.linalg.cholesky(fisher)
    white = torch.linalg.solve_triangular(root, scores.mT, upper=False)
    assert float((white @ white.mT / rows - torch.eye(4, dtype=DOUBLE)).abs().max()) < 6 * math.sqrt(2 / rows)


# -- latent likelihoods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wide matrix", "random pixels", "bicubic"])
def test_pulling_back_through_an_affine_decoder_is_composing_matrices(name):
    W, b = randn(N, 5, seed=1), randn(*SHAPE, seed=2)
    likelihood = gaussian(name)
    A, y = dense(likelihood)
    pulled = PulledBack(likelihood, lambda z: (z @ W.mT).reshape(-1, *SHAPE) + b)
    composed = GaussianLikelihood(Matrix(A @ W, (5,)), y - A @ b.flatten(), 0.3)
    z = randn(3, 5, seed=3)
    assert isinstance(pulled, Likelihood) and torch.equal(pulled.y, likelihood.y)
    for what in ("log_prob", "score", "misfit_grad", "discrepancy"):
        assert close(getattr(pulled, what)(z), getattr(composed, what)(z), 1e-10)


@pytest.mark.parametrize("name", ["gaussian", "nonlinear", "poisson"])
def test_pulling_back_through_a_nonlinear_decoder(name):
    inner, z = LIKELIHOODS[name](3), randn(3, *SHAPE, seed=3)

    def decode(z):
        return torch.tanh(z) + 0.1 * z.roll(1, -1)

    pulled = PulledBack(inner, decode)
    assert close(pulled.score(z), gradient(lambda z: inner.log_prob(decode(z)), z), 1e-10)
    with torch.no_grad():
        assert close(pulled.misfit_grad(z), torch.func.vjp(decode, z)[1](inner.misfit_grad(decode(z)))[0], 1e-10)
    single = pulled.to(dtype=torch.float32)
    assert single.y.dtype == torch.float32 and single.score(z.float()).dtype == torch.float32


# -- noise level, precision, modes ----------------------------------------------------------------------------------------


def test_without_noise_only_what_divides_by_sigma_is_refused():
    likelihood, x = gaussian("circular blur", sigma=0.0), randn(3, *SHAPE, seed=5)
    assert close(likelihood.discrepancy(x), likelihood.residual(x).flatten(1).norm(dim=1) / math.sqrt(N))
    assert close(likelihood.misfit_grad(x), gaussian("circular blur", sigma=0.3).misfit_grad(x), 1e-15)
    noise = GivenNoise(x, x)
    for what, call in {
        "log_prob": lambda: likelihood.log_prob(x),
        "score": lambda: likelihood.score(x),
        "prox": lambda: likelihood.prox(x, 1.0),
        "sample_given": lambda: likelihood.sample_given(x, 1.0, noise),
        "guide": lambda: likelihood.guide(x, 1.0),
    }.items():
        with pytest.raises(ValueError, match=rf"{what} divides by sigma\^2, but sigma = 0"):
            call()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_another_precision_leaves_the_original_alone(name):
    likelihood, x = LIKELIHOODS[name](3), randn(3, *SHAPE, seed=5)
    single = likelihood.to(dtype=torch.float32)
    for what in ("log_prob", "score", "misfit_grad", "discrepancy"):
        found, expected = getattr(single, what)(x.float()), getattr(likelihood, what)(x)
        assert found.dtype == torch.float32 and expected.dtype == DOUBLE
        assert close(found.double(), expected, 1e-5)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_made_under_inference_mode_can_be_differentiated_through(name):
    with torch.inference_mode():
        likelihood = LIKELIHOODS[name](2)
    x = randn(2, *SHAPE, seed=5)
    expected = gradient(likelihood.log_prob, x)
    assert close(likelihood.score(x), expected, 1e-10)
    with torch.inference_mode():
        assert close(likelihood.score(x.clone()), expected, 1e-10)


def test_the_measurement_is_copied():
    y = randn(1, *SHAPE, seed=1)
    likelihood = GaussianLikelihood(Identity(SHAPE), y, 0.1)
    y += 1
    assert float((likelihood.y - y).abs().min()) > 0.5


def test_a_deepinv_object_is_taken_as_it_is_and_left_as_it_was():
    physics = wrapped("deepinv blur")
    before = {k: v.clone() for k, v in physics.state_dict().items()}
    likelihood = GaussianLikelihood(physics, randn(2, *SHAPE, seed=1), 0.3)
    likelihood.to(dtype=torch.float32).prox(torch.zeros(2, *SHAPE), 0.4)
    assert all(torch.equal(before[k], v) for k, v in physics.state_dict().items())
    x = randn(2, *SHAPE, seed=2)
    assert close(likelihood.residual(x), likelihood.y - physics.A(x), 1e-12)
    nonlinear = GaussianLikelihood(_phase(), torch.ones(1, 40, dtype=DOUBLE), 0.3)
    x = randn(1, 1, 4, 4, seed=3)
    assert close(nonlinear.score(x), gradient(nonlinear.log_prob, x), 1e-10)


def _phase():
    import deepinv

    B = randn(40, 16, seed=1)
    return as_operator(deepinv.physics.Physics(A=lambda x, **kwargs: (x.flatten(1) @ B.mT).square()), (1, 4, 4))


class Fourier(LinearOperator):
    """Some complex Fourier coefficients of a real signal."""

    def __init__(self):
        super().__init__((6,), (3,))

    def _forward(self, x):
        return torch.fft.fft(x, norm="ortho")[:, 1:4]

    def _adjoint(self, y):
        return torch.fft.ifft(torch.nn.functional.pad(y, (1, 2)), norm="ortho").real


def test_a_complex_measurement_is_twice_as_many_numbers():
    y = torch.complex(randn(1, 3, seed=1), randn(1, 3, seed=2))
    likelihood = GaussianLikelihood(Fourier(), y, 0.3)
    A = torch.view_as_real(Fourier().A(torch.eye(6, dtype=DOUBLE))).reshape(6, 6).mT
    assert likelihood.measured.tolist() == [6]
    x, rho, flat = randn(1, 6, seed=3), 0.4, torch.view_as_real(y).reshape(1, 6)
    assert close(likelihood.log_prob(x), -(flat - x @ A.mT).square().sum(1) / 0.18)
    assert close(likelihood.score(x), gradient(likelihood.log_prob, x))
    assert close(likelihood.discrepancy(x), (flat - x @ A.mT).norm(dim=1) / (0.3 * math.sqrt(6)))
    unit = torch.eye(12, dtype=DOUBLE)
    zero = likelihood.sample_given(x, rho, GivenNoise(torch.zeros(1, 6, dtype=DOUBLE), torch.zeros(1, 3, 2, dtype=DOUBLE)))
    G = likelihood.sample_given(x.expand(12, 6), rho, GivenNoise(unit[:, :6], unit[:, 6:].reshape(12, 3, 2))) - zero
    assert close(G.mT @ G, torch.linalg.inv(A.mT @ A / 0.09 + torch.eye(6, dtype=DOUBLE) / rho**2), 1e-9)
    assert likelihood.to(dtype=torch.float32).y.dtype == torch.complex64


Y = torch.zeros(1, *SHAPE, dtype=DOUBLE)


def spoilt(value):
    y = torch.zeros(2, *SHAPE, dtype=DOUBLE)
    y[1, 0, 3, 3] = value
    return y


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: GaussianLikelihood(Identity(SHAPE), torch.zeros(1, 2, 8, 9), 0.1),
            ValueError,
            r"y has shape \(1, 2, 8, 9\); \(B, 2, 8, 8\) is needed",
        ),
        (lambda: GaussianLikelihood(Identity(SHAPE), torch.zeros(SHAPE), 0.1), ValueError, r"y has shape \(2, 8, 8\); \(B, 2, 8, 8\)"),
        (lambda: GaussianLikelihood(Identity(SHAPE), spoilt(math.nan), 0.1), ValueError, "y holds 1 NaN or infinite values of 256"),
        (lambda: GaussianLikelihood(Identity(SHAPE), spoilt(-math.inf), 0.1), ValueError, "y holds 1 NaN or infinite values of 256"),
        (lambda: GaussianLikelihood(Identity(SHAPE), Y.long(), 0.1), ValueError, "y holds torch.int64 values; floating point is needed"),
        (lambda: GaussianLikelihood(Identity(SHAPE), Y, -0.1), ValueError, r"sigma=-0\.1; a finite number >= 0"),
        (lambda: GaussianLikelihood(Identity(SHAPE), Y, math.nan), ValueError, "sigma=nan; a finite number >= 0"),
        (lambda: GaussianLikelihood(torch.nn.Identity(), Y, 0.1), TypeError, "got Identity"),
        (lambda: GaussianLikelihood(torch.eye(3), Y, 0.1), TypeError, r"operators\.Matrix\(A, image_shape\)"),
        (lambda: PoissonLikelihood(Identity(SHAPE), spoilt(-0.25), 0.1), ValueError, r"y holds negative values \(lowest -0\.25\)"),
        (lambda: PoissonLikelihood(Identity(SHAPE), Y, 0.0), ValueError, r"gain=0\.0; a finite number > 0"),
        (lambda: PoissonLikelihood(Identity(SHAPE), Y, math.inf), ValueError, "gain=inf; a finite number > 0"),
        (lambda: PoissonLikelihood(Identity(SHAPE), Y, 0.1, floor=0.0), ValueError, r"floor=0\.0; a finite number of photons > 0"),
        (lambda: PoissonLikelihood(Identity(SHAPE), Y, 0.1, floor=math.inf), ValueError, "floor=inf; a finite number of photons"),
        (
            lambda: PoissonLikelihood(Fourier(), torch.ones(1, 3, dtype=torch.complex128), 0.1),
            ValueError,
            "y is complex; photon counts are real",
        ),
    ],
)
def test_measurements_that_make_no_sense_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_solves_of_no_strength_are_refused(value):
    likelihood, x = gaussian("identity"), randn(3, *SHAPE)
    for call in (lambda: likelihood.prox(x, value), lambda: likelihood.sample_given(x, value, GivenNoise(x, x))):
        with pytest.raises(ValueError, match=f"rho={value}; a finite number >= 0 is needed"):
            call()
    with pytest.raises(ValueError, match="r2=|rho=inf"):
        likelihood.guide(x, value)
    with pytest.raises(ValueError, match=r"r2=0\.0; a number > 0 is needed"):
        likelihood.guide(x, 0.0)
    assert torch.equal(likelihood.prox(x, 0.0), x)
