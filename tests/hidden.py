"""Start a module of this project as if some packages were not installed.

python -m tests.hidden PACKAGE,PACKAGE MODULE [ARGUMENT…]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import Any


class Hidden:
    """A finder of modules that does not find some packages, as if they were not installed."""

    def __init__(self, names: Sequence[str], finder: Any) -> None:
        self.names, self.finder = frozenset(names), finder

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return what the finder finds; None for a hidden package."""
        if fullname.partition(".")[0] in self.names:
            return None
        return self.finder.find_spec(fullname, path, target)

    def __getattr__(self, name: str) -> Any:
        """Return what else a finder has."""
        return getattr(self.finder, name)


def hide(names: Sequence[str]) -> None:
    """Hide packages that nothing has imported yet."""
    sys.meta_path[:] = [Hidden(names, finder) for finder in sys.meta_path]


if __name__ == "__main__":
    hide(sys.argv[1].split(","))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
