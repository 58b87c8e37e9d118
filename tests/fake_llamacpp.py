"""A stand-in for llama-server: the same routes, and counters that are known beforehand.

As a program it takes llama-server's command line and a plan from the file $FAKE_LLAMACPP:
what it says to every prompt, what it claims to have proposed and accepted, and how it misbehaves.
`scripts` in the plan are answers by prompt: tokens, rounds, accepted tokens by position.
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


def build_server(directory: Path) -> None:
    """Write a `llama-server` that is this fake where a build of llama.cpp has its own."""
    program = directory / "build" / "bin" / "llama-server"
    program.parent.mkdir(parents=True)
    code = "import sys; from tests.fake_llamacpp import main; main()"
    root = Path(__file__).parents[1]
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH='{root}' exec '{sys.executable}' -c '{code}' \"$@\"\n"
    )
    program.chmod(0o755)


class Handler(BaseHTTPRequestHandler):
    """Routes of the fake. `plan` and `counts` are the server's."""

    plan: dict[str, Any]
    has_draft: bool
    counts: dict[str, int]
    accepted: list[int]  # by position

    def do_GET(self) -> None:
        texts = {
            "/health": '{"status": "ok"}',
            "/props": '{"build_info": "b1-abc"}',
            "/metrics": self._metrics(),
        }
        self._answer(200, texts[self.path])

    def _metrics(self) -> str:
        """As llama-server writes them: no positions before the first round."""
        prefix = "llamacpp:spec_decode_num"
        lines = [
            "# TYPE llamacpp:tokens_predicted_total counter",
            f"llamacpp:tokens_predicted_total {self.counts['tokens']}",
            f"{prefix}_drafts_total {self.counts['rounds']}",
            f"{prefix}_draft_tokens_total {self.counts['proposed']}",
        ]
        if self.counts["rounds"]:
            name = f"{prefix}_accepted_tokens_per_pos_total"
            lines += [f'{name}{{position="{at}"}} {n}' for at, n in enumerate(self.accepted)]
        return "\n".join([*lines, ""])

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
        self._answer(200, json.dumps(self._completion(body)))

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens, rounds, accepted = self._script(body["prompt"])
        if self.has_draft and self.plan["proposed"]:
            self.counts["rounds"] += rounds
            self.counts["proposed"] += self.plan["proposed"]
            for at, number in enumerate(accepted):
                self.accepted[at] += number
        self.counts["tokens"] += len(tokens)
        timings = {"predicted_n": len(tokens), "predicted_ms": self.plan["ms"], "prompt_ms": 5.0}
        return {"content": "x", "tokens": tokens, "timings": timings}

    def _script(self, prompt: list[int]) -> tuple[list[int], int, list[int]]:
        scripts = {tuple(given): rest for given, *rest in self.plan.get("scripts", [])}
        if tuple(prompt) in scripts:
            tokens, rounds, accepted = scripts[tuple(prompt)]
            return tokens, rounds, accepted
        tokens = self.plan["draft_tokens" if self.has_draft else "tokens"]
        return tokens, self.plan["rounds"], [self.plan["accepted"]]

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
    if "--list-devices" in sys.argv:
        print("Available devices:")
        return
    plan = json.loads(Path(os.environ["FAKE_LLAMACPP"]).read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("-m")
    parser.add_argument("-md")
    parser.add_argument("--spec-draft-n-max", type=int, default=4)
    given, _ = parser.parse_known_args()
    name = Path(given.md or given.m).name
    if name in plan.get("unloadable", []):
        print(f"0.00.1 E srv load_model: failed to load model, '{name}'", file=sys.stderr)
        sys.exit(1)
    if given.md and not plan["proposed"]:
        print(ERROR_LINE, file=sys.stderr, flush=True)
    counts = {"tokens": 0, "rounds": 0, "proposed": 0}
    bound = {"plan": plan, "has_draft": bool(given.md), "counts": counts}
    bound["accepted"] = [0] * given.spec_draft_n_max
    handler = type("Bound", (Handler,), bound)
    ThreadingHTTPServer(("127.0.0.1", given.port), handler).serve_forever()


if __name__ == "__main__":
    main()
