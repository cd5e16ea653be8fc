"""Where the presets, priors and photographs lie, in the checkout or inside the installed package; and what a run may take."""

from __future__ import annotations

from pathlib import Path

# GiB that the activations of one pass through the prior may take unless told otherwise. A constant: how the rows of a run are
# divided belongs to what the run is, as sums over other numbers of rows round differently, and not to what else is in memory.
MEMORY_GB = 4.0

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """The path of a shipped file or folder, such as ``resource("data", "priors", "photo")``.

    A checkout (or an editable install) is read in place; a wheel carries copies in ``invsolve/_resources``.
    The path need not exist.
    """
    installed = _PACKAGE / "_resources"
    root = installed if installed.is_dir() else _PACKAGE.parent
    return root.joinpath(*parts)


def shipped_priors() -> list[str]:
    """Names of the priors that come with the package."""
    folder = resource("data", "priors")
    return sorted(p.name for p in folder.iterdir() if (p / "model_index.json").exists()) if folder.is_dir() else []
