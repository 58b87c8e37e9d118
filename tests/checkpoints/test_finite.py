"""A weight or a scale that is no number is named, before anything is computed with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.cli import main
from quantdraft.errors import CheckpointError
from tests.conftest import Pair
from tests.foreign import write_foreign


def spoil(directory: Path, ending: str, number: float) -> str:
    """Put a number into the first tensor whose name has this ending; return the name."""
    path = directory / "model.safetensors"
    found = load_file(path)
    name = next(each for each in found if each.endswith(ending))
    found[name].view(-1)[3] = number
    save_file(found, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize(
    ("ending", "number"),
    [
        ("layers.0.mlp.up_proj.weight", float("nan")),
        ("model.norm.weight", float("inf")),
        ("embed_tokens.weight", float("-inf")),
    ],
)
def test_a_weight_that_is_no_number_is_named_by_all_that_read_it(
    ending: str, number: float, tiny_pair: Pair, tmp_path: Path
) -> None:
    draft = Path(shutil.copytree(tiny_pair.draft, tmp_path / "d"))
    name = spoil(draft, ending, number)
    said = f"NaN or infinite numbers in {name!r}"
    with pytest.raises(CheckpointError, match=said):
        load_model(draft, torch.bfloat16, torch.device("cpu"))
    for command in (f"apply -r int4 -d {draft}", f"export {draft} --engine vllm -t {draft}"):
        result = CliRunner().invoke(main, [*command.split(), "-o", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert said in result.stderr
        assert not (tmp_path / "out").exists()


def test_a_scale_that_is_no_number_is_named(tiny_pair: Pair, tmp_path: Path) -> None:
    write_foreign("fp8-block", tiny_pair.draft, tmp_path / "d")
    spoil(tmp_path / "d", "up_proj.weight_scale_inv", float("nan"))
    with pytest.raises(CheckpointError, match=r"NaN or infinite .*up_proj.weight"):
        load_model(tmp_path / "d", torch.float32, torch.device("cpu"))
