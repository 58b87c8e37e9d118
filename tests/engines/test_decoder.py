"""The project's decoder computes what the transformers library's modules compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.native.model import load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import stored_weights

CPU = torch.device("cpu")
VOCAB = 300
# Sums of a few hundred float32 products in another order, through four layers of norms.
TOLERANCE = 1e-4


def config_of(family: str):
    import transformers

    common = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": 0,
    }
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return {
        "llama": lambda: transformers.LlamaConfig(**common, tie_word_embeddings=True),
        "llama3": lambda: transformers.LlamaConfig(**common, rope_parameters=llama3),
        "llama-bias": lambda: transformers.LlamaConfig(**common, attention_bias=True),
        "mistral": lambda: transformers.MistralConfig(**common, sliding_window=None),
        "qwen2": lambda: transformers.Qwen2Config(**common),
        "qwen3": lambda: transformers.Qwen3Config(**common, head_dim=32),
        "gemma": lambda: transformers.GemmaConfig(**common, head_dim=16),
        "mistral-window": lambda: transformers.MistralConfig(**common, sliding_window=8),
    }[family]()


@pytest.fixture
def saved(request, tmp_path) -> Path:
    import transformers

    torch.manual_seed(0)
    config = config_of(request.param)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    return tmp_path


OWN = ["llama", "llama3", "llama-bias", "mistral", "qwen2", "qwen3"]
BORROWED = ["gemma", "mistral-window"]


@pytest.mark.parametrize("saved", OWN, indirect=True)
def test_logits_are_transformers_in_every_family(saved):
    native = load_native(stored_weights(open_checkpoint(saved)), torch.float32, CPU)
    assert native.runtime == "native decoder"
    assert_equal_to_transformers(native, saved)


@pytest.mark.parametrize("saved", BORROWED, indirect=True)
def test_other_models_keep_the_modules_of_transformers(saved):
    native = load_native(stored_weights(open_checkpoint(saved)), torch.float32, CPU)
    assert native.runtime == "transformers modules"
    assert_equal_to_transformers(native, saved)


def assert_equal_to_transformers(native, path: Path) -> None:
    """Prefill, one token, several tokens, a step back, and rows of different lengths."""
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(24).expand(2, -1)
    with torch.inference_mode():
        wanted = load_model(path, torch.float32, CPU)(input_ids=ids).logits
        session = Session(native, 2, 24)
        session.forward(ids[:, :16], positions[:, :16], 16)
        # The second row steps back by five, the first goes on.
        at = torch.stack([torch.arange(16, 20), torch.arange(11, 15)])
        found = session.forward(ids.gather(1, at), at, 20)
        expected = wanted.gather(1, at[:, :, None].expand(-1, -1, VOCAB))
        assert (found - expected).abs().max() < TOLERANCE * wanted.abs().max()
        one = session.forward(ids[:, :3], positions[:, :3], 3, torch.tensor([[2], [1]]))
        expected = torch.stack([wanted[0, 2:3], wanted[1, 1:2]])
        assert (one - expected).abs().max() < TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_a_lone_row_needs_no_mask(saved):
    native = load_native(stored_weights(open_checkpoint(saved)), torch.float32, CPU)
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(1))
    session, positions = Session(native, 1, 16), torch.arange(10)[None]
    with torch.inference_mode():
        session.forward(ids[:, :9], positions[:, :9], 9)
        masked = session.forward(ids[:, 9:], positions[:, 9:], 10)
        unmasked = session.forward(ids[:, 9:], positions[:, 9:], 10, None, True)
    assert torch.allclose(masked, unmasked, atol=1e-5)


@pytest.mark.parametrize("saved", ["qwen3"], indirect=True)
def test_compiled_layers_compute_the_same(saved):
    native = load_native(stored_weights(open_checkpoint(saved)), torch.float32, CPU)
    ids = torch.randint(VOCAB, (1, 10), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(10)[None]
    with torch.inference_mode():
        plain = Session(native, 1, 16).forward(ids, positions, 10)
        session = Session(native, 1, 16, "compiled")
        compiled = session.forward(ids, positions, session.num_live(10))
    assert session.num_live(10) == 64
    assert (plain - compiled).abs().max() < TOLERANCE * plain.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("saved", ["llama", "qwen3"], indirect=True)
def test_a_recorded_step_equals_the_eager_one_on_a_gpu(saved):
    cuda = torch.device("cuda")
    native = load_native(stored_weights(open_checkpoint(saved)), torch.bfloat16, cuda)
    ids = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1)).to(cuda)
    positions = torch.arange(12, device=cuda).expand(2, -1)
    logits = {}
    with torch.inference_mode():
        for mode in ("eager", "graph"):
            session = Session(native, 2, 16, mode)
            num_live = session.num_live(12)

            def run(ids, positions, session=session, num_live=num_live):
                return session.forward(ids, positions, num_live)

            session.call(("warm", 0), run, ids[:, :8], positions[:, :8])
            logits[mode] = session.call(("step", 4), run, ids[:, 8:], positions[:, 8:]).clone()
    assert torch.allclose(logits["eager"].float(), logits["graph"].float(), atol=0.1)
