"""DAPS and its inner chains against closed forms."""

import math
from dataclasses import dataclass

import pytest
import torch
from problems import DOUBLE, Squares, assert_drawn_from, problem_16, problem_mixture, problem_r1, randn, tensor
from torch.utils._python_dispatch import TorchDispatchMode

from invsolve import Posterior, sample
from invsolve.config.load import load
from invsolve.diagnostics.affine import output_law
from invsolve.kernels import mcmc, reverse
from invsolve.levels import Level, Move
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianPrior
from invsolve.samplers import DAPS
from invsolve.samplers.daps import Annealed
from invsolve.schedules import Karras, Levels, moves
from invsolve.streams import GivenNoise, Noise
from operators import Identity, Matrix

CHAINS = ("langevin", "underdamped", "hmc", "metropolis")


def paper_grid(steps=200):
    """The first `steps` of steps + 1 points from 100 to 0.1 on the poly-7 grid."""
    return Karras(steps, 100.0, (100 ** (1 / 7) + (steps - 1) / steps * (0.1 ** (1 / 7) - 100 ** (1 / 7))) ** 7)


class Draws:
    """Standard normal numbers for many rows at once, where rows need no streams of their own."""

    def __init__(self, rows, seed=0):
        self.rows, self.source = rows, torch.Generator().manual_seed(seed)

    def normal(self, shape):
        return torch.randn(self.rows, *shape, dtype=DOUBLE, generator=self.source)


@dataclass(frozen=True)
class TrueCovariance(DAPS):
    """The inner prior is N(x0_hat, Cov(x_0 | x_t)) in place of N(x0_hat, r^2 I); Gaussian priors."""

    def _draw(self, target, state, move, noise):
        C, A = target.prior.cov, target.likelihood.operator.matrix.to(DOUBLE)
        V = C @ torch.linalg.inv(C + move.t.ratio**2 * torch.eye(len(C), dtype=DOUBLE)) * move.t.ratio**2
        K = V @ A.mT @ torch.linalg.inv(A @ V @ A.mT + target.likelihood.sigma**2 * torch.eye(len(A), dtype=DOUBLE))
        root = torch.linalg.cholesky(V - K @ A @ V)
        mean = state.x0 + (target.likelihood.y - state.x0 @ A.mT) @ K.mT
        return mean + noise.normal(state.x0.shape[1:]) @ root.mT


@dataclass(frozen=True)
class TrueConditional(DAPS):
    """u is drawn from p(x_0 | x_t, y), which takes x_t as a further measurement of x_0; Gaussian and mixture priors."""

    def _draw(self, target, state, move, noise):
        A, y, sigma = target.likelihood.operator.matrix.to(DOUBLE), target.likelihood.y, target.likelihood.sigma
        x, t = state.x, move.t.ratio
        both = Matrix(torch.cat([torch.eye(x.shape[1], dtype=DOUBLE) / t, A / sigma]), tuple(x.shape[1:]))
        seen = torch.cat([x / t, y.expand(len(x), -1) / sigma], 1)
        exact = Posterior(target.prior, GaussianLikelihood(both, seen, sigma=1.0)).exact()
        roots = torch.linalg.cholesky(exact.covs)
        k = torch.zeros(len(x), dtype=torch.long)
        if len(roots) > 1:
            k = (torch.special.ndtr(noise.normal(())) > exact.weights[:, 0]).long()
        means = exact._means[torch.arange(len(x)), k]
        return means + torch.einsum("bij,bj->bi", roots[k], noise.normal(x.shape[1:]))


R1 = [
    # mean 1, mean 2, variance 1, covariance, variance 2; by independent propagation, to the digits shown
    (DAPS(estimate="ode"), (0.9935, 0.7434, 0.00989, 0.00844, 0.6655)),
    (DAPS(), (0.9896, 0.7521, 0.00982, 0.00845, 0.4043)),
    (DAPS(estimate="ode", ode_steps=100), (0.9946, 0.7451, 0.00991, 0.00872, 0.8210)),
    (TrueCovariance(estimate="ode"), (0.9940, 0.7994, 0.00998, 0.00767, 0.5852)),
    (TrueConditional(), (0.9901, 0.7921, 0.00990, 0.00792, 0.3663)),
]


@pytest.mark.parametrize(("sampler", "expected"), R1, ids=lambda v: str(v)[:50])
def test_law_on_r1(sampler, expected):
    mean, cov = output_law(sampler, problem_r1(), paper_grid())
    found = [*mean.tolist(), cov[0, 0].item(), cov[0, 1].item(), cov[1, 1].item()]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_true_conditional_gives_the_exact_posterior_in_16_dimensions():
    """The annealing itself is exact: what remains of a bias is the inner prior's."""

    @dataclass(frozen=True)
    class Exact(TrueConditional):
        def _draw(self, target, state, move, noise):
            flat = Posterior(GaussianPrior(target.prior.mean.flatten(), target.prior.cov), self._flat(target))
            u = super()._draw(flat, Annealed(state.x.flatten(1)), move, _Flat(noise))
            return u.reshape(state.x.shape)

        @staticmethod
        def _flat(target):
            held = target.likelihood
            return GaussianLikelihood(Matrix(held.operator.matrix, (16,)), held.y, held.sigma)

    class _Flat:
        def __init__(self, noise):
            self.noise = noise

        def normal(self, shape):
            return self.noise.normal((1, 4, 4)).flatten(1)

    posterior = problem_16()
    exact = posterior.exact()
    mean, cov = output_law(Exact(), posterior, Karras(15, 20.0, 0.05))
    assert torch.allclose(mean, exact.mean[0], atol=1e-4)
    assert torch.allclose(cov, exact.cov, atol=1e-4)


@pytest.mark.parametrize("estimate", ["ode", "tweedie"])
def test_variance_where_nothing_is_measured(estimate):
    """V -> V g^2 + 2 sigma^2 (annealed), with g = c/(c + sigma^2) by the mean and its root by the exact ODE."""
    c, schedule = 1.0, Karras(30, 20.0, 0.05)
    blind = Posterior(
        GaussianPrior(tensor([0.0]), tensor([[c]])), GaussianLikelihood(Matrix(tensor([[0.0]]), (1,)), tensor([[0.0]]), sigma=1.0)
    )
    V = schedule.sigma_max**2
    for move in moves(schedule):
        g = c / (c + move.t.sigma**2)
        V = V * (g**2 if estimate == "tweedie" else g) + move.t.sigma**2 + move.s.sigma**2
    # The ODE ends at 1e-5 instead of 0, by second-order steps.
    sampler = DAPS(estimate=estimate, ode_steps=80, ode_kernel="heun", ode_sigma_min=1e-5)
    assert float(output_law(sampler, blind, schedule)[1]) == pytest.approx(V, rel=2e-3)


def test_the_path_does_not_matter():
    """Levels of the same sigma/alpha give the same law, whatever alpha."""
    posterior, ratios = problem_r1(), [m.t.ratio for m in moves(Karras(20, 50.0, 0.05))]
    preserving = Levels([*((1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratios), (1.0, 0.0)])
    odd = Levels([*((0.3 + 0.1 * k, r * (0.3 + 0.1 * k)) for k, r in enumerate(ratios)), (1.0, 0.0)])
    for sampler in (DAPS(), DAPS(estimate="ode", prior_std=0.5)):
        mean, cov = output_law(sampler, posterior, Karras(20, 50.0, 0.05))
        for path in (preserving, odd):
            other = output_law(sampler, posterior, path)
            assert torch.allclose(other[0], mean, atol=1e-12) and torch.allclose(other[1], cov, atol=1e-12)


def test_inner_ode_takes_the_published_nodes():
    visited = []

    class Prior(GaussianPrior):
        def denoise(self, x, t):
            visited.append(t)
            return super().denoise(x, t)

    r1 = problem_r1()
    target = Posterior(Prior(r1.prior.mean, r1.prior.cov), r1.likelihood)
    x, z = randn(1, 2, seed=1), torch.zeros(1, 2, dtype=DOUBLE)
    move = Move(Level(0.5, 50.0), Level(1.0, 1.0), 0, 2)
    DAPS(estimate="ode").step(target, Annealed(x), move, GivenNoise(z, z[:, :1], z))
    assert [t.sigma for t in visited] == pytest.approx([100, 33.0, 8.86, 1.75, 0.211], rel=3e-3)
    assert all(t.alpha == 1 for t in visited)
    # At or below the ODE's last level there is nothing to integrate.
    visited.clear()
    DAPS(estimate="ode").step(target, Annealed(x), Move(Level(1.0, 0.01), Level(1.0, 0.0), 0, 1), GivenNoise(z, z[:, :1]))
    assert visited == [Level(1.0, 0.01)]


def test_prior_std_narrows_the_inner_prior():
    """The step is prox(x0_hat + r z, y + sigma_y n), then noise: dense algebra, with r^2 = ratio^2 s^2/(ratio^2 + s^2)."""
    posterior = problem_16(rows=2)
    A, y, sigma = posterior.likelihood.operator.matrix.to(DOUBLE), posterior.likelihood.y, posterior.likelihood.sigma
    move, x = Move(Level(0.8, 0.8), Level(0.9, 0.3), 3, 9), randn(2, 1, 4, 4, seed=7)
    z, n, w = randn(2, 1, 4, 4, seed=8), randn(2, 7, seed=9), randn(2, 1, 4, 4, seed=10)
    for s, r2 in ((None, 1.0), (0.5, 0.2)):
        found = DAPS(prior_std=s).step(posterior, Annealed(x), move, GivenNoise(z, n, w))
        x0 = posterior.prior.denoise(x, move.t)
        centre = (x0 + math.sqrt(r2) * z).flatten(1)
        P = A.mT @ A / sigma**2 + torch.eye(16, dtype=DOUBLE) / r2
        u = torch.linalg.solve(P, ((y + sigma * n) @ A / sigma**2 + centre / r2).mT).mT.reshape(x.shape)
        assert torch.allclose(found.x, 0.9 * u + 0.3 * w, atol=1e-10)
        assert torch.allclose(found.x0, x0, atol=1e-12)


# -- the published inner chain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["official", "legacy", "correct"])
@pytest.mark.parametrize("kind", ["langevin", "underdamped", "metropolis"])
def test_published_chain_step_by_step(kind, scale):
    """The loops as the reference writes them down, with the noise given."""
    posterior, move = problem_16(rows=2), Move(Level(1.0, 0.5), Level(1.0, 0.2), 4, 10)
    A, y = posterior.likelihood.operator.matrix.to(DOUBLE), posterior.likelihood.y
    x, tau, m, steps = randn(2, 1, 4, 4, seed=7), 0.05, 0.7, 4
    # The weight of grad ||r||^2 for the samplers by gradient, that of ||r||^2 itself for Metropolis.
    weight = {"official": 1 / tau**2, "legacy": 1 / (2 * tau**2), "correct": 1 / (2 * posterior.likelihood.sigma**2)}[scale]
    if kind == "metropolis" and scale == "official":
        weight = 1 / (2 * tau**2)
    eta = 3e-4 * (1 + 4 / 11 * (0.1 - 1))
    z = [randn(2, 16, seed=20 + k) for k in range(steps + 2)]
    a = [randn(2, seed=40 + k) for k in range(steps)]
    x0 = posterior.prior.denoise(x, move.t).flatten(1)
    u, v, noise = x0, z[0], []

    def score(u):
        return -2 * weight * (u @ A.mT - y) @ A + (x0 - u) / 0.5**2

    def energy(u):
        return weight * (u @ A.mT - y).square().sum(1) + (u - x0).square().sum(1) / (2 * 0.5**2)

    if kind == "langevin":
        for k in range(steps):
            u = u + eta * score(u) + math.sqrt(2 * eta) * z[k]
            noise.append(z[k])
    elif kind == "underdamped":
        noise.append(z[0])
        for k in range(steps):
            v = m * v + math.sqrt(eta) * score(u) + math.sqrt(2 * (1 - m)) * z[k + 1]
            u = u + math.sqrt(eta) * v
            noise.append(z[k + 1])
    else:
        for k in range(steps):
            q = u + math.sqrt(eta) * z[k]
            taken = torch.special.ndtr(a[k]).log() < energy(u) - energy(q)
            u = torch.where(taken[:, None], q, u)
            noise += [z[k], a[k]]
        assert 0 < (u == x0).float().mean() < 1 or not torch.equal(u, x0)
    given = GivenNoise(*(v.reshape(2, 1, 4, 4) if v.ndim == 2 else v for v in (*noise, z[-1])))
    sampler = DAPS(inner=kind, inner_steps=steps, lr=3e-4, lr_min_ratio=0.1, momentum=m, likelihood=scale, tau=tau)
    found = sampler.step(posterior, Annealed(x), move, given)
    assert torch.allclose(found.x.flatten(1), u + 0.2 * z[-1], atol=1e-10)
    assert given.used == len(noise) + 1


def test_exact_draw_with_the_official_scale():
    """The noise of y counts as tau^2 / 2."""
    posterior = problem_r1()
    official = DAPS(inner="exact", likelihood="official", tau=0.3 * math.sqrt(2))
    louder = Posterior(posterior.prior, GaussianLikelihood(posterior.likelihood.operator, posterior.likelihood.y, 0.3))
    for a, b in zip(output_law(official, posterior, Karras(20)), output_law(DAPS(), louder, Karras(20)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert posterior.likelihood.sigma == 0.1


# -- chains on their own --------------------------------------------------------------------------------------------------

PRECISION = tensor([[4.0, 1.0], [1.0, 9.0]])
CENTRE = tensor([0.5, -1.0])
GAUSSIAN = mcmc.Density(lambda u: -torch.einsum("bi,ij,bj->b", u - CENTRE, PRECISION, u - CENTRE) / 2, lambda u: -(u - CENTRE) @ PRECISION)


def test_langevin_leaves_the_predicted_law_unchanged():
    """Covariance P^-1 (I - eta P / 2)^-1, mean unchanged; by exact propagation of one step."""
    eta, eye = 0.1, torch.eye(2, dtype=DOUBLE)
    cov = torch.linalg.inv(PRECISION @ (eye - eta * PRECISION / 2))
    step = lambda u, z: mcmc.langevin(GAUSSIAN, u, GivenNoise(z), 1, eta)  # noqa: E731
    F = (step(CENTRE + eye, 0 * eye) - CENTRE).mT
    G = (step(CENTRE.expand(2, 2), eye) - CENTRE).mT
    assert torch.allclose(F @ cov @ F.mT + G @ G.mT, cov, atol=1e-14)
    assert torch.allclose(step(CENTRE[None], 0 * eye[:1]), CENTRE[None])
    # And not that of the target, by the 29 % (of 1 - eta P/2 = 0.54 to 0.81) that the step predicts.
    assert float((cov @ PRECISION).diagonal().max()) > 1.5


def test_underdamped_leaves_the_predicted_law_unchanged():
    """In one dimension of precision p: cov(u, v) from the two-by-two Lyapunov equation; velocity starts as N(0, 1)."""
    p, eta, m, steps = 4.0, 0.05, 0.8, 200
    density = mcmc.Density(lambda u: -p * u.square()[:, 0] / 2, lambda u: -p * u)
    root = math.sqrt(eta)
    # (u, v) -> (u + root v', v') with v' = m v - root p u + sqrt(2 (1 - m)) z.
    F = tensor([[1 - eta * p, root * m], [-root * p, m]])
    g = math.sqrt(2 * (1 - m)) * tensor([root, 1.0])
    S = torch.diag(tensor([0.0, 1.0]))
    for _ in range(steps):
        S = F @ S @ F.mT + torch.outer(g, g)
    n = 20000
    u = mcmc.underdamped(density, torch.zeros(n, 1, dtype=DOUBLE), Draws(n), steps, eta, m)
    assert float(u.square().mean()) == pytest.approx(float(S[0, 0]), rel=4 * math.sqrt(2 / n))
    # Without momentum it is Langevin.
    z = [randn(3, 1, seed=k) for k in range(5)]
    ours = mcmc.underdamped(density, z[0], GivenNoise(*z[:5]), 4, eta, 0.0)
    assert torch.allclose(ours, mcmc.langevin(density, z[0], GivenNoise(*z[1:5]), 4, eta), atol=1e-14)


def _moments_agree(u, mean, cov):
    """Whitened mean and covariance of independent rows within 4.5 standard errors."""
    n, d = u.shape
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (u - mean).mT, upper=False)
    assert float(white.mean(1).abs().max()) < 4.5 / math.sqrt(n)
    assert float((white @ white.mT / n - torch.eye(d, dtype=DOUBLE)).abs().max()) < 4.5 * math.sqrt(2 / n)


@pytest.mark.parametrize("tuned", [False, True])
def test_hmc_and_metropolis_draw_from_the_gaussian_itself(tuned):
    # From 3 away; after these steps the start is forgotten, and independent rows give the standard error.
    n, cov = 20000, torch.linalg.inv(PRECISION)
    start = torch.full((n, 2), 3.0, dtype=DOUBLE)
    u = mcmc.hmc(GAUSSIAN, start, Draws(n), 16, 0.15, 6, warmup=6 * tuned)
    _moments_agree(u, CENTRE, cov)
    u = mcmc.metropolis(GAUSSIAN, start, Draws(n, 1), 200, 0.5, warmup=60 * tuned)
    _moments_agree(u, CENTRE, cov)


def test_hmc_and_metropolis_on_a_density_that_is_not_gaussian():
    """p(u) ~ exp(-u^4): E u^2 = Gamma(3/4)/Gamma(1/4)."""
    n, eta = 20000, 0.3
    quartic = mcmc.Density(lambda u: -(u[:, 0] ** 4), lambda u: -4 * u**3)
    second = math.gamma(0.75) / math.gamma(0.25)
    error = math.sqrt((0.25 - second**2) / n)  # E u^4 = 1/4
    start = torch.zeros(n, 1, dtype=DOUBLE)
    assert float(mcmc.hmc(quartic, start, Draws(n), 15, eta, 4).square().mean()) == pytest.approx(second, abs=4 * error)
    assert float(mcmc.metropolis(quartic, start, Draws(n), 80, 2.0).square().mean()) == pytest.approx(second, abs=4 * error)


def test_steps_are_tuned_to_the_wanted_acceptance():
    n, d = 400, 30
    density = mcmc.Density(lambda u: -u.square().sum(1) / 2, lambda u: -u)
    start = torch.zeros(n, d, dtype=DOUBLE)
    for wrong in (1e-3, 30.0):
        # A step of metropolis is tuned where acceptance is 0.3: 2.4^2/d or so (Roberts, Gelman, Gilks 1997).
        moved = mcmc.metropolis(density, start, Draws(n), 150, torch.full((n,), wrong, dtype=DOUBLE), warmup=150)
        assert 0.7 < float(moved.square().mean()) < 1.2
        # Untuned, such a step leads nowhere: it is refused, or too short.
        stuck = mcmc.metropolis(density, start, Draws(n), 150, wrong)
        assert float(stuck.square().mean()) < 0.2


def test_a_proposal_that_is_not_a_number_is_refused():
    """And rows do not see each other's."""
    wall = mcmc.Density(lambda u: torch.where(u[:, 0] > 0.5, math.nan, -u.square()[:, 0] / 2), lambda u: torch.where(u > 0.5, math.nan, -u))
    n = 2000
    for chain in (
        lambda: mcmc.hmc(wall, torch.zeros(n, 1, dtype=DOUBLE), Draws(n), 20, 0.5, 3, warmup=5),
        lambda: mcmc.metropolis(wall, torch.zeros(n, 1, dtype=DOUBLE), Draws(n), 50, 1.0, warmup=10),
    ):
        u = chain()
        assert bool(torch.isfinite(u).all()) and float(u.max()) <= 0.5 and float(u.std()) > 0.3


# -- chains inside the sampler ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_std", [None, 0.3])
def test_own_step_size_follows_from_the_largest_curvature(prior_std):
    """eta = 0.3 / (||A||^2 / sigma_y^2 + 1 / r^2): read off one step of Langevin without noise."""
    posterior, move = problem_16(rows=2), Move(Level(0.9, 0.36), Level(1.0, 0.0), 2, 3)
    sampler = DAPS(inner="langevin", inner_steps=1, prior_std=prior_std)
    x, zero = randn(2, 1, 4, 4, seed=5), torch.zeros(2, 1, 4, 4, dtype=DOUBLE)
    state = sampler.init(posterior, x)
    found = sampler.step(posterior, state, move, GivenNoise(zero))
    norm = torch.linalg.matrix_norm(posterior.likelihood.operator.matrix.to(DOUBLE), 2)
    r2 = 0.16 if prior_std is None else 1 / (1 / 0.16 + 1 / 0.3**2)
    eta = 0.3 / (norm**2 / posterior.likelihood.sigma**2 + 1 / r2)
    # Power iteration approaches the norm from below.
    moved, score = found.x - found.x0, posterior.likelihood.score(found.x0)
    assert torch.allclose(moved, eta * score, rtol=1e-3)
    assert torch.allclose(state.curvature, (norm / posterior.likelihood.sigma).square().expand(2, 1), rtol=1e-3)


def test_langevin_inside_the_sampler_has_the_law_that_its_step_predicts():
    """One level: after many steps the draw is N(mean of the exact draw, (P (1 - eta P / 2))^-1) around x0_hat."""
    posterior, schedule = problem_r1(), Levels([(1.0, 0.3), (1.0, 0.0)])
    found = output_law(DAPS(inner="langevin", inner_steps=600, lr=2e-3), posterior, schedule)
    exact = output_law(DAPS(), posterior, schedule)
    P = tensor([[100 + 1 / 0.09, 0.0], [0.0, 1 / 0.09]])
    excess = torch.linalg.inv(P @ (torch.eye(2, dtype=DOUBLE) - 1e-3 * P)) - torch.linalg.inv(P)
    assert torch.allclose(found[0], exact[0], atol=1e-5)
    assert torch.allclose(found[1], exact[1] + excess, atol=1e-6)


@pytest.mark.parametrize("kind", ["hmc", "metropolis"])
def test_accepted_chains_draw_the_law_of_the_exact_draw(kind):
    posterior, schedule, n = problem_r1(), Karras(6, 3.0, 0.2), 600
    mean, cov = output_law(DAPS(), posterior, schedule)
    sampler = DAPS(inner=kind, inner_steps=100 if kind == "hmc" else 200)
    draws = sample(sampler, posterior, schedule, n=n, progress=False)[0]
    _moments_agree(draws, mean, cov)


def test_a_nonlinear_operator_needs_no_setting():
    """p(x | y) of a standard normal number whose square is measured: mass at both roots, and the right place."""
    prior = GaussianPrior(torch.zeros(1, dtype=DOUBLE), torch.eye(1, dtype=DOUBLE))
    posterior = Posterior(prior, GaussianLikelihood(Squares((1,)), tensor([[1.2]]), sigma=0.1))
    draws = sample(DAPS(), posterior, Karras(20, 5.0, 0.05), n=300, progress=False)[0, :, 0]
    assert float((draws > 0).double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(300))
    grid = torch.linspace(0, 3, 20001, dtype=DOUBLE)
    density = torch.exp(-(grid**2 - 1.2).square() / 0.02 - grid**2 / 2)
    exact = float((grid * density).sum() / density.sum())
    assert float(draws.abs().mean()) == pytest.approx(exact, abs=0.01)


def test_mixture_weights_around_the_end_of_the_ode():
    """The known bias: 0.396 in place of 0.465."""
    n, expected = 4000, 0.396
    draws = sample(DAPS(estimate="ode"), problem_mixture(0.05, 0.05), paper_grid(200), n=n, progress=False)[0]
    # The expected value was itself counted, over 4000 draws.
    assert float((draws[:, 1] > 0).double().mean()) == pytest.approx(expected, abs=4 * math.sqrt(2 * expected * (1 - expected) / n))


@pytest.mark.parametrize(("sigma", "y", "weight"), [(0.05, 0.05, 0.465), (0.3, 0.1, 0.405)])
def test_the_true_conditional_draws_the_exact_mixture(sigma, y, weight):
    """Weights, means and covariances of both modes: the annealing adds no bias of its own."""
    posterior, n = problem_mixture(sigma, y), 8000
    exact, noise, sampler = posterior.exact(), Draws(n), TrueConditional()
    assert float(exact.weights.flatten()[0]) == pytest.approx(weight, abs=5e-4)
    plan = moves(paper_grid(40))
    state = sampler.init(posterior, plan[0].t.sigma * noise.normal((2,)))
    for move in plan:
        state = sampler.step(posterior, state, move, noise)
    assert_drawn_from(exact, sampler.result(state))


# -- rows, streams, refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", *CHAINS])
def test_a_batch_equals_single_runs(kind):
    posterior, schedule = problem_16(rows=3), Karras(6, 5.0, 0.1)
    sampler = DAPS(inner=kind, inner_steps=30, estimate="ode" if kind == "exact" else "tweedie")
    together = sample(sampler, posterior, schedule, n=2, progress=False)
    assert bool(torch.isfinite(together).all()) and not torch.allclose(together[:, 0], together[:, 1])
    for b in range(3):
        alone = sample(sampler, posterior.select(torch.tensor([b])), schedule, n=2, ids=[b], progress=False)
        assert torch.allclose(together[b], alone[0], atol=1e-10, rtol=0)


class _Stop(Exception):
    pass


def test_a_resumed_run_continues_bit_for_bit(tmp_path):
    posterior, schedule, sampler = problem_16(rows=2), Karras(8, 5.0, 0.1), DAPS(inner="hmc", inner_steps=20)
    whole = sample(sampler, posterior, schedule, progress=False)

    def stop(event):
        if event.index == 5:
            raise _Stop

    options = {"checkpoint": tmp_path / "half.pt", "checkpoint_every": 2, "progress": False}
    with pytest.raises(_Stop):
        sample(sampler, posterior, schedule, observe=stop, **options)
    seen = []
    assert torch.equal(sample(sampler, posterior, schedule, observe=lambda e: seen.append(e.index), **options), whole)
    assert seen == [4, 5, 6, 7]


def test_inference_mode_and_photon_counts():
    prior = GaussianPrior(torch.zeros(1, 4, 4, dtype=DOUBLE), 0.1 * torch.eye(16, dtype=DOUBLE))
    counts = torch.full((2, 1, 4, 4), 0.6, dtype=DOUBLE)
    posterior = Posterior(prior, PoissonLikelihood(Identity((1, 4, 4)), counts, gain=0.05))
    plain = sample(DAPS(inner_steps=40), posterior, Karras(10, 3.0, 0.05), progress=False)
    with torch.inference_mode():
        inside = sample(DAPS(inner_steps=40), posterior, Karras(10, 3.0, 0.05), progress=False)
    assert torch.allclose(plain, inside, atol=1e-12)
    # The measurement says u = 0.6, x = 0.2 with a standard deviation of 2 sqrt(0.05 * 0.6).
    assert 0 < float(plain.mean()) < 0.3


class _Reads(TorchDispatchMode):
    """Fails where a value is brought to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func) and "is_nonzero" not in str(func), f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["exact", *CHAINS])
def test_a_step_never_waits_for_the_device(kind):
    posterior, move = problem_16(rows=2), Move(Level(1.0, 0.5), Level(1.0, 0.2), 1, 3)
    sampler, noise = DAPS(inner=kind, inner_steps=4, leapfrogs=2), Noise(0, [(0, 0), (1, 0)], dtype=DOUBLE)
    state = sampler.init(posterior, randn(2, 1, 4, 4))
    with _Reads():
        sampler.step(posterior, state, move, noise)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimate": "mean"}, "estimate='mean'; one of tweedie, ode"),
        ({"inner": "mala"}, "inner='mala'; one of auto, exact, langevin, underdamped, hmc, metropolis"),
        ({"ode_kernel": "rk4"}, "ode_kernel='rk4'"),
        ({"likelihood": "half"}, "likelihood='half'; one of correct, official, legacy"),
        ({"inner_steps": 0}, "inner_steps=0; a whole number >= 1"),
        ({"ode_steps": 2.5}, "ode_steps=2.5"),
        ({"lr": -1e-4}, "lr=-0.0001; a finite number > 0"),
        ({"prior_std": 0.0}, "prior_std=0.0"),
        ({"tau": math.inf}, "tau=inf"),
        ({"momentum": 1.0}, r"momentum=1.0; a number in \[0, 1\)"),
        ({"lr_min_ratio": 0.0}, r"lr_min_ratio=0.0; a number in \(0, 1\]"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DAPS(**settings)


def test_what_the_inner_draw_cannot_serve_is_refused():
    prior = GaussianPrior(torch.zeros(1, dtype=DOUBLE), torch.eye(1, dtype=DOUBLE))
    squares = Posterior(prior, GaussianLikelihood(Squares((1,)), tensor([[1.0]]), 0.1))
    with pytest.raises(TypeError, match="inner='exact' needs a linear operator and Gaussian noise"):
        sample(DAPS(inner="exact"), squares, Karras(5), progress=False)
    counts = Posterior(prior, PoissonLikelihood(Identity((1,)), tensor([[1.0]]), 0.1))
    with pytest.raises(TypeError, match="likelihood='official' is for Gaussian noise, not for a PoissonLikelihood"):
        sample(DAPS(likelihood="official"), counts, Karras(5), progress=False)
    with pytest.raises(ValueError, match="a step size eta, or the curvature"):
        mcmc.Chain("hmc", 10).draw(GAUSSIAN, torch.zeros(1, 2, dtype=DOUBLE), Draws(1))
    noiseless = Posterior(prior, GaussianLikelihood(Identity((1,)), tensor([[1.0]]), 0.0))
    with pytest.raises(ValueError, match="sigma = 0"):
        sample(DAPS(), noiseless, Karras(5), progress=False)


def test_kernel_names_stay_with_the_unconditional_sampler():
    """The inner ODE is the unconditional sampler: one Euler step equals kernels.euler."""
    r1, x = problem_r1(), randn(3, 2, seed=3)
    t, s = Level(1.0, 0.02), Level(1.0, 0.01)
    found = DAPS(estimate="ode", ode_steps=1)._estimate(r1, x, t, None)
    assert torch.allclose(found, reverse.euler(x, r1.prior.denoise(x, t), Move(t, s, 0, 1)), atol=1e-14)


PUBLISHED = {
    # Langevin lr and steps; steps, lr, lr_min_ratio and momentum of what the code calls HMC.
    "sr4": (1e-4, 100, 12, 1.04e-4, 0.012, 0.90),
    "gaussian_blur": (1e-4, 100, 82, 4.04e-5, 0.011, 0.10),
    "motion_blur": (5e-5, 100, 96, 3.69e-5, 0.010, 0.11),
    "box": (5e-5, 100, 84, 1.15e-5, 0.014, 0.003),
    "random": (1e-4, 100, 11, 3.56e-5, 0.015, 0.80),
    "hdr": (2e-5, 100, 100, 2.18e-5, 0.013, 0.23),
    "nonlinear_blur": (1e-5, 200, 85, 1.20e-5, 0.012, 0.46),
    "phase": (5e-5, 100, 62, 9.75e-6, 0.019, 0.73),
}


OPERATOR = {
    "sr4": "super_resolution", "motion_blur": "blur", "box": "inpainting", "random": "inpainting", "phase": "phase_retrieval",
}  # fmt: skip


@pytest.mark.parametrize("task", PUBLISHED)
def test_published_presets(task):
    lr, steps, hmc_steps, hmc_lr, ratio, momentum = PUBLISHED[task]
    common = {"estimate": "ode", "likelihood": "official"}
    chosen = [f"operator={OPERATOR.get(task, task)}", *([f"operator.kind={task}"] if task in ("box", "random") else [])]
    config = load("photo_inpaint", [*chosen, "sampler=daps_official"])
    langevin = DAPS(inner="langevin", inner_steps=steps, lr=lr, lr_min_ratio=0.01, **common)
    assert config.sections["sampler"].build() == langevin
    assert [m.t.sigma for m in moves(config.sections["schedule"].build())] == pytest.approx([m.t.sigma for m in moves(paper_grid())])
    assert load("photo_inpaint", ["sampler=daps"]).sections["sampler"].build() == DAPS(prior_std=0.15)
    config = load("photo_inpaint", [*chosen, "sampler=daps_official_hmc"])
    hmc = DAPS(inner="underdamped", inner_steps=hmc_steps, lr=hmc_lr, lr_min_ratio=ratio, momentum=momentum, **common)
    assert config.sections["sampler"].build() == hmc
