"""Rows of CSV and parquet files as objects."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from quantdraft.errors import MissingPackageError, TrafficError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET_MARK = b"PAR1"
CHUNK_BYTES = 1 << 20


class Digest(Protocol):
    """What hashlib gives: it is told every byte that is read."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


def open_table(path: Path, digest: Digest | None) -> Iterator[dict[str, Any]] | None:
    """Return the rows of a table; None for a file that is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        opening = file.read(len(PARQUET_MARK))
    is_parquet = opening == PARQUET_MARK
    delimiter = DELIMITERS.get(path.suffix.lower())
    if not is_parquet and (delimiter is None or opening[:1] in (b"{", b"[")):
        return None
    if digest is not None:
        with open(path, "rb") as file:
            while part := file.read(CHUNK_BYTES):
                digest.update(part)
    return _parquet_rows(path) if is_parquet else _delimited_rows(path, delimiter or ",")


def _delimited_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            for row in csv.DictReader(file, delimiter=delimiter):
                yield {str(key): value for key, value in row.items() if key is not None}
        except csv.Error as error:
            raise TrafficError(f"'{path}' is not a whole CSV file: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise MissingPackageError(
            f"'{path}' is a parquet file, which needs the package 'pyarrow': pip install pyarrow"
        ) from None
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            # Dates and decimals become texts, as in JSON.
            yield from (json.loads(json.dumps(row, default=str)) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise TrafficError(f"'{path}' is not a whole parquet file: {said}") from error
