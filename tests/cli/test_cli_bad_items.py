"""One bad item stops no other, in run and in eval, at the first call and at the next."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from test_cli_data import only

from invsolve.config.load import load
from invsolve.data.images import Images
from invsolve.diagnostics.problems import smooth_prior
from invsolve.runs.lightning import evaluate

MEASURED = ["operator=denoising", "data.measurement=ys", "data.image_shape=[3,16,16]"]


def spoil_images(folder: Path) -> set[str]:
    """Files among a.png ... d.png that cannot be read; their ids."""
    sound = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(sound[: len(sound) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    (folder / "flipped.png").write_bytes(sound[:60] + bytes(b ^ 255 for b in sound[60:90]) + sound[90:])
    Image.new("RGB", (24, 20)).save(folder / "stack.tif", save_all=True, append_images=[Image.new("RGB", (24, 20))])
    Image.new("RGB", (4, 4)).save(folder / "small.png")
    (folder / "lost.png").symlink_to("nowhere.png")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(sound)
    return {"cut", "empty", "text", "flipped", "stack", "small", "lost", "caf%E9"}


def spoil_measurements(folder: Path, y: np.ndarray) -> set[str]:
    np.savez_compressed(folder / "rot.npz", y=y)
    held = bytearray((folder / "rot.npz").read_bytes())
    held[90:110] = b"\xff" * 20
    (folder / "rot.npz").write_bytes(held)
    np.save(folder / "nan.npy", np.where(np.arange(768).reshape(3, 16, 16) == 0, np.nan, y))
    np.save(folder / "huge.npy", y.astype(np.float64) * 1e39)
    np.save(folder / "bytes.npy", (127.5 * (y + 1)).astype(np.uint8))
    np.save(folder / "complex.npy", y + 1j)
    np.save(folder / "shape.npy", y[:, :5])
    np.savez(folder / "slash.npz", y=y, id="../out")
    torch.save(torch.from_numpy(y).to_sparse(), folder / "sparse.pt")
    return {"rot", "nan", "huge", "bytes", "complex", "shape", "../out", "sparse"}


@pytest.mark.parametrize("command", ["run", "eval"])
def test_unreadable_images_are_entries_of_failed(small, photos, cli, work, prior, command):
    bad = spoil_images(photos)
    (photos / "cost $_$ x^.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "._a.png").write_bytes(b"\0\5\x16\7")
    good = {"a", "b", "c", "d", "cost $_$ x^"}
    check(cli, command, [small], work / "runs" / "small", good, bad, prior)


@pytest.mark.parametrize("command", ["run", "eval"])
def test_unreadable_measurements_are_entries_of_failed(small, cli, work, prior, command):
    folder = work / "ys"
    folder.mkdir()
    y = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16)).astype(np.float32)
    bad = spoil_measurements(folder, y)
    np.save(folder / "one.npy", y.astype(">f8"))
    torch.save(torch.from_numpy(y).requires_grad_(), folder / "two.pt")
    check(cli, command, [small, *MEASURED], work / "runs" / "small", {"one", "two"}, bad, prior)
    for id in ("one", "two"):
        assert np.array_equal(np.load(work / f"runs/small/arrays/{id}.npz")["y"], y)


def check(cli, command, arguments, out, good, bad, prior):
    """Good ids are sampled, each bad one has a reason, twice; the second call samples nothing."""
    extra = ["trainer.report=false"] if command == "eval" else []
    for again in (False, True):
        prior.calls.forward = 0
        result = cli(command, *arguments, *extra)
        assert result.code == 1, result
        assert "Traceback" not in result.err and "zeta" not in result.err
        assert (prior.calls.forward > 0) != again
        manifest = json.loads((out / "manifest.json").read_text())
        assert set(manifest["finished"]) == good
        assert set(manifest["failed"]) == bad and all(manifest["failed"].values())
        for id in bad:
            assert f"failed: {id}: " in result.err


def test_negative_counts_fail_by_themselves(small, cli, work):
    folder = work / "ys"
    folder.mkdir()
    y = np.abs(np.random.default_rng(0).uniform(0, 1, (3, 16, 16)).astype(np.float32))
    np.save(folder / "good.npy", y)
    np.save(folder / "negative.npy", y - 0.5)
    result = cli("run", small, *MEASURED, "noise=poisson", "noise.gain=0.05")
    assert result.code == 1 and "failed: negative: " in result.err and "negative values (lowest -0." in result.err
    assert [path.stem for path in (work / "runs/small/arrays").iterdir()] == ["good"]
    refused(
        cli("run", small, *MEASURED[:1], "data.measurement=ys/negative.npy", "noise=poisson", "noise.gain=0.05", "out=one"),
        "negative values",
    )


def test_a_single_bad_item_is_refused(small, cli, work, photos):
    y = np.zeros((3, 16, 16))
    np.save("bytes.npy", np.full((3, 16, 16), 200, np.uint8))
    refused(cli("run", small, "operator=denoising", "data.measurement=bytes.npy"), "whole numbers from 200 to 200", "bytes", "[-1, 1]")
    np.save("complex.npy", y + 1j)
    refused(cli("run", small, "operator=denoising", "data.measurement=complex.npy"), "y is complex", "np.stack([y.real, y.imag])")
    np.save("bytes_as_float.npy", np.arange(768, dtype=np.float32).reshape(3, 16, 16) % 256)
    refused(cli("run", small, "operator=denoising", "data.measurement=bytes_as_float.npy"), "whole numbers from 0 to 255")


def test_masks_that_cannot_be_read(small, cli, work, photos):
    """A mask for all is refused; with one for each image only those without a sound one fail."""
    (work / "masks").mkdir()
    for id in "abc":
        Image.fromarray(np.tri(16, dtype=np.uint8) * 255).save(work / "masks" / f"{id}.png")
    held = (work / "masks/b.png").read_bytes()
    (work / "masks/b.png").write_bytes(held[: len(held) // 2])
    mask = ["operator=inpainting", "operator.kind=file", "operator.size=null", "operator.margin=0"]
    refused(cli("run", small, *mask, "operator.mask=masks/b.png"), "masks/b.png is neither")
    for command in ("run", "eval"):
        result = cli(command, small, *mask, "operator.mask=masks", "operator.per_image=true", f"out={command}", "trainer.report=false")
        assert result.code == 1 and "failed: b: " in result.err and "failed: d: " in result.err
        assert sorted(path.stem for path in (work / command / "arrays").iterdir()) == ["a", "c"]


def test_grey_files_serve_a_prior_of_one_channel(small, photos, work, prior):
    grey_prior = smooth_prior((1, 16, 16))
    grey = Image.open(photos / "a.png").convert("L")
    grey.save("xray.png")
    np.save("array.npy", np.asarray(grey, dtype=np.float64) / 127.5 - 1)
    for root in ("xray.png", "array.npy"):
        result = evaluate(load(small, [f"data.root={root}", f"out={root}.out", "trainer.report=false"]), grey_prior, say=lambda line: None)
        (id,) = result.sampled
        held = np.load(f"{root}.out/arrays/{id}.npz")
        assert held["samples"].shape == (3, 1, 16, 16)
        np.testing.assert_array_equal(held["x"], only(Images(root, size=16, fit="crop"))[:1])
    from invsolve.errors import ConfigError
    from invsolve.runs.local import run

    with pytest.raises(ConfigError, match="data.channels=1, which reads colour as grey"):
        run(load(small, ["out=colour"]), grey_prior, say=lambda line: None)
    assert len(run(load(small, ["out=colour", "data.channels=1"]), grey_prior, say=lambda line: None).sampled) == 4
