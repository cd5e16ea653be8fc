"""The errors that this library raises of its own, on one page: what each means, and who is to blame."""

from __future__ import annotations


class Divergence(RuntimeError):
    """A trajectory left the range of finite, plausible values; the message says where, and the likely cause."""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line that names the value and what would be right."""


class Unfit(TypeError):
    """A sampler that cannot serve a kind of operator, likelihood or prior: the TypeError of its `init`, as `sample` passes it on."""


class Unusable(ValueError):
    """A checkpoint that is damaged, or of another run."""


def one_line(error: BaseException) -> str:
    """The message of an error in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
