"""Whole directories of other tools are loaded as the weights that their files stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.dense_view import stored_modules  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import dequantize, stored_weight  # noqa: E402
from tests.conftest import Pair  # noqa: E402
from tests.foreign import KINDS, write_foreign  # noqa: E402


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_stands_for_its_writers_weights(
    kind: str, tiny_pair: Pair, tmp_path: Path
) -> None:
    """Of a whole model, and module by module as kernels and proofs read it."""
    if KINDS[kind].config.get("quant_method") == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    dense = write_foreign(kind, tiny_pair.draft, tmp_path / kind)
    state = load_model(tmp_path / kind, torch.float32, torch.device("cpu")).state_dict()
    checkpoint = open_checkpoint(tmp_path / kind)
    modules = {f"{each.name}.weight": each for each in stored_modules(checkpoint)}
    assert modules.keys() == {name for name in dense if name.endswith("_proj.weight")}
    for name, wanted in dense.items():
        torch.testing.assert_close(state[name], wanted.float(), rtol=1e-6, atol=0)
        if name in modules:
            module = modules[name]
            weight = stored_weight(checkpoint, module.name, module.fmt)
            torch.testing.assert_close(dequantize(weight), wanted.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("w8a8", {"quantization_status": "frozen"}),
        ("w4a16", {"quantization_status": "frozen"}),
        ("w4a16", {"ignore": []}),
    ],
)
def test_what_a_config_says_besides_its_groups_changes_no_weight(
    kind: str, edit: dict[str, object], tiny_pair: Pair, tmp_path: Path
) -> None:
    """A status that is out of date, a tied head that is not listed: vLLM looks at neither."""
    pytest.importorskip("compressed_tensors")
    dense = write_foreign(kind, tiny_pair.draft, tmp_path / kind)
    path = tmp_path / kind / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= edit
    path.write_text(json.dumps(config))
    state = load_model(tmp_path / kind, torch.float32, torch.device("cpu")).state_dict()
    for name, wanted in dense.items():
        torch.testing.assert_close(state[name], wanted.float(), rtol=1e-6, atol=0)
