"""``python -m invsolve`` is the command ``invsolve``."""

import sys

from invsolve.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
