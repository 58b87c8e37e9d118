"""A stand-in for llama-server: the same routes, and counters that are known beforehand.

As a program it takes llama-server's command line and a plan from the file $FAKE_LLAMACPP:
what it says to every prompt, what it claims to have proposed and accepted, and how it misbehaves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ERROR_LINE = (
    "0.00.050.775 E srv    load_model: failed to initialize speculative decoding context: "
    "draft model vocab type must match target model to use speculation"
)


class Handler(BaseHTTPRequestHandler):
    """Routes of the fake. `plan` and `counts` are the server's."""

    plan: dict[str, Any]
    has_draft: bool
    counts: dict[str, int]

    def do_GET(self) -> None:
        name = "llamacpp:spec_decode_num_drafts_total"
        texts = {
            "/health": '{"status": "ok"}',
            "/metrics": f"# HELP {name} rounds\n# TYPE {name} counter\n{name} {self.counts['n']}\n",
        }
        self._answer(200, texts[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.plan.get("bodies"):
            with open(self.plan["bodies"], "a", encoding="utf-8") as file:
                file.write(json.dumps(body) + "\n")
        if self.path == "/tokenize":
            self._answer(200, json.dumps({"tokens": [len(body["content"])]}))
            return
        if self.plan.get("refused"):
            said = {"error": {"code": 400, "message": "exceeds the available\ncontext size"}}
            self._answer(400, json.dumps(said))
            return
        if self.has_draft and self.plan.get("dies"):
            os.write(2, b"ggml.c:1: GGML_ASSERT(false) failed\n")
            os._exit(134)
        self._answer(200, json.dumps(self._completion()))

    def _completion(self) -> dict[str, Any]:
        tokens = self.plan["draft_tokens"] if self.has_draft else self.plan["tokens"]
        timings = {"predicted_n": len(tokens), "predicted_ms": self.plan["ms"]}
        if self.has_draft and self.plan["proposed"]:  # left out where nothing was proposed
            timings |= {
                "draft_n": self.plan["proposed"],
                "draft_n_accepted": self.plan["accepted"],
            }
            self.counts["n"] += self.plan["rounds"]
        return {"content": "x", "tokens": tokens, "timings": timings}

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


def main() -> None:
    """Serve as the command line says, which is llama-server's."""
    if "--version" in sys.argv:
        print("version: 9.9 (build 1, commit abc)\nbuilt with cc", file=sys.stderr)
        return
    plan = json.loads(Path(os.environ["FAKE_LLAMACPP"]).read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("-m")
    parser.add_argument("-md")
    given, _ = parser.parse_known_args()
    name = Path(given.md or given.m).name
    if name in plan.get("unloadable", []):
        print(f"0.00.1 E srv load_model: failed to load model, '{name}'", file=sys.stderr)
        sys.exit(1)
    if given.md and not plan["proposed"]:
        print(ERROR_LINE, file=sys.stderr, flush=True)
    bound = {"plan": plan, "has_draft": bool(given.md), "counts": {"n": 0}}
    handler = type("Bound", (Handler,), bound)
    ThreadingHTTPServer(("127.0.0.1", given.port), handler).serve_forever()


if __name__ == "__main__":
    main()
