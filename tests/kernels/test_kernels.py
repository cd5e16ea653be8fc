"""Update formulas against independent ones, path independence, and measured orders of convergence."""

import math

import pytest
import torch
from problems import DOUBLE, randn, tensor

from invsolve import Posterior
from invsolve.kernels import reverse
from invsolve.levels import CLEAN, Level, Move
from invsolve.priors import GaussianPrior
from invsolve.samplers import Unconditional
from invsolve.schedules import DDPM, Karras, Levels, Linear, moves
from invsolve.streams import GivenNoise

X, X0, Z = (randn(3, 2, 5, seed=s) for s in range(3))
MOVES = {
    "vp": moves(DDPM(steps=20))[7],
    "vp, first": moves(DDPM(steps=20))[0],
    "vp, small": moves(DDPM(steps=1000))[990],
    "ve": moves(Karras(steps=9))[4],
    "flow": moves(Linear(steps=9))[3],
    "any": Move(Level(0.7, 2.1), Level(1.9, 0.4), 0, 2),
}
each_move = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())


def close(a, b, tol=1e-12):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max()) <= tol * max(1.0, float(b.abs().max()))


@each_move
def test_ddim_with_eta_one_is_the_ancestral_step(move):
    assert close(reverse.ddim(X, X0, move, Z, eta=1.0), reverse.ancestral(X, X0, move, Z, "posterior"), 1e-14)


@pytest.mark.parametrize("name", ["vp", "vp, first", "vp, small"])
def test_ancestral_step_is_k1_in_alpha_bar(name):
    move = MOVES[name]
    ab_t, ab_p = move.t.alpha**2, move.s.alpha**2
    beta = 1 - ab_t / ab_p
    mean = math.sqrt(ab_p) * beta / (1 - ab_t) * X0 + math.sqrt(ab_t / ab_p) * (1 - ab_p) / (1 - ab_t) * X
    small = beta * (1 - ab_p) / (1 - ab_t)
    # beta is a difference of numbers near 1, here as in K1: rounding of 1e-16 / beta.
    tol = 1e-14 + 1e-15 / beta
    assert close(reverse.ancestral(X, X0, move, Z), mean + math.sqrt(small) * Z, tol)
    assert close(reverse.ancestral(X, X0, move, Z, "upper"), mean + math.sqrt(beta) * Z, tol)
    v = torch.linspace(-1.5, 1.5, X.numel(), dtype=DOUBLE).reshape(X.shape)
    learned = torch.exp((v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(small))
    assert close(reverse.ancestral(X, X0, move, Z, v), mean + learned.sqrt() * Z, tol)


@each_move
def test_ddim_is_k2_for_any_eta(move):
    (a_t, s_t), (a_s, s_s) = move.t, move.s
    # Equation 16 of Song et al. with alpha_bar = alpha^2 / (alpha^2 + sigma^2), on the variance-preserving version of the path.
    ab_t, ab_s = a_t**2 / (a_t**2 + s_t**2), a_s**2 / (a_s**2 + s_s**2)
    for eta in (0.0, 0.3, 0.85, 1.0):
        c1 = eta * math.sqrt((1 - ab_s) / (1 - ab_t) * (1 - ab_t / ab_s))
        c2 = math.sqrt(1 - ab_s - c1**2)
        x = X / math.hypot(a_t, s_t)
        noise = (x - math.sqrt(ab_t) * X0) / math.sqrt(1 - ab_t)
        expected = (math.sqrt(ab_s) * X0 + c2 * noise + c1 * Z) * math.hypot(a_s, s_s)
        assert close(reverse.ddim(X, X0, move, Z, eta), expected, 1e-10)


@each_move
def test_learned_variance_runs_from_posterior_to_upper_in_each_entry(move):
    one = torch.ones_like(X)
    assert close(reverse.ancestral(X, X0, move, Z, -one), reverse.ancestral(X, X0, move, Z, "posterior"))
    assert close(reverse.ancestral(X, X0, move, Z, one), reverse.ancestral(X, X0, move, Z, "upper"))
    mean = reverse.ancestral(X, X0, move, 0 * Z)
    std = {v: (reverse.ancestral(X, X0, move, one, v) - mean) for v in ("posterior", "upper")}
    half = reverse.ancestral(X, X0, move, one, 0 * one) - mean
    assert close(half, (std["posterior"] * std["upper"]).sqrt())
    assert bool((std["upper"] > std["posterior"]).all())
    mixed = one.clone()
    mixed[1] = -1
    out = reverse.ancestral(X, X0, move, Z, mixed)
    assert close(out[1], reverse.ancestral(X, X0, move, Z, "posterior")[1]) and close(out[0], reverse.ancestral(X, X0, move, Z, "upper")[0])


@each_move
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_move_keeps_the_law_of_x_given_x_0(move, eta):
    """From x_t ~ N(alpha_t x_0, sigma_t^2) the true x_0 leads to x_s ~ N(alpha_s x_0, sigma_s^2), whatever eta."""

    def step(x, z):
        return reverse.ddim(x, X0, move, z, eta)

    zero, one = torch.zeros_like(X), torch.ones_like(X)
    centre = step(move.t.alpha * X0, zero)
    assert close(centre, move.s.alpha * X0)
    from_noise = step(move.t.alpha * X0 + move.t.sigma * one, zero) - centre
    from_z = step(move.t.alpha * X0, one) - centre
    assert close(from_noise.square() + from_z.square(), torch.full_like(X, move.s.sigma**2), 1e-12)


def test_upper_variance_is_that_of_data_of_unit_variance():
    """Var(x_s | x_t) for x_0 ~ N(0, 1), from the joint covariance of (x_s, x_t) of the forward process."""
    for move in MOVES.values():
        (a_t, s_t), (a_s, s_s) = move.t, move.s
        var_s, var_t = a_s**2 + s_s**2, a_t**2 + s_t**2
        joint = a_t / a_s * var_s
        assert move.upper_variance == pytest.approx(var_s - joint**2 / var_t, rel=1e-9)


def on_path(level, path):
    """The same sigma/alpha on another path, and the factor that takes x there."""
    scale = {"vp": level.scale, "ve": level.alpha, "flow": level.alpha + level.sigma}[path]
    return Level(level.alpha / scale, level.sigma / scale), 1 / scale


STEPS = {
    "ddim": lambda x, x0, z, m, b: reverse.ddim(x, x0, m),
    "ddim eta": lambda x, x0, z, m, b: reverse.ddim(x, x0, m, z, 0.6),
    "posterior": lambda x, x0, z, m, b: reverse.ancestral(x, x0, m, z),
    "upper": lambda x, x0, z, m, b: reverse.ancestral(x, x0, m, z, "upper"),
    "learned": lambda x, x0, z, m, b: reverse.ancestral(x, x0, m, z, torch.tanh(z)),
    "transport": lambda x, x0, z, m, b: reverse.transport(x, z, m),
    "heun": lambda x, x0, z, m, b: reverse.heun(x, x0, reverse.euler(x, x0, m), x0 + 0.1 * z, m),
    "dpmpp_2m": lambda x, x0, z, m, b: reverse.ddim(x, reverse.multistep(x0, z, m, b), m),
}


@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
@pytest.mark.parametrize("name", STEPS)
def test_every_kernel_is_the_same_on_every_path(name, path):
    before, move = Level(0.5, 4.0), MOVES["any"]
    (t, at_t), (s, at_s), (b, _) = on_path(move.t, path), on_path(move.s, path), on_path(before, path)
    original = STEPS[name](X, X0, Z, move, before)
    moved = STEPS[name](X * at_t, X0, Z, Move(t, s, 0, 2), b)
    assert close(moved, original * at_s)


@each_move
def test_noise_score_and_diffuse_are_inverses(move):
    t = move.t
    x = reverse.diffuse(X0, t, Z)
    assert close(x, t.alpha * X0 + t.sigma * Z, 1e-15)
    # Dividing by sigma^2 amplifies the rounding of x.
    tol = 1e-14 * (1 + t.scale / t.sigma) ** 2
    assert close(reverse.noise_of(x, X0, t), Z, tol)
    assert close(reverse.score(x, X0, t), -Z / t.sigma, tol)
    assert close(reverse.tweedie(x, reverse.score(x, X0, t), t), X0, tol)


def test_score_of_the_exact_posterior_mean_is_the_gradient_of_the_density():
    cov = tensor([[1.0, 0.8], [0.8, 1.5]])
    prior, t = GaussianPrior(tensor([0.3, -1.0]), cov), Level(0.6, 0.9)
    x = randn(4, 2, seed=9).requires_grad_()
    law = torch.distributions.MultivariateNormal(0.6 * tensor([0.3, -1.0]), 0.36 * cov + 0.81 * torch.eye(2, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    assert close(reverse.score(x, prior.denoise(x, t), t), gradient)


@each_move
def test_euler_is_transport_along_the_noise_and_heun_averages_the_ends(move):
    noise = reverse.noise_of(X, X0, move.t)
    x_s = reverse.euler(X, X0, move)
    assert close(x_s, reverse.transport(X, noise, move))
    # In x/alpha and sigma/alpha, as in algorithm 1 of Karras et al.
    u, h = X / move.t.alpha, move.s.ratio - move.t.ratio
    d = (u - X0) / move.t.ratio
    assert close(x_s / move.s.alpha, u + h * d)
    d_s = (x_s / move.s.alpha - Z) / move.s.ratio
    assert close(reverse.heun(X, X0, x_s, Z, move) / move.s.alpha, u + h * (d + d_s) / 2)


def test_two_step_kernel_is_the_published_formula():
    before, move = Level(0.5, 4.0), MOVES["any"]
    s_t, (a_s, s_s) = move.t.sigma, move.s
    lam, lam_s, lam_before = (math.log(level.alpha / level.sigma) for level in (move.t, move.s, before))
    h = lam_s - lam
    r = (lam - lam_before) / h
    d = (1 + 1 / (2 * r)) * X0 - 1 / (2 * r) * Z
    expected = s_s / s_t * X - a_s * (math.exp(-h) - 1) * d
    assert close(reverse.ddim(X, reverse.multistep(X0, Z, move, before), move), expected)
    last = Move(move.t, CLEAN, 1, 2)
    assert reverse.multistep(X0, Z, last, before) is X0


@pytest.mark.parametrize("steps", [6, 20])
def test_two_step_sampler_against_diffusers(steps):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        prediction_type="sample",
        final_sigmas_type="zero",
        algorithm_type="dpmsolver++",
    )
    theirs.set_timesteps(steps)
    # Their own (float32) sigma/alpha, on the variance-preserving path.
    ratios = theirs.sigmas.double().tolist()
    schedule = Levels([(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratios])
    prior = GaussianPrior(tensor([0.3, -0.5]), tensor([[0.5, 0.3], [0.3, 0.4]]))
    x = y = randn(6, 2, seed=4)
    sampler = Unconditional(kernel="dpmpp_2m")
    state = sampler.init(Posterior(prior), x)
    for move, time in zip(moves(schedule), theirs.timesteps, strict=True):
        state = sampler.step(Posterior(prior), state, move, GivenNoise())
        y = theirs.step(prior.denoise(y, move.t), time, y).prev_sample
        # Their coefficients are float32; each step adds a few units of 2^-24 at the size of x.
        assert close(y.double(), state.x, 2e-6 * (move.index + 1))
    assert state.x.std() > 0.1


@each_move
def test_the_last_move_ends_at_the_posterior_mean_without_noise(move):
    last = Move(move.t, Level(1.3, 0.0), 0, 1)
    nan = torch.full_like(Z, math.nan)
    for variance in ("posterior", "upper", torch.ones_like(X)):
        assert close(reverse.ancestral(X, X0, last, nan, variance), 1.3 * X0, 1e-15)
    for eta in (0.0, 0.5, 1.0):
        assert close(reverse.ddim(X, X0, last, None, eta), 1.3 * X0, 1e-15)


def test_refusals():
    with pytest.raises(ValueError, match=r"eta=0\.5 needs noise z"):
        reverse.ddim(X, X0, MOVES["vp"], None, 0.5)
    with pytest.raises(ValueError, match=r"variance='large'; one of \['posterior', 'upper'\] or a tensor"):
        reverse.ancestral(X, X0, MOVES["vp"], Z, "large")


# -- orders of convergence ------------------------------------------------------------------------------------------------

MEAN, EIGENVALUES = tensor([0.5, -1.0, 0.2]), tensor([1.0, 0.3, 0.05])
ROTATION = torch.linalg.qr(randn(3, 3, seed=7)).Q
EXACT = GaussianPrior(MEAN, ROTATION @ EIGENVALUES.diag() @ ROTATION.mT)


def flow_map(u, start, end):
    """The probability-flow ODE of N(MEAN, C) in (x/alpha, sigma/alpha), solved: each eigendirection shrinks with its own std."""
    shrink = ((EIGENVALUES + end**2) / (EIGENVALUES + start**2)).sqrt()
    return MEAN + (u - MEAN) @ ROTATION @ shrink.diag() @ ROTATION.mT


def grid(path, steps, start, end):
    """Levels from ratio `start` to `end`, smooth in the step number, on one of three paths."""
    ratios = [(start ** (1 / 7) + i / steps * (end ** (1 / 7) - start ** (1 / 7))) ** 7 for i in range(steps + 1)]
    levels = [on_path(Level(1.0, r), path)[0] for r in ratios]
    return [Move(t, s, i, steps) for i, (t, s) in enumerate(zip(levels[:-1], levels[1:], strict=True))]


def end_error(kernel, path, steps, start=20.0, end=0.05):
    """Error in x/alpha after walking from one positive level to another with the sampler's own step."""
    plan, u = grid(path, steps, start, end), MEAN + start * randn(5, 3, seed=8)
    sampler = Unconditional(kernel=kernel)
    state = sampler.init(Posterior(EXACT), u * plan[0].t.alpha)
    for move in plan:
        state = sampler.step(Posterior(EXACT), state, move, GivenNoise())
    return float((state.x / plan[-1].s.alpha - flow_map(u, start, end)).norm())


@pytest.mark.parametrize("path", ["vp", "ve", "flow"])
@pytest.mark.parametrize(("kernel", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(kernel, order, path):
    steps = [40, 80, 160, 320]
    errors = [end_error(kernel, path, n) for n in steps]
    log_steps, log_errors = tensor(steps).log2(), tensor(errors).log2()
    slope = torch.linalg.lstsq(torch.stack([log_steps, torch.ones(4, dtype=DOUBLE)], 1), log_errors[:, None]).solution[0].item()
    assert -slope == pytest.approx(order, abs=0.15)
    assert errors[-1] < 0.02


@pytest.mark.parametrize(("kernel", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence_of_whole_schedules(kernel, order):
    """To sigma = 0 with Karras grids. The last move, from sigma_min, errs by O(sigma_min^2): it shrinks as the steps do."""
    errors, steps = [], [40, 80, 160, 320]
    for n in steps:
        plan = moves(Karras(steps=n, sigma_max=20.0, sigma_min=0.5 / n))
        u = MEAN + 20.0 * randn(5, 3, seed=8)
        sampler = Unconditional(kernel=kernel)
        state = sampler.init(Posterior(EXACT), u)
        for move in plan:
            state = sampler.step(Posterior(EXACT), state, move, GivenNoise())
        errors.append(float((sampler.result(state) - flow_map(u, 20.0, 0.0)).norm()))
    slope = math.log2(errors[0] / errors[-1]) / math.log2(steps[-1] / steps[0])
    assert slope == pytest.approx(order, abs=0.15)


def test_renoise_is_the_forward_transition():
    """From N(alpha_s x0, sigma_s^2) at s, renoise gives N(alpha_t x0, sigma_t^2) at t."""
    for move in MOVES.values():
        if move.last:
            continue
        x_s, z = torch.full((1, 1), 2.0 * move.s.alpha, dtype=DOUBLE), torch.ones(1, 1, dtype=DOUBLE)
        mean = reverse.renoise(x_s, move, torch.zeros_like(z))
        assert float(mean) == pytest.approx(2.0 * move.t.alpha, rel=1e-12)
        spread = float(reverse.renoise(x_s, move, z) - mean) ** 2 + (move.t.alpha / move.s.alpha * move.s.sigma) ** 2
        assert spread == pytest.approx(move.t.sigma**2, rel=1e-10)
