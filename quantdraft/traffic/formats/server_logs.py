"""Console logs of serving engines, which are recognised to say what to log in their place."""

from __future__ import annotations

import re
from pathlib import Path

from quantdraft.traffic.jsonl import is_array

READ_BYTES = 1 << 20
SERVERS = {
    "vLLM": re.compile(
        rb"Received request \S+: |Generated response \S+|Request \S+ details: prompt"
        rb"|Avg prompt throughput: |\bvllm\b.*\bINFO\b|\bINFO \d\d-\d\d \d\d:\d\d:\d\d "
    ),
    "SGLang": re.compile(
        rb"(?:Receive|Finish): obj=\w+ReqInput|Prefill batch[.,]|Decode batch[.,]|sglang"
    ),
}


def server_log_refusal(path: Path) -> str | None:
    """Return why a console log of vLLM or SGLang is not read, and what to do; None for others."""
    try:
        with open(path, "rb") as file:
            opening = file.read(READ_BYTES)
    except OSError:
        return None
    if is_array(opening.lstrip()) or opening.lstrip().startswith(b"{"):
        return None
    server = next((name for name, marks in SERVERS.items() if marks.search(opening)), None)
    if server is None:
        return None
    return (
        f"'{path}' is a console log of {server}, whose texts may be cut and are not read. Store "
        "the replies to requests with 'return_token_ids': true, one JSON object a line: they have "
        "the token ids themselves (docs/traffic.md)."
    )
