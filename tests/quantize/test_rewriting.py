"""Weight files are rewritten whatever a converter's tensors look like in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from quantdraft.checkpoints.checkpoint import open_checkpoint  # noqa: E402
from quantdraft.checkpoints.reference import pair_dir  # noqa: E402
from quantdraft.quantize.backends.rewriting import rewrite_weights  # noqa: E402


class _Sliced:
    """A converter that keeps all but the last column, as a packer cuts its padding off."""

    def get_dependencies(self, name: str) -> set[str]:
        return set()

    def process(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: each[..., :-1] for name, each in tensors.items()}


def test_a_slice_of_a_padded_tensor_is_written(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = open_checkpoint(pair_dir() / "draft")
    rewrite_weights(source, tmp_path, _Sliced())
    (file,) = tmp_path.glob("*.safetensors")
    written = load_file(file)
    assert {name: each.shape[-1] + 1 for name, each in written.items()} == {
        name: info.shape[-1] for name, info in source.tensors.items()
    }
