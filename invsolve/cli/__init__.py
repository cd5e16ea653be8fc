"""The command line: keys and values in, lines of text out."""

from invsolve.cli.main import main

__all__ = ["main"]
