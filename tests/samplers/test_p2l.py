"""P2L: the embedding's gradient and Adam against closed forms, the range projection, its limits, penalties, rows, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from problems import DOUBLE, Squares, randn, tensor
from torch import nn

from invsolve import Posterior, sample
from invsolve.diagnostics.affine import output_law
from invsolve.engine.chains import Chains
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.numerics.adam import Adam
from invsolve.priors import GaussianPrior, LatentPrior, LinearAutoencoder, TrainingTable
from invsolve.priors.conditional import ConditionalNetworkPrior
from invsolve.priors.gaussian_conditional import ConditionalGaussianPrior
from invsolve.samplers import DPS, P2L, PSLD
from invsolve.samplers.parts import prompts
from invsolve.samplers.parts.prompts import Prompted
from invsolve.schedules import DDPM, ScaledLinear, moves
from invsolve.streams import GivenNoise
from operators import Identity, Matrix

SHAPE, CODE, SIGMA = (1, 3, 4), (4,), 0.2
W = torch.linalg.qr(randn(12, 4, seed=1))[0]
SKEW = randn(4, 12, seed=9) / 4
OFFSET = 0.2 * randn(*SHAPE, seed=2)
A = randn(7, 12, seed=5) / 2
B = randn(4, 2, seed=6)
COV = 0.2 * torch.eye(4, dtype=DOUBLE) + 0.05
MEAN = 0.3 * randn(4, seed=7)
TRUE = tensor([1.0, -0.7])
CLASSES = tensor([[1.0, 0.5], [-1.0, 1.5], [2.0, -0.6]])


class WithClasses(ConditionalGaussianPrior):
    class_embeddings = CLASSES


def problem(rows=1, prior=ConditionalGaussianPrior, encoder=SKEW, sigma=SIGMA, embedding=None, guidance=1.0):
    latent = prior(MEAN, B, COV, null=tensor([0.1, 0.2]), guidance=guidance)
    latent = latent if embedding is None else latent.conditioned(embedding)
    operator = Matrix(A, SHAPE)
    whole = LatentPrior(latent, LinearAutoencoder(W, SHAPE, CODE, encoder=encoder, offset=OFFSET))
    y = operator.measure(whole.decode(ConditionalGaussianPrior(MEAN, B, COV).conditioned(TRUE).law().draw(rows, seed=8)), 0.2)
    return Posterior(whole, GaussianLikelihood(operator, y, sigma))


def codes(*args, **options):
    return problem(*args, **options).in_prior_space()


def x0_of(x, t, c):
    """E[z_0 | z_t = x, c] and its Jacobian by z_t."""
    J = t.alpha * COV @ torch.linalg.inv(t.alpha**2 * COV + t.sigma**2 * torch.eye(4, dtype=DOUBLE))
    m = MEAN + c @ B.mT
    return m + (x - t.alpha * m) @ J.mT, J


def slope_of(x, t, c, y, sigma=SIGMA):
    """The gradient of ||y - A D(z0_hat(c))||^2 / (2 sigma^2) by c."""
    x0, J = x0_of(x, t, c)
    r = y - (x0 @ W.mT + OFFSET.flatten()) @ A.mT
    return -(r @ A @ W / sigma**2) @ (torch.eye(4, dtype=DOUBLE) - t.alpha * J) @ B


MOVE = moves(DDPM(steps=24))[8]
X = randn(3, 4, seed=11)


def test_the_gradient_by_the_embedding_against_the_closed_form():
    """(I - alpha J) B is its Jacobian: strong in noise, nothing at the end. Adam's running mean after one step is a tenth of it."""
    posterior = codes(rows=3)
    y, sizes = posterior.likelihood.y, []
    for move in (moves(DDPM(steps=24))[k] for k in (8, 20, 23)):
        state = P2L(lr=1e-3).init(posterior, X)
        tuned = P2L(lr=1e-3).step(posterior, state, move, GivenNoise())
        expected = slope_of(X, move.t, state.embedding, y)
        torch.testing.assert_close(tuned.mean, 0.1 * expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(tuned.square, 0.001 * expected**2, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(tuned.embedding, state.embedding - 1e-3 * expected.sign(), rtol=0, atol=1e-8)
        assert tuned.prompt is tuned.embedding
        sizes.append(float(expected.norm()))
    assert sizes[0] > 1.5 * sizes[1] > 100 * sizes[2]


@pytest.mark.parametrize("adam", ["fresh", "persistent"])
@pytest.mark.parametrize("options", [{}, {"penalty": 3.0}, {"penalty": 3.0, "spread": 0.5}, {"lr_unit": "rms"}], ids=str)
@pytest.mark.parametrize("prior", [ConditionalGaussianPrior, WithClasses], ids=lambda p: p.__name__)
def test_two_levels_of_tuning_against_adam_of_torch(prior, options, adam):
    posterior, setting = codes(rows=3, prior=prior), P2L(K=4, lr=0.03, adam=adam, **options)
    y, null = posterior.likelihood.y, tensor([0.1, 0.2])
    with_classes = prior is WithClasses
    m, variance = (CLASSES.mean(0), CLASSES.var(0, correction=0)) if with_classes else (null, null.square().mean())
    unit = (CLASSES if with_classes else null).square().mean().sqrt() if "lr_unit" in options else 1.0
    c = nn.Parameter(null.repeat(3, 1))
    state, optimiser = setting.init(posterior, X), None
    for k, move in enumerate(moves(DDPM(steps=24))[8:10]):
        r2 = 0.25 * move.t.ratio**2 / (0.25 + move.t.ratio**2) if "spread" in options else 0.0
        if adam == "fresh" or optimiser is None:
            optimiser = torch.optim.Adam([c], lr=0.03 * float(unit))
        for i in range(4):
            c.grad = slope_of(state.x, move.t, c.detach(), y, math.sqrt(SIGMA**2 + r2))
            c.grad += options.get("penalty", 0.0) * (c.detach() - m) / variance
            optimiser.step()
            if k == i == 0:  # Adam's first step is lr in every direction that has a slope: there is something to agree about
                torch.testing.assert_close((c.detach() - null).abs(), 0.03 * float(unit) * torch.ones_like(c), rtol=1e-4, atol=0)
        state = setting.step(posterior, state, move, GivenNoise())
        torch.testing.assert_close(state.embedding, c.detach(), rtol=0, atol=1e-7)


def test_two_levels_of_tuning_among_classes_against_the_closed_form():
    """Steps of the log-weights along the derivatives towards the classes, scaled to spread 1, which levels hand on."""
    posterior, setting = codes(rows=3, prior=WithClasses), P2L(K=3, within="classes", class_lr=0.4)
    state, c, log_w = setting.init(posterior, X), tensor([0.1, 0.2]).repeat(3, 1), torch.zeros(3, 3, dtype=DOUBLE)
    assert torch.equal(state.embedding, c)
    for move in moves(DDPM(steps=24))[8:10]:
        for _ in range(3):
            slope = slope_of(state.x, move.t, c, posterior.likelihood.y)
            towards = torch.stack([((e - c) * slope).sum(1) for e in CLASSES], 1)
            log_w = log_w - 0.4 * (towards - towards.mean(1, keepdim=True)) / towards.std(1, correction=0, keepdim=True)
            c = log_w.softmax(1) @ CLASSES
        state = setting.step(posterior, state, move, GivenNoise())
        torch.testing.assert_close(state.embedding, c, rtol=0, atol=1e-9)
        torch.testing.assert_close(state.prompt, c, rtol=0, atol=1e-9)
    assert float(log_w.softmax(1).max()) < 0.99 and float((log_w.softmax(1) - 1 / 3).abs().max()) > 0.1


def test_a_mixture_ends_at_the_best_of_the_classes_and_stands_still_without_a_slope():
    """On a linear objective the weights converge to the lowest corner; where nothing is said, they stay."""
    slope = randn(5, 2, seed=21)
    log_w = torch.zeros(5, 3, dtype=DOUBLE)
    for _ in range(200):
        c, log_w = prompts.mix(CLASSES, log_w, slope, 0.3)
    torch.testing.assert_close(c, CLASSES[(slope @ CLASSES.mT).argmin(1)], rtol=0, atol=1e-6)
    c, still = prompts.mix(CLASSES, log_w, torch.zeros_like(slope), 0.3)
    assert torch.equal(still, log_w)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_a_mixture_of_many_tokens_moves_alike_whatever_the_unit_of_the_slope(size):
    tokens, slope = randn(4, 3, 5, seed=22), randn(2, 3, 5, seed=23)
    c, log_w = prompts.mix(tokens.float() + 10, torch.zeros(2, 4), slope.float() * size, 0.3)
    towards = torch.einsum("bij,nij->bn", slope, tokens)
    expected = -0.3 * (towards - towards.mean(1, keepdim=True)) / towards.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(log_w.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(c.double(), torch.einsum("bn,nij->bij", expected.softmax(1), tokens) + 10, rtol=0, atol=1e-5)


def test_tuning_among_classes_finds_the_class():
    """As often as least squares does, which P2L descends on; p(y | class), with the covariance of y, would tell more."""
    rows, labels = 150, torch.arange(150) % 3
    latent = WithClasses(MEAN, B, COV, null=tensor([0.1, 0.2]))
    whole = LatentPrior(latent, LinearAutoencoder(W, SHAPE, CODE, encoder=SKEW, offset=OFFSET))
    z = torch.cat([latent.conditioned(CLASSES[k]).law().draw(1, seed=100 + n) for n, k in enumerate(labels.tolist())])
    operator = Matrix(A, SHAPE)
    y = operator.measure(whole.decode(z), SIGMA)
    means = torch.stack([whole.decode((MEAN + e @ B.mT)[None]).flatten() @ A.mT for e in CLASSES])
    least_squares = float((torch.cdist(y.flatten(1), means).argmin(1) == labels).double().mean())
    watch, posterior = Prompts(), Posterior(whole, GaussianLikelihood(operator, y, SIGMA))
    sample(P2L(within="classes", tuned=(2.0, math.inf), zeta=0.1), posterior, SCHEDULE, progress=False, observe=watch)
    found = float((torch.cdist(watch.prompts, CLASSES).argmin(1) == labels).double().mean())
    assert found > least_squares - 3 * math.sqrt(least_squares * (1 - least_squares) / rows) > 0.6


def test_a_rehearsal_hands_on_its_prompt_and_nothing_else():
    posterior, schedule = codes(rows=3, prior=WithClasses), DDPM(steps=24)
    path, planned = moves(schedule), REHEARSED.plan(schedule)
    noisy = [move for move in path if move.t.ratio >= 1]
    assert [(m.t, m.s) for m in planned[-24:]] == [(m.t, m.s) for m in path] and len(planned) == 24 + 2 * (len(noisy) - 1)
    assert [m.index for m in planned] == list(range(len(planned))) and sum(m.last for m in planned) == 1
    assert replace(REHEARSED, K=0).plan(schedule) == replace(REHEARSED, rehearsals=0).plan(schedule)
    top = planned[-24]
    state = REHEARSED.step(posterior, REHEARSED.init(posterior, X), planned[0], GivenNoise())
    z = randn(3, 4, seed=31)
    found = REHEARSED.step(posterior, state, top, GivenNoise(z))
    expected = REHEARSED.step(posterior, replace(state, x=z * top.t.sigma), Move(top.t, top.s, top.index, top.total), GivenNoise())
    assert torch.equal(found.x, expected.x) and torch.equal(found.embedding, expected.embedding)
    assert float((state.embedding - tensor([0.1, 0.2])).abs().max()) > 0.1


def test_rehearsals_change_no_law_where_the_prompt_stands_still():
    """The first iterate of the schedule has the law that it has without them."""
    posterior = problem(sigma=0.5)
    still = P2L(K=1, lr=1e-14, zeta=0.01, gradient="squared")
    draws = [sample(replace(still, rehearsals=k), posterior, DDPM(steps=24), n=600, progress=False).flatten(2)[0] for k in (0, 1)]
    a, b = (d @ W for d in draws)
    spread = a.std(0)
    assert float(((a.mean(0) - b.mean(0)) / spread).abs().max()) < 4 * (2 / 600) ** 0.5
    assert float((b.std(0) / spread).log().abs().max()) < 4 / 600**0.5
    assert not torch.equal(a, b)


def test_auto_is_classes_where_there_is_a_table_and_no_prompt_and_anywhere_else():
    given = tensor([1.0, 0.5])
    for prior, embedding, same in (
        (WithClasses, None, "classes"),
        (ConditionalGaussianPrior, None, "anywhere"),
        (WithClasses, given, "anywhere"),
    ):
        posterior = problem(rows=2, prior=prior, embedding=embedding)
        auto, named = (sample(P2L(within=w, lr=0.01), posterior, SCHEDULE, progress=False) for w in ("auto", same))
        assert torch.equal(auto, named)


@pytest.mark.parametrize(("lam", "gradient"), [(1.0, "norm"), (0.3, "norm"), (None, "norm"), (None, "squared")])
@pytest.mark.parametrize("index", [7, 8])
def test_one_step_against_dense_algebra(index, lam, gradient):
    """The noise in the DDIM step is the network's at z_t, not that of the projected estimate."""
    posterior, move = codes(rows=3), moves(DDPM(steps=24))[index]
    setting = P2L(K=0, gamma=8, lam=lam, zeta=0.4, gradient=gradient)
    x0, J = x0_of(X, move.t, tensor([0.1, 0.2]))
    r = posterior.likelihood.y - (x0 @ W.mT + OFFSET.flatten()) @ A.mT
    scale = 2.0 if gradient == "squared" else 1 / r.norm(dim=1, keepdim=True)
    g = -scale * (r @ A @ W @ J)
    weight = (SIGMA / move.t.ratio) ** 2 if lam is None else lam
    noise, held = (X - move.t.alpha * x0) / move.t.sigma, x0
    # 16 steps are left at index 8, of 24.
    if index == 8:
        image = x0 @ W.mT + OFFSET.flatten()
        image = torch.linalg.solve(A.mT @ A + weight * torch.eye(12, dtype=DOUBLE), (posterior.likelihood.y @ A + weight * image).mT).mT
        x0 = (image - OFFSET.flatten()) @ SKEW.mT
    found = setting.step(posterior, setting.init(posterior, X), move, GivenNoise())
    torch.testing.assert_close(found.x, move.s.alpha * x0 + move.s.sigma * noise - 0.4 * g, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.x0, held, rtol=0, atol=1e-12)
    assert found.embedding is None


def test_projection_gives_the_pixel_routes_latent():
    """E prox D with an orthonormal W: z0_hat + G^T (A A^T + lam)^-1 (y - G z0_hat), a weaker step than the prox of the code."""
    posterior = codes(encoder=None)
    A_, z = posterior.likelihood.inner.operator, randn(1, 4, seed=3)
    G, r = A @ W, posterior.likelihood.inner.residual(posterior.prior.decode(z))
    found = P2L(lam=0.5)._project(posterior, z, MOVE.t)
    torch.testing.assert_close(found, z + torch.linalg.solve(A @ A.mT + 0.5 * torch.eye(7), r.mT).mT @ G, rtol=0, atol=1e-10)
    # For lam -> 0 the image agrees with y, before it is encoded.
    image = A_.prox_l2(posterior.prior.decode(z), posterior.likelihood.y, 1e8)
    assert float(posterior.likelihood.inner.residual(image).abs().max()) < 1e-6
    torch.testing.assert_close(P2L(lam=1e-8)._project(posterior, z, MOVE.t), posterior.prior.encode(image))


# -- limits ---------------------------------------------------------------------------------------------------------------

SCHEDULE = DDPM(steps=24)


def test_without_prompt_and_projection_it_is_latent_dps():
    """K = 0 leaves the given prompt alone: with eta = 1 `DPS` on the conditioned prior, with eta = 0 `PSLD` without gluing."""
    posterior = problem(rows=2, embedding=TRUE)
    plain = Posterior(LatentPrior(posterior.prior.prior.law(), posterior.prior.autoencoder), posterior.likelihood)
    for ours, theirs in (
        (P2L(K=0, gamma=0, eta=1.0, zeta=0.3), DPS(zeta=0.3, variance="posterior")),
        (P2L(K=0, gamma=0, zeta=0.3), PSLD(omega=0.3, gamma=0)),
    ):
        a = sample(ours, posterior, SCHEDULE, n=2, progress=False)
        for target in (posterior, plain):
            torch.testing.assert_close(a, sample(theirs, target, SCHEDULE, n=2, progress=False), rtol=1e-9, atol=1e-11)
    projected = sample(P2L(K=0, zeta=0.3), posterior, SCHEDULE, n=2, progress=False)
    assert float((projected - a).abs().max()) > 1e-2
    # On a prior that takes no prompt the same, with projection.
    torch.testing.assert_close(sample(P2L(K=0, zeta=0.3), plain, SCHEDULE, n=2, progress=False), projected, rtol=1e-9, atol=1e-11)


def test_a_prompt_that_cannot_move_is_a_fixed_prompt():
    posterior = problem(rows=2)
    fixed = sample(P2L(K=0, zeta=0.3), posterior, SCHEDULE, n=2, progress=False)
    held = sample(P2L(K=2, lr=0.1, radius=1e-13, zeta=0.3), posterior, SCHEDULE, n=2, progress=False)
    torch.testing.assert_close(held, fixed, rtol=0, atol=1e-9)
    beyond = sample(P2L(K=2, lr=0.1, tuned=(1e4, 1e5), zeta=0.3), posterior, SCHEDULE, n=2, progress=False)
    torch.testing.assert_close(beyond, fixed, rtol=0, atol=1e-9)


def test_the_law_with_a_fixed_prompt_against_dense_propagation():
    posterior, eye = problem(embedding=TRUE), torch.eye(4, dtype=DOUBLE)
    setting = P2L(K=0, gamma=3, lam=0.4, zeta=0.02, gradient="squared", eta=0.5)
    y, flat = posterior.likelihood.y[0], OFFSET.flatten()
    G, h, pinned = A @ W, y - A @ flat, torch.linalg.inv(A.mT @ A + 0.4 * torch.eye(12, dtype=DOUBLE))
    # z0_hat -> E prox D z0_hat = P z0_hat + p.
    P, p = SKEW @ pinned @ (0.4 * W), SKEW @ (pinned @ (A.mT @ y + 0.4 * flat) - flat)
    mean, cov = torch.zeros(4, dtype=DOUBLE), moves(SCHEDULE)[0].t.sigma ** 2 * eye
    for move in moves(SCHEDULE):
        (a, s), (b, r) = move.t, move.s
        _, J = x0_of(X, move.t, TRUE)
        d = x0_of(torch.zeros(1, 4, dtype=DOUBLE), move.t, TRUE)[0][0]
        c = 0.5 * r * math.sqrt(1 - a**2 * r**2 / (b**2 * s**2)) if r else 0.0
        kept = math.sqrt(r**2 - c**2) / s
        due = (24 - move.index) % 3 == 0
        Q, q = (P, p) if due else (eye, torch.zeros(4, dtype=DOUBLE))
        F = b * Q @ J + kept * (eye - a * J) - 0.04 * J.mT @ G.mT @ G @ J
        f = b * (Q @ d + q) - kept * a * d + 0.04 * J.mT @ G.mT @ (h - G @ d)
        mean, cov = F @ mean + f, F @ cov @ F.mT + c**2 * eye
    found = output_law(setting, posterior, SCHEDULE)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], cov, rtol=0, atol=1e-9)


# -- where the embedding goes ----------------------------------------------------------------------------------------------

NOISIEST = Move(Level(1e-4, 1.0), Level(1e-3, 1.0), 0, 2)


def tuned(setting, posterior, times=1):
    state = setting.init(posterior, torch.zeros(len(posterior.likelihood.y), 4, dtype=DOUBLE))
    for _ in range(times):
        state = prompts.tune(setting, posterior, state, NOISIEST.t)
    return state.embedding


def law(posterior, mean=None, cov=None, sigma=SIGMA):
    """The least-squares condition, or under N(mean, cov) the most probable one given y = A D(E[z_0 | c]) + noise."""
    return posterior.prior.prior.condition_given(
        A @ W, posterior.likelihood.y - A @ OFFSET.flatten(), sigma, mean, cov, marginal=False
    ).mean


def test_in_noise_it_ends_at_the_least_squares_prompt_which_is_not_the_most_likely():
    posterior = codes(rows=2)
    found = tuned(P2L(K=400, lr=0.03), posterior)
    torch.testing.assert_close(found, law(posterior), rtol=0, atol=1e-3)
    likely = posterior.prior.prior.condition_given(A @ W, posterior.likelihood.y - A @ OFFSET.flatten(), SIGMA).mean
    assert float((found - likely).abs().max()) > 0.05


@pytest.mark.parametrize(("kappa", "spread"), [(2.0, 0.7), (300.0, 0.0)])
def test_a_penalty_pulls_to_the_most_probable_prompt(kappa, spread):
    posterior = codes(rows=2, prior=WithClasses)
    found = tuned(P2L(K=400, lr=0.03, penalty=kappa, spread=spread), posterior)
    m, cov = CLASSES.mean(0), torch.diag(CLASSES.var(0, correction=0)) / kappa
    # At sigma/alpha of 1e4 all of the spread is open.
    torch.testing.assert_close(found, law(posterior, m, cov, math.hypot(SIGMA, spread)), rtol=0, atol=1e-3)
    assert float((found - law(posterior)).norm(dim=1).min()) > 0.02


def test_a_ball_holds_it_at_its_edge():
    posterior = codes(rows=2)
    start = tensor([0.1, 0.2])
    free, held = (tuned(P2L(K=100, lr=0.05, radius=r), posterior) - start for r in (None, 0.25))
    assert float(free.norm(dim=1).min()) > 0.3
    torch.testing.assert_close(held.norm(dim=1), tensor([0.25, 0.25]), rtol=0, atol=1e-9)


def test_tuning_brings_prompt_and_image_nearer_to_the_truth():
    posterior, rows = problem(rows=40, encoder=None), 40
    truth = posterior.prior.decode(posterior.prior.prior.conditioned(TRUE).law().draw(rows, seed=8))
    target = Posterior(
        posterior.prior, GaussianLikelihood(posterior.likelihood.operator, posterior.likelihood.operator.measure(truth, 0.2), 0.2)
    )
    watch, errors = Prompts(), {}
    for name, options in {"null": {"K": 0}, "published": {"K": 4}, "tuned": {"K": 4, "lr": 0.02, "tuned": (1.0, math.inf)}}.items():
        drawn = sample(P2L(zeta=0.1, **options), target, ScaledLinear(steps=60), progress=False, observe=watch)[:, 0]
        errors[name] = float((drawn - truth).square().mean().sqrt())
    start, end = float((tensor([0.1, 0.2]) - TRUE).norm()), float((watch.prompts - TRUE).norm(dim=1).median())
    # An entry moves by no more than about lr K T: 0.024 of the distance of 1.27 with the published lr, nothing to speak of.
    assert errors["published"] > 0.95 * errors["null"]
    assert errors["tuned"] < 0.75 * errors["null"] and end < 0.6 * start


class Prompts:
    """Keeps the embeddings that rows ended with."""

    prompts = None

    def __call__(self, event):
        pass

    def finish(self, rows, fields):
        self.prompts = fields["prompt"]


# -- tokens ----------------------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """A network whose output depends on (tokens, width) embeddings by attention over the tokens."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.query, self.value = (nn.Parameter(torch.randn(*s, generator=source)) for s in ((2, 5), (5, 2)))

    def forward(self, x, time, embedding):
        query = torch.einsum("bchw,cd->bdhw", x, self.query)
        weight = torch.einsum("bdhw,bkd->bkhw", query, embedding).softmax(1)
        return 0.1 * x + torch.einsum("bkhw,bkd,dc->bchw", weight, embedding, self.value)


def attending():
    null = 0.1 * torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    table = TrainingTable.from_alpha_bars([level.alpha**2 for level in reversed(ScaledLinear(50).levels()[:-1])])
    prior = ConditionalNetworkPrior(Attends(), table, null=null, channels=2)
    linear = LinearAutoencoder(torch.eye(8).repeat(2, 1) / 2**0.5, (4, 2, 2), (2, 2, 2))
    A = Matrix(torch.randn(5, 16, generator=torch.Generator().manual_seed(3)), (4, 2, 2))
    y = torch.randn(2, 5, generator=torch.Generator().manual_seed(4))
    return Posterior(LatentPrior(prior, linear), GaussianLikelihood(A, y, 0.1))


def test_embeddings_of_many_tokens_and_what_a_step_costs():
    posterior, watch = attending(), Prompts()
    before = vars(posterior.prior.calls).copy()
    setting = P2L(K=3, lr=0.01, radius=0.04, zeta=0.1, gamma=10)
    sample(setting, posterior, ScaledLinear(steps=20), n=2, progress=False, observe=watch, checkpoint_every=0)
    spent = {k: v - before[k] for k, v in vars(posterior.prior.calls).items()}
    assert watch.prompts.shape == (4, 3, 5)
    lengths = (watch.prompts - posterior.prior.null).norm(dim=-1)
    assert 0.03 < float(lengths.max()) <= 0.04 + 1e-6
    assert spent["forward"] == spent["backward"] == 20 * 4
    assert spent["encode"] == 2
    # One for each pass and projection, and the result; what the monitor decodes is not counted.
    assert spent["decode"] == 20 * 4 + 2 + 1
    # Rows differ, as their noise does.
    assert float((watch.prompts[0] - watch.prompts[1]).abs().max()) > 1e-4


SETTINGS = [
    P2L(K=2, lr=0.01, zeta=0.3),
    P2L(K=1, lr=0.01, adam="persistent", penalty=1.0, spread=0.3, radius=1.0, zeta=0.3, eta=0.7, lam=None, lr_unit="rms"),
]


MIXED = P2L(K=2, within="classes", zeta=0.3)
REHEARSED = P2L(K=1, within="classes", rehearsals=2, tuned=(1.0, math.inf), zeta=0.3)


ROWS = [*((setting, ConditionalGaussianPrior) for setting in SETTINGS), *((s, WithClasses) for s in (SETTINGS[1], MIXED, REHEARSED))]


@pytest.mark.parametrize(("setting", "prior"), ROWS, ids=str)
def test_a_batch_equals_single_runs_and_a_resumed_one(setting, prior, tmp_path):
    posterior = problem(rows=3, prior=prior)
    together = sample(setting, posterior, SCHEDULE, n=2, progress=False)
    for b in range(3):
        alone = sample(setting, posterior.select(torch.tensor([b])), SCHEDULE, n=2, ids=[b], progress=False)
        torch.testing.assert_close(together[b], alone[0], rtol=0, atol=1e-9)

    class Stops(Exception):
        pass

    def stop(event):
        if event.index == 13:
            raise Stops

    options = {"n": 2, "progress": False, "checkpoint": tmp_path / "run.pt", "checkpoint_every": 5}
    with pytest.raises(Stops):
        sample(setting, posterior, SCHEDULE, observe=stop, **options)
    assert torch.equal(sample(setting, posterior, SCHEDULE, **options), together)


def test_each_row_may_start_from_a_prompt_of_its_own():
    own = tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    posterior = problem(rows=3, embedding=own)
    assert torch.equal(P2L().init(posterior.in_prior_space(), X).embedding, own)
    together = sample(SETTINGS[0], posterior, SCHEDULE, progress=False)
    alone = sample(SETTINGS[0], posterior.select(torch.tensor([1])), SCHEDULE, ids=[1], progress=False)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("setting", [P2L(K=2), MIXED], ids=str)
def test_under_inference_mode(setting):
    posterior = codes(prior=WithClasses)
    expected = setting.step(posterior, setting.init(posterior, X[:1]), MOVE, GivenNoise())
    with torch.inference_mode():
        found = setting.step(posterior, setting.init(posterior, X[:1].clone()), MOVE, GivenNoise())
    assert torch.equal(found.x, expected.x) and torch.equal(found.embedding, expected.embedding)


def test_refusals():
    for options, message in (
        ({"K": -1}, "K=-1; a whole number >= 0"),
        ({"gamma": 1.5}, r"gamma=1\.5; a whole number >= 0"),
        ({"rehearsals": -1}, r"rehearsals=-1; a whole number in \[0, 1000\]"),
        ({"lr": 0.0}, r"lr=0\.0; a finite number > 0"),
        ({"lam": 0.0}, r"lam=0\.0; a finite number > 0"),
        ({"radius": -1.0}, r"radius=-1\.0; a finite number > 0"),
        ({"penalty": -1.0}, r"penalty=-1\.0; a finite number >= 0"),
        ({"tuned": (2.0, 1.0)}, r"tuned=\(2\.0, 1\.0\); an interval"),
        ({"adam": "warm"}, "adam='warm'; one of fresh, persistent"),
        ({"eta": 1.5}, r"eta=1\.5; a number in \[0, 1\]"),
        ({"within": "table"}, "within='table'; one of anywhere, classes, auto"),
        ({"class_lr": 0.0}, r"class_lr=0\.0; a finite number > 0"),
        ({"within": "classes", "penalty": 1.0}, r"penalty=1\.0 is of within='anywhere'; leave it at 0\.0 for a mixture"),
        ({"within": "classes", "radius": 1.0}, r"radius=1\.0 is of within='anywhere'; leave it at None"),
        ({"within": "classes", "adam": "persistent"}, r"adam='persistent' is of within='anywhere'; leave it at 'fresh'"),
    ):
        with pytest.raises(ValueError, match=message):
            P2L(**options)

    def run(target, **options):
        return sample(P2L(**options), target, DDPM(steps=5), progress=False)

    prior, y = problem().prior, torch.ones(1, *SHAPE, dtype=DOUBLE)
    free = Posterior(LatentPrior(GaussianPrior(MEAN, COV), prior.autoencoder), problem().likelihood)
    with pytest.raises(TypeError, match=r"a GaussianPrior takes none; K=0 leaves it alone"):
        run(free)
    with pytest.raises(TypeError, match=r"a GaussianPrior takes none"):
        run(Posterior(GaussianPrior(MEAN, COV), GaussianLikelihood(Identity(CODE), MEAN[None], 0.1)))
    assert run(free, K=0).isfinite().all()
    with pytest.raises(TypeError, match="needs a prior with a table of classes, and this one has none; take 'anywhere'"):
        run(problem(), within="classes")
    with pytest.raises(ValueError, match="starts from null, and the prior has been given a prompt; take 'anywhere'"):
        run(problem(prior=WithClasses, embedding=tensor([1.0, 0.5])), within="classes")
    with pytest.raises(ValueError, match=r"spread=0\.1 is of within='anywhere'"):
        run(problem(prior=WithClasses), within="auto", spread=0.1)
    assert run(problem(), within="auto", spread=0.1, radius=1.0).isfinite().all()
    with pytest.raises(ValueError, match="guidance=0 keeps the prompt from the network"):
        run(problem(guidance=0.0))
    with pytest.raises(ValueError, match="needs sigma > 0; K=0"):
        run(problem(sigma=0.0))
    assert run(problem(sigma=0.0), K=0).isfinite().all()
    with pytest.raises(ValueError, match="lam=None weighs the projection by the noise of y, which needs sigma > 0"):
        run(problem(sigma=0.0), K=0, lam=None)
    assert run(problem(sigma=0.0), K=0, gamma=0, lam=None).isfinite().all()
    zero = Posterior(LatentPrior(ConditionalGaussianPrior(MEAN, B, COV), prior.autoencoder), problem().likelihood)
    with pytest.raises(ValueError, match="entries of the null embedding, which are all zero; take 'absolute'"):
        run(zero, lr_unit="rms")
    with pytest.raises(ValueError, match=r"penalty=2\.0 is divided by the variance of the embeddings, which is zero here"):
        run(zero, penalty=2.0)
    assert run(zero).isfinite().all()
    squares = Posterior(prior, GaussianLikelihood(Squares(SHAPE), y, 0.1))
    photons = Posterior(prior, PoissonLikelihood(Identity(SHAPE), y, 0.1))
    with pytest.raises(TypeError, match="Squares is not linear; gamma=0 takes any"):
        run(squares)
    with pytest.raises(TypeError, match="GaussianLikelihood, not a PoissonLikelihood; gamma=0 takes any"):
        run(photons)
    with pytest.raises(TypeError, match=r"spread=0\.1 needs a GaussianLikelihood"):
        run(photons, gamma=0, spread=0.1)
    with pytest.raises(TypeError, match="gradient='squared' needs a GaussianLikelihood"):
        run(photons, gamma=0, gradient="squared")
    for target in (squares, photons):
        assert run(target, gamma=0, zeta=0.01).isfinite().all()


def test_an_observer_of_chains_takes_nothing_of_prompts():
    chains = Chains()
    sample(P2L(), problem(), DDPM(steps=5), progress=False, observe=chains)
    assert chains.ids == []


def test_the_state_is_made_of_what_can_be_saved():
    state = P2L().init(codes(rows=3), X)
    assert isinstance(state, Prompted) and state.statistics == ("prompt",)
    fresh = Adam.start(state.embedding)
    assert torch.equal(state.mean, fresh.mean) and torch.equal(state.square, fresh.square)
    assert all(v is None or isinstance(v, torch.Tensor | int) for v in vars(state).values())
