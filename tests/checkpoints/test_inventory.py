"""What the files hold is held against what the architecture needs, before any model is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantdraft.checkpoints import dense_view
from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors import inventory
from quantdraft.checkpoints.tensors.loading import load_model, require_loadable
from quantdraft.errors import CheckpointError, QuantDraftError
from tests.architectures import ARCHITECTURES
from tests.conftest import Pair
from tests.stored import write_checkpoint

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def whole(name: str) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    """The config of a tiny architecture and every tensor that transformers would save of it."""
    from transformers.core_model_loading import revert_weight_conversion

    config = ARCHITECTURES[name]()
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    state = {n: t for n, t in model.state_dict().items() if n not in tied}
    saved = revert_weight_conversion(model, state)
    shapes = {n: (DTYPES[t.dtype], tuple(t.shape)) for n, t in saved.items()}
    plain = json.loads(config.to_json_string())
    return plain | {"architectures": [type(model).__name__]}, shapes


@pytest.fixture(scope="module")
def llama() -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
    return whole("llama")


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "mixtral", "deepseek-v3", "falcon-h1"])
def test_a_whole_model_is_complete_and_without_a_tensor_it_is_not(
    tmp_path: Path, name: str
) -> None:
    config, tensors = whole(name)
    require_loadable(open_checkpoint(write_checkpoint(tmp_path / "whole", tensors, config)))
    inner = [each for each in tensors if "norm" not in each and "embed" not in each]
    norm = next(each for each in tensors if "norm" in each or ".ln" in each)
    for gone in (inner[len(inner) // 2], norm):
        less = {n: t for n, t in tensors.items() if n != gone}
        path = write_checkpoint(tmp_path / gone, less, config)
        with pytest.raises(CheckpointError, match="lacks the tensor") as caught:
            require_loadable(open_checkpoint(path))
        assert gone in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_config_that_transformers_cannot_build_a_model_of_is_refused(
    llama: Any, tmp_path: Path
) -> None:
    config, tensors = llama
    path = write_checkpoint(tmp_path, tensors, config | {"hidden_act": "sillu"})
    with pytest.raises(CheckpointError, match=r"makes no llama: .*'sillu'") as caught:
        require_loadable(open_checkpoint(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


NO_NORM = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            {"num_hidden_layers": 3},
            r"lacks the tensor .*layers\.2\..* is 3, .* of 2 layers",
        ),
        (
            {"num_hidden_layers": 1},
            r"holds the tensor .*layers\.1\..* is 1, .* of 2 layers",
        ),
        ({"vocab_size": 100}, r" shape \[4096, 128\].*\(vocab_size is 100\)"),
        ({"intermediate_size": 256}, r"holds .*mlp.* in the shape .*256"),
        ({"attention_bias": True}, r"lacks the tensor .*_proj\.bias"),
        (NO_NORM, r"lacks the tensor .*[qk]_norm"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, llama: Any, edit: dict[str, Any], said: str
) -> None:
    config, tensors = llama
    with pytest.raises(CheckpointError, match=said):
        require_loadable(open_checkpoint(write_checkpoint(tmp_path, tensors, config | edit)))


NO_MODEL = "of which transformers makes no llama"
LONG = {"rope_type": "longrope", "factor": 8.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"hidden_act": "nope"}, rf"{NO_MODEL}: KeyError: 'nope'"),
        ({"rope_parameters": {"rope_type": "magic", "rope_theta": 1e4}}, rf"{NO_MODEL}.*magic"),
        ({"rope_parameters": LONG | {"short_factor": [1.0] * 3, "long_factor": [1.0]}}, NO_MODEL),
        ({"pad_token_id": 99999}, rf"{NO_MODEL}: AssertionError"),
        ({"text_config": {"hidden_size": 5}}, "'text_config', and a llama has none"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "contradicts itself.*Qwen2ForCausalLM"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor of 0.5.*rotates all"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}, "no number above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -5.0}}, "no number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor 0"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor '2'"),
    ],
)
def test_a_config_of_no_model_is_refused(
    tmp_path: Path, llama: Any, edit: dict[str, Any], said: str
) -> None:
    config, tensors = llama
    rest = {} if "rope_scaling" not in edit else {"rope_parameters": None, "rope_theta": 1e4}
    path = write_checkpoint(tmp_path, tensors, config | rest | edit)
    with pytest.raises(CheckpointError, match=said) as caught:
        require_loadable(open_checkpoint(path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "merge_and_unload"),
        ("model.layers.0.self_attn.q_proj.bias", "config.json the one that belongs"),
        ("score.weight", "config.json the one that belongs"),
    ],
)
def test_tensors_left_over_are_refused(tmp_path: Path, llama: Any, name: str, advice: str) -> None:
    config, tensors = llama
    path = write_checkpoint(tmp_path, tensors | {name: ("BF16", (128,))}, config)
    with pytest.raises(CheckpointError, match=f"holds the tensor '{name}'.*{advice}"):
        require_loadable(open_checkpoint(path))


def test_buffers_of_old_checkpoints_and_layers_of_mtp_are_explained(
    tmp_path: Path, llama: Any
) -> None:
    config, tensors = llama
    extra = ("model.layers.0.self_attn.rotary_emb.inv_freq", "mtp.layers.0.mlp.up_proj.weight")
    extra += ("model.layers.2.enorm.weight",)
    all_of_them = tensors | dict.fromkeys(extra, ("BF16", (16,)))
    path = write_checkpoint(tmp_path, all_of_them, config | {"num_nextn_predict_layers": 1})
    require_loadable(open_checkpoint(path))


def test_an_untied_config_needs_a_head_and_loading_asks_too(tmp_path: Path, llama: Any) -> None:
    config, tensors = llama
    less = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    path = write_checkpoint(tmp_path, less, config)
    for refused in (
        lambda: require_loadable(open_checkpoint(path)),
        lambda: load_model(path, torch.float32, torch.device("cpu")),
    ):
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight'.*tie_word_embeddings is"):
            refused()


def test_a_missing_part_of_one_expert_is_named(tmp_path: Path) -> None:
    config, tensors = whole("qwen3-moe")
    gone = "model.layers.1.mlp.experts.2.up_proj.weight"
    less = {n: t for n, t in tensors.items() if n != gone}
    with pytest.raises(CheckpointError, match=f"lacks the tensor '{gone}'"):
        require_loadable(open_checkpoint(write_checkpoint(tmp_path / "part", less, config)))
    fewer = {n: t for n, t in tensors.items() if ".experts.3." not in n}
    with pytest.raises(CheckpointError, match=r"experts.* in the shape \[3, .*asks for \[4, "):
        require_loadable(open_checkpoint(write_checkpoint(tmp_path / "expert", fewer, config)))


@pytest.mark.parametrize("name", inventory.LOADER)
def test_a_transformers_with_another_loader_is_named(
    tmp_path: Path, llama: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    config, tensors = llama
    path = write_checkpoint(tmp_path, tensors, config | {"eos_token_id": len(name)})
    monkeypatch.delattr(PreTrainedModel, name)
    with pytest.raises(QuantDraftError, match=rf"transformers 5.*its models have no {name}"):
        require_loadable(open_checkpoint(path))


def test_headers_are_read_once_before_a_model_is_loaded(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, view = [], inventory.dense_view
    monkeypatch.setattr(inventory, "dense_view", lambda each: seen.append(each) or view(each))
    monkeypatch.setattr(dense_view, "dense_view", lambda each: seen.append(each) or view(each))
    load_model(tiny_pair.draft, torch.float32, torch.device("cpu"))
    assert len(seen) == 1
