"""The device of a process, on machines that are made up: no GPU is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.tensors import devices
from quantdraft.checkpoints.tensors.devices import (
    VISIBLE,
    device_key,
    driver_version,
    has_gpu_for_servers,
    hidden_gpus,
    pick_device,
    pick_dtype,
)
from quantdraft.checkpoints.tensors.loading import load_model
from quantdraft.engines.vllm.server import vllm_variables
from quantdraft.errors import CheckpointError, OptionError
from quantdraft.measure.latency.loaded import float_types
from tests.conftest import Pair

CUDA = torch.device("cuda")
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes a machine up: what it has, and what torch sees of it by CUDA_VISIBLE_DEVICES."""
    monkeypatch.setattr(devices, "DEVICE_FILES", tmp_path)
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    for state in (devices._ONE_OF, devices._SAID, devices._TOUCHED):
        monkeypatch.setattr(devices, _name_of(state), type(state)())

    def make(
        num_gpus: int,
        visible: str | None = None,
        driver: str = "580.65.06",
        build: str | None = "13.0",
        said: str | None = None,
        capability: tuple[int, int] = (9, 0),
    ) -> None:
        for number in range(num_gpus):
            (tmp_path / f"nvidia{number}").touch()
        (tmp_path / "version").write_text(
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Mon Sep  1\nGCC version:\n"
        )
        works = build is not None and said is None

        def is_available() -> bool:
            if said is not None:
                warnings.warn(said, stacklevel=1)
            return works and bool(devices.visible_gpus())

        if visible is None:
            monkeypatch.delenv(VISIBLE, raising=False)
        else:
            monkeypatch.setenv(VISIBLE, visible)
        monkeypatch.setattr(torch.version, "cuda", build)
        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus if works else 0)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return make


def _name_of(state: object) -> str:
    return next(
        name for name in ("_ONE_OF", "_SAID", "_TOUCHED") if getattr(devices, name) is state
    )


def visible_to_a_child() -> str:
    code = f"import os; print(os.environ.get({VISIBLE!r}))"
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("visible", "index", "alone"),
    [
        (None, 2, "2"),
        ("3,1,0", 1, "1"),
        (" 3 , 1", 1, "1"),
        ("GPU-8932f937-d72c,GPU-0000", 1, "GPU-0000"),
        ("MIG-41b36384-4d3b,MIG-5f2c", 0, "MIG-41b36384-4d3b"),
        ("1,-1,2", 0, "1"),
    ],
)
def test_the_named_gpu_is_the_only_one_here_and_in_children(machine, visible, index, alone) -> None:
    machine(4, visible)
    assert pick_device(f"cuda:{index}") == CUDA  # the first of those that are visible: no index
    assert visible_to_a_child() == alone
    assert vllm_variables(Path("/vllm"), "cuda")[VISIBLE] == alone
    assert pick_device(f"cuda:{index}") == CUDA  # a second time: still of all that was visible
    assert device_key(CUDA) == f"cuda of {alone}"


@pytest.mark.parametrize(
    ("visible", "said"),
    [
        (None, "--device cuda:4: the GPUs here are cuda:0, cuda:1, cuda:2. Use one of them."),
        ("1,0", "the GPUs here are cuda:0, cuda:1, by CUDA_VISIBLE_DEVICES=1,0. Use one"),
        ("1,-1,2,0,3", "the GPUs here are cuda:0, by CUDA_VISIBLE_DEVICES=1,-1,2,0,3."),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(machine, visible, said) -> None:
    machine(3, visible)
    with pytest.raises(OptionError) as error:
        pick_device("cuda:4")
    assert said in str(error.value)
    assert visible_to_a_child() == str(visible)


def test_the_choice_may_change_until_cuda_has_started(machine, monkeypatch) -> None:
    machine(2)
    devices._show_only(0)
    devices._show_only(1)
    assert visible_to_a_child() == "1"
    assert pick_device("cuda:1") == CUDA
    with pytest.raises(OptionError, match=f"has started CUDA on another GPU.*{VISIBLE}=0"):
        pick_device("cuda:0")
    assert visible_to_a_child() == "1"


def test_a_process_that_has_started_cuda_itself_keeps_its_first_gpu(machine, monkeypatch) -> None:
    machine(2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert pick_device("cuda:0") == CUDA
    with pytest.raises(OptionError, match="has started CUDA on another GPU"):
        pick_device("cuda:1")


def test_without_an_index_nothing_is_hidden(machine) -> None:
    machine(2)
    assert pick_device() == pick_device("cuda") == CUDA
    assert visible_to_a_child() == "None"


def test_quantizing_on_the_cpu_hides_the_gpus_and_shows_them_again(machine) -> None:
    machine(2, "1")
    with hidden_gpus():
        assert visible_to_a_child() == ""
        assert not torch.cuda.is_available()
    assert visible_to_a_child() == "1"


def test_gpus_that_a_process_uses_cannot_be_hidden(machine, monkeypatch) -> None:
    machine(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # whatever the variable says
    with pytest.raises(OptionError, match="would calibrate on the GPU"), hidden_gpus():
        pass
    assert visible_to_a_child() == "None"


def test_a_process_that_hid_its_gpus_says_so(machine, capsys, monkeypatch) -> None:
    machine(1)
    with hidden_gpus():
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA started without any
    with pytest.raises(OptionError, match="hid its GPUs to quantize on the CPU"):
        pick_device("cuda")


OLD = "the GPU's driver 550.54.15 is too old for CUDA 13.0 of torch"
SAID = "CUDA initialization: CUDA unknown error. (Triggered internally at x.cpp:1)"
UNSEEN = [
    ({"driver": "550.54.15", "said": "x"}, OLD),
    ({"driver": "470.1", "said": "x", "build": "12.6"}, "too old for CUDA 12.6 of torch"),
    (
        {"driver": "550.54.15", "said": SAID, "build": "12.6"},
        "CUDA unknown error. See `nvidia-",
    ),
    ({"build": None}, f"torch {torch.__version__} is a build without CUDA: install one of https"),
]


def test_a_gpu_that_the_users_list_names_and_the_machine_lacks_is_named(
    machine, monkeypatch
) -> None:
    machine(1, "0,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ[VISIBLE] != "5")
    with pytest.raises(OptionError, match="torch sees no GPU, by CUDA_VISIBLE_DEVICES=5, though"):
        pick_device("cuda:1")


@pytest.mark.parametrize(("facts", "said"), UNSEEN)
def test_a_gpu_that_torch_does_not_see_is_told_with_what_to_do(
    machine, monkeypatch, facts, said
) -> None:
    machine(1, **facts)
    told: list[str] = []
    monkeypatch.setattr(devices, "say", told.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick_device() == pick_device() == torch.device("cpu")
    (line,) = told  # once
    assert line.startswith("computing on the CPU: ")
    assert said in line
    assert "\n" not in line
    with pytest.raises(OptionError) as error:
        pick_device("cuda:0")
    assert said in str(error.value)
    assert str(error.value).endswith("Or use --device cpu.")
    assert has_gpu_for_servers()


def test_a_user_who_hides_the_gpus_hears_nothing_unless_he_asks_for_one(
    machine, monkeypatch
) -> None:
    machine(1, "")
    told: list[str] = []
    monkeypatch.setattr(devices, "say", told.append)
    assert pick_device() == torch.device("cpu")
    assert not told
    assert not has_gpu_for_servers()
    with pytest.raises(OptionError, match="VISIBLE_DEVICES='' hides every GPU"):
        pick_device("cuda")


def test_a_machine_without_a_gpu_says_only_that(machine, monkeypatch) -> None:
    machine(0)
    told: list[str] = []
    monkeypatch.setattr(devices, "say", told.append)
    assert pick_device() == torch.device("cpu")
    assert not told
    with pytest.raises(OptionError, match="cuda:1: this machine has no CUDA device"):
        pick_device("cuda:1")


OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"


@pytest.mark.parametrize(("text", "version"), [(OPEN, "580.65.06"), ("what\n", None), (None, None)])
def test_the_drivers_version_is_read_where_it_is_told(tmp_path, monkeypatch, text, version) -> None:
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert driver_version() == version


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_that_emulates_bfloat16_computes_in_float16(machine, capability, dtype) -> None:
    machine(1, capability=capability)
    assert pick_dtype("auto", CUDA) == dtype
    assert float_types(CUDA) == [dtype]
    assert f"torch.{devices.gpu_float_type()}" == str(dtype)
    assert pick_dtype("bfloat16", CUDA) == torch.bfloat16


def test_a_model_larger_than_the_gpu_is_refused_before_it_is_read(
    machine, tiny_pair: Pair, monkeypatch
) -> None:
    machine(1)
    num_bytes = open_checkpoint(tiny_pair.target).num_bytes // 2  # float32, loaded in 16 bits
    for name, value in {
        "mem_get_info": (num_bytes - 1000, num_bytes),
        "memory_reserved": 900,
        "memory_allocated": 500,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    with pytest.raises(CheckpointError) as error:
        load_model(tiny_pair.target, torch.bfloat16, CUDA)
    for part in ("target' does not fit: its weights take", "capture --target-url", "--no-latency"):
        assert part in str(error.value)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2000)
    devices.require_room("target", num_bytes, CUDA)


def test_memory_that_ends_while_a_model_is_loaded_is_said_as_such(
    tiny_pair: Pair, monkeypatch
) -> None:
    from quantdraft.checkpoints.tensors import loading

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loading, "_load_by_transformers", fail)
    with pytest.raises(CheckpointError, match=r"'target' does not fit: .*capture --target-url"):
        load_model(tiny_pair.target, torch.float32, torch.device("cpu"))
