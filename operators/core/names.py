"""What a module says of a name that it does not have."""

from __future__ import annotations

import difflib
import opcode
import sys
from collections.abc import Callable, Iterable


def missing(module: str, name: str, known: Iterable[str]) -> Exception:
    """The error to raise from a module's `__getattr__` for a name that it lacks; it suggests the nearest known one.

    An AttributeError, but to `from module import name` an ImportError: Python swallows the former there, hint and all.
    """
    near = difflib.get_close_matches(name, known, n=1)
    text = f"module {module!r} has no attribute {name!r}" + (f"; did you mean {near[0]}?" if near else "")
    # Above this function and `__getattr__`: whoever asked.
    asking = sys._getframe(2)
    if near and asking.f_code.co_code[asking.f_lasti] == opcode.opmap["IMPORT_FROM"]:
        return ImportError(text, name=module)
    return AttributeError(text)


def hints(module: str) -> Callable[[str], object]:
    """A `__getattr__` for a module that imports all it has, which only suggests names."""

    def __getattr__(name: str) -> object:
        raise missing(module, name, [known for known in vars(sys.modules[module]) if not known.startswith("_")])

    return __getattr__
