"""Split a traffic file by domain, line by line, into traffic files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from quantdraft.common.files import write_text
from quantdraft.errors import TrafficError
from quantdraft.traffic.jsonl import located_entries

UNNAMED = "no-domain"


def split_by_domain(path: Path, directory: Path) -> dict[str, Path]:
    """Write a file for every domain of a capture or log, and return them by domain, in order.

    Raises TrafficError where no line names a domain, or where two domains give one file name.
    """
    entries = [found.entry for found in located_entries(path)]
    header = entries.pop(0) if "quantdraft_traffic" in entries[0] else None
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_domain.setdefault(str(entry.get("domain") or UNNAMED), []).append(entry)
    if set(by_domain) == {UNNAMED}:
        raise TrafficError(f"no line of '{path}' has a \"domain\". Leave out --by-domain.")
    files = {domain: directory / f"{_slug(domain)}.jsonl" for domain in by_domain}
    if len(set(files.values())) < len(files):
        raise TrafficError(f"'{path}': two domains give the same file name: {', '.join(files)}.")
    for domain, lines in by_domain.items():
        own = [] if header is None else [header | {"num_prompts": len(lines), "skipped": []}]
        write_text(files[domain], "".join(json.dumps(line) + "\n" for line in [*own, *lines]))
    return files


def _slug(domain: str) -> str:
    return re.sub(r"[^\w-]+", "-", domain).strip("-").lower() or UNNAMED
