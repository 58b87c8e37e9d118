"""Split a traffic file by domain, line by line, into traffic files."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_text
from quantdraft.errors import TrafficError
from quantdraft.traffic.formats.exchange import UnusableLineError
from quantdraft.traffic.formats.known import Reader, unpacked
from quantdraft.traffic.jsonl import located_entries
from quantdraft.traffic.responses import ReadSettings

_log = logging.getLogger(__name__)

UNNAMED = "no-domain"


def split_by_domain(
    path: Path, directory: Path, settings: ReadSettings | None = None
) -> dict[str, Path]:
    """Write a file for every domain of a capture or log, and return them by domain, in order.

    Lines stay as they are; what cannot be read is in none of the files, and logged. Raises
    TrafficError where no line names a domain, or where two domains give one file name.
    """
    settings = settings or ReadSettings()
    logs = Reader(settings.format_name, settings.requests)
    logs.prepare(path)
    left_out: list[str] = []
    found = located_entries(path, skip=lambda place, reason: left_out.append(f"{place}: {reason}"))
    entries = [entry for at in found for entry in unpacked(at.entry)]
    header = entries.pop(0) if entries and "quantdraft_traffic" in entries[0] else None
    by_domain: dict[str, list[Mapping[str, Any]]] = {}
    asked = [entry for entry in entries if logs.stands_for_another(entry)]
    for number, entry in enumerate(entries, start=1):
        if logs.stands_for_another(entry):
            continue
        try:
            by_domain.setdefault(_domain(logs, entry), []).append(entry)
        except UnusableLineError as reason:
            left_out.append(f"entry {number}: {reason}")
    if left_out:
        _log.warning(
            "%s: %d lines are in no domain. The first: %s", path, len(left_out), left_out[0]
        )
    if set(by_domain) <= {UNNAMED}:
        raise TrafficError(f"no line of '{path}' has a \"domain\". Leave out --by-domain.")
    files = {domain: directory / f"{_slug(domain)}.jsonl" for domain in by_domain}
    if len(set(files.values())) < len(files):
        raise TrafficError(f"'{path}': two domains give the same file name: {', '.join(files)}.")
    for domain, lines in by_domain.items():
        own = [] if header is None else [{**header, "num_prompts": len(lines), "skipped": []}]
        whole = [*own, *asked, *lines]
        write_text(files[domain], "".join(json.dumps(line) + "\n" for line in whole))
    return files


def _domain(logs: Reader, entry: Mapping[str, Any]) -> str:
    """Return the domain of an entry's first line; UnusableLineError where none can be read."""
    for kind, part in logs.parts(entry):
        for exchange in logs.read(kind, part):
            return exchange.domain or UNNAMED
    raise UnusableLineError("it holds nothing that can be read")


def _slug(domain: str) -> str:
    return re.sub(r"[^\w-]+", "-", domain).strip("-").lower() or UNNAMED
