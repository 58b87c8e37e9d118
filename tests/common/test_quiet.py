"""Two messages of torchao are kept back, and only these two."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys

import pytest

from quantdraft.common.quiet import hush_torchao

LIBRARY = "Failed to load /site packages/torchao/_C_cutlass_90a.abi3.so: libcuda.so.1: no such file"
ENUM = (
    "<enum 'X'> is an Enum subclass and is now natively supported by torch.compile as an opaque "
    "value type. Calling register_constant() on Enum subclasses is deprecated"
)


@pytest.mark.parametrize(
    ("logger", "message", "is_shown"),
    [
        ("torchao", LIBRARY, False),
        ("torchao", LIBRARY.replace("_C_cutlass_90a.abi3", "_C_mxfp8.cpython-310-gnu"), False),
        ("torchao", "Failed to load the checkpoint", True),
        ("torch.utils._pytree", ENUM, False),
        ("torch.utils._pytree", "another pytree is registered twice", True),
        ("another.library", LIBRARY, True),
    ],
)
def test_exactly_two_messages_are_dropped(
    caplog: pytest.LogCaptureFixture, logger: str, message: str, is_shown: bool
) -> None:
    hush_torchao()
    with caplog.at_level(logging.WARNING):
        found = logging.getLogger(logger)
        was_propagating, found.propagate = found.propagate, True
        try:
            found.warning("%s", message)
        finally:
            found.propagate = was_propagating
    assert (message in caplog.text) == is_shown


def test_hushing_twice_filters_once() -> None:
    hush_torchao()
    before = list(logging.getLogger("torchao").filters)
    hush_torchao()
    assert logging.getLogger("torchao").filters == before


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_nothing_reaches_the_terminal_when_transformers_brings_torchao() -> None:
    code = (
        "from quantdraft.common.quiet import hush_torchao\n"
        "hush_torchao()\n"
        "import sys, transformers.modeling_utils\n"
        "assert 'torchao' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
