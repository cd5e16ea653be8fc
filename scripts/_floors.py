"""The lowest version that pyproject.toml allows of each package that is needed to use and to test the project, one a line.

python scripts/_floors.py pyproject.toml > constraints.txt; pip install -c constraints.txt -e ".[test]"
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def floors(pyproject: Path) -> list[str]:
    """Lines name==version, from name>=version or name[extra]>=version. Raises ValueError for a requirement without a floor."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = []
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        found = re.fullmatch(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)", text)
        if found is None:
            raise ValueError(f"{text}: name>=version is needed, for nobody knows what the oldest version is")
        lines.append(f"{found[1]}=={found[3]}")
    return lines


if __name__ == "__main__":
    try:
        print("\n".join(floors(Path(sys.argv[1]))))
    except ValueError as error:
        sys.exit(str(error))
