"""What `check` says of recipes that cannot be applied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.errors import RecipeError
from quantdraft.quantize.fitting import UNQUANTIZABLE, fit_recipe
from quantdraft.quantize.recipe import load_recipe
from quantdraft.workflows.check import Preflight, RecipeOutlook, check
from tests.stored import LLAMA_CONFIG, write_checkpoint


def test_each_reason_is_said_once_with_the_names_of_its_recipes() -> None:
    wide, other = "'x' has 576 inputs", "bitsandbytes works through transformers"
    outlooks = (
        RecipeOutlook("int4", None, f"recipe 'int4': {wide}"),
        RecipeOutlook("nf4", None, f"recipe 'nf4': {other}"),
        RecipeOutlook("int4-gptq", None, f"recipe 'int4-gptq': {wide}"),
    )
    lines = Preflight(True, (), 4, outlooks).lines()
    assert "No recipe can be applied to this draft:" in lines
    assert f"int4, int4-gptq: {wide}" in lines
    assert f"nf4: {other}" in lines


@pytest.mark.parametrize("model_type", UNQUANTIZABLE)
def test_architectures_that_no_recipe_quantizes_are_refused_by_name(
    model_type: str, tmp_path: Path
) -> None:
    draft = open_checkpoint(
        write_checkpoint(tmp_path, None, {**LLAMA_CONFIG, "model_type": model_type})
    )
    with pytest.raises(RecipeError, match=f"'{model_type}', {UNQUANTIZABLE[model_type]}"):
        fit_recipe(load_recipe("int4"), draft, None)


def test_check_says_it_of_every_recipe(
    architecture_pair: Callable[[str], tuple[Path, Path]],
) -> None:
    target, draft = architecture_pair("gpt2")
    found = check(str(target), str(draft))
    assert not any(each.summary for each in found.outlooks)
    said = " ".join(" ".join(found.lines()).split())
    assert said.count("whose weights are stored transposed") == 1
    assert all(f"{each.recipe}, " in said or f"{each.recipe}: " in said for each in found.outlooks)
