"""The Python API: its names, its types, its page; light until used, and silent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quantdraft as qd

ROOT = Path(qd.__file__).parent
PAGE = ROOT.parent / "docs" / "python.md"
COMMANDS = ("check", "capture", "apply", "evaluate", "compare", "select", "sweep", "bench")


def test_every_public_name_is_there_and_has_a_docstring():
    for name in qd.__all__:
        assert getattr(qd, name).__doc__, name
    assert {*COMMANDS, "plan", "export"} <= set(qd.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="evaluat"):
        qd.evaluat  # noqa: B018


def test_the_types_are_those_of_the_names():
    tree = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module.removeprefix("quantdraft.")
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert homes == qd._HOMES


def test_importing_loads_nothing_heavy_and_nothing_at_all_of_the_package():
    code = (
        "import sys, quantdraft; print(sorted(set(sys.modules) & {'torch', 'numpy', 'pydantic'}),"
        " [name for name in sys.modules if name.startswith('quantdraft.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.usefixtures("short_timing")
def test_the_page_runs_as_it_stands_and_prints_only_what_it_says(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M
    ):
        exec(compile(block, str(PAGE), "exec"), names)
    out, err = capfd.readouterr()
    assert set(err.splitlines()) == {"8 responses, 384 tokens, rule greedy"}  # what was asked for
    lines = out.splitlines()
    assert lines[0].startswith("8 responses, ")
    assert [line.split()[0] for line in lines[1:3]] == ["int8", "int4"]
    assert "no recipe 'fp9'" in lines[-1]
    assert (tmp_path / "work" / "comparison" / "report.html").is_file()


def test_functions_of_the_page_are_all_commands():
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `qd\.(\w+)` \|", page, re.M))
    assert named == {*COMMANDS, "plan", "export", "read_run"}
