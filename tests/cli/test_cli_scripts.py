"""The scripts refuse before they install anything, and never touch what they did not make."""

import shutil
import subprocess
import sys
import tomllib

import pytest

from invsolve.resources import resource

SCRIPTS = resource("scripts")
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir() or shutil.which("bash") is None, reason="needs a checkout and bash")


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    return tmp_path


def call(checkout, *command, **environment):
    script, *arguments = command or ("demo",)
    environment = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(["bash", str(checkout / "scripts" / script), *arguments], capture_output=True, text=True, env=environment)


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


def test_the_oldest_versions_get_an_environment_of_their_own(checkout):
    (checkout / ".invsolve-env-oldest").mkdir()
    (checkout / ".invsolve-env-oldest" / "mine").write_text("precious")
    done = call(checkout, "test", "--oldest", "tests/test_noise.py")
    assert done.returncode == 1 and ".invsolve-env-oldest exists but was not made by these scripts" in done.stderr
    assert [path.name for path in (checkout / ".invsolve-env-oldest").iterdir()] == ["mine"]


def test_every_requirement_has_a_lowest_version_and_the_oldest_are_these(checkout):
    command = [sys.executable, str(checkout / "scripts" / "_floors.py")]
    done = subprocess.run([*command, str(resource("pyproject.toml"))], capture_output=True, text=True)
    project = tomllib.loads(resource("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert done.returncode == 0 and len(done.stdout.split()) == len(wanted)
    for line, text in zip(done.stdout.split(), wanted, strict=True):
        name, _, version = line.partition("==")
        assert text.startswith(name) and text.endswith(f">={version}") and "[" not in line
    (checkout / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2", "numpy"]\n[project.optional-dependencies]\ntest = []\n'
    )
    done = subprocess.run([*command, str(checkout / "pyproject.toml")], capture_output=True, text=True)
    assert done.returncode == 1 and "numpy: name>=version is needed" in done.stderr and done.stdout == ""
