"""Crops of photographs as a data section."""

import numpy as np
import pytest
from PIL import Image

from invsolve.config.load import load
from invsolve.data.crops import Crops
from invsolve.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    rows, columns = np.mgrid[0:40, 0:60]
    for name, blue in (("b", 0), ("a", 255)):
        pixels = np.stack([6 * rows, 4 * columns, np.full_like(rows, blue)], -1).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def test_crops_lie_on_the_diagonal_file_by_file(folder):
    items = Crops(str(folder), size=10, each=2).items()
    assert [item.id for item in items] == ["a-0", "a-1", "b-0", "b-1"]
    assert {item.image_shape for item in items} == {(3, 10, 10)} and not any(item.measured for item in items)
    for item, (row, column, blue) in zip(items, [(10, 17, 255), (20, 33, 255), (10, 17, 0), (20, 33, 0)], strict=True):
        x = item.load()
        assert x.shape == (3, 10, 10) and x.dtype == np.float32
        assert np.allclose((x[:, 0, 0] + 1) * 127.5, [6 * row, 4 * column, blue], atol=1e-4)
        assert np.allclose((x[:, 9, 9] + 1) * 127.5, [6 * (row + 9), 4 * (column + 9), blue], atol=1e-4)


def test_reduction_comes_first(folder):
    (item,) = Crops(str(folder / "a.png"), size=20, each=1, reduce=2).items()
    # Rows 20 of 20 and columns 5 to 24 of 30: a pixel of the reduced image is the mean of its two by two, away from the border.
    x = (item.load() + 1) * 127.5
    assert np.allclose(x[0, 5:15, 0], 6 * (2 * np.arange(5, 15) + 0.5), atol=1)
    assert np.allclose(x[1, 10, 3:17], 4 * (2 * np.arange(8, 22) + 0.5), atol=1)


def test_choice_and_refusals(folder):
    assert [item.id for item in Crops(str(folder), indices="1,2", size=10).items()] == ["a-1", "b-0"]
    with pytest.raises(ConfigError, match=r"there are 4, numbered 0 to 3"):
        Crops(str(folder), indices=4, size=10).items()
    with pytest.raises(ConfigError, match=r"data\.size = 30: does not fit into a\.png, which, reduced 2 times, is 20 x 30"):
        Crops(str(folder), size=30, reduce=2).items()
    for key in ("size", "each", "reduce"):
        with pytest.raises(ConfigError, match=rf"data\.{key} = 0: must be 1 or larger"):
            Crops(str(folder), **{key: 0})


def test_a_file_that_is_no_image_is_an_item_with_a_problem(folder):
    (folder / "c.png").write_text("no image")
    items = Crops(str(folder), size=10).items()
    assert [item.id for item in items if item.problem] == ["c-0", "c-1"] and len(items) == 6


def test_a_broken_file_shifts_no_index_and_takes_no_id_of_another(folder):
    (folder / "a-0.png").write_text("no image")  # by name before a.png, whose first crop is a-0
    broken = Crops(str(folder), size=10).items()
    assert [item.id for item in broken] == ["a-0-0", "a-0-1", "a-0", "a-1", "b-0", "b-1"]
    assert [bool(item.problem) for item in broken] == [True, True, False, False, False, False]
    Image.new("RGB", (20, 20)).save(folder / "a-0.png")
    whole = Crops(str(folder), size=10).items()
    assert [item.id for item in whole] == [item.id for item in broken] and not any(item.problem for item in whole)
    for k in range(2, 6):
        assert Crops(str(folder), indices=k, size=10).items()[0].id == whole[k].id


def test_the_evaluation_photographs_are_a_name_in_any_photo_preset():
    items = load("photo_sr4", ["data=photo_evaluation", "sampler=daps"]).items()
    assert [item.id for item in items] == [f"{photo}-{k}" for photo in ("astronaut", "chelsea", "coffee", "rocket") for k in range(2)]
    assert items[3].load().shape == (3, 64, 64)
