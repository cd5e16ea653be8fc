"""Non-Cartesian MRI: against the sum it stands for, and against Cartesian MRI; skipped where mri-nufft is not installed."""

import sys

import numpy as np
import pytest
import torch
from operator_cases import rand

from operators import MRI, NonCartesianMRI, check, to_complex
from operators.mri.noncartesian import spirals, spokes, trajectory_of


def build(*args: object, **options: object) -> NonCartesianMRI:
    pytest.importorskip("mrinufft")
    pytest.importorskip("finufft")
    return NonCartesianMRI(*args, **options)


def test_without_mri_nufft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mrinufft", None)
    monkeypatch.setitem(sys.modules, "finufft", None)
    with pytest.raises(ImportError, match=r"pip install 'invsolve\[nufft\]'"):
        NonCartesianMRI((2, 8, 8))


OPTIONS = {
    "radial": {"shots": 4, "samples": 8},
    "spiral, 2 coils": {"trajectory": "spiral", "shots": 3, "samples": 16, "coils": "smooth", "n_coils": 2},
    "radial uniform, birdcage": {"shots": 5, "samples": 10, "tilt": "uniform", "coils": "birdcage", "n_coils": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("sides", [(6, 8), (7, 5)])
def test_equals_the_sum(name: str, sides: tuple[int, int]) -> None:
    op = build((2, *sides), **OPTIONS[name])
    x = rand(2, 2, *sides) - 0.5
    rows, columns = np.meshgrid(*(np.arange(n) - n // 2 for n in sides), indexing="ij")
    k = op.places.numpy()
    waves = np.exp(-2j * np.pi * (k[:, 0, None, None] * rows + k[:, 1, None, None] * columns)) / np.sqrt(sides[0] * sides[1])
    maps = op.maps[0].numpy() + 1j * op.maps[1].numpy()
    expected = np.einsum("shw,nhw,bhw->bns", waves, maps, to_complex(x).numpy())
    assert np.abs(to_complex(op.A(x)).numpy() - expected).max() < 1e-12
    assert np.abs(to_complex(op.A(x.float())).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("batch", [1, 3])
def test_laws(name: str, dtype: torch.dtype, batch: int) -> None:
    laws = check(build((2, 6, 7), **OPTIONS[name]), dtype, batch)
    assert len(laws) >= 20 and [law for law in laws if not law.passed] == []


def test_on_the_grid_it_is_cartesian() -> None:
    lines = (torch.arange(n, dtype=torch.float64) / n - 0.5 for n in (6, 8))
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    op = build((2, 6, 8), trajectory="file", places=torch.stack([rows, columns], -1))
    x = rand(2, 2, 6, 8) - 0.5
    y = MRI((2, 6, 8), kind="full").A(x)
    assert (op.A(x)[:, :, 0].reshape_as(y) - y).abs().max() < 1e-12


def test_trajectories() -> None:
    places = spokes(7, 12)
    assert places.shape == (84, 2) and places.abs().max() <= 0.5
    assert (places.reshape(7, 12, 2)[:, 6] == 0).all()  # every spoke passes the centre
    turned = torch.rad2deg(torch.acos((places[12] * places[0]).sum() / (places[12].norm() * places[0].norm())))
    assert turned == pytest.approx(111.246, abs=1e-3)
    uniform = spokes(6, 4, "uniform").reshape(6, 4, 2)
    angles = torch.rad2deg(torch.atan2(uniform[:, 3, 0], uniform[:, 3, 1]))
    assert angles.tolist() == pytest.approx([0, 30, 60, 90, 120, 150])
    assert (spirals(3, 16).norm(dim=1).reshape(3, 16) - torch.arange(16) / 32).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory": "rosette"}, "radial, spiral or file"),
        ({"trajectory": "file"}, "go together"),
        ({"shots": 0}, "at least 1"),
        ({"coils": "loop"}, "birdcage"),
        ({"trajectory": "file", "places": torch.ones(4, 2)}, "cycles per pixel"),
    ],
)
def test_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build((2, 8, 8), **options)


def test_refused_trajectories() -> None:
    with pytest.raises(ValueError, match="rows and columns"):
        trajectory_of(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="no trajectory file"):
        trajectory_of("nowhere.npy")
    with pytest.raises(ValueError, match="cycles per pixel"):
        trajectory_of(torch.full((4, 2), float("nan")))
