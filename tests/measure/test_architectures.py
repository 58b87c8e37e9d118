"""Every architecture is measured right or refused by name: in float32, on tiny pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from quantdraft.checkpoints.tensors.loading import load_config, load_model
from quantdraft.engines.native.caches import RewindableCache, reads_on
from quantdraft.errors import CheckpointError
from quantdraft.measure import replay
from quantdraft.workflows.check import check
from tests.architectures import ARCHITECTURES
from tests.matrix import CLOSE, CPU, RECIPES, Bench, outcome, prompts

QUICK = ("check", "ledger", "capture", "replay", "live loop")
RECURRENT = ("mamba2", "mamba", "falcon-h1", "jamba", "qwen3-next", "lfm2", "bamba")


@pytest.fixture(scope="module")
def bench(architecture_pair: Callable[[str], tuple[Path, Path]]) -> Callable[[str], Bench]:
    return cache(lambda name: Bench(*architecture_pair(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batches_loops_and_ledgers_are_right(bench, name):
    assert {command: outcome(command, bench(name)) for command in QUICK} == dict.fromkeys(
        QUICK, "right"
    )


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_quantized_draft_is_right_or_refused_by_check_already(bench, name, recipe):
    found = outcome(f"apply {recipe}", bench(name))
    (outlook,) = [each for each in bench(name).preflight.outlooks if each.recipe == recipe]
    assert found == "right" or (found.startswith("refused: ") and outlook.reason is not None)


# Experts are given lists of tokens; latent attention expands texts of one head.
@pytest.mark.parametrize("name", ["qwen3-moe", "deepseek-v3"])
def test_inputs_in_fp8_are_scaled_by_token(bench, name):
    assert outcome("apply fp8", bench(name)) == "right"


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_state_is_put_back_exactly(bench, name):
    model, tokens = bench(name).draft, torch.tensor([prompts()[1]])
    with torch.inference_mode():
        wanted = model(input_ids=tokens, use_cache=False).logits
        rewindable = RewindableCache(model)
        for start, count in ((0, 12), (11, 3), (12, 4), (12, 1), (13, 1), (14, 1)):
            tried = tokens[:, start : start + count].clone()
            tried[:, -1] += 1  # the token that is taken back
            rewindable.read(tried, start)
        found = rewindable.read(tokens[:, 12:], 12)
    torch.testing.assert_close(found, wanted[:, 12:], atol=CLOSE, rtol=CLOSE)


def test_a_model_that_reads_on_token_by_token_is_known(bench):
    assert not reads_on(bench("jamba").draft)
    assert reads_on(bench("qwen3-next").draft)
    assert reads_on(bench("mistral").draft)


@pytest.mark.parametrize(("name", "longest"), [("phi3-long", 512), ("llama-dynamic", 256)])
def test_rotary_frequencies_are_those_of_the_longest_text(bench, name, longest):
    """transformers itself takes them where one pass is that long."""
    path = bench(name).draft_path
    ours, theirs = bench(name).draft, _load_plainly(path)
    text = torch.randint(1, 4000, (1, longest), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        wanted = theirs(input_ids=text, use_cache=False).logits
        torch.testing.assert_close(ours(input_ids=text, use_cache=False).logits, wanted)
        # Causal: the beginning of a long text is the text of its beginning.
        short = ours(input_ids=text[:, :10], use_cache=False).logits
    torch.testing.assert_close(short, wanted[:, :10], atol=CLOSE, rtol=CLOSE)


def test_short_factors_are_measured_where_no_text_may_be_longer(bench, tmp_path):
    """As in an engine that is limited to the original length."""
    path = _edited(bench("phi3-long").draft_path, tmp_path, max_position_embeddings=64)
    text = torch.tensor([prompts()[1]])
    with torch.inference_mode():
        found = load_model(path, torch.float32, CPU)(input_ids=text, use_cache=False).logits
        wanted = _load_plainly(path)(input_ids=text, use_cache=False).logits
    torch.testing.assert_close(found, wanted)


def test_check_says_which_rotary_frequencies_are_measured(bench):
    said = {
        name: [f.message for f in bench(name).preflight.findings if f.code == "rotary-frequencies"]
        for name in ("llama", "llama-yarn", "phi3-long", "llama-dynamic")
    }
    assert said["llama"] == said["llama-yarn"] == []
    assert "measured with the long ones" in said["phi3-long"][0]
    assert "--max-model-len, by default 512" in said["phi3-long"][0]
    assert "those of its longest, 256 tokens" in said["llama-dynamic"][0]


REFUSED = {
    "t5": ({"architectures": ["T5ForConditionalGeneration"]}, "an encoder and a decoder"),
    "bart": ({"architectures": ["BartForCausalLM"]}, "an encoder and a decoder"),
    "musicgen": (
        {
            "text_encoder": {"model_type": "t5"},
            "audio_encoder": {"model_type": "encodec"},
            "decoder": {"model_type": "musicgen_decoder"},
        },
        "an encoder and a decoder",
    ),
    "bert": ({"architectures": ["BertLMHeadModel"]}, "reads in both directions"),
    "xlnet": ({"architectures": ["XLNetLMHeadModel"]}, "tokens one after another"),
    "rwkv": ({"architectures": ["RwkvForCausalLM"]}, "cannot step back"),
    "xlstm": ({"architectures": ["xLSTMForCausalLM"]}, "cannot step back"),
    "recurrent_gemma": ({"architectures": ["RecurrentGemmaForCausalLM"]}, "cannot step back"),
    "doge": ({"architectures": ["DogeForCausalLM"]}, "tokens one after another"),
    "cpmant": ({"architectures": ["CpmAntForCausalLM"]}, "tokens one after another"),
    "marian": (
        {"architectures": ["MarianForCausalLM"], "is_encoder_decoder": False},
        "a decoder of marian counts the positions",
    ),
    "blt": ({"architectures": ["BltForCausalLM"]}, "cannot step back"),
    "gemma4_assistant": (
        {"architectures": ["Gemma4AssistantForCausalLM"]},
        "does not run without it",
    ),
    "trocr": ({"architectures": ["TrOCRForCausalLM"]}, "a decoder of trocr counts the positions"),
    "git": ({"architectures": ["GitForCausalLM"]}, "cannot step back"),
    "deepseek_v4": ({"architectures": ["DeepseekV4ForCausalLM"]}, "cannot step back"),
    "granitemoehybrid": (
        {"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["mamba"] * 32},
        "without a layer of attention",
    ),
    "moshi": ({"architectures": ["MoshiForCausalLM"]}, "cannot step back"),
    "openai-gpt": ({"architectures": ["OpenAIGPTLMHeadModel"]}, "cannot step back"),
    "minimax": ({"architectures": ["MiniMaxForCausalLM"]}, "cannot step back"),
    "qwen2_5_vl": ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "language model"),
    "vit": ({"architectures": ["ViTForImageClassification"]}, "no causal language model for vit"),
    "homemade": ({"auto_map": {"AutoConfig": "code.HomeConfig"}}, "code of its own"),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_other_models_are_refused_by_name(model_type, tmp_path):
    fields, why = REFUSED[model_type]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type} | fields))
    with pytest.raises(CheckpointError, match=why) as refused:
        load_config(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_check_refuses_what_evaluate_would(bench, tmp_path):
    path = _edited(bench("llama").draft_path, tmp_path, model_type="rwkv")
    with pytest.raises(CheckpointError, match="cannot step back"):
        check(str(bench("llama").target_path), str(path))


def _load_plainly(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _edited(source: Path, directory: Path, **fields: Any) -> Path:
    """Return a copy of a model directory whose config has other fields."""
    path = directory / "edited"
    shutil.copytree(source, path)
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("name", [*RECURRENT, "mistral", "gemma3", "phi3-long", "llama-dynamic"])
def test_replay_in_pieces_is_replay_at_once(bench, name, monkeypatch):
    draft, responses = bench(name).draft, bench(name).responses[1:2]
    (whole,) = replay.response_logits(draft, responses)
    monkeypatch.setattr(replay, "MAX_LOGITS", 3 * 4096)
    pieces = list(replay.response_logits(draft, responses))
    assert len(pieces) > 1
    found = torch.cat([piece.logits for piece in pieces])
    torch.testing.assert_close(found, whole.logits, atol=CLOSE, rtol=CLOSE)
