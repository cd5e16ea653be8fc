"""A misspelt name is met with the right one, in an import as in an expression, and nothing else changes."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "wrong", "right"),
    [
        ("operators", "GausianBlur", "GaussianBlur"),
        ("invsolve", "Postrior", "Posterior"),
        ("invsolve.samplers", "DSP", "DPS"),
    ],
)
def test_the_nearest_name_is_suggested(module, wrong, right):
    message = f"module '{module}' has no attribute '{wrong}'; did you mean {right}\\?"
    with pytest.raises(ImportError, match=message):
        exec(f"from {module} import {wrong}", {})
    with pytest.raises(AttributeError, match=message):
        getattr(importlib.import_module(module), wrong)
    assert not hasattr(importlib.import_module(module), wrong)


def test_modules_and_strange_names_are_as_ever():
    from operators.phase import retrieval  # a module, and not yet an attribute

    assert retrieval.__name__ == "operators.phase.retrieval"
    for module in ("operators", "invsolve", "invsolve.samplers"):
        with pytest.raises(ImportError, match="cannot import name 'xyzzy'"):
            exec(f"from {module} import xyzzy", {})
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'xyzzy'$"):
            importlib.import_module(module).xyzzy  # noqa: B018
