"""PSLD: single steps and whole laws against dense algebra, what the gluing term is, the departures of the code, refusals."""

import math

import pytest
import torch
from problems import DOUBLE, Squares, randn

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianPrior, LatentPrior, LinearAutoencoder
from invsolve.samplers import DPS, PSLD, State
from invsolve.schedules import DDPM, moves
from invsolve.streams import GivenNoise
from operators import Identity, Inpainting, Matrix, SuperResolution, from_callable

SHAPE, CODE, SIGMA = (1, 4, 4), (5,), 0.2
SKEW = randn(5, 16, seed=9) / 4
"""An encoder that is no inverse of the decoder."""
W = torch.linalg.qr(randn(16, 5, seed=1))[0]
OFFSET = 0.2 * randn(*SHAPE, seed=2)
EYE = torch.eye(5, dtype=DOUBLE)
GLUINGS = ("adjoint", "pseudo_inverse", "goodness", "official")


def gaussian():
    root = randn(5, 5, seed=3) / 2
    return GaussianPrior(0.5 * randn(5, seed=4), root @ root.mT + 0.1 * EYE)


OPERATORS = {
    "matrix": Matrix(randn(7, 16, seed=5) / 3, SHAPE),
    "mask": Inpainting(SHAPE, kind="random", fraction=0.5, seed=0),
    "coarse": SuperResolution(SHAPE, factor=2, kind="average"),
}


def problem(operator="matrix", rows=1, encoder=SKEW, W=W, offset=OFFSET):
    latent = LatentPrior(gaussian(), LinearAutoencoder(W, SHAPE, CODE, encoder=encoder, offset=offset))
    A = OPERATORS[operator]
    y = A.measure(latent.decode(latent.prior.draw(rows, seed=6)), SIGMA)
    return Posterior(latent, GaussianLikelihood(A, y, SIGMA))


def codes(*args, **options):
    return problem(*args, **options).in_prior_space()


def dense(posterior):
    """(A, y (B, m)) of the image likelihood, as matrices."""
    likelihood = posterior.likelihood.inner
    A = likelihood.operator.A(torch.eye(16, dtype=DOUBLE).reshape(16, *SHAPE)).flatten(1).mT
    return A, likelihood.y.flatten(1)


def back(setting, A, operator):
    """T."""
    if setting.gluing == "official":
        if operator != "coarse":
            return torch.eye(16, dtype=DOUBLE)
        nearest = [torch.zeros(4, 4, dtype=DOUBLE) for _ in range(4)]
        for k, image in enumerate(nearest):
            image[2 * (k // 2) : 2 * (k // 2) + 2, 2 * (k % 2) : 2 * (k % 2) + 2] = 1
        return torch.stack([image.flatten() for image in nearest], 1)
    return {"adjoint": A.mT, "pseudo_inverse": torch.linalg.pinv(A, rtol=1e-10), "goodness": 0 * A.mT}[setting.gluing]


def losses(setting, posterior, operator):
    """z0_hat -> (||y - A D z0_hat||, ||E(x + T (y - A x)) - z0_hat||), each (B,), written out for autograd."""
    A, y = dense(posterior)
    T, linear = back(setting, A, operator), posterior.prior.autoencoder

    def terms(z):
        x = z @ linear.W.mT + linear.offset
        r = y - x @ A.mT
        return r.norm(dim=1), ((x + r @ T.mT - linear.offset) @ linear.E.mT - z).norm(dim=1)

    return terms


def official_fits(operator):
    return [g for g in GLUINGS if g != "official" or operator != "matrix"]


CASES = [
    (operator, PSLD(omega=0.7, gamma=0.4, gluing=gluing, gradient=gradient))
    for operator in OPERATORS
    for gluing in official_fits(operator)
    for gradient in ("norm", "squared")
]


@pytest.mark.parametrize(("operator", "setting"), CASES, ids=str)
def test_one_step_against_the_formula(operator, setting):
    posterior, move = codes(operator, rows=3), moves(DDPM(steps=20))[11]
    prior, terms, x = posterior.prior.prior, losses(setting, posterior, operator), randn(3, 5, seed=7)
    held = x.clone().requires_grad_()
    x0 = prior.denoise(held, move.t)
    data, glue = terms(x0)
    if setting.gradient == "squared":
        data, glue = data**2, glue**2
    (g,) = torch.autograd.grad((0.7 * data + 0.4 * glue).sum(), held)
    x0 = x0.detach()
    expected = move.s.alpha * x0 + move.s.sigma * (x - move.t.alpha * x0) / move.t.sigma - g
    found = setting.step(posterior, setting.init(posterior, x), move, GivenNoise())
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-12)
    # Both terms matter here.
    assert all(float(v.detach().min()) > 1e-3 for v in (data, glue))


def test_gluing_is_the_data_term_through_another_weight():
    """With an orthonormal decoder the term is ||G^T (y - G z0_hat)||, G = A D, wherever T = A^T."""
    posterior, move = codes(encoder=None), moves(DDPM(steps=20))[11]
    A, y = dense(posterior)
    G, constant, x = A @ W, A @ OFFSET.flatten(), randn(1, 5, seed=7)
    held = x.clone().requires_grad_()
    ((y - constant - posterior.prior.prior.denoise(held, move.t) @ G.mT) @ G).norm().backward()
    free = PSLD(omega=0, gamma=0).step(posterior, State(x), move, GivenNoise()).x
    glued = PSLD(omega=0, gamma=1).step(posterior, State(x), move, GivenNoise()).x
    torch.testing.assert_close(free - glued, held.grad, rtol=0, atol=1e-11)
    # Hence it vanishes at a least-squares solution, and the fixed-point term everywhere.
    at = torch.linalg.lstsq(G, (y - constant).mT).solution.mT
    assert float(losses(PSLD(), posterior, "matrix")(at)[1]) < 1e-12
    fixed = PSLD(omega=0, gamma=1, gluing="goodness", gradient="squared").step(posterior, State(x), move, GivenNoise()).x
    torch.testing.assert_close(fixed, free, rtol=0, atol=1e-12)


def test_without_gluing_it_is_latent_dps():
    posterior = problem(rows=2)
    ours = sample(PSLD(omega=0.6, gamma=0, eta=1.0), posterior, DDPM(steps=20), n=2, progress=False)
    dps = sample(DPS(zeta=0.6, variance="posterior"), posterior, DDPM(steps=20), n=2, progress=False)
    torch.testing.assert_close(ours, dps, rtol=1e-9, atol=1e-11)


def test_on_pixels_the_autoencoder_is_the_identity():
    """E = D = I: PSLD on a pixel prior, and on the same behind an identity."""
    prior, A = gaussian(), Matrix(randn(3, 5, seed=8), CODE)
    likelihood = GaussianLikelihood(A, randn(1, 3, seed=9), SIGMA)
    behind = LatentPrior(prior, LinearAutoencoder(EYE, CODE, CODE))
    a, b = (sample(PSLD(), Posterior(p, likelihood), DDPM(steps=20), n=2, progress=False) for p in (prior, behind))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gluing", GLUINGS[:3])
def test_the_law_of_the_squared_form_against_dense_propagation(gluing):
    setting = PSLD(omega=0.05, gamma=0.03, gluing=gluing, gradient="squared", eta=0.5)
    posterior, schedule = codes(), DDPM(steps=30)
    prior, (A, y) = posterior.prior.prior, dense(posterior)
    T, m, C = back(setting, A, "matrix"), prior.mean, prior.cov
    # E(x + T (y - A x)) - z = K z + k, the residual y - A x = h - G z.
    G, h = A @ W, y[0] - A @ OFFSET.flatten()
    K, k = SKEW @ (torch.eye(16, dtype=DOUBLE) - T @ A) @ W - EYE, SKEW @ T @ h
    mean, cov = torch.zeros(5, dtype=DOUBLE), moves(schedule)[0].t.sigma ** 2 * EYE
    for move in moves(schedule):
        (a, s), (b, r) = move.t, move.s
        J = a * C @ torch.linalg.inv(a**2 * C + s**2 * EYE)
        d = m - a * J @ m
        c = 0.5 * r * math.sqrt(1 - a**2 * r**2 / (b**2 * s**2)) if r else 0.0
        kept = math.sqrt(r**2 - c**2) / s
        H = 2 * (0.05 * G.mT @ G + 0.03 * K.mT @ K)
        F = b * J + kept * (EYE - a * J) - J.mT @ H @ J
        f = (b - kept * a) * d - J.mT @ (H @ d + 2 * (0.03 * K.mT @ k - 0.05 * G.mT @ h))
        mean, cov = F @ mean + f, F @ cov @ F.mT + c**2 * EYE
    found = output_law(setting, posterior, schedule)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], cov, rtol=0, atol=1e-9)


def test_the_exact_law_of_latent_dps_is_that_behind_the_decoder_and_biased():
    posterior = codes(encoder=None)
    A, y = dense(posterior)
    behind = Posterior(posterior.prior.prior, GaussianLikelihood(Matrix(A @ W, CODE), y - A @ OFFSET.flatten(), SIGMA))
    law, other = (output_law(DPS(variant="squared"), p, DDPM(steps=200)) for p in (posterior, behind))
    for a, b in zip(law, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    exact = behind.exact()
    root = torch.linalg.cholesky(exact.cov)
    white = torch.linalg.solve_triangular(root, law[1], upper=False)
    ratios = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, white.mT, upper=False))
    # Too sure of itself in one direction, as it is on pixels: the covariance of x_0 given x_t is left out.
    assert float(ratios.min()) < 0.7


def test_fresh_noise_shifts_the_measurement():
    posterior, move, x = codes(rows=2), moves(DDPM(steps=20))[11], randn(2, 5, seed=7)
    n = randn(2, 7, seed=11)
    noisy = PSLD(fresh_noise=True, gamma=0).step(posterior, State(x), move, GivenNoise(n)).x
    likelihood = posterior.likelihood.inner
    moved = Posterior(posterior.prior, GaussianLikelihood(likelihood.operator, likelihood.y - SIGMA * n, SIGMA)).in_prior_space()
    torch.testing.assert_close(noisy, PSLD(gamma=0).step(moved, State(x), move, GivenNoise()).x, rtol=0, atol=1e-12)
    # The gluing term keeps the measurement as it is, and so does the posterior.
    only = [PSLD(omega=0, fresh_noise=f).step(posterior, State(x), move, GivenNoise(n)).x for f in (True, False)]
    assert torch.equal(*only)
    masked = codes("mask")
    quiet = PSLD(fresh_noise=True, gamma=0)
    hidden = quiet.step(masked, State(x[:1]), move, GivenNoise(randn(1, *SHAPE, seed=1))).x
    assert hidden.isfinite().all()


def test_official_gluing_is_the_adjoint_for_masks_alone():
    def step(operator, gluing):
        return PSLD(gluing=gluing).step(codes(operator), State(randn(1, 5, seed=7)), moves(DDPM(steps=20))[11], GivenNoise()).x

    torch.testing.assert_close(step("mask", "official"), step("mask", "adjoint"), rtol=0, atol=1e-12)
    # The rows of a block average have norm 1/2: its A^T is a quarter of nearest-neighbour upsampling, which is A^+.
    torch.testing.assert_close(step("coarse", "official"), step("coarse", "pseudo_inverse"), rtol=0, atol=1e-12)
    assert float((step("coarse", "official") - step("coarse", "adjoint")).abs().max()) > 1e-3


@pytest.mark.parametrize("setting", [PSLD(), PSLD(gluing="pseudo_inverse", fresh_noise=True, eta=1.0), PSLD(gluing="goodness")], ids=str)
def test_a_batch_equals_single_runs(setting):
    posterior = problem(rows=3)
    together = sample(setting, posterior, DDPM(steps=20), n=2, progress=False)
    for b in range(3):
        alone = sample(setting, posterior.select(torch.tensor([b])), DDPM(steps=20), n=2, ids=[b], progress=False)
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-10)


def test_under_inference_mode():
    posterior, move, x = codes(), moves(DDPM(steps=20))[11], randn(1, 5, seed=7)
    expected = PSLD().step(posterior, State(x), move, GivenNoise()).x
    with torch.inference_mode():
        assert torch.equal(PSLD().step(posterior, State(x.clone()), move, GivenNoise()).x, expected)


def test_one_decoding_and_one_encoding_a_step():
    posterior, counts = codes(), []
    for setting in (PSLD(), PSLD(gamma=0)):
        calls = posterior.prior.calls
        before = (calls.decode, calls.encode)
        setting.step(posterior, State(randn(1, 5)), moves(DDPM(steps=20))[11], GivenNoise())
        counts.append((calls.decode - before[0], calls.encode - before[1]))
    assert counts == [(1, 1), (1, 0)]


def test_refusals():
    for options, message in (
        ({"omega": -1.0}, r"omega=-1\.0; a number >= 0"),
        ({"gamma": -1.0}, r"gamma=-1\.0; a number >= 0"),
        ({"eta": 2.0}, r"eta=2\.0; a number in \[0, 1\]"),
        ({"gluing": "transpose"}, "gluing='transpose'; one of adjoint, pseudo_inverse, goodness, official"),
        ({"gradient": "l1"}, "gradient='l1'; one of norm, squared"),
    ):
        with pytest.raises(ValueError, match=message):
            PSLD(**options)
    prior, y = problem().prior, torch.ones(1, *SHAPE, dtype=DOUBLE)

    def run(likelihood, **options):
        return sample(PSLD(**options), Posterior(prior, likelihood), DDPM(steps=5), progress=False)

    squares, photons = GaussianLikelihood(Squares(SHAPE), y, 0.1), PoissonLikelihood(Identity(SHAPE), y, 0.1)
    with pytest.raises(TypeError, match="gluing='adjoint' needs a linear operator; Squares is not linear; gluing='goodness' takes any"):
        run(squares)
    with pytest.raises(TypeError, match="needs a GaussianLikelihood, not a PoissonLikelihood"):
        run(photons)
    with pytest.raises(TypeError, match=r"not \(7,\) for \(1, 4, 4\)"):
        run(problem().likelihood, gluing="official")
    waves = from_callable(lambda x: torch.fft.fft2(x, norm="ortho"), SHAPE, linear=True)
    with pytest.raises(TypeError, match="gluing='official' puts y in the place of pixels, and y is complex"):
        run(GaussianLikelihood(waves, waves.A(y), 0.1), gluing="official")
    with pytest.raises(TypeError, match="gradient='squared' needs a GaussianLikelihood"):
        run(photons, gluing="goodness", gradient="squared")
    with pytest.raises(TypeError, match="fresh_noise=True needs Gaussian noise"):
        run(photons, gluing="goodness", fresh_noise=True)
    with pytest.raises(ValueError, match="sigma > 0; 'norm' does not"):
        run(GaussianLikelihood(Identity(SHAPE), y, 0.0), gradient="squared")
    for likelihood in (squares, photons):
        assert run(likelihood, gluing="goodness", omega=0.01, gamma=0.01).isfinite().all()
