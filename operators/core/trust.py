"""Whether code that a configuration names may be executed: it may, except inside `without_code`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_REFUSED: ContextVar[bool] = ContextVar("code_refused", default=False)


class Untrusted(ValueError):
    """Code was named where something is only being read."""


@contextmanager
def without_code(refused: bool = True) -> Iterator[None]:
    """Inside the block `operators.core.custom.load_target` raises `Untrusted`, unless ``refused`` is False."""
    token = _REFUSED.set(refused)
    try:
        yield
    finally:
        _REFUSED.reset(token)


def code_is_refused() -> bool:
    """Whether this is inside `without_code`."""
    return _REFUSED.get()
