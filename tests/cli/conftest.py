"""What the tests of configuration, command line and outputs share: a folder to work in, images, a prior without weights."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from shared import one_thread as one_thread
from shared import save_photos, stationary_prior

from invsolve.cli.main import main
from invsolve.priors.network import Calls


class CountedPrior:
    """A stationary Gaussian prior for 3 x 16 x 16 images that counts its calls, and can be told to fail."""

    def __init__(self):
        self.inner = stationary_prior()
        self.image_shape = self.inner.image_shape
        self.calls = Calls()
        self.weights_sha256 = "0" * 64
        self.device = torch.device("cpu")

    fail_at = None  # of the class: what an object holds is part of what a checkpoint knows it by

    def denoise(self, x, t):
        self.calls.forward += 1
        if self.calls.forward == self.fail_at:
            raise KeyboardInterrupt
        return self.inner.denoise(x, t)

    def denoise_with_variance(self, x, t):
        return self.denoise(x, t), None

    def image_shape_ok(self, shape):
        self.inner.image_shape_ok(shape)

    def encode(self, x):
        return x

    def decode(self, z):
        return z

    def select(self, index):
        return self


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def always_one_thread(one_thread):
    pass


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prior(monkeypatch):
    """The prior that every configured name stands for in this test."""
    made = CountedPrior()

    def load_prior(name, *, device="auto", precision: str = "float32", allow_download: bool = False):
        return made

    monkeypatch.setattr("invsolve.load_prior", load_prior, raising=False)
    return made


@pytest.fixture
def photos(work):
    """Four smooth 24 x 20 images a.png ... d.png in the folder photos."""
    folder = work / "photos"
    save_photos(folder, "abcd", 24, 20, 0.1)
    return folder


SMALL = """\
# A small problem.
prior: any
operator: {name: inpainting, kind: box, size: 6, margin: 2}
noise: {name: gaussian, sigma: 0.05}
schedule: {name: ddpm, steps: 8}
sampler: {name: dps, zeta: 0.3}
data: {name: images, root: photos, size: 16, fit: crop}
samples: 3
device: cpu
progress: false
"""


@pytest.fixture
def small(photos, prior) -> Path:
    """A configuration file small.yaml that runs in a fraction of a second."""
    path = photos.parent / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def cli(capsys):
    """Runs the command in this process."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
