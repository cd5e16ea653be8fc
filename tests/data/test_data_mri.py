"""Phantoms, and complex images from fastMRI, BART and NumPy files."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from invsolve.data.items import EVALUATION_SEED
from invsolve.data.mri import MRIData, Volume, read_cfl
from invsolve.data.phantoms import Phantoms, phantom, phantoms
from invsolve.errors import ConfigError
from invsolve.pictures.panels import to_bytes
from operators.core.fourier import fft2c
from operators.mri.coils import calibrated_maps, smooth_maps


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def numbers(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def spectrum(images):
    return fft2c(torch.from_numpy(images)).numpy()


def complex_of(item):
    x = item.load()
    assert x.dtype == np.float32 and x.shape == item.image_shape
    return x[0] + 1j * x[1]


# -- phantoms -------------------------------------------------------------------------------------------------------------


def test_phantoms_are_complex_images_of_bounded_magnitude():
    x = phantoms(1, range(12), 64)
    magnitude = torch.linalg.vector_norm(x, dim=1)
    assert x.shape == (12, 2, 64, 64) and x.dtype == torch.float32
    top = magnitude.flatten(1).amax(1)
    assert (top >= 0.8 - 1e-6).all() and (top <= 1 + 1e-6).all()
    # Air around a head that fills a good part of the picture, and inside it a phase that is smooth.
    assert (magnitude[:, 0, 0] == 0).all()
    inside = (magnitude > 0.02).float().mean((1, 2))
    assert (inside > 0.25).all() and (inside < 0.85).all()
    z = torch.complex(x[:, 0], x[:, 1])
    turn = (z[:, :, 1:] * z[:, :, :-1].conj())[(magnitude[:, :, 1:] > 0.05) & (magnitude[:, :, :-1] > 0.05)]
    assert turn.angle().abs().max() < 0.6


def test_a_phantom_depends_on_seed_and_index_alone():
    assert torch.equal(phantoms(1, [3, 5], 64)[1], phantom(1, 5, 64))
    assert torch.equal(phantom(1, 5, 64), phantom(1, 5, 64))
    assert (phantom(1, 5, 64) - phantom(1, 6, 64)).abs().mean() > 0.01
    assert (phantom(1, 5, 64) - phantom(2, 5, 64)).abs().mean() > 0.01


PINNED = (0.0279469, 0.0205569)  # of phantom (0, 0): mean square, and mean absolute vertical difference


def test_the_stream_that_the_prior_was_trained_on_does_not_change():
    x = phantom(0, 0, 128)
    assert float(x.square().mean()) == pytest.approx(PINNED[0], rel=1e-3)
    assert float((x[:, 1:] - x[:, :-1]).abs().mean()) == pytest.approx(PINNED[1], rel=1e-3)


def test_phantoms_as_data():
    items = Phantoms(indices="0,7", size=48).items()
    assert [item.id for item in items] == ["phantom_0", "phantom_7"] and items[0].image_shape == (2, 48, 48)
    assert np.array_equal(items[1].load(), phantom(EVALUATION_SEED, 7, 48).numpy())
    assert items[0].digest() == Phantoms(indices=0, size=48).items()[0].digest() != items[1].digest()
    with pytest.raises(ConfigError, match="32 pixels"):
        Phantoms(size=16)
    with pytest.raises(ConfigError, match="data.indices"):
        Phantoms(indices="a")


# -- files ----------------------------------------------------------------------------------------------------------------


def write_cfl(path: Path, array: np.ndarray, dimensions: list[int] | None = None):
    """`array` with BART's axes (rows, columns, slices, coils, ...), written as BART does."""
    array.astype("<c8").ravel(order="F").tofile(path)
    sides = dimensions or [*array.shape, *[1] * (16 - array.ndim)]
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, sides)) + "\n# Command\nphantom\n")


def test_the_same_slices_from_every_format(tmp_path):
    images = numbers(3, 8, 6)
    np.save(tmp_path / "npy.npy", spectrum(images))
    with h5py.File(tmp_path / "fast.h5", "w") as file:
        file["kspace"] = spectrum(images)
    write_cfl(tmp_path / "bart.cfl", spectrum(images).transpose(1, 2, 0))
    for name in ("npy.npy", "fast.h5", "bart.cfl"):
        items = MRIData(str(tmp_path / name), scale=2.0, slices="1-2").items()
        assert [item.id for item in items] == [f"{Path(name).stem}_00{k}" for k in (1, 2)]
        for item, image in zip(items, images[1:], strict=True):
            assert np.abs(complex_of(item) - image / 2).max() < 1e-6
    everything = MRIData(str(tmp_path), scale=1.0).items()
    assert len(everything) == 9 and len({item.digest() for item in everything}) == 3


def test_column_major_order_of_bart(tmp_path):
    array = numbers(4, 3, 1, 2)
    write_cfl(tmp_path / "a.cfl", array)
    read = read_cfl(tmp_path / "a.cfl")
    assert read.shape == (1, 2, 4, 3) and read[0, 1, 3, 2] == array[3, 2, 0, 1]
    raw = np.fromfile(tmp_path / "a.cfl", dtype="<c8")
    assert raw[1] == array[1, 0, 0, 0] and raw[4] == array[0, 1, 0, 0]


def test_images_and_a_single_array(tmp_path):
    image = numbers(8, 6)
    np.save(tmp_path / "one.npy", image)
    (item,) = MRIData(str(tmp_path / "one.npy"), scale=1.0, domain="image").items()
    assert item.id == "one" and np.abs(complex_of(item) - image).max() < 1e-7
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["reconstruction_rss"] = np.abs(numbers(2, 8, 6))
    items = MRIData(str(tmp_path / "two.h5"), scale="max", domain="image", key="reconstruction_rss").items()
    assert np.abs(complex_of(items[1])).max() == 1 and np.abs(items[1].load()[1]).max() == 0


def test_scaling_and_crop_are_explicit_and_recorded(tmp_path):
    image = numbers(20, 12)
    image[0, 0] = 100  # outside of the crop
    np.save(tmp_path / "one.npy", image)
    crop = image[6:14, 3:9]
    for scale, divisor in (("max", np.abs(crop).max()), ("percentile", np.quantile(np.abs(crop), 0.995)), (3.0, 3.0)):
        (item,) = MRIData(str(tmp_path / "one.npy"), scale=scale, domain="image", size=(8, 6)).items()
        assert item.facts() == {"slice": 0, "intensity_divisor": pytest.approx(float(divisor), rel=1e-6)}
        assert np.abs(complex_of(item) - crop / divisor).max() < 1e-6


def test_coils_are_combined(tmp_path):
    v, u = np.mgrid[-1:1:32j, -1:1:32j]
    image = ((u**2 + v**2 < 0.6) * (1 + 0.3 * u) * np.exp(0.5j * v)).astype(np.complex64)
    maps = smooth_maps(4, 32, 32)
    np.save(tmp_path / "kspace.npy", spectrum((maps.numpy() * image).astype(np.complex64))[None])
    np.save(tmp_path / "maps.npy", 2 * maps.numpy())
    (known,) = MRIData(str(tmp_path / "kspace.npy"), scale=1.0, coil_maps=str(tmp_path / "maps.npy")).items()
    assert np.abs(complex_of(known) - image / 2).max() < 1e-6
    (estimated,) = MRIData(str(tmp_path / "kspace.npy"), scale=1.0).items()
    # The estimate absorbs the slow phase of the image; its magnitude is the image's.
    error = np.abs(np.abs(complex_of(estimated)) - np.abs(image))
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.abs(image).max()


def test_calibrated_maps_of_a_constant_image_are_the_maps():
    maps = smooth_maps(5, 48, 48)
    found = calibrated_maps(maps, share=0.3)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert (found[inner] - maps[inner]).abs().max() < 0.1
    assert (found.abs().square().sum(0) - 1).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "data.scale"),
        ({"scale": 1.0, "size": 0}, "data.size"),
        ({"scale": 1.0, "size": 9}, "larger than the slices"),
        ({"scale": 1.0, "slices": "0-3"}, "data.slices"),
        ({"scale": 1.0, "root": "nowhere"}, "no such file"),
    ],
)
def test_refused_options(tmp_path, change, message):
    np.save(tmp_path / "a.npy", numbers(2, 8, 6))
    with pytest.raises(ConfigError, match=message):
        MRIData(**{"root": str(tmp_path / "a.npy"), **change}).items()


def test_refused_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.ones((4, 4))
    with pytest.raises(ConfigError, match="no dataset 'kspace'; it holds: image"):
        MRIData(str(tmp_path / "a.h5"), scale=1.0).items()
    (tmp_path / "b.h5").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        MRIData(str(tmp_path / "b.h5"), scale=1.0).items()
    np.save(tmp_path / "c.npy", np.ones(5))
    with pytest.raises(ConfigError, match="is needed"):
        Volume(tmp_path / "c.npy")
    np.save(tmp_path / "zero.npy", np.zeros((4, 4), np.complex64))
    with pytest.raises(ConfigError, match="zero everywhere"):
        MRIData(str(tmp_path / "zero.npy"), scale="max").items()[0].load()
    np.save(tmp_path / "nan.npy", np.full((4, 4), np.nan + 0j))
    with pytest.raises(ConfigError, match="NaN"):
        MRIData(str(tmp_path / "nan.npy"), scale="max").items()[0].load()
    np.save(tmp_path / "coils.npy", numbers(1, 3, 8, 8))
    np.save(tmp_path / "maps.npy", smooth_maps(3, 8, 6).numpy())
    with pytest.raises(ConfigError, match=r"coil maps \(N, 8, 8\)"):
        MRIData(str(tmp_path / "coils.npy"), scale="max", coil_maps=str(tmp_path / "maps.npy")).items()[0].load()
    np.save(tmp_path / "maps.npy", smooth_maps(2, 8, 8).numpy())
    with pytest.raises(ConfigError, match="2 coils, but coils.npy has 3"):
        MRIData(str(tmp_path / "coils.npy"), scale="max", coil_maps=str(tmp_path / "maps.npy")).items()[0].load()


def test_refused_bart_files(tmp_path):
    path = tmp_path / "a.cfl"
    numbers(4, 3).tofile(path)
    with pytest.raises(ConfigError, match="header a.hdr is missing"):
        Volume(path)
    path.with_suffix(".hdr").write_text("# Dimensions\nfour\n")
    with pytest.raises(ConfigError, match="does not tell the dimensions"):
        Volume(path)
    write_cfl(path, numbers(4, 3), [4, 5])
    with pytest.raises(ConfigError, match="96 bytes, its header promises 160"):
        Volume(path)
    write_cfl(path, numbers(4, 3, 1, 2, 2))
    with pytest.raises(ConfigError, match="bart slice"):
        Volume(path)


# -- a run ----------------------------------------------------------------------------------------------------------------


def test_pictures_of_complex_images_are_magnitudes():
    x = np.zeros((2, 2, 2), np.float32)
    x[:, 0, 0] = (0.6, -0.8)
    x[:, 1, 1] = (0.3, 0.4)
    assert to_bytes(x).tolist() == [[255, 0], [0, 128]]


def test_a_run_on_phantoms_scores_magnitudes(tmp_path, monkeypatch):
    from torchmetrics.functional.image import peak_signal_noise_ratio

    from invsolve.config.load import load
    from invsolve.priors import GaussianPrior
    from invsolve.runs.local import run

    f2 = torch.fft.fftfreq(32)[:, None] ** 2 + torch.fft.fftfreq(32)[None] ** 2
    power = 1 / (f2 + 1e-2)
    prior = GaussianPrior.stationary(0.0, 0.05 * power / power.mean(), (2, 32, 32))
    monkeypatch.chdir(tmp_path)
    changes = ["data.size=32", "data.indices=0-1", "samples=2", "schedule.steps=8", "sampler.zeta=1.0", "progress=false", "out=here"]
    result = run(load("mri_phantom", changes), prior, say=lambda line: None)
    assert result.sampled == ["phantom_0", "phantom_1"] and not result.failed
    stored = np.load("here/arrays/phantom_0.npz")
    assert stored["y"].shape == stored["x"].shape == (2, 32, 32)
    row = next(row for row in result.rows if (row.id, row.sample, row.metric) == ("phantom_0", "mean", "psnr"))
    magnitudes = [torch.from_numpy(np.hypot(*stored[name])).clamp(0, 1) for name in ("mean", "x")]
    assert row.value == pytest.approx(float(peak_signal_noise_ratio(*magnitudes, data_range=1.0)), abs=1e-3)
    manifest = json.loads(Path("here/manifest.json").read_text())
    assert manifest["images"]["phantom_0"]["input"] == f"seed_{EVALUATION_SEED}/phantom_0"
    assert Path("here/images/phantom_1/panel.png").stat().st_size > 10_000
