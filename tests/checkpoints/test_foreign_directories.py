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
from quantdraft.errors import CheckpointError  # noqa: E402
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


@pytest.mark.parametrize(
    ("name", "number"),
    [("layers.0.mlp.up_proj", float("nan")), ("model.norm", float("inf")), ("lm_head", -1e39)],
)
def test_numbers_that_are_none_are_named(
    name: str, number: float, tiny_pair: Pair, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    path = shutil.copytree(tiny_pair.draft, tmp_path / "d") / "model.safetensors"
    found = load_file(path)
    (tensor,) = [n for n in found if name in n] or ["model.embed_tokens.weight"]
    found[tensor].view(-1)[3] = number
    save_file(found, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"NaN or infinite numbers in '{tensor}'"):
        load_model(tmp_path / "d", torch.bfloat16, torch.device("cpu"))


def test_a_scale_that_is_no_number_is_named(tiny_pair: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_foreign("fp8-block", tiny_pair.draft, tmp_path / "d")
    path = tmp_path / "d" / "model.safetensors"
    found = load_file(path)
    scale = next(name for name in found if name.endswith("up_proj.weight_scale_inv"))
    found[scale].view(-1)[0] = float("nan")
    save_file(found, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite .*up_proj.weight"):
        load_model(tmp_path / "d", torch.float32, torch.device("cpu"))
