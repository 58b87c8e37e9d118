"""The C files are built once for a source, by the user's compiler, and nothing half-built stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from quantdraft.engines.kernels import c_library
from quantdraft.engines.kernels.operations import operations_fault

lacking = operations_fault()
if lacking is not None:
    pytest.skip(f"not offered on this machine: {lacking}", allow_module_level=True)


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "quantdraft"


@pytest.fixture
def small_sources(monkeypatch, tmp_path) -> Path:
    """A directory with one short C file, so that a build takes no time."""
    directory = tmp_path / "sources"
    directory.mkdir()
    (directory / "answer.h").write_text("#define ANSWER 41\n")
    (directory / "answer.c").write_text(
        '#include "answer.h"\nint answer(void) { return ANSWER; }\n'
    )
    monkeypatch.setattr(c_library, "DIRECTORY", directory)
    return directory


def test_without_a_compiler_the_reason_is_said(cache, monkeypatch):
    monkeypatch.setattr(c_library.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="no C compiler"):
        c_library._build()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ValueError, match="the C compiler failed"):
        c_library._build()
    assert not list(cache.iterdir())


def test_a_compilers_complaint_is_quoted(cache, small_sources):
    (small_sources / "answer.c").write_text("this is not C\n")
    with pytest.raises(ValueError, match=r"the C compiler failed: .*answer\.c"):
        c_library._build()
    assert not list(cache.iterdir())


def test_one_build_serves_until_a_source_or_a_header_changes(cache, small_sources, monkeypatch):
    first = c_library._build()
    monkeypatch.setenv("CC", "false")
    assert c_library._build() == first
    (small_sources / "answer.h").write_text("#define ANSWER 42\n")
    with pytest.raises(ValueError, match="the C compiler failed"):
        c_library._build()
    monkeypatch.setenv("CC", shutil.which("cc") or "gcc")
    assert c_library._build() != first
    assert len(list(cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_and_a_cpu_without_avx2_are_reasons(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="could not be built"):
        c_library._load_fastest.__wrapped__(None)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": False})
    with pytest.raises(ValueError, match="no AVX2"):
        c_library._load_fastest.__wrapped__(None)


def test_the_fastest_set_of_the_cpu_is_taken_unless_the_environment_names_another(monkeypatch):
    every = {name: True for each in c_library.INSTRUCTION_SETS.values() for name in each[0]}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: every | {"fma3": True})
    assert c_library.available_sets() == ["avx512", "avx_vnni", "avx2"]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "fma3": True})
    assert c_library.available_sets() == ["avx2"]
    assert c_library._load_fastest.__wrapped__(None)[0] == "avx2"
    monkeypatch.setenv(c_library.VARIABLE, "avx10")
    with pytest.raises(ValueError, match="this CPU has no avx10"):
        c_library.instruction_set()
    monkeypatch.setenv(c_library.VARIABLE, "avx2")
    assert c_library.instruction_set() == "avx2"


def test_a_compiler_that_does_not_know_a_set_builds_the_next(monkeypatch):
    unknown = c_library.InstructionSet(("avx2",), ("-mno-such-instructions",))
    avx2 = c_library.INSTRUCTION_SETS["avx2"]
    monkeypatch.setattr(c_library, "INSTRUCTION_SETS", {"newest": unknown, "avx2": avx2})
    assert c_library._load_fastest.__wrapped__(None)[0] == "avx2"
    monkeypatch.setattr(c_library, "INSTRUCTION_SETS", {"newest": unknown})
    with pytest.raises(ValueError, match="the C compiler failed"):
        c_library._load_fastest.__wrapped__(None)
