"""Schedules against published numbers, other implementations, and written-out formulas."""

import math

import numpy as np
import pytest

from invsolve.levels import Level, Move
from invsolve.schedules import DDPM, SCHEDULES, Cosine, Karras, Levels, Linear, ScaledLinear, Schedule, alpha_bars, moves

ALL = [
    DDPM(steps=7),
    ScaledLinear(steps=7),
    Cosine(steps=7),
    Karras(steps=7),
    Linear(steps=7),
    Levels(((1.0, 5.0), (0.5, 1.0), (1.0, 0.0))),
]


def vp_table(schedule):
    """alpha_bar at the training times 0 .. T-1, read off a full schedule."""
    levels = schedule.levels()
    assert levels[-1] == Level(1.0, 0.0)
    assert all(math.isclose(a * a + s * s, 1, rel_tol=1e-15) for a, s in levels)
    return np.array([a * a for a, _ in levels[-2::-1]])


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_every_schedule_is_a_path_from_noise_to_the_clean_image(schedule):
    assert isinstance(schedule, Schedule)
    levels = schedule.levels()
    assert levels[-1] == (1.0, 0.0)
    plan = moves(schedule)
    assert [m.index for m in plan] == list(range(len(levels) - 1)) and {m.total for m in plan} == {len(levels) - 1}
    assert [m.t for m in plan] == levels[:-1] and [m.s for m in plan] == levels[1:]
    assert [m.last for m in plan] == [False] * (len(plan) - 1) + [True]
    assert all(m.t.ratio > m.s.ratio for m in plan)
    # `steps` is the number of moves, hence of network calls of a one-call sampler.
    assert len(plan) == getattr(schedule, "steps", 2)
    assert all(type(v) is float for level in levels for v in level)


def test_names_of_the_configuration_are_these_classes():
    assert {k: v.partition(":")[2] for k, v in SCHEDULES.items()} == {
        "ddpm": "DDPM",
        "scaled_linear": "ScaledLinear",
        "cosine": "Cosine",
        "karras": "Karras",
        "linear": "Linear",
        "levels": "Levels",
    }


def test_ddpm_table_has_the_published_values():
    table = vp_table(DDPM(steps=1000))
    expected = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    assert table[0] == pytest.approx(0.9999, rel=1e-14)
    assert table[999] == pytest.approx(4.04e-5, rel=5e-3 / 4.04)
    ratios = np.sqrt((1 - table) / table)
    assert ratios[0] == pytest.approx(0.0100, abs=5e-5) and ratios[-1] == pytest.approx(157.4, abs=0.05)


@pytest.mark.parametrize("train_steps", [1000, 250])
def test_respacing_keeps_the_rounded_linspace_of_numpy_for_every_number_of_steps(train_steps):
    table = alpha_bars(1e-4, 2e-2, train_steps)
    for steps in range(2, train_steps + 1):
        indices = np.unique(np.round(np.linspace(0, train_steps - 1, steps))).astype(int)
        assert len(indices) == steps
        expected = [Level(math.sqrt(table[i]), math.sqrt(1 - table[i])) for i in indices[::-1]]
        assert DDPM(steps=steps, train_steps=train_steps).levels()[:-1] == expected, steps


def test_one_step_starts_from_the_noisiest_level():
    assert DDPM(steps=1).levels() == [DDPM(steps=1000).levels()[0], Level(1.0, 0.0)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (DDPM(steps=1000), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}),
        (ScaledLinear(steps=1000), {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}),
        (Cosine(steps=1000), {"beta_schedule": "squaredcos_cap_v2"}),
        (Cosine(steps=64, train_steps=64), {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 64}),
    ],
    ids=["linear", "scaled_linear", "cosine", "cosine of 64"],
)
def test_tables_against_diffusers(ours, theirs):
    from diffusers import DDPMScheduler

    table = vp_table(ours)
    reference = DDPMScheduler(**theirs)
    # Theirs is a float32 product of n factors: an error of up to n/2 units of 2^-24 in each, taken together. One factor
    # may be the capped 1 - 0.999, which float32 holds to 2^-24 / 0.001.
    bound = len(table) * 2.0**-24 + 1e-3 * 0.06
    np.testing.assert_allclose(table, reference.alphas_cumprod.double().numpy(), rtol=bound)
    betas = 1 - table / np.concatenate([[1.0], table[:-1]])
    np.testing.assert_allclose(betas, reference.betas.double().numpy(), rtol=1e-6, atol=2.0**-24)


def test_cosine_is_equation_17_until_the_cap():
    table = vp_table(Cosine(steps=1000))
    u = (np.arange(1000) + 1) / 1000
    curve = np.cos(np.pi / 2 * (u + 0.008) / 1.008) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    # alpha_bar_999 would be 0; the cap on beta makes it a thousandth of its predecessor.
    np.testing.assert_allclose(table[:-1], curve[:-1], rtol=1e-10)
    assert table[-1] == pytest.approx(table[-2] / 1000, rel=1e-9)


def test_karras_grid_against_its_formula_and_the_example():
    sigmas = [level.sigma for level in Karras(steps=6, sigma_max=100.0, sigma_min=0.01).levels()]
    assert sigmas[:-1] == pytest.approx([100, 33.0, 8.86, 1.75, 0.211, 0.01], rel=3e-3)
    for n, lo, hi, rho in [(2, 0.1, 3.0, 7.0), (18, 0.002, 80.0, 7.0), (11, 0.01, 20.0, 3.0), (5, 1.0, 2.0, 1.0)]:
        levels = Karras(steps=n, sigma_max=hi, sigma_min=lo, rho=rho).levels()
        expected = np.linspace(hi ** (1 / rho), lo ** (1 / rho), n) ** rho
        np.testing.assert_allclose([s for _, s in levels], [*expected, 0.0], rtol=1e-12)
        assert {a for a, _ in levels} == {1.0}


def test_linear_is_the_rectified_flow_path():
    levels = Linear(steps=4, start=0.8).levels()
    np.testing.assert_allclose(levels, [(0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2), (1.0, 0.0)], rtol=1e-15)


def test_levels_are_taken_as_given_and_may_be_lists_as_a_configuration_has_them():
    values = [[1, 5], [0.3, 0.5], [2.0, 0.0]]
    schedule = Levels(values)
    assert schedule.levels() == [(1.0, 5.0), (0.3, 0.5), (2.0, 0.0)]
    assert schedule == Levels(tuple(map(tuple, values))) and hash(schedule) == hash(Levels(tuple(map(tuple, values))))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least 2 levels, got 0"),
        ([(1, 0)], "at least 2 levels, got 1"),
        ([(1, 1), (1, 2), (1, 0)], "must get less noisy, but sigma/alpha goes from 1 to 2 at 1"),
        ([(1, 1), (1, 1), (1, 0)], "must get less noisy, but sigma/alpha goes from 1 to 1 at 1"),
        ([(0.1, 1), (0.05, 0.9), (1, 0)], "must get less noisy, but sigma/alpha goes from 10 to 18 at 1"),
        ([(1, 2), (1, 1)], r"the last level must have sigma = 0, got 1; append \(1, 0\)"),
        ([(0, 1), (1, 0)], r"level 0 is \(0\.0, 1\.0\); alpha > 0 and sigma >= 0"),
        ([(1, 1), (1, -1), (1, 0)], r"level 1 is \(1\.0, -1\.0\)"),
        ([(1, math.nan), (1, 0)], r"level 0 is \(1\.0, nan\)"),
        ([(1, math.inf), (1, 0)], r"level 0 is \(1\.0, inf\)"),
    ],
)
def test_levels_that_are_no_path_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Levels(values)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (DDPM(steps=0), "steps=0; this schedule has between 1 and 1000 levels"),
        (DDPM(steps=1001), "steps=1001; this schedule has between 1 and 1000 levels"),
        (DDPM(steps=11, train_steps=10), "steps=11; .* between 1 and 10 levels"),
        (ScaledLinear(steps=-1), "steps=-1; .* between 1 and 1000 levels"),
        (Cosine(steps=1001), "steps=1001; .* between 1 and 1000 levels"),
        (Cosine(offset=0.0), r"offset=0\.0; a finite number > 0"),
        (DDPM(beta_start=0.0), r"beta_start=0\.0, beta_end=0\.02; numbers in \(0, 1\)"),
        (DDPM(beta_end=1.0), r"beta_start=0\.0001, beta_end=1\.0; numbers in \(0, 1\)"),
        (ScaledLinear(beta_start=-0.1), r"beta_start=-0\.1"),
        (Karras(steps=1), "steps=1; at least 2"),
        (Karras(sigma_min=0.0), r"sigma_min=0\.0, sigma_max=80\.0"),
        (Karras(sigma_min=3.0, sigma_max=3.0), r"0 < sigma_min < sigma_max is needed, got sigma_min=3\.0, sigma_max=3\.0"),
        (Karras(rho=0.0), r"rho=0\.0; a finite number > 0"),
        (Linear(steps=0), "steps=0; at least 1"),
        (Linear(start=1.0), r"start=1\.0; a value in \(0, 1\)"),
        (Linear(start=0.0), r"start=0\.0; a value in \(0, 1\)"),
    ],
    ids=repr,
)
def test_schedules_that_make_no_sense_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.levels()


def test_variances_of_a_move_in_alpha_bar():
    for t, s in [(999, 998), (700, 300), (20, 19), (1, 0)]:
        table = alpha_bars(1e-4, 2e-2, 1000)
        a_t, a_s = table[t], table[s]
        move = Move(*(Level(math.sqrt(a), math.sqrt(1 - a)) for a in (a_t, a_s)), 0, 1)
        beta = 1 - a_t / a_s
        # 1 - alpha_bar loses 1e-16 / beta to rounding on either side.
        assert move.forward_variance == pytest.approx(beta, rel=1e-15 / beta + 1e-14)
        assert move.posterior_variance == pytest.approx(beta * (1 - a_s) / (1 - a_t), rel=1e-15 / beta + 1e-14)


def test_variances_stay_positive_for_levels_one_rounding_apart():
    for sigma in (0.1, 0.7, 3.0, 157.4):
        t = Level(0.3, sigma)
        s = Level(0.3, math.nextafter(sigma, 0))
        if t.ratio == s.ratio:
            s = Level(0.3, math.nextafter(s.sigma, 0))
        move = Move(t, s, 0, 1)
        assert move.forward_variance > 0 and move.posterior_variance > 0
