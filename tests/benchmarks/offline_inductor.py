"""What torch's compiler makes of a function for a GPU, as source code, on a machine without one.

The function is traced on tensors without data (device "meta"), the traced operations are moved to a
device "cuda" that only says so, and inductor writes its code for it: lowering, fusion and Triton's
source, as on an H100. Nothing is compiled from that source and nothing runs. Needs no Triton.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

META, CUDA = torch.device("meta"), torch.device("cuda", 0)
H100 = {
    "major": 9,
    "multi_processor_count": 132,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "warp_size": 32,
}
# One launch a line: a kernel of inductor's, a product of cuBLAS, any other operator as it is.
LAUNCH = re.compile(
    r"^ +(?:\w+ = )?(triton_\w+\.run|extern_kernels\.\w+|(?:torch\.ops|aten)\.\S+)\("
)


class _Written(Exception):
    """The code is there: what follows would need a GPU."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code


def launches(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Return what a compiled call of a function launches, in order, by the names in its code."""
    found = (LAUNCH.match(line) for line in gpu_code(function, *arguments).splitlines())
    return [match[1].removesuffix(".run") for match in found if match]


def gpu_code(function: Callable[..., Any], *arguments: Any) -> str:
    """Return inductor's code for a call of a function on meta tensors, as if they were on a GPU."""
    from torch._dynamo.exc import BackendCompilerFailed

    torch._dynamo.reset()
    run = torch.compile(function, dynamic=True, fullgraph=True, backend=_backend())
    with _pretended_gpu(), torch.inference_mode():
        try:
            run(*arguments)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, _Written):
                return error.inner_exception.code
            raise
    raise AssertionError("inductor was not asked")


def _backend() -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    return aot_autograd(
        fw_compiler=_compile_for_gpu,
        inference_compiler=_compile_for_gpu,
        decompositions=select_decomp_table(),
        keep_inference_input_mutations=True,
    )


def _compile_for_gpu(graph: Any, inputs: Sequence[Any]) -> Any:
    """Move a traced graph to the GPU that is not there, and give it to inductor."""
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp
    from torch.utils._pytree import tree_map

    for node in graph.graph.nodes:
        node.args, node.kwargs = tree_map(_moved, (node.args, node.kwargs))
    fake = next(each.fake_mode for each in inputs if isinstance(each, Tensor))
    with fake:
        moved = [
            torch.empty_strided(each.size(), each.stride(), dtype=each.dtype, device=CUDA)
            if isinstance(each, Tensor) and each.device == META
            else each
            for each in inputs
        ]
        FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*moved)
    return compile_fx_inner(_recursive_joint_graph_passes(graph, CUDA), moved)


def _moved(argument: Any) -> Any:
    return CUDA if argument == META and isinstance(argument, torch.device) else argument


@contextmanager
def _pretended_gpu() -> Iterator[None]:
    """Answer inductor's questions about the GPU and Triton, and stop it at the written code."""
    import torch._inductor.compile_fx as compile_fx
    from torch._inductor import config, graph, scheduler
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.runtime.hints import DeviceProperties
    from torch.utils import _triton

    properties = DeviceProperties(type="cuda", index=0, cc=90, **H100)
    write = graph.GraphLowering.codegen

    def write_and_stop(lowering: Any) -> None:
        code = write(lowering)[0]
        raise _Written(getattr(code, "value", code))

    answers = [
        (DeviceProperties, "create", lambda device: properties),
        (torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(minor=0, **H100)),
        (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        (compile_fx, "_check_triton_bf16_support", lambda *_: None),
        (scheduler, "has_triton", lambda: True),
        (_triton, "triton_hash_with_backend", lambda: "none"),
        # Patterns of more operators, each registered by tracing an example on the device.
        (joint_graph, "lazy_init", lambda *_: None),
        (post_grad, "lazy_init", lambda *_: None),
        (graph.GraphLowering, "codegen", write_and_stop),
    ]
    changes = {
        "fx_graph_cache": False,
        "compile_threads": 1,
        "joint_graph_constant_folding": False,  # it computes on the device
    }
    with config.patch(changes), mock.patch.multiple(torch._dynamo.config, recompile_limit=64):
        patches = [mock.patch.object(*answer) for answer in answers]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
