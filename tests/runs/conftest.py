"""What the tests of evaluations share: images, an analytic prior in float64, and processes that may be killed."""

import os
import signal
import time

import pytest
import torch
from analytic import analytic_prior
from shared import one_thread as one_thread
from shared import save_photos

CONFIG = """\
prior: any
operator: {name: gaussian_blur, std: 1}
noise: {name: gaussian, sigma: 0.05}
schedule: {name: ddpm, steps: 5}
sampler: {name: dps, zeta: 0.3}
data: {name: images, root: photos, size: 16, fit: crop}
trainer: {panels: 0, logger: none, report: false}
samples: 2
batch: 3
device: cpu
progress: false
"""


@pytest.fixture(autouse=True)
def always_one_thread(one_thread):
    pass


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with 24 photographs and small.yaml."""
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path / "photos", [f"i{k:02d}" for k in range(24)], 16, 16, 0.03)
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
