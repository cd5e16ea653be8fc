"""Latent and conditional pipelines in diffusers' folder format: loaded as diffusers runs them, and refused where they do not fit."""

import hashlib
import json
import math
import shutil
import sys

import pytest
import tiny_pipelines as tiny
import torch
from safetensors.torch import load_file, save_file

from invsolve import load_prior
from invsolve.kernels.linearize import linearize
from invsolve.levels import Level
from invsolve.priors import ConditionalNetworkPrior, LatentPrior, NetworkPrior
from invsolve.priors.checkpoints.embedders import ClassEmbedder

SHAPE = (3, tiny.SIDE, tiny.SIDE)
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICTURE = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def codes(channels=4):
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable") / "sd1"
    return folder, tiny.save_stable_diffusion(folder)


@pytest.fixture(scope="module")
def stable_v(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable") / "sd2"
    return folder, tiny.save_stable_diffusion(folder, "v_prediction")


@pytest.fixture(scope="module")
def latent_diffusion(tmp_path_factory):
    pytest.importorskip("transformers")  # diffusers keeps LDMPipeline among what needs it
    folder = tmp_path_factory.mktemp("ldm") / "ldm"
    return folder, tiny.save_latent_diffusion(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes") / "classes"
    parts, table = tiny.save_class_conditional(folder)
    return folder, parts, table


@pytest.fixture
def folder(classes, tmp_path):
    return shutil.copytree(classes[0], tmp_path / "copy")


def edit_json(path, **changes):
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))


def edit_weights(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def predicted(scheduler, out, time, z):
    """x_0 as a DDIM scheduler with the pipeline's own configuration has it, and the level of that time."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    theirs.set_timesteps(theirs.config.num_train_timesteps)
    bar = float(torch.cumprod(1 - theirs.betas.double(), 0)[time])
    return theirs.step(out, time, z).pred_original_sample, Level(math.sqrt(bar), math.sqrt(1 - bar))


# -- as diffusers runs them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["stable", "stable_v"])
def test_stable_diffusion(which, request):
    folder, pipe = request.getfixturevalue(which)
    prior = load_prior(folder, device="cpu", prompt="a ring", guidance=7.5)
    assert isinstance(prior, LatentPrior) and isinstance(prior.prior, ConditionalNetworkPrior)
    assert prior.prior.prediction == pipe.scheduler.config.prediction_type
    given, null = (found[0] for found in pipe.encode_prompt("a ring", "cpu", 1, True))
    assert torch.equal(prior.prior.embedding, given) and torch.equal(prior.null, null) and prior.null.shape == (77, 12)
    z = codes()
    for time in (1, 500, 998):
        with torch.no_grad():
            free, out = (pipe.unet(z, time, encoder_hidden_states=c.expand(2, -1, -1)).sample for c in (null, given))
            expected, level = predicted(pipe.scheduler, free + 7.5 * (out - free), time, z)
            # Their alpha_bar is a float32 product, and is divided by; see test_network_prior.
            assert torch.allclose(prior.denoise(z, level), expected, atol=3e-4 * float(expected.abs().max()), rtol=0)
            again = prior.conditioned(prior.embed("a ring")).denoise(z, level)
            assert torch.equal(again, prior.denoise(z, level))
            assert not torch.allclose(prior.conditioned(prior.embed("a disc")).denoise(z, level), again, atol=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(0.7, 0.1), ("drop", "drop")])
def test_the_codes_of_an_autoencoder_are_scaled_and_shifted(folder, scale, shift, classes):
    edit_json(folder / "vae" / "config.json", scaling_factor=scale, shift_factor=shift)
    prior, vae = load_prior(folder, device="cpu"), classes[1]["vae"]
    scale, shift = (0.18215, 0.0) if scale == "drop" else (scale, shift)  # of Stable Diffusion 1, whose file states neither
    with torch.no_grad():
        z = (vae.encode(PICTURE).latent_dist.mode() - shift) * scale
        assert torch.allclose(prior.encode(PICTURE), z, atol=1e-6)
        assert torch.allclose(prior.decode(z), vae.decode(z / scale + shift).sample, atol=1e-5)
    assert prior.signal_shape(SHAPE) == (4, 8, 8) and prior.calls.decode == prior.calls.encode == 1


def test_a_vq_pipeline_decodes_through_its_codebook(latent_diffusion):
    folder, pipe = latent_diffusion
    prior, vq = load_prior(folder, device="cpu"), pipe.vqvae
    assert type(prior.prior) is NetworkPrior and not prior.conditional
    z = codes(3)
    with torch.no_grad():
        expected = vq.decode(z / 0.18215).sample
        assert torch.allclose(prior.decode(z), expected, atol=1e-5)
        assert not torch.allclose(vq.decode(z / 0.18215, force_not_quantize=True).sample, expected, atol=1e-3)
        assert torch.allclose(prior.encode(PICTURE), vq.encode(PICTURE).latents * 0.18215, atol=1e-6)
        out = pipe.unet(z, 500).sample
        expected, level = predicted(pipe.scheduler, out, 500, z)
        assert torch.allclose(prior.denoise(z, level), expected, atol=2e-4 * float(expected.abs().max()), rtol=0)
    # Straight through: the gradient of the decoder at the codebook entry that was chosen.
    leaf = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(prior.decode(leaf).square().sum(), leaf)
    entry = vq.quantize(z / 0.18215)[0].detach().requires_grad_()
    (at_entry,) = torch.autograd.grad(vq.decode(entry, force_not_quantize=True).sample.square().sum(), entry)
    assert torch.allclose(found * 0.18215, at_entry, rtol=1e-3, atol=1e-5 * float(at_entry.abs().max()))


def test_a_vq_model_that_states_no_scale_has_none(latent_diffusion, tmp_path):
    folder = shutil.copytree(latent_diffusion[0], tmp_path / "ldm")
    edit_json(folder / "vqvae" / "config.json", scaling_factor="drop")
    with torch.no_grad():
        assert torch.allclose(
            load_prior(folder, device="cpu").decode(codes(3)), latent_diffusion[1].vqvae.decode(codes(3)).sample, atol=1e-5
        )


def test_a_flow_network_with_classes(folder, classes):
    from diffusers import FlowMatchEulerDiscreteScheduler

    _, parts, table = classes
    shutil.rmtree(folder / "scheduler")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    prior, z = load_prior(folder, device="cpu", prompt="7"), codes()
    for sigma in (0.25, 0.9):
        with torch.no_grad():
            expected = z - sigma * parts["unet"](z, 1000 * sigma, encoder_hidden_states=table[2].expand(2, -1, -1)).sample
            assert torch.allclose(prior.denoise(z, Level(1 - sigma, sigma)), expected, atol=1e-5)


def test_classes_by_name_and_by_index(folder, classes):
    table = classes[2]
    prior = load_prior(folder, device="cpu")
    # A name that looks like a number is a name; an index is an int.
    for prompt, row in (("disc", 0), ("ring", 1), ("7", 2), (0, 0), (2, 2)):
        assert torch.equal(prior.embed(prompt), table[row])
    assert torch.equal(prior.null, table[3]) and prior.prior.embedding is None
    for prompt, error, message in [
        ("square", ValueError, "prompt='square' is no class of this prior; there are 3: disc, ring, 7"),
        (3, ValueError, "prompt=3; the index of a class, 0 to 2"),
        (-1, ValueError, "prompt=-1; the index"),
        (True, TypeError, "prompt=True; the name of a class, or its index"),
    ]:
        with pytest.raises(error, match=message):
            prior.embed(prompt)
    with pytest.raises(ValueError, match="no class of this prior"):
        load_prior(folder, device="cpu", prompt="square")


def test_texts_that_are_none_or_too_long_are_refused(stable):
    prior = load_prior(stable[0], device="cpu")
    prior.embed("a" * 75)
    with pytest.raises(ValueError, match="the prompt has 78 tokens, with those of start and end; at most 77"):
        prior.embed("a" * 76)
    with pytest.raises(TypeError, match="prompt=7; this prior takes a text"):
        prior.embed(7)


# -- files ----------------------------------------------------------------------------------------------------------------


def test_the_folders_hold_what_published_ones_hold(stable, latent_diffusion):
    sd, ldm = stable[0], latent_diffusion[0]
    for path, key in [
        (sd / "unet" / WEIGHTS, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
        (sd / "unet" / WEIGHTS, "mid_block.attentions.0.proj_in.weight"),
        (sd / "vae" / WEIGHTS, "decoder.mid_block.attentions.0.to_out.0.weight"),
        (sd / "vae" / WEIGHTS, "quant_conv.weight"),
        (ldm / "vqvae" / WEIGHTS, "quantize.embedding.weight"),
        (ldm / "unet" / WEIGHTS, "up_blocks.0.attentions.0.to_q.weight"),
    ]:
        assert key in load_file(path)
    parts = json.loads((sd / "model_index.json").read_text())
    assert {k: v[1] for k, v in parts.items() if isinstance(v, list) and v[0]} == {
        **{"scheduler": "PNDMScheduler", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"},
        **{"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"},
    }


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def old_names(weights):
    for key in [key for key in weights if "attentions" in key]:
        new = key
        for now, then in OLD.items():
            new = new.replace(now, then)
        weights[new] = weights.pop(key)


@pytest.mark.parametrize(
    ("which", "part", "cls"),
    [("latent_diffusion", "vqvae", "VQModel"), ("latent_diffusion", "unet", "UNet2DModel"), ("classes", "vae", "AutoencoderKL")],
)
def test_weights_under_their_old_names_are_those_that_diffusers_reads(which, part, cls, request, tmp_path):
    import diffusers

    folder = shutil.copytree(request.getfixturevalue(which)[0], tmp_path / "old")
    edit_weights(folder / part / WEIGHTS, old_names)
    assert any(".proj_attn.weight" in key for key in load_file(folder / part / WEIGHTS))
    theirs = getattr(diffusers, cls).from_pretrained(folder / part, low_cpu_mem_usage=False).state_dict()
    prior = load_prior(folder, device="cpu")
    ours = (prior.network if part == "unet" else prior.autoencoder.network).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_text_encoder_under_the_names_of_the_published_one(stable, tmp_path):
    folder = shutil.copytree(stable[0], tmp_path / "named")
    weights = folder / "text_encoder" / "model.safetensors"

    def publish(held):
        for key in [key for key in held if not key.startswith("text_model.")]:
            held["text_model." + key] = held.pop(key)
        held["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    edit_weights(weights, publish)
    assert torch.equal(load_prior(folder, device="cpu").embed("ring"), load_prior(stable[0], device="cpu").embed("ring"))
    for change, message in [
        (lambda w: w.pop("text_model.encoder.layers.1.mlp.fc1.weight"), "1 weights are missing, such as .*encoder.layers.1.mlp.fc1.weight"),
        (lambda w: w.update(stray=torch.ones(1)), "1 weights are unknown, such as stray"),
        (lambda w: w["text_model.final_layer_norm.bias"].fill_(math.nan), "hold NaN or infinity, such as .*final_layer_norm.bias"),
    ]:
        edit_weights(weights, change)
        with pytest.raises(ValueError, match=message):
            load_prior(folder, device="cpu")
        shutil.copy(stable[0] / "text_encoder" / "model.safetensors", weights)
        edit_weights(weights, publish)


def test_without_transformers_the_extra_is_named_and_a_stored_null_is_enough(stable, tmp_path, monkeypatch):
    folder = shutil.copytree(stable[0], tmp_path / "sd")
    null = load_prior(folder, device="cpu").null
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"text_encoder needs transformers: pip install 'invsolve\[text\]'"):
        load_prior(folder, device="cpu")
    save_file({"embeddings": null[None].contiguous()}, folder / "classes.safetensors")
    (folder / "classes.json").write_text("[]")
    prior = load_prior(folder, device="cpu")
    assert torch.equal(prior.null, null)
    with pytest.raises(ValueError, match="prompt='a ring' is no class of this prior; there are 0: none"):
        prior.embed("a ring")


def test_half_precision_files_are_read_where_there_are_no_others(folder, classes):
    for part in ("unet", "vae"):
        edit_weights(folder / part / WEIGHTS, lambda w: w.update({k: v.half() for k, v in w.items()}))
        (folder / part / WEIGHTS).rename(folder / part / WEIGHTS.replace(".safe", ".fp16.safe"))
    prior = load_prior(folder, device="cpu")
    assert prior.dtype == torch.float32
    for name, network in (("unet", prior.network), ("vae", prior.autoencoder.network)):
        for key, weight in classes[1][name].state_dict().items():
            assert torch.equal(network.state_dict()[key], weight.half().float())


def test_one_checksum_stands_for_all_weight_files(folder, classes):
    digest = load_prior(classes[0], device="cpu").weights_sha256
    (folder / "card.yaml").write_text(f"sha256: '{digest}'\nprediction_type: epsilon\n")
    prior = load_prior(folder, device="cpu")
    assert prior.weights_sha256 == prior.prior.weights_sha256 == digest and prior.card["prediction_type"] == "epsilon"
    for path, key in (("unet/" + WEIGHTS, "conv_in.bias"), ("vae/" + WEIGHTS, "quant_conv.bias"), ("classes.safetensors", "embeddings")):
        kept = (folder / path).read_bytes()
        edit_weights(folder / path, lambda w, key=key: w[key].mul_(1.5))
        with pytest.raises(ValueError, match=r"\(3 weight files\) has sha256 .*, its card says"):
            load_prior(folder, device="cpu")
        (folder / path).write_bytes(kept)
    each = {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.safetensors")}
    (folder / "card.yaml").write_text(json.dumps({"sha256": each}))
    assert load_prior(folder, device="cpu").weights_sha256 == digest
    edit_weights(folder / "vae" / WEIGHTS, lambda w: w["quant_conv.bias"].mul_(1.5))
    with pytest.raises(ValueError, match=f"vae/{WEIGHTS} has sha256 .*, its card says {each['vae/' + WEIGHTS][:12]}"):
        load_prior(folder, device="cpu")
    (folder / "card.yaml").write_text("prediction_type: v_prediction\n")
    with pytest.raises(ValueError, match="the scheduler says epsilon, the card v_prediction"):
        load_prior(folder, device="cpu")


def test_a_prior_loaded_under_inference_mode_can_be_differentiated(folder):
    with torch.inference_mode():
        prior = load_prior(folder, device="cpu", prompt="disc", guidance=2.0)
    assert float(linearize(prior, codes(), Level(1.0, 1.0)).pull(codes()).abs().max()) > 0
    z = codes().requires_grad_()
    assert float(torch.autograd.grad(prior.decode(z).sum(), z)[0].abs().max()) > 0


def replace_part(folder, name, module):
    shutil.rmtree(folder / name)
    module.save_pretrained(folder / name)


DAMAGE = [
    (lambda f: replace_part(f, "vae", tiny.vae(channels=3)), ValueError, "makes codes of 3 channels, but the network in unet/ takes 4"),
    (lambda f: replace_part(f, "unet", tiny.unet(width=8)), ValueError, "embeddings have width 12, but the network takes 8"),
    (lambda f: replace_part(f, "unet", tiny.unet(out_channels=2)), ValueError, "maps 4 channels to 2; as many, or twice as many"),
    (lambda f: edit_json(f / "unet" / "config.json", in_channels=9), ValueError, "maps 9 channels to 4;.*inpainting"),
    (
        lambda f: edit_json(f / "unet" / "config.json", addition_embed_type="text_time"),
        ValueError,
        r"otherwise conditional network \(addition_embed_type='text_time'\)",
    ),
    (lambda f: edit_json(f / "unet" / "config.json", _class_name="UNet1DModel"), ValueError, "holds a UNet1DModel; a UNet2DModel or"),
    (lambda f: edit_json(f / "unet" / "config.json", block_out_channels=[8, 32]), ValueError, "weights have another shape|missing|unknown"),
    (lambda f: edit_json(f / "vae" / "config.json", _class_name="AutoencoderTiny"), ValueError, "AutoencoderTiny; an AutoencoderKL or"),
    (lambda f: edit_json(f / "vae" / "config.json", latents_mean=[0, 0, 0, 0]), ValueError, "latents_mean is not supported"),
    (lambda f: edit_json(f / "vae" / "config.json", scaling_factor=0.0), ValueError, "scaling factor other than 0"),
    (
        lambda f: edit_weights(f / "vae" / WEIGHTS, lambda w: w.pop("decoder.conv_in.bias")),
        ValueError,
        "vae.*1 weights are missing, such as decoder.conv_in.bias",
    ),
    (lambda f: edit_weights(f / "vae" / WEIGHTS, lambda w: w["quant_conv.bias"].fill_(math.inf)), ValueError, "NaN or infinity"),
    (
        lambda f: edit_weights(f / "unet" / WEIGHTS, lambda w: w.update({"conv_in.bias": torch.ones(8, dtype=torch.int8)})),
        ValueError,
        r"1 weights are no floating-point numbers of 16 bits or more, such as conv_in.bias \(int8\)",
    ),
    (
        lambda f: (
            (f / "unet" / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
            and (f / "unet" / f"{WEIGHTS}.index.json").write_text("{}")
        ),
        ValueError,
        "weights in shards; save the model again with",
    ),
    (lambda f: (f / "vae" / WEIGHTS).unlink(), FileNotFoundError, f"vae/{WEIGHTS} is missing; weights are read from safetensors only"),
    (lambda f: (f / "vae" / "config.json").unlink(), FileNotFoundError, "without it the autoencoder cannot be built"),
    (
        lambda f: edit_json(f / "scheduler" / "scheduler_config.json", prediction_type="score"),
        ValueError,
        "prediction_type 'score' is not known",
    ),
    (lambda f: (f / "classes.safetensors").unlink(), FileNotFoundError, "conditional network, but no condition for it"),
    (lambda f: (f / "classes.json").unlink(), FileNotFoundError, "without it the classes have no names"),
    (
        lambda f: (f / "classes.json").write_text('["a"]'),
        ValueError,
        r"embeddings of shape \(4, 2, 12\) for 1 classes; \(2, tokens, width\)",
    ),
    (lambda f: (f / "classes.json").write_text('["a", "a", "b"]'), ValueError, "two classes have the same name"),
    (lambda f: (f / "classes.json").write_text('{"a": 1}'), ValueError, "must hold a list of names"),
    (
        lambda f: edit_weights(f / "classes.safetensors", lambda w: w.update(more=torch.ones(1))),
        ValueError,
        "classes.safetensors holds .*more.*; one tensor, embeddings",
    ),
]


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE, ids=[m[:40] for *_, m in DAMAGE])
def test_a_damaged_folder_is_refused_and_the_culprit_named(damage, error, message, folder):
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        load_prior(folder, device="cpu")
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_options_for_another_kind_of_prior_are_refused(latent_diffusion, folder):
    unconditional = latent_diffusion[0]
    for options, message in [
        ({"prompt": "a ring"}, "prompt='a ring', but the prior in .* is unconditional"),
        ({"guidance": 3.0}, "guidance=3.0, but the prior in .* is unconditional"),
        ({"tile": 15}, "tile=15; a multiple of 2 that is at least 16"),
        ({"tile": 14}, "tile=14; a multiple of 2 that is at least 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_prior(unconditional, device="cpu", **options)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ValueError, match="tile=64, but the prior in .* has no autoencoder"):
        load_prior(folder, device="cpu", tile=64)
    pixels = load_prior(folder, device="cpu", prompt="ring")
    assert isinstance(pixels, ConditionalNetworkPrior) and pixels.decode(codes()) is not None
    with pytest.raises(ValueError, match="guidance=-1"):
        load_prior(folder, device="cpu", guidance=-1.0)


def test_sizes_that_autoencoder_or_network_cannot_take_are_refused(folder):
    prior = load_prior(folder, device="cpu")
    prior.image_shape_ok((3, 16, 24))
    for shape, message in [
        ((1, 16, 16), r"images of shape \(3, H, W\), not \(1, 16, 16\)"),
        ((3, 16, 18), r"multiples of 4; 18 is not \(try 16 or 20\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            prior.image_shape_ok(shape)


@pytest.mark.parametrize("name", ["v1-5.ckpt", "v1-5.safetensors"])
def test_a_single_checkpoint_file_is_refused_with_the_conversion_to_run(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything")
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name} is a single checkpoint file.*convert_original_stable_diffusion_to_diffusers.py"):
            load_prior(given)


def test_other_folders_are_told_apart(tmp_path):
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ValueError, match="holds a transformer/, such as Stable Diffusion 3"):
        load_prior(tmp_path)


def test_what_is_fetched_of_a_hub_model(monkeypatch, folder):
    import fnmatch

    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.append(options) or str(folder))
    load_prior("somebody/latent", device="cpu")
    assert asked[0]["local_files_only"]
    wanted = lambda path: any(fnmatch.fnmatch(path, pattern) for pattern in asked[0]["allow_patterns"])  # noqa: E731
    held = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert all(wanted(path) for path in held)
    for path in ("text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt", f"vqvae/{WEIGHTS}"):
        assert wanted(path)
    for path in ("v1-5.ckpt", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors", "v1-5-pruned.safetensors"):
        assert not wanted(path)


def test_a_table_of_classes_is_checked():
    with pytest.raises(ValueError, match="two classes have the same name"):
        ClassEmbedder(torch.zeros(3, 1, 4), ["a", "a"])
    digits = ClassEmbedder(torch.arange(4.0)[:, None, None].expand(4, 1, 2), ["2", "1", "x"])
    with pytest.raises(ValueError, match="prompt=2 is the index of class 'x', and the name of another; write 'x' or '2'"):
        digits(2)
    assert [float(digits(p)[0, 0]) for p in (0, 1, "2", "1")] == [0.0, 1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"embeddings of shape \(3, 4\) for 2 classes"):
        ClassEmbedder(torch.zeros(3, 4), ["a", "b"])
