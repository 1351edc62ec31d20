"""`python -m pip install NAME` where there is no pip: environments made by uv have none.

The Pipelines server runs it for the requirements of each file. It succeeds where pip would find them
satisfied, and otherwise says what to do.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version


def main(words: list[str]) -> int:
    """Return 0 when every requirement is installed, in whatever version."""
    for word in words:
        name = re.split(r"[\s\[<>=!~;]", word, maxsplit=1)[0]
        try:
            print(f"{name} {version(name)} is installed")
        except PackageNotFoundError:
            print(f"{name} is not installed, and there is no pip: `uv sync` with the group that has it")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:]))
