"""The audit says what it looked up: a database that was not reached is no clean bill."""

from __future__ import annotations

import re
import runpy
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AUDIT = runpy.run_path(str(ROOT / ".ci" / "audit.py"), run_name="audit")
CLEAN = {"name": "click", "version": "8.5.1", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
ADVISORY = {"id": "PYSEC-2026-1", "fix_versions": ["2.7.0", "2.8.1"]}
VULNERABLE = {"name": "urllib3", "version": "2.6.0", "vulns": [ADVISORY]}


def dependencies() -> set[str]:
    """Names that pyproject.toml asks for, in any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {re.split(r"[^\w.-]", each)[0] for each in wanted} - {"quantdraft"}


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        ([], 3, "NOT AUDITED"),
        ([SKIPPED, SKIPPED], 3, "NOT AUDITED: the advisory database knew none of 2 packages"),
        ([CLEAN], 0, "1 of 1 pinned packages audited, 0 advisories."),
        (
            [CLEAN, SKIPPED],
            0,
            "1 of 2 pinned packages audited, 0 advisories; not found there: torch",
        ),
        ([CLEAN, VULNERABLE], 1, "2 of 2 pinned packages audited, 1 advisories."),
    ],
)
def test_the_exit_code_and_the_last_line_say_what_was_looked_up(found, code, line):
    given, lines = AUDIT["judged"](found)
    assert given == code
    assert line in lines[-1]


def test_an_advisory_is_named_with_the_versions_that_have_it_fixed():
    _, lines = AUDIT["judged"]([VULNERABLE])
    assert lines[0] == "urllib3 2.6.0: PYSEC-2026-1, fixed in 2.7.0, 2.8.1"


def test_every_dependency_is_pinned():
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = {_plain(line.split("==")[0]) for line in lines if "==" in line}
    assert {_plain(name) for name in dependencies()} - {"pip"} <= pinned
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_every_dependency_is_justified_in_one_line():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert not [name for name in dependencies() if f"`{name}`" not in text]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
