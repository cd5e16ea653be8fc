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
# Lower layers first; a module imports from its own layer or from lower ones.
LAYERS = [
    {"resources", "levels", "phantoms", "glyphs", "pixels", "stopping", "trees", "console"},
    {"schedules", "noise"},
    {"priors", "kernels", "reverse", "likelihoods", "poisson_gaussian", "lipschitz", "chains", "inner", "optimise", "metrics"},
    {"posterior", "problems"},
    {"samplers"},
    {"monitor", "checkpoint", "memory"},
    {"loop", "reconstructor", "affine"},
    {"calibrate"},
    {"schema", "tables", "ids", "sameness", "digests"},
    {"presets", "overrides"},
    {"settings"},
    {"config"},
    {"atomic", "stored"},
    {"data", "data_crops", "data_mri", "data_glyphs", "panels", "frames", "outputs", "intake"},
    {"reconstruction", "planning"},
    {"writing"},
    {"run", "operator_cli", "calibrate_cli"},
    {"evaluation"},
    {"cli"},
    {"__main__"},
]


def _imports(tree):
    """Modules imported at the top of a file; names under TYPE_CHECKING and inside functions do not run at import."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ([_HOMES.get(a.name, f"invsolve.{a.name}") for a in node.names] if node.module == "invsolve" else [node.module])


def _layer(module):
    part = module.split(".")[1]
    found = [k for k, names in enumerate(LAYERS) if part in names]
    assert found, f"{module} has no place among the layers; add it to LAYERS"
    return found[0]


def test_imports_go_one_way():
    for path in ROOT.glob("invsolve/**/*.py"):
        relative = path.relative_to(ROOT).with_suffix("")
        if relative.name == "__init__" and len(relative.parts) == 2:
            continue
        own = _layer(".".join(relative.parts))
        for module in _imports(ast.parse(path.read_text())):
            if module.startswith("invsolve.") and module != "invsolve.__version__":
                assert _layer(module) <= own, f"{relative} imports {module} from a higher layer"
    for path in ROOT.glob("operators/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(n.split(".")[0] == "invsolve" for n in names), f"{path.name} imports invsolve"


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
    from invsolve.likelihoods import GaussianLikelihood, PoissonLikelihood  # noqa: F401
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
