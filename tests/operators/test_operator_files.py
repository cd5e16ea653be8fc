"""The arrays that a user gives, as objects and as files of every kind, good and bad."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from operators import Blur, Inpainting, Matrix, SpaceVaryingBlur, compose_parts, stack_parts
from operators.core.files import read_array

VALUES = np.array([[0.0, 51.0], [102.0, 255.0], [204.0, 153.0]]) / 255


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"array{suffix}"
    if suffix == ".npy":
        np.save(path, VALUES)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(VALUES), path)
    elif suffix == "16.png":
        Image.fromarray((VALUES * 65535).round().astype(np.uint16)).save(path)
    else:
        Image.fromarray((VALUES * 255).round().astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".pt", ".png", "16.png"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    found, name = read_array(str(path), "thing")
    assert found.dtype == torch.float64
    assert np.abs(found.numpy() - VALUES).max() < 1e-12
    assert name == str(path)


def test_given_objects_are_copied() -> None:
    for given in (torch.ones(2, 3), np.ones((2, 3)), torch.ones(2, 3, dtype=torch.bool)):
        found, _ = read_array(given, "thing")
        found.zero_()
        assert bool((torch.as_tensor(given) == 1).all())


@pytest.mark.parametrize(
    ("name", "content"), [("a.npy", b"not numbers"), ("a.pt", b"no tensor"), ("a.png", b"no picture"), ("a.txt", b"1 2 3")]
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is neither a .npy file of numbers nor a .pt .* nor an image"):
        Inpainting((1, 8, 8), kind="file", mask=str(tmp_path / name))


def test_what_is_not_one_real_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "complex.npy", np.ones((2, 2)) * 1j)
    torch.save({"A": torch.ones(2, 2)}, tmp_path / "dict.pt")
    written(tmp_path, ".png")
    for act, message in (
        (lambda: Blur((1, 8, 8), kernel=str(tmp_path / "words.npy")), "words.npy is neither"),
        (lambda: Blur((1, 8, 8), kernel=str(tmp_path / "complex.npy")), "must be real and finite, got torch.complex128"),
        (lambda: Matrix(str(tmp_path / "dict.pt"), (2,)), "dict.pt is neither a .npy file of numbers nor a .pt file of one tensor$"),
        (lambda: Matrix(str(tmp_path / "array.png"), (2,)), r"a matrix file ends in .npy or .pt"),
        (lambda: SpaceVaryingBlur((1, 8, 8), kernel=str(tmp_path / "none.npy")), "no kernel file at .*none.npy"),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_a_matrix_file_among_configured_parts(tmp_path: Path) -> None:
    """Its constructor names the matrix first and the image shape second."""
    path = written(tmp_path, ".npy")
    matrix = {"name": "matrix", "A": str(path)}
    x = torch.rand(2, 2, 1, 1, dtype=torch.float64)
    expected = x.flatten(1) @ torch.from_numpy(VALUES).T
    assert torch.equal(compose_parts((2, 1, 1), ["identity", matrix]).A(x), expected)
    assert torch.equal(stack_parts((2, 1, 1), [matrix, "identity"]).A(x), torch.cat([expected, x.flatten(1)], 1))
