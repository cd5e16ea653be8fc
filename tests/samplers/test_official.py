"""The settings that follow authors' code, against their update formulas written out on their discrete tables, and what they count.

Each reference is dense algebra and autograd with the numbers of the code (alpha_bar, beta, masks): nothing of the library.
"""

import math
from functools import partial

import pytest
import torch
from problems import DOUBLE, Squares, randn

from invsolve import Posterior, sample
from invsolve.engine.protocol import HiddenState
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianPrior, LatentPrior, LinearAutoencoder
from invsolve.priors.base import PixelPrior
from invsolve.samplers import DPS, MCG, PSLD
from invsolve.schedules import DDPM, Karras, moves
from invsolve.streams import GivenNoise
from operators import Blur, Inpainting, Matrix, Tomography, compose

SHAPE, SIGMA, ROWS = (1, 4, 4), 0.2, 3
STEPS = DDPM(steps=12)
MASK = Inpainting(SHAPE, kind="random", fraction=0.5, seed=0)
KNOWN = MASK.A(torch.ones(1, *SHAPE, dtype=DOUBLE))
TRUTH = 0.6 * randn(ROWS, *SHAPE, seed=1)


class Learned(PixelPrior):
    """A denoiser that is neither linear nor anyone's posterior mean, with a learned variance (raw, not within [0, 1])."""

    image_shape, dtype, device = SHAPE, DOUBLE, None
    mixing = randn(16, 16, seed=2) / 4

    def denoise_with_variance(self, x, t):
        u = x / t.scale
        return 1.4 * torch.tanh(u.flatten(1) @ self.mixing + 0.3).reshape(x.shape), 0.4 * torch.sin(u) + 0.6

    def denoise(self, x, t):
        return self.denoise_with_variance(x, t)[0]


def table():
    """(alpha_bar_t, alpha_bar_s) of each move, noisiest first; alpha_bar of the clean image is 1."""
    bars = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=DOUBLE), 0)
    kept = [round(i * (999 / 11)) for i in range(12)]
    return [
        (bars[k].item(), bars[j].item() if j is not None else 1.0)
        for k, j in zip(reversed(kept), [*reversed(kept[:-1]), None], strict=True)
    ]


def ddpm_step(x, x0, fraction, bar_t, bar_s, z):
    """Ho et al. 2020, equation 7, with the log-variance of Nichol and Dhariwal 2021, equation 15; the last step adds no noise."""
    beta = 1 - bar_t / bar_s
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * x0 + math.sqrt(bar_t / bar_s) * (1 - bar_s) / (1 - bar_t) * x
    if bar_s == 1:
        return mean
    small = beta * (1 - bar_s) / (1 - bar_t)
    part = (fraction + 1) / 2
    return mean + torch.exp(0.5 * (part * math.log(beta) + (1 - part) * math.log(small))) * z


def lengths(r):
    return r.flatten(1).norm(dim=1)


def noises(steps, seed):
    return [randn(ROWS, *SHAPE, seed=seed + k) for k in range(steps)]


def walk(sampler, posterior, x, drawn):
    """The last iterate of a walk over STEPS with the given noise; drawn[k] is what step k draws."""
    state = sampler.init(posterior, x)
    for move, given in zip(moves(STEPS), drawn, strict=True):
        noise = GivenNoise(*given)
        state = sampler.step(posterior, state, move, noise)
        assert noise.used == len(given)
    return state


@pytest.mark.parametrize("operator", ["mask", "blur then mask"])
def test_dps_is_the_official_loop(operator):
    """x' - zeta grad ||y - A clamp(x0_hat)||, y with noise in its hidden pixels as well, from x_T to the result."""
    A = MASK if operator == "mask" else compose(MASK, Blur(SHAPE, kernel="uniform", taps=3))
    prior, n = Learned(), randn(ROWS, *SHAPE, seed=3)
    y = A.A(TRUTH) + SIGMA * n
    posterior = Posterior(prior, GaussianLikelihood(A, y, SIGMA))
    start, zs = randn(ROWS, *SHAPE, seed=4), noises(12, 10)
    drawn = [([n[:, None]] if k == 0 else []) + [z] for k, z in enumerate(zs)]
    x = start
    for (bar_t, bar_s), move, z in zip(table(), moves(STEPS), zs, strict=True):
        x = x.detach().requires_grad_()
        x0, fraction = prior.denoise_with_variance(x, move.t)
        x0 = x0.clamp(-1, 1)
        (g,) = torch.autograd.grad(lengths(y - A.A(x0)).sum(), x)
        x = (ddpm_step(x, x0, fraction, bar_t, bar_s, z) - 0.5 * g).detach()
    found = walk(DPS(zeta=0.5, variant="official", norm="all"), posterior, start, drawn)
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-11)
    other = walk(DPS(zeta=0.5, variant="official"), posterior, start, [[z] for z in zs])
    assert float((other.x - x).abs().max()) > 1e-2, "the hidden noise matters here"


def test_mcg_is_the_official_inpainting_loop():
    """The gradient on unknown pixels, y of the level before on known ones, in the last step too."""
    prior, y = Learned(), MASK.A(TRUTH)
    posterior = Posterior(prior, GaussianLikelihood(MASK, y, 0.0))
    start, zs, z2s = randn(ROWS, *SHAPE, seed=4), noises(12, 10), noises(12, 30)
    x = start
    for (bar_t, bar_s), move, z, z2 in zip(table(), moves(STEPS), zs, z2s, strict=True):
        x = x.detach().requires_grad_()
        x0, fraction = prior.denoise_with_variance(x, move.t)
        x0 = x0.clamp(-1, 1)
        (g,) = torch.autograd.grad(lengths(y - KNOWN * x0).sum(), x)
        pasted = math.sqrt(bar_t) * y + math.sqrt(1 - bar_t) * z2
        x = ((1 - KNOWN) * (ddpm_step(x, x0, fraction, bar_t, bar_s, z) - g) + KNOWN * pasted).detach()
    setting = MCG(weight=1.0, gradient="norm", projection="hard", level="t", clip=True)
    found = walk(setting, posterior, start, list(zip(zs, z2s, strict=True)))
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("index", [0, 5, 10])
def test_mcg_adds_gradient_and_sirt_at_once_as_the_official_tomography(index):
    """x + lambda A^T (y - A x)/(A^T A 1) - g at the corrected x, lambda = 1 - 0.4 k/N; in turn, SIRT takes back part of g."""
    A = randn(5, 16, seed=5).abs() / 4
    root = randn(16, 16, seed=6) / 4
    C, m = root @ root.mT + 0.1 * torch.eye(16, dtype=DOUBLE), 0.3 * randn(16, seed=7)
    y = TRUTH.flatten(1) @ A.mT
    prior = GaussianPrior(m.reshape(SHAPE), C)
    posterior = Posterior(prior, GaussianLikelihood(Matrix(A, SHAPE), y, 0.1))
    move = moves(Karras(steps=12, sigma_max=20.0, sigma_min=0.05))[index]
    t2, s2 = move.t.sigma**2, move.s.sigma**2
    x, z, z1 = (randn(ROWS, 16, seed=40 + k) for k in range(3))
    moved = x + (t2 - s2) * (m - x) @ torch.linalg.inv(C + t2 * torch.eye(16, dtype=DOUBLE)) + math.sqrt(t2 - s2) * z
    moved = moved.requires_grad_()
    score = (m - moved) @ torch.linalg.inv(C + s2 * torch.eye(16, dtype=DOUBLE))
    x0 = moved + s2 * score
    (g,) = torch.autograd.grad(lengths((y - x0 @ A.mT) @ torch.linalg.pinv(A).mT).sum(), moved)
    step = 2 * 0.16**2 * s2
    at = (moved + step * score + math.sqrt(2 * step) * z1).detach()
    size = A.mT @ A @ torch.ones(16, dtype=DOUBLE)
    expected = at + (1 - 0.4 * index / 12) * ((y - at @ A.mT) @ A) / size - 0.2 * g
    setting = partial(MCG, weight=0.2, weighting="pseudo_inverse", projection="sirt", level="clean", form="predictor_corrector")

    def found(order):
        noise = GivenNoise(z.reshape(ROWS, *SHAPE), z1.reshape(ROWS, *SHAPE))
        sampler = setting(order=order)
        return sampler.step(posterior, sampler.init(posterior, x.reshape(ROWS, *SHAPE)), move, noise).x.flatten(1)

    torch.testing.assert_close(found("at_once"), expected, rtol=0, atol=1e-9)
    # What SIRT takes back, and the other end of lambda, 1 - 0.4 k/(N - 1).
    relax, other = 1 - 0.4 * index / 11, 1 - 0.4 * index / 12
    change = relax * (0.2 * g @ A.mT @ A) / size + (relax - other) * ((y - at @ A.mT) @ A) / size
    torch.testing.assert_close(found("in_turn") - found("at_once"), change, rtol=0, atol=1e-9)
    assert float((0.2 * g @ A.mT @ A / size).norm() / (0.2 * g).norm()) > 0.05


@pytest.mark.parametrize("gradient", ["norm", "squared"])
def test_filtered_back_projection_weighs_the_residual_of_mcg(gradient):
    """x' - weight grad ||F (y - A x0_hat)||, F a matrix that is no pseudo-inverse, or of its square."""
    shape, T = (1, 4, 4), Tomography(SHAPE, views=3)
    A = T.A(torch.eye(16, dtype=DOUBLE).reshape(16, *shape)).flatten(1).mT
    unit = torch.eye(len(A), dtype=DOUBLE).reshape(len(A), *T.measurement_shape)
    F = T.fbp(unit).flatten(1).mT
    assert float((A @ F @ A - A).norm()) > 0.1 * float(A.norm())
    prior, move = Learned(), moves(STEPS)[6]
    y = T.A(TRUTH)
    x = randn(ROWS, *shape, seed=4).requires_grad_()
    x0 = prior.denoise(x, move.t)
    r = (y.flatten(1) - x0.flatten(1) @ A.mT) @ F.mT
    misfit = lengths(r).square() if gradient == "squared" else lengths(r)
    (g,) = torch.autograd.grad(misfit.sum(), x)
    steps = []
    for weight in (0.3, 0.0):
        posterior = Posterior(prior, GaussianLikelihood(T, y, 0.1))
        setting = MCG(weight=weight, gradient=gradient, weighting="fbp", projection="none")
        steps.append(setting.step(posterior, setting.init(posterior, x.detach()), move, GivenNoise(torch.zeros_like(x))).x)
    torch.testing.assert_close(steps[1] - steps[0], 0.3 * g, rtol=0, atol=1e-11)
    with pytest.raises(TypeError, match="weighting='fbp' is for operators with filtered back-projection, not for Inpainting"):
        MCG(weighting="fbp").init(Posterior(prior, GaussianLikelihood(MASK, MASK.A(TRUTH), 0.1)), x.detach())


def latent_problem():
    W, E = torch.linalg.qr(randn(16, 5, seed=8))[0], randn(5, 16, seed=9) / 4
    root = randn(5, 5, seed=10) / 2
    prior = GaussianPrior(0.5 * randn(5, seed=11), root @ root.mT + 0.1 * torch.eye(5, dtype=DOUBLE))
    return LatentPrior(prior, LinearAutoencoder(W, SHAPE, (5,), encoder=E)), W, E


def test_psld_is_the_official_step():
    """omega ||y - M D z0 - sigma n|| + gamma ||E(y + (1 - M) D z0) - z0||: all of y, whose hidden pixels hold noise, in both."""
    latent, W, E = latent_problem()
    hidden, fresh = randn(ROWS, *SHAPE, seed=12), randn(ROWS, *SHAPE, seed=13)
    y = KNOWN * TRUTH + SIGMA * hidden
    target = Posterior(latent, GaussianLikelihood(MASK, y, SIGMA)).in_prior_space()
    for index in (2, 8, 11):
        (bar_t, bar_s), move = table()[index], moves(STEPS)[index]
        z = randn(ROWS, 5, seed=14).requires_grad_()
        z0 = latent.prior.denoise(z, move.t)
        image = (z0 @ W.mT).reshape(ROWS, *SHAPE)
        data = lengths(KNOWN * image + SIGMA * fresh - y)
        glued = (y + (1 - KNOWN) * image).flatten(1)
        error = 0.7 * data + 0.3 * lengths(glued @ E.mT - z0)
        (g,) = torch.autograd.grad(error.sum(), z)
        e = (z - math.sqrt(bar_t) * z0) / math.sqrt(1 - bar_t)
        expected = (math.sqrt(bar_s) * z0 + math.sqrt(1 - bar_s) * e - g).detach()
        setting = PSLD(omega=0.7, gamma=0.3, gluing="official", fresh_noise=True, norm="all")
        noise = GivenNoise(hidden[:, None], fresh)
        state = setting.step(target, setting.init(target, z.detach()), move, noise)
        torch.testing.assert_close(state.x, expected, rtol=0, atol=1e-11)
        assert noise.used == 2
        again = setting.step(target, HiddenState(z.detach(), hidden=state.hidden), move, GivenNoise(fresh))
        assert torch.equal(again.x, state.x) and torch.equal(again.hidden, state.hidden), "kept, not drawn anew"


# -- how much longer the norm is ------------------------------------------------------------------------------------------

HIDES = {
    "70 % random": ({"kind": "random", "fraction": 0.7}, 0.55),
    "92 % random": ({"kind": "random", "fraction": 0.92}, 0.28),
    "half-side box": ({"kind": "box", "size": 16}, 0.87),
}


def shift(sampler, posterior, x, move, free):
    """How far one step goes beyond the unguided one, (B,)."""
    state = sampler.init(posterior, x)
    draw = randn(len(x), 1, *x.shape[1:], seed=21)
    given = [draw, torch.zeros_like(x)] if sampler.norm == "all" else [torch.zeros_like(x)]
    return lengths(sampler.step(posterior, state, move, GivenNoise(*given)).x - free)


@pytest.mark.parametrize("q", [1.0, 3.0])
@pytest.mark.parametrize("hides", HIDES)
@pytest.mark.parametrize("latent", [False, True])
def test_the_step_is_shorter_by_the_share_of_the_norm_that_is_measured(hides, q, latent):
    """sqrt(m q^2/(m q^2 + d - m)) where the residual on m of d pixels is q sigma_y, up to the spread of a sum of squares."""
    options, published = HIDES[hides]
    shape, rows = (3, 32, 32), 4
    A = Inpainting(shape, seed=0, **options)
    m, d = A.measured, 3 * 32 * 32
    y = q * SIGMA * randn(rows, *shape, seed=22)
    # x0_hat is 0 to 1e-4, so that the residual is y itself.
    prior = GaussianPrior.stationary(0.0, torch.full((32, 32), 1e-8, dtype=DOUBLE), shape)
    posterior, x, move = Posterior(prior, GaussianLikelihood(A, y, SIGMA)), randn(rows, *shape, seed=23), moves(STEPS)[6]
    kinds = [partial(PSLD, gamma=0.0)] if latent else [DPS, partial(DPS, variant="official", variance="posterior")]
    for make in kinds:
        options = {"omega": 1e6} if latent else {"zeta": 1e6}
        off = {"omega": 0.0} if latent else {"zeta": 0.0}
        free = make(**off).step(posterior, make(**off).init(posterior, x), move, GivenNoise(torch.zeros_like(x))).x
        ratio = shift(make(**options, norm="all"), posterior, x, move, free) / shift(make(**options), posterior, x, move, free)
        expected = math.sqrt(m * q**2 / (m * q**2 + d - m))
        # The relative spread of a chi-squared of m is sqrt(2/m); half of it remains below the root.
        assert ratio.tolist() == pytest.approx([expected] * rows, rel=4.5 * 0.5 * math.sqrt(2 / m))
        assert len(set(ratio.tolist())) == rows, "each row has its own noise"
    if q == 1:
        assert math.sqrt(m / d) == pytest.approx(published, abs=0.006)


# -- where the noise of hidden entries comes from -------------------------------------------------------------------------


def hiding(rows=4, sigma=SIGMA, prior=None):
    op = Inpainting(SHAPE, kind="random", fraction=0.6, seed=0, per_image=True).for_ids(list(range(rows)))
    y = op.A(0.6 * randn(rows, *SHAPE, seed=1)) + op.restrict(sigma * randn(rows, *SHAPE, seed=3))
    root = randn(16, 16, seed=6) / 4
    prior = prior or GaussianPrior(0.1 * randn(*SHAPE, seed=7), root @ root.mT + 0.1 * torch.eye(16, dtype=DOUBLE))
    return Posterior(prior, GaussianLikelihood(op, y, sigma))


COUNTING = [
    (DPS(zeta=0.5, norm="all"), None),
    (DPS(zeta=0.5, variant="official", norm="all", variance="posterior"), None),
    (PSLD(norm="all", gluing="official", fresh_noise=True), "latent"),
    (DPS(zeta=0.5, norm="all"), "latent"),
]
counting = pytest.mark.parametrize(("sampler", "kind"), COUNTING, ids=str)


def run(sampler, posterior, **options):
    return sample(sampler, posterior, STEPS, progress=False, **options)


def counted(kind):
    return hiding(prior=latent_problem()[0] if kind else None)


@counting
def test_neither_batch_nor_order_nor_chunks_change_it(sampler, kind):
    posterior, order = counted(kind), torch.tensor([2, 0, 3, 1])
    together = run(sampler, posterior, n=2)
    for b in range(4):
        alone = run(sampler, posterior.select(torch.tensor([b])), n=2, ids=[b])
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-10)
    permuted = run(sampler, posterior.select(order), n=2, ids=order.tolist())
    torch.testing.assert_close(permuted, together[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(run(sampler, posterior, n=2, memory_gb=1e-9), together, rtol=0, atol=1e-10)
    assert not torch.allclose(run(sampler, posterior, n=2, seed=1), together)


class Interrupted(Exception):
    pass


@counting
@pytest.mark.parametrize("stop_at", [2, 8])
def test_a_resumed_run_keeps_it(sampler, kind, stop_at, tmp_path):
    posterior, seen = counted(kind), []
    expected = run(sampler, posterior)

    def stop(event):
        seen.append(event)
        if len(seen) == stop_at:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(sampler, posterior, observe=stop, checkpoint=tmp_path / "half.pt", checkpoint_every=1)
    assert torch.equal(run(sampler, posterior, checkpoint=tmp_path / "half.pt", checkpoint_every=1), expected)


def test_it_changes_nothing_but_the_length_of_the_norm():
    posterior = hiding()
    assert torch.equal(run(DPS(zeta=0.0, norm="all"), posterior), run(DPS(zeta=0.0), posterior)), "the other noise is the same"
    assert not torch.equal(run(DPS(norm="all"), posterior), run(DPS(), posterior))
    for operator, sigma in ((Blur(SHAPE, kernel="uniform", taps=3), SIGMA), (MASK, 0.0)):
        # Nothing hidden, or no noise in it.
        target = Posterior(posterior.prior, GaussianLikelihood(operator, operator.A(TRUTH), sigma))
        assert torch.equal(run(DPS(norm="all"), target), run(DPS(), target))


def test_the_noise_of_hidden_entries_has_the_level_of_y():
    posterior = hiding(rows=2)
    posterior = posterior.select(torch.zeros(4000, dtype=torch.long))
    hidden = posterior.likelihood.hidden_noise(GivenNoise(randn(4000, 1, *SHAPE, seed=5)))
    known = posterior.likelihood.operator.restrict(torch.ones(4000, *SHAPE, dtype=DOUBLE))
    assert float((hidden * known).abs().max()) == 0
    off = hidden[known == 0]
    # Standard errors of mean and variance of as many normal numbers.
    assert abs(float(off.mean())) < 4.5 * SIGMA / math.sqrt(len(off))
    assert float(off.var()) == pytest.approx(SIGMA**2, rel=4.5 * math.sqrt(2 / len(off)))


def test_refusals():
    for make, message in (
        (lambda: DPS(norm="hidden"), "norm='hidden'; one of measured, all"),
        (lambda: DPS(norm="all", variant="squared"), "norm='all' belongs to variant='norm' or 'official'"),
        (lambda: PSLD(norm="all", gradient="squared"), "norm='all' belongs to gradient='norm' or gluing='official'"),
        (lambda: MCG(order="first"), "order='first'; one of in_turn, at_once"),
        (lambda: MCG(order="at_once"), "order='at_once' belongs to projection='sirt'; 'soft' comes after the gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    counts = PoissonLikelihood(MASK, MASK.A((TRUTH.abs() / 2).clamp(0, 1)), 0.01)
    for sampler in (DPS(norm="all"), PSLD(norm="all", gluing="goodness")):
        with pytest.raises(
            TypeError, match="norm='all' counts noise of hidden entries, which is that of a GaussianLikelihood, not of a Poisson"
        ):
            run(sampler, Posterior(hiding().prior, counts))
    squares = GaussianLikelihood(Squares(SHAPE), TRUTH.square(), SIGMA)
    assert torch.isfinite(run(DPS(norm="all", zeta=0.1), Posterior(hiding().prior, squares))).all()


def test_photons_are_weighted_as_in_the_paper_whatever_the_variant():
    """Chung et al. 2023, section 3.2: the residual over the root of the count; not the plain norm times the mean of 1/|y|."""
    prior, gain = Learned(), 0.02
    y = gain * (40 * torch.rand(ROWS, *SHAPE, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))).ceil()
    move, x = moves(STEPS)[7], randn(ROWS, *SHAPE, seed=4).requires_grad_()
    x0 = prior.denoise(x, move.t).clamp(-1, 1)
    r = y - (x0 + 1) / 2
    weighted, plain = (torch.autograd.grad(lengths(v).sum(), x, retain_graph=True)[0] for v in (r / (gain * y).sqrt(), r))
    blur = Matrix(torch.eye(16, dtype=DOUBLE), SHAPE)
    posterior = Posterior(prior, PoissonLikelihood(blur, y.flatten(1), gain))
    steps = []
    for zeta in (1.0, 0.0):
        setting = DPS(zeta=zeta, variant="official")
        steps.append(setting.step(posterior, setting.init(posterior, x.detach()), move, GivenNoise(torch.zeros_like(x))).x)
    torch.testing.assert_close(steps[1] - steps[0], weighted, rtol=0, atol=1e-10)
    assert float(torch.cosine_similarity(weighted.flatten(1), plain.flatten(1)).max()) < 0.99
