"""Where the presets, priors and photographs lie: in the checkout, or inside the installed package."""

from __future__ import annotations

from pathlib import Path

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
