"""A gpt-oss whose experts are stored in blocks, as OpenAI publishes it, is the model it stands for.

Held against transformers' own dequantization, of a whole checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.integrations.mxfp4")

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.engines.native.model import load_native  # noqa: E402
from quantdraft.engines.native.weight_sources import stored_weights  # noqa: E402
from quantdraft.errors import CheckpointError, RecipeError, UndefinedMetricError  # noqa: E402
from quantdraft.measure.generation import generate  # noqa: E402
from quantdraft.measure.replay import response_logits  # noqa: E402
from quantdraft.quantize.apply import apply  # noqa: E402
from quantdraft.quantize.ledger import byte_ledger  # noqa: E402
from quantdraft.traffic.responses import Response  # noqa: E402
from quantdraft.traffic.traffic import Sampling  # noqa: E402
from quantdraft.workflows.check import check  # noqa: E402
from tests.architectures import TOKENIZER_FILES  # noqa: E402
from tests.foreign import write_mxfp4  # noqa: E402

CPU = torch.device("cpu")
PROMPTS = ([5, 9, 300, 41], [17, 4, 2001, 8, 12, 7, 99, 3, 1500, 64, 77, 1, 2, 3, 4, 5, 6, 7, 8, 9])


@pytest.fixture(scope="module")
def published(
    architecture_pair: Callable[[str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A target and a draft in blocks, by role."""
    root, paths = tmp_path_factory.mktemp("mxfp4"), architecture_pair("gpt-oss")
    for role, path in zip(("target", "draft"), paths, strict=True):
        write_mxfp4(path, root / role)
    return {"target": root / "target", "draft": root / "draft"}


@pytest.fixture(scope="module")
def dequantized(published: dict[str, Path]) -> Callable[[str], Any]:
    """Return what gives transformers' own model of a role, in float32."""
    from transformers import AutoModelForCausalLM, Mxfp4Config

    how = Mxfp4Config(dequantize=True, modules_to_not_convert=["lm_head"])
    return lambda role: (
        AutoModelForCausalLM.from_pretrained(published[role], quantization_config=how)
        .float()
        .eval()
    )


def test_weights_and_answers_are_transformers_own(
    published: dict[str, Path], dequantized: Callable[[str], Any]
) -> None:
    ours, theirs = load_model(published["target"], torch.float32, CPU), dequantized("target")
    wanted = theirs.state_dict()
    assert {n: torch.equal(t, wanted[n]) for n, t in ours.state_dict().items()} == dict.fromkeys(
        wanted, True
    )
    answers = generate(ours, PROMPTS, Sampling(), 6, [0, 0])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt])
        said = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6)
        assert said[0, len(prompt) :].tolist() == list(answer.token_ids)


def test_replay_is_that_of_the_dequantized_model(
    published: dict[str, Path], dequantized: Callable[[str], Any]
) -> None:
    responses = [Response(str(i), tuple(p), (7, 2500, 31)) for i, p in enumerate(PROMPTS)]
    found, wanted = (
        {span.prompt: span.logits for span in response_logits(model, responses)}
        for model in (load_model(published["draft"], torch.float32, CPU), dequantized("draft"))
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[index], wanted[index]) for index in wanted)


def test_check_counts_it_as_it_is_stored_and_takes_it(published: dict[str, Path]) -> None:
    found = check(str(published["target"]), str(published["draft"]))
    assert found.is_compatible
    assert found.outlooks == ()
    (said,) = [each.message for each in found.findings if each.code == "quantized-draft"]
    assert "quantized already (mxfp4)" in said
    draft = open_checkpoint(published["draft"])
    stored = sum(tensor.num_bytes for tensor in draft.tensors.values())
    assert 0 < byte_ledger(draft).weight_bytes <= stored + 2 * 128  # and a row of the table


@pytest.mark.parametrize("recipe", ["int4", "fp8"])
def test_it_is_not_quantized_again_nor_timed(
    published: dict[str, Path], recipe: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"quantized already \(mxfp4\)"):
        apply(recipe, str(published["draft"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UndefinedMetricError, match="'mxfp4'"):
        load_native(stored_weights(open_checkpoint(published["draft"])), torch.float32, CPU)


def test_a_target_in_blocks_and_a_draft_in_floats_fit(
    published: dict[str, Path], architecture_pair: Callable[[str], tuple[Path, Path]]
) -> None:
    assert check(str(published["target"]), str(architecture_pair("gpt-oss")[1])).is_compatible


@pytest.mark.parametrize(
    ("ending", "said"), [("_scales", "without its scales"), ("_blocks", "without its blocks")]
)
def test_half_of_an_expert_is_refused_by_check(
    published: dict[str, Path], ending: str, said: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", *TOKENIZER_FILES):
        shutil.copyfile(published["draft"] / name, tmp_path / name)
    tensors = load_file(published["draft"] / "model.safetensors")
    del tensors[f"model.layers.1.mlp.experts.down_proj{ending}"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        check(str(published["target"]), str(tmp_path))
