"""Networks behind a pixel-unshuffle: what a folder that declares one gives, and which declarations are refused."""

import json
import shutil

import pytest
import tiny_pipelines as tiny
import torch
from problems import randn

from invsolve import load_prior
from invsolve.levels import Level
from invsolve.priors.network import Unshuffled


def declare(folder, factor):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pixel_unshuffle": factor}))
    return folder


def save(folder, channels, factor, **options):
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = tiny.unet(conditional=False, channels=channels, **options)
    DDPMPipeline(unet, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    declare(folder, factor)
    return unet


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors") / "unshuffled"
    return save(folder, 12, 2), folder


@pytest.mark.parametrize(("factor", "channels", "image"), [(2, 12, 3), (2, 8, 2), (4, 16, 1)])
def test_the_network_sees_the_phases_of_the_image(factor, channels, image, tmp_path):
    """Channel c factor^2 + i factor + j of the network is image c from pixel (i, j) on, every factor-th one."""
    unet = save(tmp_path / "prior", channels, factor)
    prior = load_prior(tmp_path / "prior", device="cpu")
    assert (prior.channels, prior.multiple) == (image, 2 * factor)
    x = randn(2, image, 24, 16, seed=1).float()
    level = Level(1.0, 0.5)
    a, s = prior.table.inside(level)
    phases = torch.stack([a * x[:, :, i::factor, j::factor] for i in range(factor) for j in range(factor)], 2).flatten(1, 2)
    with torch.no_grad():
        out = unet(phases, torch.full((2,), prior.table.time(level)), return_dict=False)[0].unflatten(1, (image, factor, factor))
        v = torch.zeros_like(x)
        for i in range(factor):
            for j in range(factor):
                v[:, :, i::factor, j::factor] = out[:, :, i, j]
        found = prior.denoise(x, level)
    # Rounding of single precision alone: the same operations on the same numbers.
    torch.testing.assert_close(found, a * a * x - s * v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"checkpointing": True}])
def test_layout_and_checkpointing_change_nothing(options, saved):
    plain, other = load_prior(saved[1], device="cpu"), load_prior(saved[1], device="cpu", **options)
    x, level = randn(1, 3, 16, 16, seed=2).float().requires_grad_(), Level(1.0, 0.3)
    outs = [prior.denoise(x, level) for prior in (plain, other)]
    slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-4)


def test_sides_are_multiples_of_the_factor_times_the_networks(saved):
    with pytest.raises(ValueError, match="multiples of 4"):
        load_prior(saved[1], device="cpu").image_shape_ok((3, 18, 16))


def test_learned_variances_are_shuffled_back_behind_the_mean():
    class Doubling(torch.nn.Module):
        def forward(self, x, time, return_dict=False):
            return (torch.cat([x, -x], 1),)

    x = randn(1, 3, 8, 8)
    out = Unshuffled(Doubling(), 2)(x, torch.zeros(1))[0]
    assert torch.equal(out, torch.cat([x, -x], 1))


@pytest.mark.parametrize("factor", [0, 1, -2, True, 2.0, "2", [2]])
def test_what_is_no_factor_is_refused(factor, saved, tmp_path):
    folder = declare(shutil.copytree(saved[1], tmp_path / "prior"), factor)
    with pytest.raises(ValueError, match="pixel_unshuffle=.*an integer of at least 2"):
        load_prior(folder, device="cpu")


def test_channels_that_the_factor_does_not_make_are_refused(saved, tmp_path):
    folder = declare(shutil.copytree(saved[1], tmp_path / "prior"), 4)
    with pytest.raises(ValueError, match="multiples of 16, but the network takes 12"):
        load_prior(folder, device="cpu")


def test_conditional_and_latent_networks_are_refused(saved, tmp_path):
    latent = shutil.copytree(saved[1], tmp_path / "latent")
    tiny.vae(channels=12).save_pretrained(latent / "vae")
    with pytest.raises(ValueError, match=r"not for one of codes \(vae/\)"):
        load_prior(latent, device="cpu")
    conditional = shutil.copytree(saved[1], tmp_path / "conditional")
    shutil.rmtree(conditional / "unet")
    tiny.unet(channels=12).save_pretrained(conditional / "unet")
    with pytest.raises(ValueError, match="for a UNet2DModel, not for a UNet2DConditionModel"):
        load_prior(declare(conditional, 2), device="cpu")
