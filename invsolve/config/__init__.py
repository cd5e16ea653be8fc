"""From a preset or a YAML file and `key=value` arguments to a checked configuration."""

from invsolve.config.identity import difference, identity, show
from invsolve.config.load import assemble, load
from invsolve.config.model import Component, Config
from invsolve.config.settings import Settings, TrainerSettings
from invsolve.errors import ConfigError

__all__ = [
    "Component",
    "Config",
    "ConfigError",
    "Settings",
    "TrainerSettings",
    "assemble",
    "difference",
    "identity",
    "load",
    "show",
]
