"""What the tests of evaluations share: images, an analytic prior in float64, and processes that may be killed."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from analytic import analytic_prior
from PIL import Image

CONFIG = """\
prior: any
operator: {name: gaussian_blur, std: 1}
noise: {name: gaussian, sigma: 0.05}
schedule: {name: ddpm, steps: 5}
sampler: {name: dps, zeta: 0.3}
data: {name: images, root: photos, size: 16, fit: crop}
trainer: {panels: 0, logger: none}
samples: 2
batch: 3
device: cpu
progress: false
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with 24 photographs and small.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rows, columns = np.mgrid[0:16, 0:16] / 16
    for k in range(24):
        planes = [np.sin(3 * rows + k), np.cos(4 * columns - k), rows * columns - 0.03 * k]
        Image.fromarray(np.clip(np.stack(planes, -1) * 90 + 128, 0, 255).astype(np.uint8)).save(tmp_path / f"photos/i{k:02d}.png")
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def prior():
    return analytic_prior()


@pytest.fixture
def forked():
    """Starts a function in a forked process, which exits with what it returns; what is still alive is killed in the end."""
    children = []

    def start(function):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                torch.set_num_threads(1)
                code = function() or 0
            finally:
                os._exit(code)
        children.append(pid)
        return Child(pid, children)

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Child:
    def __init__(self, pid, children):
        self.pid, self.children = pid, children

    def wait(self, seconds=60.0):
        """The exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.children.remove(self.pid)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        raise TimeoutError(f"process {self.pid} is still running after {seconds} s")

    def kill(self):
        """Kill -9; False where it had finished already."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL
