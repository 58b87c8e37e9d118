"""Checkpoints that were saved and are wrong: each damage is built on a real one, and named.

The four of the field: zero points of one GPTQ version under the label of another, scales that are
another layer's, a head left dense by mistake, dense weights under a quantized config.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from quantdraft.checkpoints.claims import claims_but_not_quantized  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import read_tensor  # noqa: E402
from quantdraft.errors import CheckpointError, NoKernelError  # noqa: E402
from quantdraft.quantize.backends.packages import missing_packages  # noqa: E402
from quantdraft.quantize.proof.proof import prove  # noqa: E402
from quantdraft.quantize.recipe import load_recipe  # noqa: E402
from tests.conftest import Pair  # noqa: E402
from tests.quantize.test_apply import apply_to, write_traffic  # noqa: E402

Made = Callable[[str], Checkpoint]
MLP = "model.layers.0.mlp"
# One of each way to store scales, and what the scales' names end with.
SCALES = {
    "int4": "weight_scale",
    "int4-gptq": "weight_scale",
    "int4-awq": "weight_scale",
    "int4-gptq-gptqmodel": "scales",
    "int8": "weight_scale",
    "fp8": "weight_scale",
    "nvfp4a16": "weight_scale",
    "mxfp4": "weight_scale",
    "nf4": "weight.absmax",
    "int8-bnb": "SCB",
}
ONE_IN_EVERY_FIELD = 0x11111111  # of eight 4-bit zero points


@pytest.fixture(scope="module")
def made(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The tiny draft under a recipe, whole and proven, made once."""
    root = tmp_path_factory.mktemp("made")
    traffic, found = write_traffic(root / "traffic.jsonl", vocab_size=512), {}

    def make(name: str) -> Checkpoint:
        missing = missing_packages(load_recipe(name).backend)
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
        if name not in found:
            found[name] = apply_to(tiny_pair.draft, name, root / name, traffic)
        return found[name]

    return make


def damaged(
    checkpoint: Checkpoint,
    directory: Path,
    tensors: Mapping[str, torch.Tensor | None] | None = None,
    quantization: dict[str, Any] | None = None,
) -> Checkpoint:
    """A copy with tensors replaced (None: removed) and keys of the quantization config changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint.path, directory)
    found: dict[str, torch.Tensor | None] = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
        path.unlink()
    kept = {
        name: value for name, value in (found | dict(tensors or {})).items() if value is not None
    }
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] |= quantization or {}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    return open_checkpoint(directory)


def refusal(name: str, pair: Pair, checkpoint: Checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        prove(load_recipe(name), open_checkpoint(pair.draft), checkpoint, torch.device("cpu"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- optimum's corruption: the zero points of one version under the other's label -----------------


def test_v1_weights_labelled_v2_are_caught(made: Made, tiny_pair: Pair, tmp_path: Path) -> None:
    label = {"checkpoint_format": "gptq_v2", "format": "gptq_v2", "sym": False}
    wrong = damaged(made("int4-gptq-gptqmodel"), tmp_path / "wrong", quantization=label)
    message = refusal("int4-gptq-gptqmodel", tiny_pair, wrong)
    assert "is off to one side of the draft's own weights" in message
    assert message.endswith("its zero points are corrupt.")


def test_v2_weights_labelled_v1_are_caught(made: Made, tiny_pair: Pair, tmp_path: Path) -> None:
    good = made("int4-gptq-gptqmodel")
    names = [name for name in good.tensors if name.endswith(".qzeros")]
    zeros = {name: read_tensor(good, name) + ONE_IN_EVERY_FIELD for name in names}
    wrong = damaged(good, tmp_path / "wrong", zeros, {"sym": False})
    assert refusal("int4-gptq-gptqmodel", tiny_pair, wrong).endswith("zero points are corrupt.")


# --- scales that are another layer's --------------------------------------------------------------


@pytest.mark.parametrize("name", SCALES)
def test_scales_of_two_layers_swapped_are_caught(
    made: Made, tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    """gate_proj and up_proj have one shape and alike weights: the mildest swap there is."""
    good, end = made(name), SCALES[name]
    gate, up = (f"{MLP}.{layer}_proj.{end}" for layer in ("gate", "up"))
    swap = {gate: read_tensor(good, up), up: read_tensor(good, gate)}
    message = refusal(name, tiny_pair, damaged(good, tmp_path / "wrong", swap))
    assert f"'{MLP}.gate_proj'" in message or f"'{MLP}.up_proj'" in message
    assert message.endswith("corrupt.")


@pytest.mark.parametrize("name", ["int4", "int8", "fp8"])
def test_scales_of_one_layer_in_another_order_are_caught(
    made: Made, tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    scale = f"{MLP}.down_proj.weight_scale"
    rolled = {scale: read_tensor(made(name), scale).roll(1, 0)}
    wrong = damaged(made(name), tmp_path / "wrong", rolled)
    assert f"'{MLP}.down_proj'" in refusal(name, tiny_pair, wrong)


def test_scales_of_the_wrong_unit_are_caught(made: Made, tiny_pair: Pair, tmp_path: Path) -> None:
    name = f"{MLP}.up_proj.weight.absmax"
    wrong = damaged(made("nf4"), tmp_path / "wrong", {name: 10 * read_tensor(made("nf4"), name)})
    assert refusal("nf4", tiny_pair, wrong).endswith("its scales or integers are corrupt.")


# --- a head left dense by mistake -----------------------------------------------------------------


def with_dense_head(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """The head's own tensors replaced by the embedding table; the config still claims it."""
    names = [name for name in checkpoint.tensors if name.startswith("lm_head.")]
    dense = read_tensor(checkpoint, "model.embed_tokens.weight").clone()
    return damaged(checkpoint, directory, dict.fromkeys(names) | {"lm_head.weight": dense})


@pytest.mark.parametrize("name", ["int4-head4", "int4-head8", "int8-head8", "fp8-head8"])
def test_head_left_dense_is_caught_in_what_apply_writes(
    made: Made, tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    wrong = with_dense_head(made(name), tmp_path / "wrong")
    message = refusal(name, tiny_pair, wrong)
    assert message.startswith(f"recipe {name!r} promises 'lm_head.weight")


@pytest.mark.parametrize("name", ["int4-head4", "int4-head8"])
def test_head_left_dense_is_caught_in_somebody_elses_checkpoint(
    made: Made, tmp_path: Path, name: str
) -> None:
    wrong = with_dense_head(made(name), tmp_path / "wrong")
    assert claims_but_not_quantized(wrong) == (
        f"'{wrong.path}' claims compressed-tensors quantization, but 1 layers hold BF16 weights, "
        "the first 'lm_head'. Quantize the draft again."
    )


def test_head_that_was_not_to_be_quantized_is_caught(
    made: Made, tiny_pair: Pair, tmp_path: Path
) -> None:
    message = refusal("int4", tiny_pair, made("int4-head4"))
    assert message.startswith("recipe 'int4' promises 'lm_head.weight_packed' as absent")


# --- dense weights under a quantized config -------------------------------------------------------


@pytest.mark.parametrize("name", ["int4", "fp8", "int8", "nvfp4a16", "int4-gptq-gptqmodel", "nf4"])
def test_dense_weights_under_a_quantized_config_are_caught(
    made: Made, tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    """By `apply`, by whoever asks, and by the engine before it times anything."""
    from quantdraft.engines.native.model import load_native
    from quantdraft.engines.native.weight_sources import stored_weights

    liar = shutil.copytree(tiny_pair.draft, tmp_path / "liar")
    shutil.copyfile(made(name).path / "config.json", liar / "config.json")
    wrong = open_checkpoint(liar)
    assert "promises" in refusal(name, tiny_pair, wrong)
    assert "14 layers hold BF16 weights" in (claims_but_not_quantized(wrong) or "")
    with pytest.raises(NoKernelError, match="14 layers hold BF16 weights"):
        load_native(stored_weights(wrong), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", ["int4", "nf4", "int4-gptq-gptqmodel"])
def test_one_layer_of_dense_weights_is_caught(
    made: Made, tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    good, source = made(name), open_checkpoint(tiny_pair.draft)
    own = [tensor for tensor in good.tensors if tensor.startswith(f"{MLP}.up_proj.")]
    dense = {f"{MLP}.up_proj.weight": read_tensor(source, f"{MLP}.up_proj.weight")}
    wrong = damaged(good, tmp_path / "wrong", dict.fromkeys(own) | dense)
    problem = claims_but_not_quantized(wrong) or ""
    assert "1 layers hold BF16 weights" in problem
    assert f"the first '{MLP}.up_proj'" in problem
