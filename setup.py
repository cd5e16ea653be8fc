"""Copies the presets and the shipped priors and photographs into the wheel, as invsolve/_resources."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithResources(build_py):
    """build_py, and then `configs/` and `data/` beside the modules (an editable install reads them in place)."""

    def run(self) -> None:
        """Runs the build, then copies."""
        super().run()
        if self.editable_mode:
            return
        for folder in ("configs", "data"):
            target = Path(self.build_lib) / "invsolve" / "_resources" / folder
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder, target)


setup(cmdclass={"build_py": BuildWithResources})
