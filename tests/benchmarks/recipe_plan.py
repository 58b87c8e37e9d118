"""Run the measurement of a part in a process of its own, with a log and a time limit."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class PartFailed(Exception):
    """A part's process ended with an error; the message is its last line."""


class OutOfTime(PartFailed):
    """A part was not begun: --max-minutes were over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, where parts are kept, and what the engines need."""

    work: Path
    vllm_python: Path | None
    llamacpp: Path | None
    sizes: dict[str, int]  # num_tokens, served_prompts, served_tokens
    run: Callable[[list[str], Path], None]  # a part's command line, its log
    deadline: float | None = None  # of time.monotonic, after which no part is begun

    def part(self, name: str, recipe: str = "") -> Any:
        """Measure one part in a process of its own. Raises PartFailed with its last words."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime("not measured: --max-minutes were over; the same command goes on here")
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / "part.json"
            options = {f"--{key.replace('_', '-')}": str(v) for key, v in self.sizes.items()}
            options |= {"--recipe": recipe, "--work": str(self.work), "--output": str(output)}
            engines = {"--vllm-python": self.vllm_python, "--llamacpp": self.llamacpp}
            options |= {key: str(path) for key, path in engines.items() if path is not None}
            given = [f"{key}={value}" for key, value in options.items()]
            self.run([name, *given], self.work / "logs" / f"{recipe or 'all'}-{name}.log")
            return json.loads(output.read_text(encoding="utf-8"))


def run_part(given: list[str], log: Path) -> None:
    """Run `recipe_parts` in a process of its own; what it says goes to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.benchmarks.recipe_parts", *given]
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        raise PartFailed((said or [f"it ended with {done.returncode}"])[-1].strip()[:400])
