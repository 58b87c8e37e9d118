"""Progress bars on stderr, for people: silent where stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: float, name: str, unit: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that says how much more is done."""
    from tqdm import tqdm

    is_hidden = not sys.stderr.isatty()
    with tqdm(total=total, desc=name, unit=unit, file=sys.stderr, disable=is_hidden) as shown:

        def advance(by: float) -> None:
            shown.update(by)

        yield advance


@contextmanager
def share_bar(name: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that says which share of the whole, in [0, 1], is done by now."""
    done = 0.0
    with bar(100, name, "%") as advance:

        def reach(share: float) -> None:
            nonlocal done
            advance(100 * share - done)
            done = 100 * share

        yield reach
