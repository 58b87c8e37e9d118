"""Pipes, devices, sockets and endless files given as traffic, prompts, policies and configs."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.cli.pipes import as_given, read_pipe
from quantdraft.cli.values import A_FILE
from quantdraft.common.documents import read_json, read_json_object
from quantdraft.common.files import file_sha256
from quantdraft.errors import CheckpointError, OptionError, QuantDraftError, TrafficError
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.quantize.recipe import load_recipe
from quantdraft.traffic import jsonl
from quantdraft.traffic.prompts import read_prompts
from quantdraft.traffic.traffic import read_traffic

LINE = '{"prompt_token_ids": [1, 2], "response_token_ids": [3, 4]}\n'
READERS: list[Callable[[Path], object]] = [read_traffic, read_prompts]


def a_pipe(path: Path, text: str) -> Path:
    """A named pipe to which somebody writes once."""
    if not path.exists():
        os.mkfifo(path)
    threading.Thread(target=path.write_text, args=(text,), daemon=True).start()
    return path


def test_each_pipe_is_known_by_its_own_content(tmp_path: Path) -> None:
    """Two pipes of one path: a hash of the drained pipe would be the same for both."""
    found = []
    for number in (3, 5):
        kept = A_FILE.convert(a_pipe(tmp_path / "p", LINE.replace("3", str(number))), None, None)
        traffic = read_traffic(kept)
        assert traffic.responses[0].response_token_ids == (number, 4)
        assert traffic.sha256 == file_sha256(kept) == hashlib.sha256(kept.read_bytes()).hexdigest()
        assert kept.parent.stat().st_mode & 0o077 == 0
        found.append(traffic.sha256)
    assert len(set(found)) == 2


def test_a_process_substitution_is_read_once_and_stays(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"min_speedup_over_baseline: 1.5\n")
    os.close(writing)
    kept = read_pipe(Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert as_given(f"{kept}:line 1: broken") == f"/dev/fd/{reading}:line 1: broken"
    for _ in range(2):
        assert load_policy(kept).min_speedup_over_baseline == 1.5
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert read_pipe(plain) == plain
    assert read_pipe(tmp_path / "absent") == tmp_path / "absent"


def test_an_endless_pipe_ends_at_a_limit(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"pipe '.*' gives more than 10 bytes.*to a file first"):
        read_pipe(a_pipe(tmp_path / "p", "x" * 100), max_bytes=10)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_file_is_refused_by_name_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket")  # its path has 107 characters at most
    for name, kind in (
        (tmp_path / "pipe", "a pipe, which can be read only once"),
        (Path("/dev/zero"), "a device, not a file"),
        (tmp_path / "socket", "a socket, not a file"),
        (tmp_path, "a directory, not a file"),
    ):
        with pytest.raises(TrafficError, match=kind):
            read(name)
    listening.close()


@pytest.mark.parametrize("read", READERS)
def test_an_endless_line_and_a_huge_array_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(jsonl, "MAX_ARRAY_BYTES", 2000)
    path = tmp_path / "t.jsonl"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros, which takes no room
    with pytest.raises(TrafficError, match="line 1: has more than 1,000 bytes"):
        read(path)
    path.write_text("[" + LINE * 100 + "]")
    with pytest.raises(TrafficError, match=r"array of more than 2,000 bytes.*jq"):
        read(path)


@pytest.mark.parametrize("before", ["", "\n \n", "\ufeff"])
def test_the_hash_is_of_all_bytes_of_an_array_too(tmp_path: Path, before: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(f"{before}[{LINE}]\n\n", encoding="utf-8")
    assert read_traffic(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(f"{before}{LINE}\n\n", encoding="utf-8")
    assert read_traffic(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_documents_are_read_from_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(QuantDraftError, match="it is a pipe, not a file"):
        load_policy(tmp_path / "pipe.yaml")
    with pytest.raises(QuantDraftError, match="it is a pipe, not a file"):
        load_recipe(str(tmp_path / "pipe.yaml"))
    with pytest.raises(QuantDraftError, match="it is a device, not a file"):
        load_policy(Path("/dev/zero"))
    with pytest.raises(ValueError, match="it is a device, not a file"):
        read_json(Path("/dev/zero"))
    for name in ("config.json", "model.safetensors.index.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=r"is not JSON: it is a pipe"):
            read_json_object(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"config.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)
