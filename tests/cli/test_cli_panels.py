"""Pictures: fixed range, legible files, frames of a trajectory."""

import numpy as np
import pytest
from PIL import Image

from invsolve.pictures.panels import Shown, save_gif, save_panel, to_bytes
from invsolve.runs.task import log_spaced


def shown(shape=(3, 16, 16), truth=True, count=4):
    rng = np.random.default_rng(0)
    x, mean, std = rng.uniform(-1, 1, shape), rng.uniform(-1, 1, shape), rng.uniform(0, 0.2, shape)
    return Shown("a title", rng.uniform(-1, 1, (1, 5, 7)), x if truth else None, x, mean, std, count, {"mean": "PSNR 20 dB"})


def test_bytes_are_clipped_and_never_stretched():
    image = np.array([-3.0, -1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 5)
    assert to_bytes(image).tolist() == [[0, 0, 128, 255, 255]]
    assert to_bytes(np.full((3, 2, 2), 0.5)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"\(4, 4, 4\) is no picture"):
        to_bytes(np.zeros((4, 4, 4)))


@pytest.mark.parametrize("kind", ["whole", "no truth", "one sample", "grey", "wide", "tall"])
def test_panel_is_written_on_white(tmp_path, kind):
    shape = {"grey": (1, 16, 16), "wide": (3, 16, 48), "tall": (3, 48, 16)}.get(kind, (3, 16, 16))
    save_panel(shown(shape, truth=kind != "no truth", count=1 if kind == "one sample" else 4), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert (pixels[0] == 255).all() and (pixels[:, -1] == 255).all()
    assert 500 < pixels.shape[1] < 1400 and (pixels.reshape(-1, 3).max(1) < 60).sum() > 500


def test_panels_are_the_same_bytes_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        save_panel(shown(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_frames_are_spaced_in_the_logarithm():
    ratios = np.geomspace(100, 0.01, 1000)
    chosen = log_spaced(ratios, 60)
    assert len(chosen) == 60 and chosen[0] == 0 and chosen[-1] == 999
    assert np.ptp(np.diff(chosen)) <= 1
    assert log_spaced([3.0, 2.0, 1.0], 60) == [0, 1, 2]
    assert len(log_spaced([1.0] * 200, 60)) <= 60


def test_gif_has_all_frames_enlarged(tmp_path):
    frames = [np.full((16, 16, 3), 20 * k, np.uint8) for k in range(5)]
    save_gif(frames, tmp_path / "t.gif")
    with Image.open(tmp_path / "t.gif") as opened:
        assert opened.n_frames == 5 and opened.size == (256, 256)
