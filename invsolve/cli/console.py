"""What a command prints, whatever the terminal can show and whoever has stopped reading."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

_P = ParamSpec("_P")


def spoken(command: Callable[_P, int]) -> Callable[_P, int]:
    """A command (that returns its exit code) during which nothing that is printed can end it.

    Characters that the encoding of the output lacks are written as escapes; where the reader of a pipe has gone, or an output was
    closed, the command goes on in silence. An output that takes nothing for another reason (a full disk) is said, with code 1.
    """

    @wraps(command)
    def quietly(*args: _P.args, **kwargs: _P.kwargs) -> int:
        before = sys.stdout, sys.stderr
        out, err = _Output(sys.stdout), _Output(sys.stderr)
        sys.stdout, sys.stderr = out, err
        try:
            code = command(*args, **kwargs)
            out.flush()
            if out.failed is not None:
                print(f"invsolve: error: the output could not be written: {out.failed}", file=sys.stderr)
                code = code or 1
        finally:
            for stream in (out, err):
                stream.flush()
            sys.stdout, sys.stderr = before
        return code

    return quietly


class _Output:
    """A text stream that goes silent once it cannot be written; all but writing is the stream's own."""

    def __init__(self, stream: Any) -> None:
        # Where an output was closed Python has None; what is opened next would get its number, and what C code prints.
        self._stream: Any = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self.failed: OSError | None = None
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except ValueError:  # the stream was closed meanwhile
            if not self._stream.closed:
                raise
        except OSError as error:
            # EPIPE where a reader has gone, EINVAL for the same on Windows, EBADF for a closed output.
            if self.failed is None and error.errno not in (errno.EPIPE, errno.EINVAL, errno.EBADF):
                self.failed = error
            self._silence()

    def _silence(self) -> None:
        """Sends what is still buffered, and all that follows, to nowhere: also what is flushed when Python ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        finally:
            os.close(nowhere)
