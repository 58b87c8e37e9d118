"""Which sizes of groups of integer weights the engines' kernels load, and for which matrices.

Read from vLLM 0.32 (model_executor/kernels/linear/mixed_precision: marlin.py, triton_w4a16.py,
cpu.py; compressed_tensors_w4a8_fp8.py), SGLang (layers/quantization/marlin_utils.py) and gptqmodel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from quantdraft.checkpoints.formats import WeightFormat

MARLIN = (32, 64, 128)
GPTQMODEL = (16, 32, 64, 128, 256, 512, 1024)
# Engine -> format, as `engines.support` names it -> sizes. Absent: any size. A whole row always.
_BY_MARLIN = dict.fromkeys(
    ("int4", "int8-weight-only", "gptq:int4", "gptq:int8-weight-only", "awq:int4"), MARLIN
)
LOADED: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "vllm": {**_BY_MARLIN, "int4-fp8": (128,)},
    "sglang": _BY_MARLIN,
    "transformers": {"gptq:int4": GPTQMODEL},
}
# Engines whose own kernels do not pad a matrix to Marlin's tiles; vLLM does since 0.32.
WHOLE_TILES = frozenset({"sglang"})
TITLES = {"vllm": "vLLM", "sglang": "SGLang", "transformers": "transformers"}
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up"}
FUSED |= {"up_proj": "gate_up"}
Shapes = Mapping[str, tuple[int, int]]  # module -> outputs and inputs


def format_name(fmt: WeightFormat | None) -> str:
    """Return the name that tables of support have for a format."""
    if fmt is None:
        return "dense"
    return f"gptq:{fmt.name}" if fmt.library == "gptq" else fmt.name


def group_problem(sizes: tuple[int, ...] | None, group_size: int | None) -> str | None:
    """Return why kernels of these sizes do not load groups of that one, None where they do."""
    if sizes is None or group_size in (None, -1, *sizes):
        return None
    *most, last = map(str, sizes)
    known = f"{', '.join(most)} or {last}" if most else last
    return f"its kernels load groups of {known}, not of {group_size}"


def tile_problem(shapes: Shapes) -> str | None:
    """Return the first matrix, stacked as engines stack them, that is no whole number of tiles.

    Marlin multiplies tiles of 64 outputs by 128 inputs, or of 128 by 64.
    """
    for module, (outputs, inputs) in _stacked(shapes):
        is_whole = outputs % 64 == 0 and inputs % 128 == 0
        if not is_whole and not (outputs % 128 == 0 and inputs % 64 == 0):
            return (
                f"its Marlin kernel has no tile for {outputs} outputs by {inputs} inputs "
                f"('{module}')"
            )
    return None


def loading_engines(fmt: WeightFormat, shapes: Shapes) -> str:
    """Return a clause that says which engines load a format in matrices of these sizes."""
    problems = {
        name: group_problem(LOADED.get(name, {}).get(format_name(fmt)), fmt.group_size)
        for name in TITLES
    }
    for name in WHOLE_TILES:
        problems[name] = problems[name] or tile_problem(shapes)
    loads = [TITLES[name] for name, problem in problems.items() if problem is None]
    lacks = [f"{TITLES[name]} does not: {problem}" for name, problem in problems.items() if problem]
    return "; ".join([f"{_joined(loads)} load{'s' * (len(loads) == 1)} it", *lacks])


def largest_group(widths: Iterable[int]) -> int | None:
    """Return the largest size of a group up to 128 that divides every width; None below 16."""
    known = list(widths)
    return next((g for g in (128, 64, 32, 16) if all(w % g == 0 for w in known)), None)


def _stacked(shapes: Shapes) -> Iterator[tuple[str, tuple[int, int]]]:
    sums: dict[str, tuple[int, int]] = {}
    for module, (outputs, inputs) in shapes.items():
        parent, _, own = module.rpartition(".")
        name = f"{parent}.{FUSED[own]}_proj" if own in FUSED else module
        sums[name] = (sums.get(name, (0, 0))[0] + outputs, inputs)
    yield from sums.items()


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
