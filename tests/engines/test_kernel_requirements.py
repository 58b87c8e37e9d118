"""Where Triton is installed and cannot launch, its kernels say so and the others do without it."""

from __future__ import annotations

import pytest
import torch

from quantdraft.checkpoints.tensors.unpacking import Unpacked
from quantdraft.engines.kernels import cuda, requirements
from quantdraft.errors import NoKernelError

NO_COMPILER = RuntimeError("Failed to find C compiler. Please specify via CC\nmore lines")


@pytest.fixture
def triton_launch(monkeypatch):
    """Installs a Triton whose launches do what it is given, and returns how many there were."""
    launches: list[int] = []

    def set_to(error: BaseException | None) -> list[int]:
        def launch() -> None:
            launches.append(1)
            if error is not None:
                raise error

        monkeypatch.setattr(requirements, "_launch_triton", launch)
        return launches

    monkeypatch.setattr(requirements, "find_spec", lambda name: name)
    requirements.triton_fault.cache_clear()
    yield set_to
    requirements.triton_fault.cache_clear()


def test_a_triton_without_a_compiler_says_what_it_needs_once(triton_launch):
    launches = triton_launch(NO_COMPILER)
    with pytest.warns(UserWarning, match=r"cannot launch a kernel here \(Failed .* via CC\)"):
        assert not requirements.has_triton()
    for _ in range(2):
        with pytest.raises(NoKernelError, match="it needs a C compiler, such as gcc"):
            requirements.triton_products()
    assert len(launches) == 1


def test_a_triton_that_launches_is_tried_once(triton_launch):
    launches = triton_launch(None)
    assert requirements.has_triton()
    assert requirements.has_triton()
    assert len(launches) == 1


def test_a_full_memory_is_no_fault_of_triton(triton_launch):
    triton_launch(torch.OutOfMemoryError("CUDA out of memory"))
    for _ in range(2):  # and is not remembered as one
        with pytest.raises(torch.OutOfMemoryError):
            requirements.has_triton()


@pytest.mark.parametrize("dtype", [torch.int8, cuda.FP8])
@pytest.mark.filterwarnings("ignore:Triton's kernels are not used")
def test_without_a_launch_the_libraries_round_by_torch(triton_launch, monkeypatch, dtype):
    """Tensors that say that they are on a GPU take its way; on "meta" nothing is computed."""
    triton_launch(NO_COMPILER)
    monkeypatch.setattr(cuda, "require_capability", lambda *_: None)
    kind = cuda.Int8CublasLinear if dtype == torch.int8 else cuda.Fp8Linear
    values = torch.zeros((256, 1024), dtype=dtype, device="meta")
    scale = torch.ones((256, 1), device="meta")
    kernel = kind(Unpacked(values, scale, None, None, None), None, torch.bfloat16)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert kernel(torch.zeros((1, 1024), dtype=torch.bfloat16, device="meta")).shape == (1, 256)
