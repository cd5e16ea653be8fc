"""The scripts refuse before they install anything, and never touch what they did not make."""

import shutil
import subprocess

import pytest

from invsolve.resources import resource

SCRIPTS = resource("scripts")
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir() or shutil.which("bash") is None, reason="needs a checkout and bash")


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    return tmp_path


def call(checkout, **environment):
    return subprocess.run(
        ["bash", str(checkout / "scripts" / "demo")], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment}
    )  # fmt: skip


def test_a_strange_environment_is_left_alone(checkout):
    (checkout / ".invsolve-env").mkdir()
    (checkout / ".invsolve-env" / "mine").write_text("precious")
    done = call(checkout)
    assert done.returncode == 1 and "not made by these scripts, so it is left alone" in done.stderr
    assert [path.name for path in (checkout / ".invsolve-env").iterdir()] == ["mine"]


@pytest.mark.parametrize("body", ["echo 3.8", "exit 1"])
def test_an_old_python_is_named(checkout, body):
    old = checkout / "old-python"
    old.write_text(f"#!/bin/sh\n{body}\nexit 1\n")
    old.chmod(0o755)
    done = call(checkout, PYTHON=str(old))
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".invsolve-env").exists()
