"""Networks as priors: parametrisations, paths and clocks against exact denoisers, and strict loading of files."""

import itertools
import json
import math
import shutil

import pytest
import torch
from problems import DOUBLE, randn

from invsolve import load_prior
from invsolve.kernels import reverse
from invsolve.kernels.linearize import linearize
from invsolve.levels import CLEAN, Level, Move
from invsolve.posterior import Posterior
from invsolve.priors import GaussianPrior, NetworkPrior, TrainingTable, resolve_device, shipped_priors
from invsolve.priors.checkpoints.diffusers import read_scheduler
from invsolve.resources import resource
from invsolve.samplers import State, Unconditional
from invsolve.schedules import DDPM, Cosine, Karras, Linear, alpha_bars, moves
from invsolve.streams import GivenNoise

BARS = alpha_bars(1e-4, 2e-2, 1000)
VP, FLOW = TrainingTable.from_alpha_bars(BARS), TrainingTable.flow(1000)
VE = TrainingTable(tuple(math.log(0.01) + 0.1 * i for i in range(101)), tuple(5.0 + 2 * i for i in range(101)), "ve")
SHAPE = (2, 2, 2)


def exact_prior():
    root = randn(8, 8, seed=1)
    return GaussianPrior(0.3 * randn(*SHAPE, seed=2), root @ root.mT / 8 + 0.02 * torch.eye(8, dtype=DOUBLE))


EXACT = exact_prior()


class Ideal(torch.nn.Module):
    """The network that training would converge to: it knows x on its own path and its clock, and nothing else."""

    def __init__(self, table, prediction, learned=False):
        super().__init__()
        self.table, self.prediction, self.learned = table, prediction, learned
        self.scale = torch.nn.Parameter(torch.ones((), dtype=DOUBLE))
        self.times = []

    def level(self, time):
        """The inverse of the clock, by bisection, on the network's path."""
        lo, hi = self.table.log_ratios[0], self.table.log_ratios[-1]
        for _ in range(200):
            mid = (lo + hi) / 2
            lo, hi = (mid, hi) if self.table.time(Level(1.0, math.exp(mid))) < time else (lo, mid)
        r = math.exp(hi)
        total = {"vp": math.hypot(1, r), "flow": 1 + r, "ve": 1.0}[self.table.path]
        return Level(1 / total, r / total)

    def forward(self, x, time):
        assert time.shape == (x.shape[0],) and len(set(time.tolist())) == 1
        self.times.append(time[0].item())
        a, s = t = self.level(self.times[-1])
        x0 = EXACT.denoise(x, t)
        z = (x - a * x0) / s
        out = {"epsilon": z, "v_prediction": a * z - s * x0, "sample": x0, "flow": z - x0}[self.prediction] * self.scale
        return torch.cat([out, 0.1 * x + 0.5], 1) if self.learned else out


KINDS = [
    (VP, "epsilon"),
    (VP, "v_prediction"),
    (VP, "sample"),
    (VP, "flow"),
    (FLOW, "flow"),
    (FLOW, "epsilon"),
    (FLOW, "sample"),
    (VE, "epsilon"),
    (VE, "sample"),
]
each_kind = pytest.mark.parametrize(("table", "prediction"), KINDS, ids=lambda v: v if isinstance(v, str) else v.path)


def network_prior(table=VP, prediction="epsilon", **options):
    learned = options.pop("learned", False)
    return NetworkPrior(Ideal(table, prediction, learned), table, prediction, channels=SHAPE[0], **options)


@each_kind
def test_every_parametrisation_on_every_path_is_the_posterior_mean(table, prediction):
    prior = network_prior(table, prediction)
    for ratio in (0.011, 0.3, 1.0, 7.7, 120.0):
        u = EXACT.draw(3, seed=4) + ratio * randn(3, *SHAPE, seed=5)
        expected = EXACT.denoise(u, Level(1.0, ratio))
        for total in (1.0, math.hypot(1, ratio), 1 + ratio, 3.3):
            t = Level(1 / total, ratio / total)
            # A prediction of the noise is divided by alpha, which multiplies its rounding (1e-16 |z|) by the ratio.
            assert torch.allclose(prior.denoise(u / total, t), expected, atol=1e-10, rtol=0)


@each_kind
def test_gradients_go_through_every_parametrisation(table, prediction):
    prior, t = network_prior(table, prediction), Level(1.0, 0.7)
    x, v = EXACT.draw(3, seed=4) + 0.7 * randn(3, *SHAPE, seed=5), randn(3, *SHAPE, seed=6)
    assert torch.allclose(linearize(prior, x, t).pull(v), linearize(EXACT, x, t).pull(v), atol=1e-10, rtol=0)


@pytest.mark.parametrize("schedule", [DDPM(steps=200), Karras(steps=30, sigma_min=0.02), Linear(steps=20, start=0.98)], ids=repr)
def test_a_sampler_runs_on_any_schedule_as_with_the_exact_denoiser(schedule):
    prior = network_prior()
    x = schedule.levels()[0].sigma * randn(2, *SHAPE, seed=3)
    states = {}
    for name, p in (("network", prior), ("exact", EXACT)):
        states[name] = State(x)
        for move in moves(schedule):
            states[name] = State(Unconditional(kernel="ddim").step(Posterior(p), states[name], move, GivenNoise()).x)
    assert torch.allclose(states["network"].x, states["exact"].x, atol=1e-9, rtol=0)


# -- the clock ------------------------------------------------------------------------------------------------------------


TRAINED = torch.linspace(0.02, 0.3, 40, dtype=DOUBLE).square()
BAR_TABLES = {
    "linear": alpha_bars(1e-4, 2e-2, 1000),
    "scaled linear": alpha_bars(8.5e-4, 1.2e-2, 1000, 2.0),
    "latent": alpha_bars(0.0015, 0.0195, 1000, 2.0),
    "many": alpha_bars(1e-4, 4e-3, 4000),
    "cosine": [level.alpha**2 for level in Cosine(steps=1000).levels()[-2::-1]],
    "trained betas": torch.cumprod(1 - TRAINED, 0).tolist(),
}
SIGMAS = [level.sigma for level in Karras(steps=300, sigma_max=80.0, sigma_min=0.002).levels()[-2::-1]]
# A denoiser's own clock, ln(sigma)/4, and sigma itself.
CLOCKS = {"index": [float(i) for i in range(300)], "edm": [math.log(s) / 4 for s in SIGMAS], "sigma": SIGMAS}


def single(level):
    return Level(*(torch.tensor(v).item() for v in level))


def spellings(alpha, sigma):
    """One level in the ways that a path, a rescaling or an array in single precision brings."""
    level, total = Level(alpha, sigma), math.hypot(alpha, sigma)
    at = [level, Level(1.0, level.ratio), Level(alpha / total, sigma / total), Level(alpha / (alpha + sigma), sigma / (alpha + sigma))]
    return [*at, Level(3.3 * alpha, 3.3 * sigma), *map(single, at)]


@pytest.mark.parametrize("bars", BAR_TABLES.values(), ids=BAR_TABLES)
def test_every_level_of_a_training_grid_has_the_time_of_its_grid_point(bars):
    for values in (bars, torch.tensor(bars).tolist()):
        table = TrainingTable.from_alpha_bars(values)
        assert table.single == (values is not bars)
        for i, a in enumerate(bars):
            short = torch.tensor(a)
            reduced = [(short.sqrt().item(), (1 - short).sqrt().item()), (short.sqrt().item(), (1 - short.sqrt() ** 2).sqrt().item())]
            for level in [*spellings(math.sqrt(a), math.sqrt(1 - a)), *(Level(*pair) for pair in reduced)]:
                assert table.time(level) == i, (i, level)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_levels_of_diffusers_in_single_precision_have_whole_times(kind, tmp_path):
    scheduler = pytest.importorskip("diffusers").DDPMScheduler(beta_schedule=kind)
    scheduler.save_config(tmp_path)
    exact, _ = read_scheduler(tmp_path)
    short = scheduler.alphas_cumprod
    for table in (exact, TrainingTable.from_alpha_bars(short.tolist())):
        found = [table.time(Level(*pair)) for pair in zip(short.sqrt().tolist(), (1 - short).sqrt().tolist(), strict=True)]
        assert found == list(range(1000))
    # The double-precision path of a schedule on the table in single precision.
    rebuilt = TrainingTable.from_alpha_bars(short.tolist())
    assert [rebuilt.time(Level(1.0, math.exp(v))) for v in exact.log_ratios] == list(range(1000))


@pytest.mark.parametrize("clock", CLOCKS)
def test_every_level_of_a_table_of_sigmas_has_the_time_of_its_grid_point(clock):
    table = TrainingTable(tuple(map(math.log, SIGMAS)), tuple(CLOCKS[clock]), "ve")
    for sigma, time in zip(SIGMAS, CLOCKS[clock], strict=True):
        assert all(table.time(level) == time for level in spellings(1.0, sigma))


@pytest.mark.parametrize("steps", [10, 999, 1000])
def test_every_level_of_a_flow_table_has_a_whole_time(steps):
    table = TrainingTable.flow(steps)
    for i in range(1, steps):
        assert all(table.time(level) == i for level in spellings(1 - i / steps, i / steps))


@pytest.mark.parametrize(
    "table", [VP, TrainingTable.from_alpha_bars(torch.tensor(BARS).tolist()), FLOW, VE], ids=["vp", "single", "flow", "ve"]
)
def test_the_clock_is_continuous_and_rises_wherever_it_is_not_at_a_grid_point(table):
    """In parts of a step from grid point to grid point: a plateau as wide as rounding at both ends, and a straight line between."""
    width = 4e-3 if table.single else 1e-9

    def at(k, part):
        lo, hi = table.log_ratios[k], table.log_ratios[k + 1]
        if table.path == "flow":
            lo, hi = (1 / (1 + math.exp(-v)) for v in (lo, hi))
            s = lo + part * (hi - lo)
            level = Level(1 - s, s)
        else:
            level = Level(1.0, math.exp(lo + part * (hi - lo)))
        return (table.time(level) - table.times[k]) / (table.times[k + 1] - table.times[k])

    for k in (0, 1, 57, len(table.times) // 2, len(table.times) - 2):
        parts = sorted(side for d in (0.3, 0.7, 1.2, 1.5, 1.8, 2.2, 3.0) for side in (d * width, 1 - d * width))
        parts = sorted([*parts, *(i / 40 for i in range(1, 40))])
        times = [at(k, part) for part in parts]
        steps = list(zip(parts, times, strict=True))
        # Rounding of log(sigma/alpha), 1e-16 of up to 5, and of the part of it that one step of the grid is.
        noise = 1e-14 / (table.log_ratios[k + 1] - table.log_ratios[k]) + 1e-13 * len(table.times)
        for part, time in steps:
            off = min(part, 1 - part)
            line = part if off >= 2 * width else round(part) if off <= width else round(part) + math.copysign(2 * (off - width), 0.5 - part)
            assert time == pytest.approx(line, abs=noise)
        for (p, u), (q, v) in itertools.pairwise(steps):
            assert -noise <= v - u <= 2 * (q - p) + noise, "no jump"
            assert v > u or min(q, 1 - p) <= width * (1 + 1e-6), "no plateau but at a grid point"


def test_the_network_is_handed_the_integer_time_and_an_unscaled_input_on_its_grid():
    prior = network_prior()
    levels = DDPM(steps=50).levels()[:-1]
    for t in levels:
        assert prior.table.inside(t) == t
        prior.denoise(randn(2, *SHAPE).float(), t)
    kept = sorted({round(i * (999 / 49)) for i in range(50)}, reverse=True)
    assert prior.network.times == kept


def test_time_between_and_beyond_grid_points():
    for i in (0, 57, 998):
        half = math.exp((VP.log_ratios[i] + VP.log_ratios[i + 1]) / 2)
        assert VP.time(Level(1.0, half)) == pytest.approx(i + 0.5, abs=1e-9)
    assert VP.time(Level(1.0, 1e-6)) == 0 and VP.time(CLEAN) == 0 and VP.time(Level(1.0, 1e6)) == 999
    ratios = [math.exp(-5 + 0.01 * i) for i in range(1000)]
    times = [VP.time(Level(2.0, 2 * r)) for r in ratios]
    assert all(a <= b for a, b in zip(times[:-1], times[1:], strict=True))


def test_time_of_a_flow_network_is_a_thousand_sigma():
    for s in (0.001, 0.0015, 0.2, 0.50037, 0.9987, 0.999):
        assert FLOW.time(Level(1 - s, s)) == pytest.approx(1000 * s, abs=1e-9)
        r = s / (1 - s)
        assert FLOW.time(Level(1.0, r)) == pytest.approx(1000 * s, abs=1e-8)
        assert FLOW.time(Level(1 / math.hypot(1, r), r / math.hypot(1, r))) == pytest.approx(1000 * s, abs=1e-8)


def test_inside_gives_the_level_on_the_networks_path():
    t = Level(1.7, 0.9)
    for table, total in ((VP, math.hypot(*t)), (FLOW, sum(t)), (VE, 1.7)):
        inner = table.inside(t)
        assert inner == pytest.approx((1.7 / total, 0.9 / total), rel=1e-14)
    assert all(VP.inside(level) is level for level in DDPM(steps=1000).levels())
    assert all(FLOW.inside(level) is level for level in Linear(steps=100).levels())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingTable((0.0, 1.0), (0.0,)), "as many log_ratios as times"),
        (lambda: TrainingTable((), ()), "at least one"),
        (lambda: TrainingTable((1.0, 0.0), (0.0, 1.0)), "strictly increasing"),
        (lambda: TrainingTable((0.0, 1.0), (1.0, 1.0)), "strictly increasing"),
        (lambda: TrainingTable.from_alpha_bars([0.9, 0.5, 0.0]), "strictly between 0 and 1, but runs from 0.9 to 0"),
        (lambda: TrainingTable.from_alpha_bars([0.5, 0.9]), "strictly increasing"),
        (lambda: network_prior(prediction="noise"), "prediction='noise'; one of epsilon, v_prediction, sample, flow"),
        (lambda: network_prior(precision="fp16"), "precision='fp16'; 'float32' or 'bf16'"),
        (lambda: network_prior(FLOW, "v_prediction"), "'v_prediction' is defined for a 'vp' table, not for 'flow'"),
    ],
)
def test_tables_and_priors_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- what the wrapper does ------------------------------------------------------------------------------------------------


@each_kind
def test_learned_variance_channels_are_told_apart(table, prediction):
    prior, plain = network_prior(table, prediction, learned=True), network_prior(table, prediction)
    t = Level(0.8, 0.5)
    x = randn(3, *SHAPE, seed=1)
    x0, fraction = prior.denoise_with_variance(x, t)
    inner = table.inside(t)
    assert torch.equal(x0, plain.denoise(x, t)) and plain.denoise_with_variance(x, t)[1] is None
    # Raw, and of the input on the network's path.
    assert torch.allclose(fraction, 0.1 * x * inner.alpha / t.alpha + 0.5, atol=1e-14)
    out = linearize(prior, x, t)
    assert torch.equal(out.fraction, fraction) and not out.fraction.requires_grad
    assert torch.allclose(out.pull(x), linearize(plain, x, t).pull(x), atol=1e-12)


def test_the_learned_variance_reaches_the_kernel():
    prior, move = network_prior(learned=True), moves(DDPM(steps=20))[9]
    x, z = randn(3, *SHAPE, seed=1), randn(3, *SHAPE, seed=2)
    out = Unconditional(variance="learned").step(Posterior(prior), State(x), move, GivenNoise(z))
    x0, v = prior.denoise_with_variance(x, move.t)
    assert torch.equal(out.x, reverse.ancestral(x, x0, move, z, v))
    assert not torch.allclose(out.x, reverse.ancestral(x, x0, move, z, "posterior"))
    with pytest.raises(ValueError, match="variance='learned', but this prior's network has no learned variance"):
        Unconditional(variance="learned").step(Posterior(network_prior()), State(x), move, GivenNoise(z))


def test_calls_are_counted():
    prior, t, x = network_prior(), Level(1.0, 0.5), randn(2, *SHAPE)
    count = lambda: (prior.calls.forward, prior.calls.backward)  # noqa: E731
    prior.denoise(x, t)
    prior.denoise(x, CLEAN)
    assert count() == (2, 0)
    out = linearize(prior, x, t)
    assert count() == (3, 0)
    out.pull(x)
    assert count() == (3, 1)
    # A leaf that is used again and again, as an optimiser does: one backward pass is one call.
    leaf, on_path = x.clone().requires_grad_(), DDPM().levels()[9]
    for k in range(3):
        prior.denoise(leaf, on_path).sum().backward()
        assert count() == (4 + k, 2 + k)
    learned = network_prior(learned=True)
    linearize(learned, x, t).pull(x)
    assert (learned.calls.forward, learned.calls.backward) == (1, 1)


def test_image_shapes_are_checked():
    prior = network_prior(multiple=8)
    prior.image_shape_ok((2, 8, 64))
    for shape, message in [
        ((3, 8, 8), r"images of shape \(2, H, W\), not \(3, 8, 8\)"),
        ((8, 8), r"images of shape \(2, H, W\), not \(8, 8\)"),
        ((2, 8, 60), r"multiples of 8; 60 is not \(try 56 or 64\)"),
        ((2, 5, 8), r"multiples of 8; 5 is not \(try 8\)"),
        ((2, 0, 8), r"multiples of 8; 0 is not \(try 8\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            prior.image_shape_ok(shape)


def test_a_network_of_another_output_shape_is_refused():
    prior = NetworkPrior(torch.nn.Conv2d(2, 3, 1), VP, channels=2, call=lambda net, x, time: net(x))
    with pytest.raises(ValueError, match=r"maps \(1, 2, 2, 2\) to \(1, 3, 2, 2\); the same shape \(or twice the channels\)"):
        prior.denoise(torch.zeros(1, 2, 2, 2), Level(1.0, 1.0))


def test_the_network_is_frozen_and_in_evaluation_mode():
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 2, 1), torch.nn.Dropout(0.9)).train()
    prior = NetworkPrior(network, VP, channels=2, call=lambda net, x, time: net(x))
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    x = torch.randn(1, 2, 4, 4)
    assert torch.equal(prior.denoise(x, CLEAN), prior.denoise(x, CLEAN))
    assert prior.dtype == torch.float32 and prior.device == torch.device("cpu")
    bare = NetworkPrior(torch.nn.Tanh(), VP, channels=2, call=lambda net, x, time: net(x))
    assert bare.dtype is None and bare.device is None


def test_reduced_precision_stays_inside_the_network():
    seen = []

    def call(net, x, time):
        seen.append((time.dtype, net(x).dtype))
        return net(x)

    network = torch.nn.Conv2d(2, 2, 3, padding=1)
    full = NetworkPrior(network, VP, channels=2, call=call)
    half = NetworkPrior(network, VP, channels=2, call=call, precision="bf16", channels_last=True)
    x, t = torch.randn(2, 2, 8, 8), Level(0.9, 0.4)
    a, b = full.denoise(x, t), half.denoise(x, t)
    assert seen == [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)]
    assert b.dtype == torch.float32 and 0 < float((a - b).abs().max()) < 0.05
    # Only the network's output is rounded: x / alpha is not.
    assert torch.allclose((x / 0.9 - b) * 0.9 / 0.4, ((x / 0.9 - b) * 0.9 / 0.4).bfloat16().float(), atol=1e-5)


def test_channels_last_changes_the_layout_only():
    network = torch.nn.Conv2d(2, 2, 3, padding=1)
    x, t = torch.randn(2, 2, 8, 8), Level(0.9, 0.4)
    expected = NetworkPrior(network, VP, channels=2, call=lambda net, x, time: net(x)).denoise(x, t)
    layouts = []

    def call(net, x, time):
        layouts.append(x.is_contiguous(memory_format=torch.channels_last) and net.weight.is_contiguous(memory_format=torch.channels_last))
        return net(x)

    found = NetworkPrior(network, VP, channels=2, channels_last=True, call=call).denoise(x, t)
    assert layouts == [True] and torch.allclose(found, expected, atol=1e-6)


def test_the_compiled_network_is_the_one_that_runs(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or (lambda x, time: 2 * net(x, time)))
    prior = network_prior(VP, "sample", compile=True)
    x, t = randn(2, *SHAPE), Level(1.0, 0.5)
    assert compiled == [prior.network]
    assert torch.allclose(prior.denoise(x, t), 2 * EXACT.denoise(x, t), atol=1e-10)


# -- files ----------------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "epsilon": {"prediction_type": "epsilon", "beta_schedule": "linear"},
    "v": {"prediction_type": "v_prediction", "beta_schedule": "linear"},
    "sample": {"prediction_type": "sample", "beta_schedule": "linear", "num_train_timesteps": 200},
    "scaled": {"prediction_type": "epsilon", "beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2},
    "cosine": {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    "given": {"prediction_type": "epsilon", "trained_betas": [1e-4 * 1.05**i for i in range(100)], "num_train_timesteps": 100},
}


def tiny_unet(out_channels=3, **options):
    from diffusers import UNet2DModel

    blocks = {"block_out_channels": (4, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(8, 3, out_channels, layers_per_block=1, norm_num_groups=2, add_attention=False, **blocks, **options).eval()


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, unet):
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("priors") / "tiny"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


def write_scheduler(folder, scheduler):
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")


def edit_json(path, **changes):
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))


def edit_weights(folder, change):
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_loaded_prior_predicts_x_0_as_diffusers_does(kind, folder, unet):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(clip_sample=False, **SCHEDULERS[kind])
    write_scheduler(folder, theirs)
    prior = load_prior(folder, device="cpu")
    assert prior.prediction == theirs.config.prediction_type and prior.channels == 3 and prior.multiple == 2
    steps = theirs.config.num_train_timesteps
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for time in (0, 1, steps // 2, steps - 2):
        bar = float(torch.cumprod(1 - theirs.betas.double(), 0)[time])
        with torch.no_grad():
            out = unet(x, time).sample
            expected = theirs.step(out, time, x).pred_original_sample
            found = prior.denoise(x, Level(math.sqrt(bar), math.sqrt(1 - bar)))
        # Their alpha_bar is a float32 product (1e-4 of itself, see test_schedules), and is divided by.
        assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("time", [3, 400, 990])
def test_ancestral_steps_with_fixed_and_learned_variance_against_diffusers(time):
    from diffusers import DDPMScheduler

    unet = tiny_unet(out_channels=6)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    levels = DDPM(steps=1000).levels()[-2::-1]
    move = Move(levels[time], levels[time - 1], 999 - time, 1000)
    prior = NetworkPrior(unet, VP, call=lambda net, x, time: net(x, time).sample)
    with torch.no_grad():
        out = unet(x, time).sample
        for theirs, ours in (("learned_range", "learned"), ("fixed_small", "posterior"), ("fixed_large", "upper")):
            scheduler = DDPMScheduler(clip_sample=False, variance_type=theirs)
            raw = out if ours == "learned" else out[:, :3]
            expected = scheduler.step(raw, time, x, generator=torch.Generator().manual_seed(2)).prev_sample
            found = Unconditional(variance=ours).step(Posterior(prior), State(x), move, GivenNoise(z)).x
            # One float32 step whose coefficients hold float32 alpha_bars: 1 - alpha_bar loses 1e-7 / (1 - alpha_bar).
            assert torch.allclose(found, expected, atol=1e-5 + 1e-6 / (1 - levels[time].alpha ** 2), rtol=0)


def test_a_flow_network_is_loaded_with_its_own_clock(folder, unet):
    from diffusers import FlowMatchEulerDiscreteScheduler

    write_scheduler(folder, FlowMatchEulerDiscreteScheduler(shift=3.0))
    prior = load_prior(folder, device="cpu")
    assert prior.prediction == "flow"
    x = torch.randn(2, 3, 8, 8)
    for sigma in (0.25, 0.9):
        with torch.no_grad():
            expected = x - sigma * unet(x, 1000 * sigma).sample
            assert torch.allclose(prior.denoise(x, Level(1 - sigma, sigma)), expected, atol=1e-5)
            ratio = sigma / (1 - sigma)
            assert torch.allclose(prior.denoise(x / (1 - sigma), Level(1.0, ratio)), expected, atol=1e-5)


def test_card_checksum_and_half_precision_weights(folder, unet):
    import hashlib

    edit_weights(folder, lambda w: w.update({k: v.half() for k, v in w.items()}))
    digest = hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    (folder / "card.yaml").write_text(f"sha256: {digest}\nrange: [-1, 1]\n")
    prior = load_prior(folder, device="cpu")
    assert prior.weights_sha256 == digest and prior.card["range"] == [-1, 1] and prior.dtype == torch.float32
    for name, weight in unet.state_dict().items():
        assert torch.equal(prior.network.state_dict()[name], weight.half().float())
    (folder / "card.yaml").write_text(f"sha256: '{'0' * 64}'\n")
    with pytest.raises(ValueError, match=f"sha256 {digest[:12]}..., its card says 000000000000...; the file is damaged"):
        load_prior(folder, device="cpu")


def test_files_side_by_side_are_loaded_as_diffusers_does(folder, tmp_path):
    expected = load_prior(folder, device="cpu")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir(), folder / "model_index.json"):
        shutil.copy(path, flat)
    prior = load_prior(flat, device="cpu")
    assert prior.weights_sha256 == expected.weights_sha256 and prior.table == expected.table


def test_a_prior_loaded_under_inference_mode_can_be_differentiated(folder):
    with torch.inference_mode():
        prior = load_prior(folder, device="cpu")
    out = linearize(prior, torch.randn(1, 3, 8, 8), Level(1.0, 1.0))
    assert float(out.pull(torch.ones(1, 3, 8, 8)).abs().max()) > 0


def rename(weights):
    weights["conv_in.wieght"] = weights.pop("conv_in.weight")


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE = [
    (
        lambda f: edit_weights(f, lambda w: w.pop("mid_block.resnets.0.conv1.weight")),
        ValueError,
        "1 weights are missing, such as mid_block.resnets.0.conv1.weight",
    ),
    (lambda f: edit_weights(f, lambda w: w.update(stray=torch.ones(1))), ValueError, "1 weights are unknown to the network, such as stray"),
    (lambda f: edit_weights(f, rename), ValueError, "1 weights are missing, such as conv_in.weight"),
    (
        lambda f: edit_weights(f, lambda w: w.update({"conv_in.weight": torch.ones(4, 3, 1, 1)})),
        ValueError,
        "1 weights have another shape, such as conv_in.weight",
    ),
    (
        lambda f: edit_weights(f, lambda w: w["conv_in.bias"].fill_(math.nan)),
        ValueError,
        "1 weights hold NaN or infinity, such as conv_in.bias",
    ),
    (lambda f: edit_weights(f, lambda w: w["conv_in.bias"].fill_(math.inf)), ValueError, "NaN or infinity, such as conv_in.bias"),
    (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model.bin"),
        FileNotFoundError,
        f"{WEIGHTS} is missing; weights are read from safetensors only",
    ),
    (lambda f: (f / "unet" / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
    (lambda f: (f / "unet" / "config.json").write_text("{"), ValueError, "config.json is not valid JSON"),
    (
        lambda f: edit_json(f / "unet" / "config.json", _class_name="UNet2DConditionModel"),
        FileNotFoundError,
        "holds a conditional network, but no condition for it",
    ),
    (
        lambda f: edit_json(f / "unet" / "config.json", num_class_embeds=10),
        ValueError,
        "class-conditional network \\(num_class_embeds=10\\)",
    ),
    (lambda f: shutil.rmtree(f / "scheduler"), FileNotFoundError, "scheduler_config.json is missing; without it the noise levels"),
    (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", prediction_type="score"),
        ValueError,
        "prediction_type 'score' is not known; epsilon",
    ),
    (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"),
        ValueError,
        "beta_schedule 'sigmoid' is not known; linear",
    ),
    (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True),
        ValueError,
        "rescale_betas_zero_snr is not supported",
    ),
    (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler", beta_schedule="drop"),
        ValueError,
        "ScoreSdeVeScheduler states no beta_schedule",
    ),
    (lambda f: edit_json(f / "scheduler" / "scheduler_config.json", beta_end=2.0), ValueError, "beta_end=2.0; numbers in \\(0, 1\\)"),
    (lambda f: (f / "card.yaml").write_text("- a\n- b\n"), ValueError, "card.yaml must hold a mapping"),
    (lambda f: shutil.rmtree(f / "unet"), FileNotFoundError, "exists but holds no unet/ folder"),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE, ids=[m[:40] for *_, m in DAMAGE])
def test_a_damaged_folder_is_refused_and_the_culprit_named(damage, error, message, folder):
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load_prior(folder, device="cpu")
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_names_are_looked_up_and_unknown_ones_answered_with_those_there_are(tmp_path, saved, monkeypatch):
    import invsolve.priors.checkpoints.loading as loading
    import invsolve.resources as resources

    shutil.copytree(saved, tmp_path / "data" / "priors" / "photo")
    for module in (loading, resources):
        monkeypatch.setattr(module, "resource", lambda *parts: tmp_path.joinpath(*parts))
    assert shipped_priors() == ["photo"]
    assert load_prior("photo", device="cpu").weights_sha256 == load_prior(saved, device="cpu").weights_sha256
    with pytest.raises(
        FileNotFoundError, match=r"no prior 'foto': not shipped \(there are: photo\) and no such folder; did you mean 'photo'\?"
    ):
        load_prior("foto")
    with pytest.raises(FileNotFoundError, match=r"no prior './nowhere/at-all': not shipped"):
        load_prior("./nowhere/at-all")
    with pytest.raises(FileNotFoundError, match=r"no prior 'a/b/c': not shipped"):
        load_prior("a/b/c")


def test_hub_ids_are_never_fetched_unasked(monkeypatch):
    with pytest.raises(
        FileNotFoundError, match="nobody/no-such-model is no folder and not in the local hub cache; pass allow_download=True"
    ):
        load_prior("nobody/no-such-model")
    import huggingface_hub

    asked = []

    def offline(name, **options):
        asked.append((name, options["local_files_only"]))
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="nobody/x is no folder and could not be fetched from the hub: no connection$"):
        load_prior("nobody/x", allow_download=True)
    assert asked == [("nobody/x", False)]


def test_a_hub_model_is_read_from_the_folder_that_was_fetched(monkeypatch, saved):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(saved))
    assert load_prior("somebody/tiny", device="cpu").network.config.in_channels == 3


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu") and resolve_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


# -- the shipped prior ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not resource("data", "priors", "photo", "unet").is_dir(), reason="the photo prior is not in this checkout")
def test_the_photo_prior_denoises_a_photograph_alike_on_every_path():
    import numpy as np
    from PIL import Image

    prior = load_prior("photo", device="cpu")
    picture = np.asarray(Image.open(resource("data", "photos", "astronaut.png")).convert("RGB"))[100:164, 200:264]
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    prior.image_shape_ok(x.shape[1:])
    for sigma in (0.1, 0.5):
        y = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            clean = prior.denoise(y, Level(1.0, sigma))
            scale = math.hypot(1, sigma)
            again = prior.denoise(y / scale, Level(1 / scale, sigma / scale))
        assert torch.allclose(clean, again, atol=1e-5)
        # At least 4 dB better than the noisy image, which any useful denoiser of a photograph is at these levels.
        assert float((clean - x).square().mean()) < 10**-0.4 * float((y - x).square().mean())
