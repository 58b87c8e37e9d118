"""The order of the house: imports point down, the judge needs no torch, `--help` is light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from tests.structure import (
    circles,
    imported_names,
    imports_of,
    is_within,
    module_files,
    read_layout,
    upward,
)

HEAVY = {"torch", "transformers", "llmcompressor", "compressed_tensors", "datasets"}
MAY_USE_TORCH = (
    *("checkpoints/tensors", "quantize/backends", "quantize/proof", "quantize/calibration"),
    "quantize/training",
    *("engines/native", "engines/kernels", "engines/vllm/environment", "measure", "workflows"),
)
LAYOUT = read_layout()
FILES = module_files()


def third_parties(module: str, inside_functions: bool = True) -> set[str]:
    """The first part of every name that a module imports."""
    names = imported_names(FILES[module], inside_functions)
    return {name.split(".")[0] for name, _ in names}


def test_every_module_has_a_place_and_every_place_a_module():
    assert LAYOUT.modules() == set(FILES)


def test_the_root_holds_twelve_doors():
    folders = {name for name in LAYOUT.entries[""] if name in LAYOUT.entries}
    files = {"__init__", "__main__", "errors"}
    assert {module.split("/")[0] for module in FILES} == folders | files
    assert len(folders) == 11


def test_imports_point_down():
    assert upward(imports_of(FILES), LAYOUT) == []


def test_no_modules_import_each_other():
    assert circles(imports_of(FILES)) == []


def test_common_stays_small():
    assert len([module for module in FILES if is_within(module, "common")]) <= 7 + 1


def public_names() -> dict[str, list[str]]:
    """Return where each public class and function at the top of a module is defined."""
    found: dict[str, list[str]] = {}
    for module, path in FILES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(module)
    return found


def test_a_name_stands_for_one_thing():
    """A command is named as what it calls; back ends and views each have the one function."""
    for name, modules in public_names().items():
        once = [module for module in modules if module != f"cli/{name}"]
        if name not in {"quantize", "render", "main"}:
            assert len(once) <= 1, f"{name}: {modules}"


@pytest.mark.parametrize("module", FILES)
def test_heavy_libraries_stay_where_models_are(module):
    """`provenance` may ask a GPU for its name, inside a function."""
    if not any(is_within(module, place) for place in MAY_USE_TORCH):
        inside = module != "record/provenance"
        assert not third_parties(module, inside_functions=inside) & HEAVY


def test_a_backends_library_is_imported_only_in_its_own_file():
    users = [module for module in FILES if "llmcompressor" in third_parties(module)]
    assert users == ["quantize/backends/llmcompressor"]


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = (
        "import sys; sys.argv = ['quantdraft', '--help']\n"
        "from quantdraft.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY | {'numpy', 'pydantic'}!r}))"
    )
    seconds = []
    for _ in range(3):
        started = children_seconds()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(children_seconds() - started)
    assert done.stdout.strip().endswith("[]")
    assert min(seconds) < 0.5


def children_seconds() -> float:
    """Processor time of the processes that ended: what a busy machine leaves as it is."""
    spent = os.times()
    return spent.children_user + spent.children_system
