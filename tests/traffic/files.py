"""Traffic files for tests."""

from __future__ import annotations

from pathlib import Path

from quantdraft.common.files import write_text
from quantdraft.traffic.traffic import Traffic, header_line, response_line


def write_traffic(path: Path, traffic: Traffic) -> None:
    """Write traffic with its header, as `capture` does."""
    header = header_line(traffic.sampling, traffic.target, len(traffic.responses))
    write_text(path, header + "".join(response_line(each) for each in traffic.responses))
