"""A stand-in for vLLM's server: the same routes, answers and counters that are known beforehand.

As a program (`python -m tests.fake_vllm --port N …`) it reads what to say from the file that
$FAKE_VLLM names, refuses to serve a draft in the float types listed there, and notes beside that
file every start: its float type and its speculative config.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

K = 4


@dataclass
class Script:
    """What the fake says to a prompt: the tokens after it, and the rounds it claims they took."""

    token_ids: tuple[int, ...]
    num_drafts: int
    accepted: tuple[int, ...]


class FakeServer:
    """A server that answers as vLLM 0.32 does, one token at a time, at a known pace."""

    def __init__(
        self, scripts: dict[tuple[int, ...], Script], seconds_per_token: float = 0.0, k: int = K
    ):
        self.scripts, self.seconds_per_token = scripts, seconds_per_token
        self.bodies: list[dict[str, object]] = []
        self.num_tokens = self.num_drafts = self.num_foreign = 0
        self.k, self.accepted = k, [0] * k
        self.lag = 0  # replies of /metrics that still show the counters of before
        self.has_token_ids = True
        self.max_model_len = 4096
        self.shown = ""

    def metrics(self) -> str:
        if self.lag > 0:
            self.lag -= 1
            return self.shown
        labels = 'engine="0",model_name="m"'
        positions = [
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="{at}"}} {n}.0'
            for at, n in enumerate(self.accepted)
        ]
        self.shown = "\n".join(
            [
                f"vllm:generation_tokens_total{{{labels}}} {self.num_tokens + self.num_foreign}.0",
                f"vllm:generation_tokens_created{{{labels}}} 1.79e+09",
                f"vllm:spec_decode_num_drafts_total{{{labels}}} {self.num_drafts}.0",
                f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {self.k * self.num_drafts}.0",
                *positions,
                "",
            ]
        )
        return self.shown

    def events(self, body: dict[str, object]) -> Iterator[dict[str, object]]:
        script = self.scripts[tuple(body["prompt"])]
        for token in script.token_ids:
            time.sleep(self.seconds_per_token)
            choice = {"index": 0, "text": "x"}
            yield {"choices": [choice | ({"token_ids": [token]} if self.has_token_ids else {})]}
        self.num_tokens += len(script.token_ids)
        self.num_drafts += script.num_drafts
        accepted = [*script.accepted, *[0] * self.k][: self.k]
        self.accepted = [a + b for a, b in zip(self.accepted, accepted, strict=True)]
        yield {"choices": [], "usage": {}}


class Handler(BaseHTTPRequestHandler):
    """Routes of the fake; the state is the server's."""

    fake: FakeServer

    def do_GET(self) -> None:
        model = {"id": "m", "max_model_len": self.fake.max_model_len}
        answers = {
            "/health": "",
            "/version": json.dumps({"version": "0.32.0"}),
            "/v1/models": json.dumps({"data": [model]}),
        }
        text = self.fake.metrics() if self.path == "/metrics" else answers[self.path]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.bodies.append(body)
        if tuple(body["prompt"]) not in self.fake.scripts:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": "no such\nprompt"}}).encode())
            return
        self.send_response(200)
        self.end_headers()
        for event in self.fake.events(body):
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serving(fake: FakeServer) -> Iterator[str]:
    """The address of a running fake."""
    handler = type("Bound", (Handler,), {"fake": fake})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def main() -> None:
    """Serve as the command line says, which is vLLM's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--speculative-config")
    given, _ = parser.parse_known_args()
    plan = json.loads(Path(os.environ["FAKE_VLLM"]).read_text())
    with open(f"{os.environ['FAKE_VLLM']}.started", "a") as told:
        told.write(f"{given.dtype} {given.speculative_config}\n")
    if given.speculative_config and given.dtype in plan["refused"]:
        raise ValueError(f"no kernel for this format in {given.dtype}")
    scripts = {
        tuple(prompt): Script(tuple(ids), n, tuple(acc)) for prompt, ids, n, acc in plan["scripts"]
    }
    if not given.speculative_config:
        scripts = {p: Script(s.token_ids, 0, (0,) * K) for p, s in scripts.items()}
    k = json.loads(given.speculative_config or "{}").get("num_speculative_tokens", K)
    fake = FakeServer(scripts, plan["seconds_per_token"], k)
    handler = type("Bound", (Handler,), {"fake": fake})
    ThreadingHTTPServer(("127.0.0.1", given.port), handler).serve_forever()


if __name__ == "__main__":
    main()
