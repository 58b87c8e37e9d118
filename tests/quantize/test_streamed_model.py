"""A model whose weights are read when they are needed gives the logits of the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.quantize.backends.packages import missing_packages  # noqa: E402
from quantdraft.quantize.proof.streamed_model import load_on_demand, take_tensors  # noqa: E402
from quantdraft.quantize.recipe import load_recipe  # noqa: E402
from tests.conftest import Pair, save_noisy  # noqa: E402
from tests.quantize.test_apply import apply_to, write_traffic  # noqa: E402

CPU = torch.device("cpu")
IDS = torch.arange(24).reshape(2, 12)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    assert found.dtype == torch.float32
    return found


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_bf16_weights_are_computed_in_float32(tiny_pair: Pair) -> None:
    """Sums in another order at most: float32's 2^-24 over some hundred terms."""
    found = logits(load_on_demand(open_checkpoint(tiny_pair.draft), CPU))
    assert distance(found, logits(load_model(tiny_pair.draft, torch.float32, CPU))) < 1e-5


@pytest.mark.parametrize(
    "name", ["int4", "int4-head8", "int8", "fp8-static", "nvfp4", "mxfp4", "kv-fp8", "nf4"]
)
def test_every_library_s_layers_answer_as_when_loaded(
    tiny_pair: Pair, tmp_path: Path, name: str
) -> None:
    """Where inputs are rounded, a last bit can move one to the next step; weights alone cannot."""
    missing = missing_packages(load_recipe(name).backend)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    checkpoint = apply_to(tiny_pair.draft, name, tmp_path / "out", traffic)
    found = logits(load_on_demand(checkpoint, CPU))
    assert found.isfinite().all()
    limit = 1e-5 if name in ("int4", "int4-head8", "mxfp4", "nf4") else 0.02
    assert distance(found, logits(load_model(checkpoint.path, torch.float32, CPU))) < limit


def test_a_second_pass_gives_the_same_bits(tiny_pair: Pair, tmp_path: Path) -> None:
    """What was unpacked for the first pass is packed again."""
    traffic = write_traffic(tmp_path / "traffic.jsonl", vocab_size=512)
    model = load_on_demand(apply_to(tiny_pair.draft, "int4", tmp_path / "out", traffic), CPU)
    first = logits(model)
    assert torch.equal(first, logits(model))
    assert not hasattr(model.model.layers[0].mlp.up_proj, "weight")


def test_tensors_of_another_checkpoint_replace_shared_ones_too(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    """The head is tied: the new embedding serves it as well."""
    save_noisy(tiny_pair.target, tmp_path / "other", noise=0.5)
    other = open_checkpoint(tmp_path / "other")
    model = load_on_demand(open_checkpoint(tiny_pair.draft), CPU)
    before = logits(model)
    take_tensors(model, other, other.tensors)
    after = logits(model)
    assert distance(after, logits(load_model(tmp_path / "other", torch.float32, CPU))) < 1e-5
    assert distance(after, before) > 0.1
