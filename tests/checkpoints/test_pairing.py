"""Pairs made from a few files, each wrong in one known way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from quantdraft.checkpoints.pairing import (
    PairingFinding,
    check_pairing,
    is_compatible,
    require_compatible,
)
from quantdraft.errors import CheckpointError, PairingError

# Both merges compete for the middle of "HTT", so their order decides how "HTTP" is split.
MERGES = [("H", "T"), ("T", "T")]
TOKENS = [*(chr(c) for c in range(33, 97)), "HT", "TT"]
SPECIAL = ["<end>", "<pad>"]
SIZE = len(TOKENS) + len(SPECIAL)


def write_model(
    path: Path,
    *,
    tokens: list[str] = TOKENS,
    merges: list[tuple[str, str]] = MERGES,
    special: list[str] = SPECIAL,
    rows: int = SIZE,
    width: int = 8,
    dtype: Any = np.float32,
    **config: Any,
) -> Path:
    """A model directory: config, tokenizer and one tensor of (rows, width)."""
    path.mkdir()
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"model_type": "llama", "vocab_size": rows, "hidden_size": width}
    settings |= {"eos_token_id": len(tokens), "max_position_embeddings": 128} | config
    (path / "config.json").write_text(json.dumps(settings))
    weights = {"model.embed_tokens.weight": np.ones((rows, width), dtype)}
    save_file(weights, path / "model.safetensors")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_model(tmp_path / "target", width=80)


def by_code(findings: tuple[PairingFinding, ...]) -> dict[str, PairingFinding]:
    return {finding.code: finding for finding in findings}


def only_concern(target: Path, draft: Path) -> PairingFinding:
    """The one finding that is not information."""
    (concern,) = [f for f in check_pairing(target, draft) if f.level != "info"]
    assert "\n" not in concern.message
    return concern


def test_a_packed_target_counts_its_parameters_and_not_its_words(
    target: Path, tmp_path: Path
) -> None:
    """Eight 4-bit weights lie in a word, so that the file holds an eighth as many numbers."""
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (target / "config.json").write_text(json.dumps(config))
    packed = {"model.embed_tokens.weight": np.ones((SIZE, 8), np.float32)}
    packed |= {"a.up_proj.qweight": np.ones((16, 640), np.int32)}
    packed |= {"a.up_proj.qzeros": np.ones((1, 80), np.int32)}
    packed |= {"a.up_proj.scales": np.ones((1, 640), np.float16)}
    save_file(packed, target / "model.safetensors")
    findings = by_code(check_pairing(target, write_model(tmp_path / "draft", width=80)))
    num_parameters = SIZE * 8 + 128 * 640
    assert f"{num_parameters / (SIZE * 80):.1f} to 1" in findings["size-ratio"].message
    assert findings["size-ratio"].level == "info"


def test_matching_pair_has_no_concern(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft")
    findings = require_compatible(target, draft)
    assert {finding.level for finding in findings} == {"info"}
    assert f"all {SIZE} shared token ids" in by_code(findings)["vocabulary-equal"].message
    assert "10.0 to 1" in by_code(findings)["size-ratio"].message
    assert "hidden size 80 / 8" in by_code(findings)["shapes"].message


def test_permuted_vocabulary_of_equal_size_is_refused(target: Path, tmp_path: Path) -> None:
    permuted = [TOKENS[i] for i in np.random.default_rng(0).permutation(len(TOKENS))]
    num_moved = sum(a != b for a, b in zip(TOKENS, permuted, strict=True))
    first = next(i for i, (a, b) in enumerate(zip(TOKENS, permuted, strict=True)) if a != b)
    draft = write_model(tmp_path / "draft", tokens=permuted)
    found = only_concern(target, draft)
    assert (found.code, found.level) == ("vocabulary-mismatch", "error")
    assert f"{num_moved} of {SIZE} token ids mean different tokens: id {first} is " in found.message
    assert repr(TOKENS[first]) in found.message
    assert repr(permuted[first]) in found.message
    assert not is_compatible((found,))
    with pytest.raises(PairingError, match="mean different tokens"):
        require_compatible(target, draft)


def test_two_swapped_tokens_are_enough_to_refuse(target: Path, tmp_path: Path) -> None:
    swapped = [*TOKENS[:5], TOKENS[6], TOKENS[5], *TOKENS[7:]]
    found = only_concern(target, write_model(tmp_path / "draft", tokens=swapped))
    assert found.code == "vocabulary-mismatch"
    assert f"2 of {SIZE} token ids mean different tokens: id 5 is" in found.message


def test_special_tokens_with_other_names_are_no_error(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", special=["<end>", "<reserved>"])
    assert only_concern(target, draft).code == "special-tokens-renamed"


def test_padded_embeddings_of_one_vocabulary_are_a_warning(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", rows=SIZE + 59)
    found = only_concern(target, draft)
    assert (found.code, found.level) == ("vocab-size", "warning")
    assert f"pad the smaller embedding and head to {SIZE + 59} rows" in found.message
    padded = by_code(require_compatible(target, draft))["draft-embedding-padded"]
    assert f"{SIZE + 59} rows for {SIZE} token ids" in padded.message


def test_token_of_one_side_only_is_a_warning(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", special=[*SPECIAL, "<think>"], rows=SIZE + 1)
    findings = by_code(require_compatible(target, draft))
    assert f"first: id {SIZE}, '<think>'" in findings["vocabulary-draft-only"].message
    assert "vocabulary-target-only" not in findings
    mirrored = by_code(check_pairing(draft, target))
    assert mirrored["vocabulary-target-only"].level == "warning"


def test_ids_beyond_the_embedding_are_a_warning(tmp_path: Path) -> None:
    pair = [
        write_model(tmp_path / name, rows=SIZE - 1, width=w) for name, w in (("t", 9), ("d", 8))
    ]
    codes = {f.code for f in check_pairing(*pair) if f.level == "warning"}
    assert codes == {"target-embedding-too-small", "draft-embedding-too-small"}


def test_other_merges_of_one_vocabulary_are_a_warning(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", merges=list(reversed(MERGES)))
    assert only_concern(target, draft).code == "tokenization-differs"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"eos_token_id": 3}, "eos-token"),
        ({"eos_token_id": [3, len(TOKENS)]}, "eos-token"),
        ({"bos_token_id": 3}, "bos-token"),
        ({"model_type": "qwen3"}, "family"),
        ({"max_position_embeddings": 64}, "context-length"),
    ],
)
def test_setting_that_differs_is_a_warning(
    target: Path, tmp_path: Path, config: dict[str, Any], code: str
) -> None:
    found = only_concern(target, write_model(tmp_path / "draft", **config))
    assert (found.code, found.level) == (code, "warning")


def test_padding_token_that_differs_is_information(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", pad_token_id=3)
    assert by_code(require_compatible(target, draft))["pad-token"].level == "info"


def test_generation_config_has_the_last_word_on_the_end(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft")
    (draft / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert "in the target and 3, 4 in the draft" in only_concern(target, draft).message


def test_float16_beside_bfloat16_is_a_warning(tmp_path: Path) -> None:
    target = write_model(tmp_path / "target", width=80, dtype=np.float16)
    draft = write_model(tmp_path / "draft", dtype=np.float16)
    assert by_code(check_pairing(target, draft))["float-types"].level == "info"
    file = draft / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F16"', b'"BF16"', 1).replace(b"} ", b"}", 1))
    found = only_concern(target, draft)
    assert (found.code, found.level) == ("float-types", "warning")
    assert "target F16, draft BF16" in found.message


def test_draft_that_is_not_smaller_is_a_warning(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", width=80)
    assert only_concern(target, draft).code == "size-ratio"


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_one_line(target: Path, tmp_path: Path, missing: str) -> None:
    draft = write_model(tmp_path / "draft")
    (draft / missing).unlink()
    with pytest.raises(CheckpointError) as caught:
        check_pairing(target, draft)
    assert str(draft) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_tokenizer_is_one_line(target: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft")
    (draft / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no usable tokenizer"):
        check_pairing(target, draft)


def test_pairing_and_traffic_import_no_torch() -> None:
    code = (
        "import sys, quantdraft.checkpoints.pairing\n"
        "import quantdraft.traffic.prompts, quantdraft.traffic.traffic\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
