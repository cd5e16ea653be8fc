"""Latent pipelines at work: memory options that change no result, and every sampler from the command line and from Python."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image

from invsolve import Posterior, load_prior, sample
from invsolve.cli.main import main
from invsolve.config.names import load_object
from invsolve.engine.memory import activation_bytes, rows_that_fit
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level
from invsolve.likelihoods.gaussian import GaussianLikelihood
from invsolve.numerics.recompute import recomputed, saved_bytes
from invsolve.priors.checkpoints.autoencoders import DiffusersAutoencoder, _starts
from invsolve.samplers import DPS, SAMPLERS, Unconditional
from invsolve.schedules import Karras
from operators import Inpainting

T = Level(0.8, 0.6)
SHAPE = (3, tiny.SIDE, tiny.SIDE)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes") / "classes"
    tiny.save_class_conditional(folder)
    return folder


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable") / "sd1"
    tiny.save_stable_diffusion(folder)
    return folder


# -- activation checkpointing ---------------------------------------------------------------------------------------------


def test_bytes_that_a_pass_keeps():
    x = randn(1000).requires_grad_()
    chain = lambda x: x.exp().exp().exp()  # noqa: E731
    size = 4 * 1000
    # exp keeps its result.
    assert saved_bytes(lambda: chain(x)) == 3 * size
    # The argument is kept; the three results come back for the backward pass.
    assert saved_bytes(lambda: recomputed(chain, x)) == (1 + 3) * size
    twice = lambda: recomputed(chain, recomputed(lambda x: x.exp(), x))  # noqa: E731
    assert saved_bytes(twice) == (1 + 1 + 3) * size
    assert saved_bytes(lambda: chain(x.detach())) == 0
    weight = randn(1000)
    assert saved_bytes(lambda: x * weight) == size
    assert saved_bytes(lambda: x * weight, {weight.untyped_storage().data_ptr()}) == 0


def test_recomputed_gradients_are_the_same():
    x = randn(50).requires_grad_()
    chain = lambda x, k: (x * x).sin() * k  # noqa: E731
    (expected,) = torch.autograd.grad(chain(x, 3.0).sum(), x)
    (found,) = torch.autograd.grad(recomputed(chain, x, 3.0).sum(), x)
    assert torch.equal(found, expected)
    out = recomputed(chain, x, 3.0)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out.sum(), x, retain_graph=True)[0], expected)
    # In forward mode, too.
    assert torch.allclose(torch.func.jvp(lambda x: recomputed(chain, x, 3.0), (x.detach(),), (torch.ones(50),))[1], expected, atol=1e-6)
    with torch.no_grad():
        assert not recomputed(chain, x, 3.0).requires_grad


def gradients(prior, c):
    """The three kinds of gradient that samplers take: by z through the network, by z through the decoder, by the embedding."""
    z = randn(2, 4, 16, 16)
    leaf, embedding = z.clone().requires_grad_(), c.clone().requires_grad_()
    decoded = prior.decode(leaf)
    (by_code,) = torch.autograd.grad(decoded.square().sum(), leaf)
    conditioned = prior.conditioned(embedding)
    (by_embedding,) = torch.autograd.grad(conditioned.decode(conditioned.denoise(z, T)).square().sum(), embedding)
    return linearize(prior, z, T).pull(z), by_code, by_embedding


def test_checkpointing_changes_memory_and_nothing_else(classes):
    load = lambda **options: load_prior(classes, device="cpu", prompt="ring", guidance=2.0, **options)  # noqa: E731
    plain, saving = load(), load(checkpointing=True)
    c = torch.stack([plain.embed("disc"), plain.embed("7")])
    for found, expected in zip(gradients(saving, c), gradients(plain, c), strict=True):
        assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
        assert float(expected.abs().max()) > 0
    assert vars(saving.calls) == vars(plain.calls)
    z = randn(1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(saving.denoise(z, T), plain.denoise(z, T)) and torch.equal(saving.decode(z), plain.decode(z))
    # Two blocks a side save little; deep networks more.
    assert activation_bytes(saving, z, T) < 0.7 * activation_bytes(plain, z, T)


def test_a_pixel_prior_takes_checkpointing_too(classes, tmp_path):
    import shutil

    folder = shutil.copytree(classes, tmp_path / "pixels")
    shutil.rmtree(folder / "vae")
    plain, saving = (load_prior(folder, device="cpu", checkpointing=saves) for saves in (False, True))
    z = randn(1, 4, 16, 16)
    expected = linearize(plain, z, T).pull(z)
    assert torch.allclose(linearize(saving, z, T).pull(z), expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
    assert activation_bytes(saving, z, T) < 0.7 * activation_bytes(plain, z, T)


def test_chunks_are_measured_with_the_decoder_and_the_measurement_leaves_no_trace(classes):
    prior = load_prior(classes, device="cpu")
    z = randn(1, 4, 8, 8)
    network = saved_bytes(lambda: linearize(prior.prior, z, T))
    whole = activation_bytes(prior, z, T)
    leaf = z.clone().requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in prior.autoencoder.network.parameters()}
    decoder = saved_bytes(lambda: prior.autoencoder.decode(leaf), weights)
    assert whole > decoder > 10 * 4 * 3 * 16 * 16 and whole < network + decoder + 4096
    before = dict(vars(prior.calls))
    target = Posterior(prior)
    one = 1.5 * whole + 42 * 4 * 4 * 8 * 8
    for rows in (1, 3):
        fits = rows_that_fit(target, (4, 8, 8), torch.float32, torch.device("cpu"), 8, rows * one * 1.01 / 2**30, T)
        assert fits == rows
    assert vars(prior.calls) == before


def test_peak_memory_of_a_run():
    # In a process of its own, for a large one has freed memory that it uses again.
    code = """
import torch
from invsolve.engine.memory import peak_megabytes, reset_peak
device = torch.device("cpu")
reset_peak(device)
before = peak_megabytes(device)
held = torch.ones(100 * 2**20 // 4)
print(None if before is None else peak_megabytes(device) - before)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert found == "None" or float(found) >= 90


# -- tiles ----------------------------------------------------------------------------------------------------------------


class Pointwise(torch.nn.Module):
    """An autoencoder that sees one code at a time, so that tiles cannot matter; `run` counts the pixels it was given."""

    class config:  # noqa: N801
        block_out_channels, in_channels, latent_channels = (1, 1), 3, 4

    def __init__(self):
        super().__init__()
        self.scale, self.seen = torch.nn.Parameter(torch.tensor(0.7)), []

    def decode(self, z, return_dict):
        self.seen.append(tuple(z.shape[-2:]))
        return ((z[:, :3] * self.scale).sin().repeat_interleave(2, -1).repeat_interleave(2, -2),)

    def encode(self, x):
        self.seen.append(tuple(x.shape[-2:]))
        mean = torch.cat([x, x[:, :1]], 1)[..., ::2, ::2]
        return type("Out", (), {"latent_dist": type("Dist", (), {"mean": mean})})


@pytest.mark.parametrize("size", [(8, 8), (8, 9), (13, 40), (31, 9)])
def test_tiles_cover_an_image_and_blend_to_one(size):
    whole, tiled = DiffusersAutoencoder(Pointwise(), 0.5, 0.1), DiffusersAutoencoder(Pointwise(), 0.5, 0.1, tile=16)
    z, x = randn(2, 4, *size), randn(2, 3, 2 * size[0], 2 * size[1])
    assert torch.allclose(tiled.decode(z), whole.decode(z), atol=1e-6)
    assert torch.allclose(tiled.encode(x), whole.encode(x), atol=1e-6)
    count = len(_starts(size[0], 8, 2)) * len(_starts(size[1], 8, 2))
    assert tiled.network.seen == [(min(8, size[0]), min(8, size[1]))] * count + [(min(16, 2 * size[0]), min(16, 2 * size[1]))] * count


def test_precision_and_layout_are_of_network_and_autoencoder(classes):
    full, half = (load_prior(classes, device="cpu", precision=precision, channels_last=True) for precision in ("float32", "bf16"))
    z = randn(2, *full.signal_shape((3, 32, 32)))
    seen = []
    for prior in (full, half):
        prior.autoencoder.network.decoder.conv_out.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
        prior.autoencoder.network.decoder.conv_in.register_forward_pre_hook(
            lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
    images = [prior.decode(z) for prior in (full, half)]
    codes = [prior.encode(images[0]) for prior in (full, half)]
    assert seen == [True, torch.float32, True, torch.bfloat16]
    for exact, rounded in (images, codes):
        error = float((exact - rounded).norm() / exact.norm())
        # A few roundings to 8 bits, and the result in single precision.
        assert rounded.dtype == torch.float32 and 0 < error < 0.03
    with pytest.raises(ValueError, match="'float32' or 'bf16'"):
        DiffusersAutoencoder(Pointwise(), precision="fp16")


@pytest.mark.parametrize("length", range(8, 60))
def test_tiles_overlap_by_a_quarter_or_more(length):
    starts = _starts(length, 8, 2)
    assert starts[0] == 0 and starts[-1] + 8 == length
    steps = [b - a for a, b in zip(starts[:-1], starts[1:], strict=True)]
    assert all(0 < step <= 6 for step in steps)
    # No fewer would do.
    assert len(starts) == 1 or (len(starts) - 2) * 6 + 8 < length


def test_a_tiled_decoder_is_near_the_whole_one_differentiable_and_small(classes):
    whole, tiled, coarse = (load_prior(classes, device="cpu", tile=tile) for tile in (None, 32, 64))
    # Noise, of which the statistics of a tile are near those of the whole, the nearer the larger the tile.
    z = randn(1, 4, 48, 48)
    with torch.no_grad():
        expected, found = whole.decode(z), tiled.decode(z)
        assert torch.equal(found, tiled.decode(z))
        errors = [float((x - expected).square().mean().sqrt() / expected.std()) for x in (found, coarse.decode(z))]
    assert 0 < errors[1] < 0.05 < errors[0] < 0.2  # measured: 0.031 and 0.105
    leaf = z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(tiled.decode(leaf).square().sum(), leaf)
    direction = randn(*z.shape, seed=2)
    double = load_prior(classes, device="cpu", tile=32).autoencoder
    double.network.double()
    step = 1e-5
    with torch.no_grad():
        up, down = ((double.decode(z.double() + s * direction.double())).square().sum() for s in (step, -step))
    slope = float((up - down) / (2 * step))
    assert float((grad * direction).sum()) == pytest.approx(slope, rel=1e-3)
    kept = [saved_bytes(lambda prior=prior: prior.decode(z.clone().requires_grad_())) for prior in (whole, tiled)]
    # One tile of 16 x 16 codes at a time in place of 48 x 48.
    assert kept[1] < 0.2 * kept[0]


def test_an_image_of_one_tile_is_decoded_whole(classes):
    whole, tiled = load_prior(classes, device="cpu"), load_prior(classes, device="cpu", tile=32)
    z = randn(1, 4, 16, 16)
    assert torch.equal(whole.decode(z), tiled.decode(z))


# -- samplers -------------------------------------------------------------------------------------------------------------

# Settings that are quick, not good. The weights are random, so that samples started in strong noise would leave all bounds.
STEPS = {"steps": 3, "sigma_max": 1.0, "sigma_min": 0.1}
QUICK = {
    "daps": {"inner": "langevin", "inner_steps": 2, "lr": 1e-4},
    "dps": {"zeta": 0.3},
    "p2l": {"gamma": 2},
    "pnp_ula": {"steps": 6, "burn_in": 0.5, "start": "noise", "delta": 1e-4, "lipschitz": 1.0},
    "psld": {},
    "resample": {"skip": 2, "final": False, "c": 100.0},
    "unconditional": {},
}
# Projects the iterate onto the measurement, which is defined for images.
NOT_FOR_CODES = {"mcg"}


@pytest.fixture
def picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0 : tiny.SIDE, 0 : tiny.SIDE] / tiny.SIDE
    values = np.stack([rows, columns, np.sin(6 * rows) / 2 + 0.5], -1)
    Image.fromarray((255 * values).astype(np.uint8)).save("picture.png")
    return tmp_path / "picture.png"


def config(folder, sampler, path, **prior):
    path.write_text(
        json.dumps(
            {
                "prior": {"name": str(folder), **prior},
                "operator": {"name": "inpainting", "kind": "box", "size": 6},
                "noise": {"name": "gaussian", "sigma": 0.05},
                "schedule": {"name": "karras", **STEPS},
                "sampler": {"name": sampler, **QUICK.get(sampler, {})},
                "data": {"name": "images", "root": "picture.png", "size": tiny.SIDE},
                **{"samples": 2, "device": "cpu", "progress": False, "trajectory": sampler == "dps"},
            }
        )
    )
    return path


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_runs_on_a_stable_diffusion_folder(sampler, stable, picture, capsys):
    path = config(stable, sampler, picture.parent / "run.yaml", prompt="a ring", guidance=2.0, checkpointing=sampler == "dps")
    code = main(["run", str(path)])
    said = capsys.readouterr()
    if sampler in NOT_FOR_CODES:
        assert code == 2 and "Traceback" not in said.err
        return
    assert code == 0, said.err
    out = picture.parent / "runs/run"
    facts = json.loads((out / "manifest.json").read_text())["images"]["picture"]
    assert facts["network_calls"]["forward"] > 0 and facts["network_calls"]["decode"] > 0 and facts["peak_memory_mb"] > 0
    with np.load(out / "arrays/picture.npz") as arrays:
        assert arrays["samples"].shape == (2, *SHAPE) and arrays["mean"].shape == arrays["std"].shape == SHAPE
        assert np.isfinite(arrays["samples"]).all() and not np.allclose(arrays["samples"][0], arrays["samples"][1], atol=1e-3)
    assert (out / "images/picture/panel.png").exists() and (out / "images/picture/sample_1.png").exists()
    if sampler == "dps":
        with Image.open(out / "images/picture/trajectory.gif") as frames:
            assert frames.size[0] == frames.size[1] and frames.n_frames == STEPS["steps"]


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - NOT_FOR_CODES))
def test_every_sampler_gives_a_batch_what_single_runs_give_checkpointed_or_not(sampler, classes):
    settings = load_object(SAMPLERS[sampler])(**QUICK.get(sampler, {}))
    op = Inpainting(image_shape=SHAPE, kind="box", size=6, seed=0)
    y = op.A(randn(2, *SHAPE).clamp(-1, 1))

    def draw(y, ids, **options):
        prior = load_prior(classes, device="cpu", prompt="ring", guidance=2.0, **options)
        target = Posterior(prior, GaussianLikelihood(op, y, sigma=0.2))
        return sample(settings, target, Karras(**STEPS), n=2, ids=ids, progress=False)

    together = draw(y, [0, 1])
    assert together.shape == (2, 2, *SHAPE) and bool(torch.isfinite(together).all())
    # Single precision, through networks that a sampler iterates.
    for single in (draw(y[1:], [1]), draw(y[1:], [1], checkpointing=True)):
        assert torch.allclose(single[0], together[1], atol=5e-3 * float(together.abs().max()), rtol=0)


def test_the_prompt_and_its_guidance_reach_the_samples_and_the_checkpoint(classes, tmp_path):
    op = Inpainting(image_shape=SHAPE, kind="box", size=6, seed=0)
    likelihood = GaussianLikelihood(op, op.A(randn(1, *SHAPE)), sigma=0.2)
    path = tmp_path / "run.pt"

    def draw(prompt, guidance, **options):
        prior = load_prior(classes, device="cpu", prompt=prompt, guidance=guidance)
        return sample(DPS(zeta=0.3), Posterior(prior, likelihood), Karras(**STEPS), progress=False, **options)

    first = draw("ring", 2.0, checkpoint=path)
    assert torch.equal(draw("ring", 2.0, checkpoint=path), first)
    for prompt, guidance in (("disc", 2.0), ("ring", 3.0), (None, 2.0)):
        assert not torch.allclose(draw(prompt, guidance), first, atol=1e-4)
        with pytest.raises(ValueError, match="belongs to another run: prior differ"):
            draw(prompt, guidance, checkpoint=path)


def test_an_unconditional_draw_is_an_image(classes):
    drawn = sample(Unconditional(), load_prior(classes, device="cpu"), Karras(**STEPS), n=2, shape=SHAPE, progress=False)
    assert drawn.shape == (1, 2, *SHAPE)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prior.prompt", "square", "prompt='square' is no class of this prior; there are 3: disc, ring, 7"),
        ("prior.tile", "15", "tile=15; a multiple of 2 that is at least 16"),
        ("prior.guidance", "-1", "guidance=-1.0; a number that is at least 0"),
        ("data.size", "18", "multiples of 4; 18 is not (try 16 or 20); set data.size"),
        ("prior.promt", "ring", "did you mean prior.prompt?"),
    ],
)
def test_the_command_line_refuses_in_one_line(key, value, message, classes, picture, capsys):
    path = config(classes, "dps", picture.parent / "run.yaml")
    assert main(["run", str(path), f"{key}={value}"]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_class_whose_name_is_a_number_can_be_written_down(classes, picture):
    path = config(classes, "dps", picture.parent / "run.yaml")
    assert main(["run", str(path), "prior.prompt=7", "samples=1"]) == 0
    assert (picture.parent / "runs/run/arrays/picture.npz").exists()
