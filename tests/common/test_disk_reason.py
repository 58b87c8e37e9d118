"""A disk that is full is said in the system's words, whoever reports it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from quantdraft.errors import disk_reason


def test_a_tree_that_could_not_be_copied_is_no_list_of_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a", None, "b")

    def fail(*_: object) -> None:
        raise full

    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=fail)
    assert disk_reason(caught.value) == disk_reason(full) == "No space left on device"
