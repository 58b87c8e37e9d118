"""What the backends share that quantize a loaded model: loading, saving, editing the config."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantdraft.common.files import write_json
from quantdraft.quantize.backends.job import QuantizationJob

if TYPE_CHECKING:
    import torch

# transformers writes it, and the caller copies the draft's own.
GENERATION_FILE = "generation_config.json"


def load_and_quantize(job: QuantizationJob, dtype: torch.dtype, quantization_config: Any) -> Any:
    """Load the draft by transformers, which quantizes it on the way."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        job.source.path,
        dtype=dtype,
        quantization_config=quantization_config,
        device_map=job.device,
        use_safetensors=True,
        local_files_only=True,
    )


def save_model(
    job: QuantizationJob, model: Any, leftovers: Sequence[str] = (), **options: Any
) -> None:
    """Write config and weights, and remove the library's other files."""
    with warnings.catch_warnings(action="ignore"):  # of offloaded modules, where there are none
        model.save_pretrained(job.output, **options)
    for name in (GENERATION_FILE, *leftovers):
        (job.output / name).unlink(missing_ok=True)


@contextmanager
def edit_config(job: QuantizationJob) -> Iterator[dict[str, Any]]:
    """Yield the written config.json, and write it again with what the block changed."""
    path = job.output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    yield config
    write_json(path, config)
