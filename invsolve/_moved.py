"""Modules by the names that they had in earlier versions: importing one still works, and says where its names are now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "invsolve.affine": ("invsolve.diagnostics.affine",),
    "invsolve.calibrate": ("invsolve.diagnostics.calibrate",),
    "invsolve.calibrate_cli": ("invsolve.cli.calibrate",),
    "invsolve.chains": ("invsolve.engine.chains", "invsolve.metrics.mixing"),
    "invsolve.checkpoint": ("invsolve.engine.checkpoint", "invsolve.errors"),
    "invsolve.data_crops": ("invsolve.data.crops",),
    "invsolve.data_glyphs": ("invsolve.data.glyphs",),
    "invsolve.data_mri": ("invsolve.data.mri", "invsolve.data.items", "invsolve.data.phantoms"),
    "invsolve.evaluation": ("invsolve.runs.lightning", "invsolve.reports"),
    "invsolve.evaluation.charts": ("invsolve.reports.charts",),
    "invsolve.evaluation.comparison": ("invsolve.reports.comparison",),
    "invsolve.evaluation.datamodule": ("invsolve.runs.lightning.datamodule",),
    "invsolve.evaluation.formats": ("invsolve.reports.tables",),
    "invsolve.evaluation.honesty": ("invsolve.reports.honesty",),
    "invsolve.evaluation.launch": ("invsolve.runs.lightning.launch",),
    "invsolve.evaluation.module": ("invsolve.runs.lightning.module",),
    "invsolve.evaluation.perceptual": ("invsolve.metrics.perceptual",),
    "invsolve.evaluation.pictures": ("invsolve.pictures.gallery",),
    "invsolve.evaluation.reporting": ("invsolve.reports.page",),
    "invsolve.evaluation.scoring": ("invsolve.reports.scoring",),
    "invsolve.evaluation.writer": ("invsolve.runs.lightning.callback",),
    "invsolve.glyphs": ("invsolve.data.glyphs",),
    "invsolve.inner": ("invsolve.kernels.mcmc",),
    "invsolve.lipschitz": ("invsolve.numerics.power", "invsolve.numerics.rows", "invsolve.samplers.pnp_ula"),
    "invsolve.loop": ("invsolve.engine.loop",),
    "invsolve.memory": ("invsolve.engine.memory",),
    "invsolve.monitor": ("invsolve.engine.guard", "invsolve.engine.observers", "invsolve.errors"),
    "invsolve.noise": ("invsolve.streams",),
    "invsolve.operator_cli": ("invsolve.cli.operators",),
    "invsolve.optimise": ("invsolve.likelihoods.fits", "invsolve.numerics.adam", "invsolve.numerics.rows"),
    "invsolve.outputs": ("invsolve.runs.folder", "invsolve.atomic", "invsolve.runs.records"),
    "invsolve.panels": ("invsolve.pictures.panels", "invsolve.runs.task", "invsolve.signals"),
    "invsolve.phantoms": ("invsolve.data.phantoms", "invsolve.data.items"),
    "invsolve.planning": ("invsolve.runs.units",),
    "invsolve.poisson_gaussian": ("invsolve.likelihoods.poisson",),
    "invsolve.presets": ("invsolve.config.advice",),
    "invsolve.priors.analytic": ("invsolve.priors.gaussian",),
    "invsolve.priors.analytic_conditional": ("invsolve.priors.gaussian_conditional",),
    "invsolve.priors.autoencoders": ("invsolve.priors.checkpoints.autoencoders",),
    "invsolve.priors.embedders": ("invsolve.priors.checkpoints.embedders",),
    "invsolve.priors.loading": ("invsolve.priors.checkpoints.loading",),
    "invsolve.priors.pipelines": ("invsolve.priors.checkpoints.diffusers",),
    "invsolve.priors.recompute": ("invsolve.numerics.recompute",),
    "invsolve.priors.weights": ("invsolve.priors.checkpoints.weights",),
    "invsolve.problems": ("invsolve.diagnostics.problems",),
    "invsolve.reconstruction": ("invsolve.runs.task", "invsolve.errors", "invsolve.runs.batch", "invsolve.runs.outcome"),
    "invsolve.reconstructor": ("invsolve.interop.deepinv",),
    "invsolve.reverse": ("invsolve.kernels.linearize",),
    "invsolve.run": ("invsolve.runs.local", "invsolve.runs.outcome"),
    "invsolve.samplers.base": ("invsolve.engine.protocol", "invsolve.errors", "invsolve.samplers.parts.checks"),
    "invsolve.samplers.codes": ("invsolve.samplers.parts.latent",),
    "invsolve.samplers.prompts": ("invsolve.samplers.parts.prompts",),
    "invsolve.samplers.warm": ("invsolve.samplers.pnp_ula",),
    "invsolve.schema": ("invsolve.config.schema", "invsolve.errors"),
    "invsolve.settings": ("invsolve.config.settings",),
    "invsolve.tables": ("invsolve.config.names", "invsolve.cli.listing", "invsolve.data", "invsolve.likelihoods"),
    "invsolve.writing": ("invsolve.runs.writer", "invsolve.metrics.fidelity", "invsolve.signals"),
}
"""Former module -> the modules that hold its names now."""


class _Former(ModuleType):
    """A module that looks its names up where they are now."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for home in MOVED[self.__name__]:
                found = importlib.import_module(home)
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}; its names are in {', '.join(MOVED[self.__name__])}")


class _Finder(MetaPathFinder, Loader):
    """Asked last of all, so it costs nothing where a module is found by its present name."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module under its former name."""
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module without names of its own."""
        warnings.warn(f"{spec.name} is now {', '.join(MOVED[spec.name])}", DeprecationWarning, stacklevel=2)
        return _Former(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do."""


def install() -> None:
    """Lets former names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
