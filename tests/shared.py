"""What tests in several folders share: a prior without weights, photographs, and one thread."""

import numpy as np
import pytest
import torch
from PIL import Image

from invsolve.priors import GaussianPrior

SIDE = 16


def stationary_prior(dtype=torch.float32, shape=(3, SIDE, SIDE)):
    """A stationary Gaussian prior for images of this shape."""
    f2 = sum(f.square() for f in torch.meshgrid(*(torch.fft.fftfreq(side, dtype=dtype) for side in shape[-2:]), indexing="ij"))
    power = 1 / (f2 + 1e-2)
    return GaussianPrior.stationary(0.0, 0.2 * power / power.mean(), shape)


def save_photos(folder, names, height, width, fall):
    """Smooth images, one for each name, that grow darker in one plane by ``fall`` from one to the next."""
    folder.mkdir()
    rows, columns = np.mgrid[0:height, 0:width] / height
    for k, name in enumerate(names):
        planes = [np.sin(3 * rows + k), np.cos(4 * columns - k), rows * columns - fall * k]
        Image.fromarray(np.clip(np.stack(planes, -1) * 90 + 128, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def one_thread():
    """These tensors are too small to share, and waiting for a second core costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
