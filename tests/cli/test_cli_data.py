"""Reading images and stored measurements."""

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.data.images import Images
from invsolve.data.measurements import Measurement
from invsolve.errors import ConfigError


def ids(images):
    return [item.id for item in images.items()]


def only(images):
    (item,) = images.items()
    return item.load()


def test_folder_glob_and_file_relative_and_absolute(photos):
    (photos / "notes.txt").write_text("not an image")
    assert ids(Images("photos")) == ids(Images(str(photos))) == ["a", "b", "c", "d"]
    assert ids(Images("photos/[bc].png")) == ["b", "c"]
    assert ids(Images("photos/a.png")) == ["a"]


def test_shipped_photographs_are_found_from_any_folder_but_own_files_come_first(work):
    assert ids(Images("data/photos")) == ["astronaut", "chelsea", "coffee", "rocket"]
    (work / "data" / "photos").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(work / "data" / "photos" / "mine.png")
    assert ids(Images("data/photos")) == ["mine"]


@pytest.mark.parametrize(
    ("indices", "expected"), [("0-1", "ab"), ("0,2", "ac"), (3, "d"), ((1, 2), "bc"), ("3,0-1", "dab"), (None, "abcd")]
)
def test_indices(photos, indices, expected):
    assert ids(Images("photos", indices=indices)) == list(expected)


def test_values_are_exact_on_minus_one_to_one(work):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1)).save("ramp.png")
    x = only(Images("ramp.png"))
    assert x.dtype == np.float32 and x.shape == (3, 16, 16) and x.min() == -1 and x.max() == 1
    np.testing.assert_allclose(x[0], ramp / 127.5 - 1, atol=1e-6)


def test_crop_and_resize(work):
    rows = np.repeat(np.arange(40, dtype=np.uint8)[:, None], 60, axis=1)
    Image.fromarray(rows).save("rows.png")
    crop = only(Images("rows.png", size=(10, 20), fit="crop"))
    np.testing.assert_allclose(crop[0, :, 0], np.arange(15, 25) / 127.5 - 1, atol=1e-6)
    corner = only(Images("rows.png", size=8, fit="crop", origin=(3, 5)))
    np.testing.assert_allclose(corner[0, :, 0], np.arange(3, 11) / 127.5 - 1, atol=1e-6)
    resized = only(Images("rows.png", size=20, fit="resize"))
    assert resized.shape == (3, 20, 20)
    np.testing.assert_allclose(resized[0, 1:-1, 4], (np.arange(20)[1:-1] * 2 + 0.5) / 127.5 - 1, atol=2e-3)
    (item,) = Images("rows.png", size=(10, 20)).items()
    assert item.image_shape == item.load().shape


def test_grey_palette_and_sixteen_bits(work):
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    Image.fromarray(grey).save("grey.png")
    Image.fromarray(grey).convert("P").save("palette.png")
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save("deep.png")
    for name in ("grey.png", "palette.png"):
        x = only(Images(name))
        assert np.array_equal(x[0], x[1]) and np.abs(x[2] - (grey / 127.5 - 1)).max() < 1e-6
    np.testing.assert_allclose(only(Images("deep.png"))[0], deep / 32767.5 - 1, atol=1e-6)


def test_transparency_is_refused_or_laid_on_a_ground(work):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3] = 255
    Image.fromarray(rgba).save("opaque.png")
    rgba[0, 0, 3] = 0
    Image.fromarray(rgba).save("clear.png")
    assert only(Images("opaque.png")).max() == -1
    with pytest.raises(ConfigError, match="transparent pixels.*data.alpha=white"):
        only(Images("clear.png"))
    assert only(Images("clear.png", alpha="white"))[:, 0, 0].tolist() == [1, 1, 1]


def test_orientation_of_the_camera_is_applied(work):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("turned.jpg", exif=exif)
    (item,) = Images("turned.jpg").items()
    assert item.image_shape == item.load().shape == (3, 6, 4)


def test_two_files_with_one_id_are_refused(photos):
    Image.open(photos / "a.png").save(photos / "a.jpg")
    with pytest.raises(ConfigError, match="the id 'a' would stand for .*a.jpg, .*a.png"):
        Images("photos").items()
    assert ids(Images("photos", indices="1-3")) == ["a", "b", "c"]


def test_measurements_in_every_format(work):
    y = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    np.savez("one.npz", y=y, x=y)
    np.savez("two.npz", y=y, id="named")
    np.save("three.npy", y)
    torch.save(torch.from_numpy(y), "four.pt")
    for name, id in (("one.npz", "one"), ("two.npz", "named"), ("three.npy", "three"), ("four.pt", "four")):
        (item,) = Measurement(name).items()
        assert item.id == id and item.measured and item.image_shape is None
        np.testing.assert_array_equal(item.load(), y)


def test_a_pickled_object_is_not_loaded(work):
    torch.save({"y": torch.zeros(2)}, "dict.pt")
    np.save("object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("dict.pt", "object.npy"):
        with pytest.raises(ConfigError, match=name):
            Measurement(name).items()
