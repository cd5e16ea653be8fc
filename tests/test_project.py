"""Promises about the code base itself."""

import ast
import importlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from invsolve import _HOMES

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted([*ROOT.glob("invsolve/**/*.py"), *ROOT.glob("operators/**/*.py")])
# Lower packages first: a file imports from its own package or from lower ones, also inside functions and for type checkers.
ORDER = [
    {"errors", "levels", "numerics", "resources", "signals", "streams"},
    {"ids", "kernels", "likelihoods", "metrics", "pictures", "schedules"},
    {"atomic", "config"},
    {"data", "priors"},
    {"posterior"},
    {"engine"},
    {"diagnostics", "interop", "runs", "samplers"},
    {"reports"},
    {"runs.lightning"},
    {"cli"},
]


def _package(module):
    """The package of a module inside invsolve; Lightning's driver is one of its own."""
    parts = module.split(".")
    return "runs.lightning" if parts[1:3] == ["runs", "lightning"] else parts[1]


def _imported(path):
    """The modules of this library that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for a in node.names:
                inner = f"{node.module}.{a.name}"
                yield _HOMES.get(a.name, inner) if node.module == "invsolve" else inner if _is_module(inner) else node.module


def _is_module(name):
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _rank(package):
    found = [k for k, names in enumerate(ORDER) if package in names]
    assert found, f"{package} has no place in ORDER"
    return found[0]


def test_packages_import_in_one_direction():
    for path in ROOT.glob("invsolve/**/*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module in ("invsolve", "invsolve.__main__"):
            continue
        own = _package(module)
        for name in _imported(path):
            if (
                name.startswith("invsolve.")
                and name not in ("invsolve.__version__", "invsolve.__main__")
                and (other := _package(name)) != own
            ):
                assert _rank(other) < _rank(own), f"{module} imports {name}, which is not lower"
    for path in ROOT.glob("operators/**/*.py"):
        assert not any(name.split(".")[0] == "invsolve" for name in _imported(path)), f"{path.name} imports invsolve"


def test_no_module_imports_itself_through_others():
    """Everything of invsolve could be imported at the top of its file: no circle hides inside a function."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.glob("invsolve/**/*.py")
    }
    waits = {name: set(_imported(path)) & set(modules) - {"invsolve", name} for name, path in modules.items() if name != "invsolve"}
    while free := [name for name, on in waits.items() if not on & set(waits)]:
        for name in free:
            del waits[name]
    assert not waits, f"a circle among {sorted(waits)}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short_and_nothing_is_swallowed(path):
    text = path.read_text()
    assert text.count("\n") <= 400, "library files stay under 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.lineno - (ast.get_docstring(node) or "").count("\n")
            assert body <= 60, f"{node.name} has {body} lines"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
    for word in ("torch.manual_seed", "np.random.seed", "nan_to_num", "randn_like"):
        assert word not in text, f"{word} in {path.name}"


def _seconds(code):
    """Processor time of a fresh interpreter that runs ``code``: what others do on the machine hardly changes it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_is_light():
    heavy = {"deepinv", "diffusers", "lightning", "matplotlib", "kornia", "skimage", "omegaconf"}
    code = f"import sys, invsolve, operators; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    # Interleaved, and the least of several: a busy machine adds to single runs and takes nothing away.
    runs = [(_seconds("import torch, invsolve"), _seconds("import torch")) for _ in range(4)]
    assert min(ours for ours, _ in runs) - min(bare for _, bare in runs) < 0.3


def test_every_name_of_the_public_interface_exists():
    for module in ("invsolve", "invsolve.priors", "invsolve.likelihoods", "invsolve.schedules", "invsolve.samplers", "operators"):
        loaded = importlib.import_module(module)
        for name in getattr(loaded, "__all__", []):
            assert getattr(loaded, name) is not None
    from invsolve import Posterior, load_prior, sample  # noqa: F401
    from invsolve.likelihoods.poisson import PoissonLikelihood  # noqa: F401
    from invsolve.priors import GaussianMixturePrior, GaussianPrior  # noqa: F401
    from invsolve.samplers import DPS, Unconditional  # noqa: F401
    from invsolve.schedules import DDPM, Cosine, Karras, Levels  # noqa: F401
    from operators import GaussianBlur, Identity, Inpainting, Matrix, SuperResolution  # noqa: F401


def test_every_name_in_the_tables_resolves():
    from invsolve.samplers import SAMPLERS
    from invsolve.schedules import SCHEDULES
    from operators import NOISES, OPERATORS

    for table in (SAMPLERS, SCHEDULES, OPERATORS, NOISES):
        for name, home in table.items():
            module, _, cls = home.partition(":")
            found = getattr(importlib.import_module(module), cls)
            assert (found.__doc__ or "").strip(), f"{name} has no docstring, which is its help"


def test_the_documents_hold_no_placeholder():
    for path in (*ROOT.glob("*.md"), *ROOT.glob("data/**/*.md"), *ROOT.glob("data/**/card.yaml")):
        assert "@@" not in path.read_text(), path
