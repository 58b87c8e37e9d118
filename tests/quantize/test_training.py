"""Training through rounding: what is stored, what gradients pass, what the losses say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")


from torch import nn  # noqa: E402

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.tensors.loading import load_model  # noqa: E402
from quantdraft.checkpoints.tensors.unpacking import dequantize, unpack  # noqa: E402
from quantdraft.checkpoints.weights import TensorInfo  # noqa: E402
from quantdraft.errors import CheckpointError, OptionError, RecipeError  # noqa: E402
from quantdraft.quantize.backends.config_groups import quantization_config  # noqa: E402
from quantdraft.quantize.recipe import bundled_recipe_names, load_recipe  # noqa: E402
from quantdraft.quantize.recipe_formats import weight_format  # noqa: E402
from quantdraft.quantize.training.cutting import cut_layers, spread_layers  # noqa: E402
from quantdraft.quantize.training.examples import Example, ExampleOrder, passes  # noqa: E402
from quantdraft.quantize.training.losses import (  # noqa: E402
    Pieces,
    TargetRows,
    kl,
    lk,
    pieces,
    token_logprobs,
    tv,
)
from quantdraft.quantize.training.room import require_training_room, training_bytes  # noqa: E402
from quantdraft.quantize.training.settings import TrainingSettings  # noqa: E402
from quantdraft.quantize.training.target_rows import target_rows  # noqa: E402
from quantdraft.quantize.training.through_rounding import (  # noqa: E402
    StoredWeight,
    require_trainable,
    train_through,
)
from quantdraft.quantize.training.trainer import rate_at  # noqa: E402
from tests.conftest import Pair  # noqa: E402


def is_trainable(name: str) -> bool:
    try:
        require_trainable(load_recipe(name))
    except RecipeError:
        return False
    return True


TRAINABLE = [name for name in bundled_recipe_names() if is_trainable(name)]


def test_recipes_that_round_to_nearest_are_trained_through():
    assert {"int4", "int8", "int8-weight-only", "fp8", "fp8-block", "mxfp4", "mxfp8"} <= {
        *TRAINABLE
    }
    for name in ("identity", "int4-gptq", "int4-awq", "fp8-static"):
        with pytest.raises(RecipeError, match=name):
            require_trainable(load_recipe(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", TRAINABLE)
def test_what_is_trained_through_is_what_is_written_to_the_bit(name, dtype):
    from llmcompressor.entrypoints.model_free.converter import ModelFreePtqConverter

    recipe = load_recipe(name)
    fmt = weight_format(recipe)
    assert fmt is not None
    weight = torch.randn(160, 256, generator=torch.Generator().manual_seed(3)) * 0.05
    weight[7, 5], weight[9] = 2.0, 0.0
    info = TensorInfo({2: "BF16"}.get(dtype.itemsize, "F32"), (160, 256), "f")
    config = quantization_config(recipe, {"a.q_proj.weight": info})
    written = ModelFreePtqConverter(config).process({"a.q_proj.weight": weight.to(dtype)})
    stored = dequantize(unpack(written, "a.q_proj", fmt))
    assert torch.equal(StoredWeight(dtype, fmt)(weight), stored)


def test_gradients_pass_through_the_rounding_to_the_floats():
    fmt = weight_format(load_recipe("int4"))
    weight = nn.Parameter(torch.randn(32, 128, generator=torch.Generator().manual_seed(0)))
    factor = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    stored = StoredWeight(torch.bfloat16, fmt)(weight)
    assert not torch.equal(stored, weight)
    torch.autograd.backward((stored * factor).sum())
    assert weight.grad is not None
    assert torch.equal(weight.grad, factor)


@pytest.mark.parametrize("recipe", ["int4-head8", "mxfp4", None])
def test_a_model_computes_with_what_is_stored_and_every_float_has_a_gradient(
    tiny_pair: Pair, recipe
):
    source = open_checkpoint(tiny_pair.draft)
    model = load_model(source.path, torch.float32, torch.device("cpu"))
    own = {name: each.detach().clone() for name, each in model.named_parameters()}
    floats = train_through(model, source, None if recipe is None else load_recipe(recipe))
    assert set(floats) == set(source.tensors)
    torch.autograd.backward(model(input_ids=torch.tensor([[5, 6, 7]])).logits.square().sum())
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in floats.values())
    projection = model.model.layers[0].self_attn.q_proj.weight
    is_own = torch.equal(projection, own["model.layers.0.self_attn.q_proj.weight"])
    assert is_own == (recipe is None)


def test_losses_have_their_closed_forms():
    logits = torch.tensor([[0.0, math.log(3), math.log(4)]])  # 1/8, 3/8, 1/2
    rows = TargetRows(torch.tensor([[2, 0, 1]]), torch.tensor([[0.25, 0.5, 0.25]]))
    both = pieces(logits, rows)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.125) + 0.25 * math.log(2 / 3)
    assert kl(both).item() == pytest.approx(expected, rel=1e-5)
    assert tv(both).item() == pytest.approx((0.25 + 0.375 + 0.125) / 2)
    assert lk(both).item() == pytest.approx(-math.log(1 - 0.375))
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(3 / 8))


def test_tokens_that_are_not_kept_count_as_one_and_never_make_a_loss_larger():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(20, 50, generator=generator) * 2
    target = (torch.randn(20, 50, generator=generator) * 2).softmax(-1)
    last = torch.zeros(20)
    for number in (1, 5, 20, 50):
        found = target.topk(number)
        both = pieces(logits, TargetRows(found.indices, found.values))
        assert both.target_probs.sum(-1) == pytest.approx(torch.ones(20), abs=1e-5)
        assert both.draft_logprobs.exp().sum(-1) == pytest.approx(torch.ones(20), abs=1e-5)
        assert (kl(both) >= last - 1e-5).all()
        last = kl(both)


def test_equal_distributions_have_no_loss_and_no_gradient():
    logits = torch.randn(3, 9, requires_grad=True)
    probs = logits.detach().softmax(-1).topk(4)
    both = pieces(logits, TargetRows(probs.indices, probs.values))
    assert kl(both).detach().abs().max() < 1e-5
    assert tv(both).detach().abs().max() < 1e-5
    torch.autograd.backward(kl(both).sum())
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-5
    same = Pieces(both.target_probs, both.target_probs.log())
    assert lk(same).abs().max() < 1e-6


def test_an_epoch_has_every_example_once_in_another_order_each_time():
    examples = [Example(tuple(range(n)), 2) for n in (5, 9, 3, 7, 4, 8)]
    order = ExampleOrder(examples, seed=1)
    seen: list[int] = []
    while len(seen) < 12:
        seen += order.step_from(len(seen), 1)
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]
    assert ExampleOrder(examples, seed=1).step_from(0, 30) == order.step_from(0, 30)
    step = order.step_from(0, 20)
    assert sum(len(examples[i].token_ids) for i in step) >= 20
    some = list(passes(examples, range(6), 16))
    assert sorted(i for each in some for i in each) == list(range(6))
    assert all(len(each) * max(len(examples[i].token_ids) for i in each) <= 16 for each in some)


def test_an_example_cut_within_its_prompt_has_no_response_row():
    assert Example((1, 2, 3), 7).first_response_row == 2 == Example((1, 2, 3), 7).num_rows
    assert Example((1, 2, 3), 2).first_response_row == 1


def test_the_learning_rate_warms_up_and_falls():
    assert rate_at(0.0) < 0.2
    assert rate_at(0.06) > 0.95
    assert rate_at(0.5) == pytest.approx(0.525)
    assert rate_at(1.0) == pytest.approx(0.05)


def test_the_targets_distributions_are_computed_once_and_taken_over(tiny_pair: Pair, tmp_path):
    examples = [Example((4, 5, 6, 7), 2), Example((9, 8, 7), 1)]
    loads = []

    def load():
        loads.append(1)
        return load_model(tiny_pair.target, torch.float32, torch.device("cpu"))

    store = target_rows(tmp_path, "key", examples, load, 512, num_kept=512)
    probs = load()(input_ids=torch.tensor([[4, 5, 6]])).logits[0].softmax(-1)
    rows = store.rows(0)
    assert rows.probs == pytest.approx(probs.gather(-1, rows.ids).detach(), abs=1e-3)
    assert store.mean_rest < 0.001
    again = target_rows(tmp_path, "key", examples, load, 512)
    assert torch.equal(again.rows(1).ids, store.rows(1).ids)
    assert len(loads) == 2
    other = target_rows(tmp_path, "another", examples, load, 512)
    assert other.num_kept in {16, 32, 64, 128, 256, 512}
    assert len(loads) == 3


def test_layers_are_cut_with_their_weights_and_an_ordinary_config(tiny_pair: Pair, tmp_path):
    target = open_checkpoint(tiny_pair.target)
    cut = cut_layers(target, (1,), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 1
    model = load_model(cut.path, torch.float32, torch.device("cpu"))
    own = load_model(target.path, torch.float32, torch.device("cpu"))
    assert torch.equal(
        model.model.layers[0].mlp.up_proj.weight, own.model.layers[1].mlp.up_proj.weight
    )
    assert torch.equal(model.model.norm.weight, own.model.norm.weight)


def test_layers_are_spread_from_the_first_to_the_last():
    assert spread_layers(6, 30) == (0, 6, 12, 17, 23, 29)
    assert spread_layers(1, 30) == (0,)
    assert spread_layers(3, 3) == (0, 1, 2)
    with pytest.raises(OptionError, match="--layers 4"):
        spread_layers(4, 3)


def test_a_layer_that_the_target_lacks_is_refused(tiny_pair: Pair, tmp_path: Path):
    with pytest.raises(OptionError, match="no layer 2"):
        cut_layers(open_checkpoint(tiny_pair.target), (0, 2), tmp_path)


def test_a_draft_that_cannot_fit_is_refused_beforehand(tiny_pair: Pair, monkeypatch):
    from quantdraft.quantize.training import room

    source = open_checkpoint(tiny_pair.draft)
    needed = training_bytes(source, 1024)
    assert needed.weights >= 16 * sum(math.prod(t.shape) for t in source.tensors.values())
    monkeypatch.setattr(room, "available_bytes", lambda device: needed.total - 1)
    with pytest.raises(CheckpointError, match="are free"):
        require_training_room(source, 1024, torch.device("cpu"))
    monkeypatch.setattr(room, "available_bytes", lambda device: needed.total)
    assert require_training_room(source, 1024, torch.device("cpu")) == needed


def test_settings_name_every_problem_at_once():
    with pytest.raises(OptionError, match=r"--minutes or --epochs.*--learning-rate.*-k 0"):
        TrainingSettings(learning_rate=3.0, k=0).check()
    TrainingSettings(epochs=1).check()
