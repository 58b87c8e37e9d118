"""The backend that quantizes nothing: a copy, for the control recipe."""

from __future__ import annotations

import shutil

from quantdraft.checkpoints.weights import INDEX_FILE
from quantdraft.quantize.backends.job import QuantizationJob


def quantize(job: QuantizationJob) -> None:
    """Copy config and weights as they are."""
    names = {"config.json"} | {info.file for info in job.source.tensors.values()}
    if (job.source.path / INDEX_FILE).is_file():
        names.add(INDEX_FILE)
    for name in sorted(names):
        shutil.copyfile(job.source.path / name, job.output / name)
