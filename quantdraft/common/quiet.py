"""Hide the logs and progress bars of libraries, and unwrap their errors of a full disk."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial

from quantdraft.errors import CheckpointError

Progress = Callable[[str], None]

# What torchao logs when transformers imports it: that a library of its kernels, none of
# which is used here, does not fit this machine, and that one of its own calls is deprecated.
TORCHAO_CHATTER = {
    "torchao": re.compile(r"Failed to load .*_C\S*\.so\b"),
    "torch.utils._pytree": re.compile(r"is an Enum subclass .* register_constant\(\)"),
}


@cache
def hush_torchao() -> None:
    """Drop these two messages and no others; call it before importing transformers."""
    for name, chatter in TORCHAO_CHATTER.items():
        logging.getLogger(name).addFilter(partial(_is_other, chatter))


def _is_other(chatter: re.Pattern[str], record: logging.LogRecord) -> bool:
    return chatter.search(record.getMessage()) is None


@contextlib.contextmanager
def quiet(progress: Progress) -> Iterator[Progress]:
    """Hide the libraries' logs and bars; the progress yielded still reaches the real stderr."""
    stdout, stderr = sys.stdout, sys.stderr

    def report(message: str) -> None:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            progress(message)

    # Else llm-compressor sets it, and warns.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hidden = io.StringIO()
    was_disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # handlers hold the stderr of their own start
    try:
        with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden):
            yield report
    finally:
        logging.disable(was_disabled)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Raise a full or failing disk as OSError: the safetensors writer wraps it in its own type."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if f"code: {code}," in str(error) or f"os error {code})" in str(error):
                raise OSError(code, os.strerror(code)) from error
        raise CheckpointError(f"cannot read or write safetensors: {error}") from error
