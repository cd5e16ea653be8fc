"""Configuration as plain trees of dicts, lists and scalars: YAML read strictly, and ${...} looked up.

What YAML 1.1 takes for something else than it looks (``010`` for 8, ``no`` for false, ``1:30`` for 90) stays text here, as in YAML
1.2. Nothing is executed: tags name no Python objects.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import yaml

_LARGEST_FILE = 4_000_000  # bytes
_MOST_VALUES = 100_000  # with aliases written out
_DEEPEST = 50
_TAG = "tag:yaml.org,2002:"
_LITERAL: ContextVar[bool] = ContextVar("literal", default=False)


class _Loader(yaml.SafeLoader):
    """Of it only the composer is used. (libyaml's refuses some characters beyond U+FFFF.)"""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for another thing than text; also writes what is no character (undecodable bytes)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.Node:
        # The line breaks beyond ASCII would be folded into blanks.
        return self.represent_scalar(_TAG + "str", data, style='"' if set(data) & set("\x85\u2028\u2029") else None)


_Dumper.add_representer(str, _Dumper.represent_str)


for _kind, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"-?(?:0|[1-9][0-9]*)$", "-0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+0123456789."),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("merge", r"<<$", "<"),
):
    for _user in (_Loader, _Dumper):
        _user.add_implicit_resolver(_TAG + _kind, re.compile(_pattern, re.ASCII), list(_first))


def read(path: Path) -> Any:
    """The tree in a YAML file in UTF-8, or with a byte order mark in UTF-16 or UTF-32; None for an empty one.

    Raises ValueError, in one line, for what is no YAML: a broken one, keys given twice, aliases that hold themselves, Python
    objects; OSError where the file cannot be opened.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE} bytes, which no configuration is")
    marks = (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )
    encoding = next((name for mark, name in marks if content.startswith(mark)), "utf-8-sig")
    return parse(content.decode(encoding))


def parse(text: str) -> Any:
    """The tree that a YAML text stands for. Raises ValueError as `read`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Builder().value(node, 0)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEEPEST} deep, or holds itself") from error


def dump(tree: Any) -> str:
    """The YAML that `parse` reads to the same tree of values, in which no ${...} is looked up."""
    return str(yaml.dump(escaped(tree), Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))


class _Builder:
    """Python values for nodes of YAML."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.count += 1
        if depth > _DEEPEST:
            raise ValueError(f"line {node.start_mark.line + 1}: it is nested more than {_DEEPEST} deep, or holds itself")
        if self.count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES} values, with its aliases written out")
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(kind, node)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(member, depth + 1) for member in node.value]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, depth)
        raise _no_value(kind, node)

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        below: dict[str, Any] = {}
        for key, member in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key is a list or a mapping; text is needed")
            value = self.value(member, depth + 1)
            if key.tag == _TAG + "merge":
                for one in value if isinstance(value, list) else [value]:
                    if not isinstance(one, dict):
                        raise ValueError(f"line {key.start_mark.line + 1}: << takes a mapping, or a list of them")
                    below = one | below
            elif key.value in own:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value} stands there twice")
            else:
                own[key.value] = value
        return below | own


def _scalar(kind: str, node: yaml.Node) -> Any:
    text = node.value
    try:
        if kind in ("str", "merge"):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except (ValueError, KeyError) as error:
        raise _no_value(kind, node) from error
    raise _no_value(kind, node)


def _no_value(kind: str, node: yaml.Node) -> ValueError:
    shown = f" {node.value[:40]!r}" if isinstance(node, yaml.ScalarNode) else ""
    return ValueError(f"line {node.start_mark.line + 1}:{shown} is no {kind} that a configuration can hold")


def look_up(tree: Mapping[str, Any], *keys: str) -> Any:
    """What stands under ``keys`` of a tree (None where nothing does), with every ${...} in it looked up in the whole tree.

    Inside `literally` nothing is looked up, and escapes alone are taken away. Raises ValueError, in one line, for what cannot be found.
    """
    own: Any = tree
    for key in keys:
        if not isinstance(own, Mapping):
            break
        own = own.get(key)
    if not _refers(own):
        return own
    if _LITERAL.get():
        return unescaped(own)
    from omegaconf import Container, DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found: Any = OmegaConf.create(dict(tree))
        for key in keys:
            found = found.get(key) if isinstance(found, DictConfig) else None
        return OmegaConf.to_container(found, resolve=True) if isinstance(found, Container) else found
    except RecursionError as error:
        raise ValueError(f"{'.'.join(keys) or 'an interpolation'}: its ${{...}} leads back to itself, or is nested too deeply") from error
    except (OmegaConfBaseException, ValueError, TypeError, KeyError, AttributeError) as error:
        where = getattr(error, "full_key", None) or ".".join(keys)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where}: {reason}" if where else reason) from error


@contextmanager
def literally() -> Iterator[None]:
    """Inside the block nothing is looked up: ${...} is text, as in a stored configuration that is only read."""
    token = _LITERAL.set(True)
    try:
        yield
    finally:
        _LITERAL.reset(token)


def _refers(value: Any) -> bool:
    """Whether ${...} stands anywhere in a tree."""
    return _any(value, lambda text: "${" in text)


def missing(value: Any) -> bool:
    """Whether ??? (a value that must still be given) stands anywhere in a tree."""
    return _any(value, lambda text: text == "???")


def _any(value: Any, holds: Callable[[str], bool]) -> bool:
    if isinstance(value, Mapping):
        return any(_any(member, holds) for member in value.values())
    if isinstance(value, (list, tuple)):
        return any(_any(member, holds) for member in value)
    return isinstance(value, str) and holds(value)


def escaped(value: Any) -> Any:
    """A tree of values in which every ${...} is written so that reading it gives these values, and looks nothing up."""
    return _mapped(value, lambda text: re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text))


def unescaped(value: Any) -> Any:
    """The inverse of `escaped`; a ${...} that is not escaped stays as it stands."""
    return _mapped(value, lambda text: re.sub(r"((?:\\\\)*)\\(?=\$\{)", lambda found: found[1][::2], text))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A tree with every text in it changed."""
    if isinstance(value, Mapping):
        return {key: _mapped(member, change) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(member, change) for member in value]
    return change(value) if isinstance(value, str) else value
