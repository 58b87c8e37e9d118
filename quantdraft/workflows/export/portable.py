"""Paths of an exported directory as its own scripts and its card have them: relative to it.

The directory may be called from anywhere and may move, a target beside it with it; nothing in it
says where it was made.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from quantdraft.engines.engine import LaunchPair


def portable_pair(pair: LaunchPair, output: Path) -> LaunchPair:
    """Return the pair as a script in `output` names it; a Hub id stays what it is."""
    target = pair.target
    if Path(target).exists():
        target = relative_path(Path(target), output)
    return replace(pair, target=target, draft=Path(relative_path(pair.draft, output)))


def relative_path(path: Path, output: Path) -> str:
    """Return where a path lies as seen from a directory, links resolved as the system does."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(output))
