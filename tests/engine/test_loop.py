"""The loop around the samplers: what it refuses, what it reports, and under which modes it runs."""

import math
import re
import shutil

import numpy as np
import pytest
import torch
from problems import DOUBLE, problem_16, problem_r1, randn

from invsolve import Divergence, Posterior, Trajectory, sample
from invsolve.engine import memory
from invsolve.engine.memory import activation_bytes, rows_that_fit
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.likelihoods.poisson import PoissonLikelihood
from invsolve.priors import GaussianPrior, NetworkPrior, TrainingTable
from invsolve.samplers import DPS, Unconditional
from invsolve.schedules import DDPM, Karras, Levels, alpha_bars
from operators import GaussianBlur, Inpainting, Matrix

STEPS = DDPM(steps=15)


def run(sampler, target, schedule=STEPS, **kwargs):
    return sample(sampler, target, schedule, progress=False, **kwargs)


class Convolution(torch.nn.Module):
    """A small differentiable network with no trained meaning."""

    def __init__(self, out=3):
        super().__init__()
        self.inner = torch.nn.Conv2d(3, out, 3, padding=1)
        for k, p in enumerate(self.inner.parameters()):
            p.data = 0.1 * randn(*p.shape, seed=k).float()

    def forward(self, x, time):
        return torch.tanh(self.inner(x)) + time.view(-1, 1, 1, 1) * 1e-4


def network_prior(out=3):
    return NetworkPrior(Convolution(out), TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)), "v_prediction")


def image_posterior(prior=None, rows=1):
    operator = Inpainting(image_shape=(3, 8, 8), kind="box", size=4, seed=0)
    truth = 0.5 * randn(rows, 3, 8, 8, seed=3).float()
    return Posterior(prior or network_prior(), GaussianLikelihood(operator, operator.measure(truth, 0.05), sigma=0.05))


def test_shapes_and_default_ids():
    posterior = problem_16(rows=3)
    assert run(DPS(), posterior, n=4).shape == (3, 4, 1, 4, 4)
    assert torch.equal(run(DPS(), posterior), run(DPS(), posterior, ids=range(3)))
    assert run(Unconditional(), posterior.prior, n=4, ids=["a", "b"]).shape == (2, 4, 1, 4, 4)
    assert run(Unconditional(), network_prior(), n=2, shape=(3, 16, 8)).shape == (1, 2, 3, 16, 8)


def test_one_measurement_may_serve_several_ids():
    posterior = problem_16()
    draws = run(DPS(), posterior, ids=["a", "b"])
    assert draws.shape[:2] == (2, 1) and not torch.allclose(draws[0], draws[1])
    assert torch.allclose(draws[1], run(DPS(), posterior, ids=["b"])[0], atol=1e-10)


@pytest.mark.parametrize("sampler", [DPS(), DPS(variant="squared", zeta=1e-3), Unconditional()], ids=repr)
@pytest.mark.parametrize("prior", [None, "gaussian"])
def test_inference_mode_changes_nothing(sampler, prior):
    def build():
        gaussian = GaussianPrior(torch.zeros(3, 8, 8), torch.eye(192)) if prior else None
        return image_posterior(gaussian)

    expected = run(sampler, build(), n=2)
    with torch.inference_mode():
        inside = run(sampler, build(), n=2)
    assert torch.equal(expected, inside)


def test_under_lightning_predict():
    from lightning import LightningModule, Trainer
    from torch.utils.data import DataLoader

    operator, prior = GaussianBlur(image_shape=(3, 8, 8), std=1.0), network_prior()
    y = operator.measure(0.5 * randn(2, 3, 8, 8).float(), 0.05)

    class Reconstruct(LightningModule):
        def predict_step(self, batch, index):
            assert torch.is_inference_mode_enabled()
            return run(DPS(), Posterior(prior, GaussianLikelihood(operator, batch, sigma=0.05)))

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (inside,) = trainer.predict(Reconstruct(), DataLoader(y, batch_size=2))
    assert torch.equal(inside, run(DPS(), Posterior(prior, GaussianLikelihood(operator, y, sigma=0.05))))


def test_a_deepinv_physics_gives_what_our_operator_gives():
    import deepinv

    ours = Inpainting(image_shape=(3, 8, 8), kind="box", size=4, seed=0)
    theirs = deepinv.physics.Inpainting(img_size=(3, 8, 8), mask=ours.mask.float())
    y, prior = ours.measure(0.5 * randn(1, 3, 8, 8).float(), 0.05), network_prior()
    a, b = (run(DPS(), Posterior(prior, GaussianLikelihood(op, y, sigma=0.05))) for op in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-5)


def test_observer_sees_every_step_and_trajectories_are_copies():
    posterior, seen, events, keep = problem_16(rows=2), [], [], Trajectory(every=4, rows=[(1, 0)])

    def both(event):
        seen.append((event.index, event.move.t.sigma, tuple(event.rows)))
        events.append(event)
        keep(event)

    draws = run(DPS(), posterior, n=2, observe=both)
    assert [s[0] for s in seen] == list(range(15)) and seen[0][2] == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert list(keep.frames) == [(1, 0)]
    frames = keep.frames[(1, 0)]
    assert [m.index for m, _ in frames] == [0, 4, 8, 12, 14]
    assert all(torch.equal(x0, events[m.index].x0_hat[2]) for m, x0 in frames)
    # The last ancestral move puts x at x0_hat, and the norm step takes off zeta = 1 times the gradient -J' A' r / |r|.
    (last, x0), cov = frames[-1], posterior.prior.cov
    t = last.t
    J = t.alpha * torch.linalg.solve(t.alpha**2 * cov + t.sigma**2 * torch.eye(16, dtype=DOUBLE), cov)
    A = posterior.likelihood.operator.matrix
    r = posterior.likelihood.y[1] - A @ x0.flatten()
    assert torch.allclose(draws[1, 0].flatten(), x0.flatten() + J.mT @ A.mT @ r / r.norm(), rtol=0, atol=1e-10)
    for event in events:
        event.x0_hat.zero_()
    assert all(bool(x0.any()) for _, x0 in frames)


def test_divergence_names_step_level_image_and_cause():
    posterior = problem_16(rows=2)
    with pytest.raises(Divergence, match=r"image 'left', sample 0: step \d+ of 15, level alpha=.* sigma=.*zeta"):
        run(DPS(zeta=1e6), posterior, ids=["left", "right"])

    class Broken(GaussianPrior):
        def denoise(self, x, t):
            return super().denoise(x, t) * (math.nan if t.sigma < 0.5 else 1.0)

    broken = Broken(posterior.prior.mean, posterior.prior.cov)
    with pytest.raises(Divergence, match="largest .x. is nan"):
        run(Unconditional(), broken)


def test_large_units_are_no_divergence():
    prior = GaussianPrior(torch.full((2,), 5e4, dtype=DOUBLE), 1e6 * torch.eye(2, dtype=DOUBLE))
    draws = run(Unconditional(), prior, Karras(steps=40, sigma_max=1e7, sigma_min=1.0), n=400)[0]
    # 400 draws of standard deviation 1000: a standard error of 50.
    assert float((draws.mean(0) - 5e4).abs().max()) < 250


def test_the_measurement_of_memory_is_not_counted_as_a_call():
    prior = network_prior()
    run(DPS(), image_posterior(prior), n=4, memory_gb=1e-9)
    assert prior.calls.forward == 4 * 15


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ValueError, "n=0"),
        ({"ids": ["a"]}, ValueError, "1 ids for 2 measurements"),
        ({"ids": ["a", "a"]}, ValueError, "must differ"),
        ({"ids": []}, ValueError, "ids is empty"),
        ({"ids": [0.5, 1.5]}, TypeError, "0.5 is a float"),
        ({"shape": (3, 3)}, ValueError, "shape=.3, 3."),
        ({"memory_gb": 0}, ValueError, "memory_gb=0"),
        ({"noise_device": "gpu"}, ValueError, "noise_device|'gpu'"),
    ],
)
def test_refusals(change, error, message):
    with pytest.raises(error, match=message):
        run(DPS(), problem_16(rows=2), **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((problem_r1(), DPS(), STEPS), "Posterior is no sampler; the order is sample.sampler, target, schedule."),
        ((DPS, problem_r1(), STEPS), r"pass an object, DPS\(\)"),
        ((DPS(), problem_r1(), 20), "schedule is 20; a schedule such as DDPM"),
        ((DPS(), problem_r1(), [(1, 0)]), r"or Levels\(\[...\]\) for your own levels"),
        ((Unconditional(), lambda x, t: x, STEPS), "a prior with denoise"),
    ],
    ids=range(5),
)
def test_arguments_of_the_wrong_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        run(*arguments)


def test_more_refusals():
    with pytest.raises(TypeError, match="n=2.5; a whole number"):
        run(DPS(), problem_r1(), n=2.5)
    with pytest.raises(ValueError, match="dtype=torch.float64, but the prior's network computes in torch.float32"):
        run(Unconditional(), network_prior(), shape=(3, 8, 8), dtype=DOUBLE)
    with pytest.raises(TypeError, match="y is a ndarray"):
        GaussianLikelihood(problem_r1().likelihood.operator, np.ones((1, 1)), 0.1)
    with pytest.raises(ValueError, match="one number for all rows"):
        GaussianLikelihood(problem_r1().likelihood.operator, torch.ones(2, 1), torch.ones(2))
    with pytest.raises(ValueError, match="levels are pairs"):
        Levels([1.0, 0.5, 0.0])
    ids = np.arange(2)
    assert torch.equal(run(DPS(), problem_16(rows=2), ids=ids), run(DPS(), problem_16(rows=2), ids=[0, 1]))


def test_a_result_far_outside_the_priors_range_is_refused():
    with pytest.raises(Divergence, match="lower zeta"):
        run(DPS(zeta=1e4), image_posterior(), DDPM(steps=10))


def test_refusals_that_need_other_targets():
    with pytest.raises(ValueError, match="shape of a signal is not known"):
        run(Unconditional(), network_prior())
    with pytest.raises(ValueError, match="multiples of 8; 12 is not"):
        prior = network_prior()
        prior.multiple = 8
        run(Unconditional(), prior, shape=(3, 8, 12))
    r1 = problem_r1()
    silent = Posterior(r1.prior, GaussianLikelihood(r1.likelihood.operator, r1.likelihood.y, sigma=0.0))
    with pytest.raises(ValueError, match="divides by sigma"):
        run(DPS(variant="squared"), silent)
    assert torch.isfinite(run(DPS(variant="norm"), silent)).all(), "the norm step never divides by sigma"
    with pytest.raises(ValueError, match="no learned variance"):
        run(DPS(variant="official"), r1)
    with pytest.raises(ValueError, match="needs a measurement"):
        run(DPS(), r1.prior)


def test_learned_variance_channels_are_used():
    prior = network_prior(out=6)
    target = image_posterior(prior)
    learned, small = run(DPS(), target), run(DPS(variance="posterior"), target)
    assert torch.isfinite(learned).all() and not torch.allclose(learned, small)
    assert torch.equal(learned, run(DPS(variance="learned"), target))


def test_dps_with_poisson_noise():
    operator = Matrix(randn(5, 4).abs(), (4,))
    prior = GaussianPrior(torch.zeros(4, dtype=DOUBLE), 0.1 * torch.eye(4, dtype=DOUBLE))
    y = operator.A((prior.draw(1) + 1) / 2)
    target = Posterior(prior, PoissonLikelihood(operator, y, gain=0.01))
    draws = run(DPS(variant="squared"), target, DDPM(steps=200), n=64)[0]
    free = run(Unconditional(), prior, DDPM(steps=200), n=64)[0]
    assert float(target.likelihood.discrepancy(draws).mean()) < 0.25 * float(target.likelihood.discrepancy(free).mean())


def test_any_schedule_walks_one_prior():
    """VP, VE and user levels sample the same prior: its mean within 5 standard errors of 600 draws."""
    prior = problem_16().prior
    user = Levels(tuple((1.0, s) for s in (50.0, 20.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05, 0.0)))
    for schedule in (DDPM(steps=50), Karras(steps=30), user):
        draws = run(Unconditional(), prior, schedule, n=600)[0]
        error = (draws.mean(0) - prior.mean) / (prior.cov.diagonal().reshape(1, 4, 4) / 600).sqrt()
        assert float(error.abs().max()) < 5


def test_calls_are_counted():
    prior = network_prior()
    run(DPS(), image_posterior(prior), n=2)
    assert (prior.calls.forward, prior.calls.backward) == (15, 15)
    run(Unconditional(kernel="heun"), prior, n=2, shape=(3, 8, 8))
    assert (prior.calls.forward, prior.calls.backward) == (15 + 29, 15)


def test_memory_measurement_counts_activations_and_not_weights():
    prior, x = network_prior(), torch.zeros(1, 3, 64, 64)
    level = STEPS.levels()[0]
    one = activation_bytes(prior, x, level)
    four = activation_bytes(prior, torch.zeros(4, 3, 64, 64), level)
    assert one >= 2 * x.numel() * 4
    assert abs(four / one - 4) < 0.1
    per_row = (1.5 * one + 42 * x.numel() * 4) / 2**30
    target = Posterior(prior)
    fits = rows_that_fit(target, (3, 64, 64), torch.float32, torch.device("cpu"), 100, 7.5 * per_row, level)
    assert fits == 7
    assert rows_that_fit(target, (3, 64, 64), torch.float32, torch.device("cpu"), 100, 1e-9, level) == 1


def test_the_chunk_follows_the_limit_and_never_the_free_memory_which_refuses_what_does_not_fit(monkeypatch):
    target, level, cpu = Posterior(network_prior()), STEPS.levels()[0], torch.device("cpu")
    per_row = 1.5 * activation_bytes(target.prior, torch.zeros(1, 3, 64, 64), level) + 42 * 3 * 64 * 64 * 4

    def rows(memory_gb=None, count=100):
        return rows_that_fit(target, (3, 64, 64), torch.float32, cpu, count, memory_gb, level)

    limit = 7.5 * per_row / 2**30
    for free in (None, 8 * per_row, 1e15):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert rows(limit) == 7
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1e15)
    plenty = rows(count=10**6)
    assert plenty == int(4 * 2**30 // per_row)  # the default is a constant
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(1.01 * plenty * per_row))
    assert rows(count=10**6) == plenty
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(0.99 * plenty * per_row))
    with pytest.raises(
        ValueError, match=rf"a pass of {plenty} rows takes about 4 GiB, and 3.96 GiB are free on cpu; memory_gb=\S+ fits"
    ) as error:
        rows(count=10**6)
    assert "\n" not in str(error.value)
    fits = float(re.search(r"memory_gb=(\S+) fits", str(error.value))[1])
    assert rows(fits, 10**6) == pytest.approx(0.9 * 0.99 * plenty, rel=0.01)
    # Few rows, which are not measured where there is room for any network: they are as many where there is less.
    for free in (1e15, 3.1 * per_row):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert rows(count=3) == 3
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(0.5 * per_row))
    with pytest.raises(ValueError, match=r"a pass of 1 row takes about .*; not one row fits"):
        rows(1e-9)


def test_observers_are_told_the_rows_of_a_pass():
    class Told:
        rows = None

        def begin(self, rows):
            self.rows = rows

        def __call__(self, event):
            assert len(event.rows) <= self.rows

    for options, expected in (({}, 6), ({"memory_gb": 1e-9}, 1)):
        told = Told()
        run(DPS(), image_posterior(rows=2), n=3, observe=told, **options)
        assert told.rows == expected


def options_prior(**options):
    return NetworkPrior(Convolution(), TrainingTable.from_alpha_bars(alpha_bars(1e-4, 2e-2, 1000)), "v_prediction", **options)


def test_precision_and_memory_layout():
    plain = run(DPS(), image_posterior())
    assert torch.allclose(run(DPS(), image_posterior(options_prior(channels_last=True))), plain, atol=1e-5)
    rounded = run(DPS(), image_posterior(options_prior(precision="bf16")))
    # bfloat16 holds 8 bits: 0.4 % of the network's output (below 1) a step, averaged down over 15 steps.
    assert rounded.dtype == torch.float32 and 0 < float((rounded - plain).abs().max()) < 0.03
    with pytest.raises(ValueError, match="precision='fp8'"):
        options_prior(precision="fp8")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same():
    assert torch.allclose(run(DPS(), image_posterior(options_prior(compile=True))), run(DPS(), image_posterior()), atol=1e-5)
