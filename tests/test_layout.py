"""The house rules: imports point down, judge and machine never meet, --help is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quantdraft

ROOT = Path(quantdraft.__file__).parent
HEAVY = {"torch", "transformers", "llmcompressor", "compressed_tensors", "datasets"}
DATA = {"errors", "files", "recipe", "weights", "checkpoint", "traffic", "results", "provenance"}
DATA |= {"formats", "prompts", "schemes", "ledger", "stages", "progress", "shapes"}
DATA |= {"promises", "heads", "documents", "configs", "recipe_formats", "end_tokens"}
DATA |= {"claims", "step_bytes"}
DATA |= {"locks", "lines", "keeps", "responses", "domains", "proposals"}
JUDGE = {"acceptance", "speedup", "comparison", "verdict", "report", "judgement"}
JUDGE |= {"advice", "planning", "whole_numbers"}
MACHINE = {"models", "cache", "sampling", "generation", "replay", "speculation", "live", "latency"}
MACHINE |= {"benchmark", "kernels", "engines", "unpacking", "pairing", "vocabulary", "proof"}
MACHINE |= {"verification", "roofline", "memory", "arms", "near_ties"}
MACHINE |= {"activations", "fidelity", "microscaling", "head_proof", "on_demand"}
TOP = {"cli", "demo", "evaluation", "quantization", "capture", "calibration", "preflight", "export"}
TOP |= {"catalogue", "inputs", "measuring", "served", "crosscheck", "benching", "answering"}
TOP |= {"sweep", "grid", "jobs", "executors"}
TOP |= {"selection", "served_run"}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    """Dotted names that a file imports; type-checking blocks do not count."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        waiting += ast.iter_child_nodes(node)
    return found


def own_parts(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path) if name.startswith("quantdraft.")]
    return {name[1] for name in names}


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    part, own = part_of(path), own_parts(path)
    if part in DATA:
        assert own <= DATA
    if part in JUDGE:
        assert own <= JUDGE | DATA
    if part in MACHINE:
        assert not own & (JUDGE | TOP)
    if part != "cli":
        assert "cli" not in own


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_heavy_libraries_stay_in_the_machine_and_in_assembly(path):
    if part_of(path) in DATA | JUDGE | {"cli", "serving"}:
        is_tool = part_of(path) == "provenance"  # asks a GPU for its name, when there is one
        roots = {name.split(".")[0] for name in imports(path, inside_functions=not is_tool)}
        assert not roots & HEAVY


def test_a_backends_library_is_imported_only_in_its_own_file():
    users = [p for p in FILES if any(n.split(".")[0] == "llmcompressor" for n in imports(p))]
    assert [p.relative_to(ROOT).as_posix() for p in users] == ["quantizers/llmcompressor.py"]


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = (
        "import sys; sys.argv = ['quantdraft', '--help']\n"
        "from quantdraft.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY | {'numpy', 'pydantic'}!r}))"
    )
    durations = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        durations.append(time.perf_counter() - started)
    assert done.stdout.strip().endswith("[]")
    assert min(durations) < 0.5


def test_every_part_of_the_package_has_its_place():
    parts = {part_of(path) for path in FILES} - {"__init__", "quantizers", "serving", "reference"}
    assert parts == DATA | JUDGE | MACHINE | TOP
