"""Compile Triton's products for several GPUs, without one, and print what their code costs.

    .venv-triton/bin/python -m tests.benchmarks.triton_code [--arch 90] [--json]

Instructions a byte: those that a thread issues in one pass of the loop over the weight, for each
byte of weight that it multiplies there. A count of machine code (SASS), no measurement: how long an
instruction takes and waits is not in it, nor what comes before the loop and after.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

ARCHS = (80, 89, 90, 100)
THREADS = 32
# What each argument is. Pointers and sizes are multiples of 16, as the engine pads them.
TYPES = {"step_at": "*fp32", "halves_at": "*u8", "zero_at": "*i8", "out_at": "*bf16"}
WIDTHS = {"U8", "S8", "U16", "S16", "64", "128"}
LOAD = re.compile(r"\bLDG(?:STS)?\.\S*")


@dataclass(frozen=True)
class Case:
    """One specialization of a kernel, as the engine launches it."""

    name: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, Any]
    weight_bytes: int  # that one program multiplies in one pass of its loop; 0: it reads no weight
    min_arch: int = 80
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Code:
    """What one case is compiled to."""

    name: str
    arch: int
    registers: int  # of a thread
    stack_bytes: int  # of a thread: what was spilled
    shared_bytes: int  # of a program
    loop_instructions: int  # of the loop over the weight, the longest loop
    instructions_a_byte: float | None
    loads: dict[str, int]  # of that loop, from global memory, by their bits


def byte_case(fmt: str, rows: int, outputs: int) -> Case:
    """A bf16 or 8-bit product of so many rows and outputs."""
    from quantdraft.engines.kernels.triton_products import byte_tile

    item_bytes = 2 if fmt == "bf16" else 1
    tile = byte_tile(rows, outputs, item_bytes)
    num_warps, num_stages = tile.pop("num_warps"), tile.pop("num_stages")
    values = {"fp8": "*fp8e4nv", "bf16": "*bf16"}.get(fmt, "*i8")
    is_weight_only = fmt in {"int8-weight-only", "bf16"}
    return Case(
        f"{fmt}, {tile['block_rows']} rows, {tile['block_outputs']} outputs",
        "_byte_product",
        {
            "x_at": "*bf16" if is_weight_only else values,
            "values_at": values,
            "scale_at": "*bf16" if fmt == "int8-weight-only" else "*fp32",
        },
        {"rounds_inputs": not is_weight_only, "is_int8": values == "*i8", **tile},
        tile["block_outputs"] * tile["num_slices"] * tile["slice_columns"] * item_bytes,
        89 if fmt == "fp8" else 80,
        num_warps,
        num_stages,
    )


def nibble_case(group_size: int, has_zero: bool) -> Case:
    """A 4-bit product in groups."""
    from quantdraft.engines.kernels import triton_products as products

    groups = max(1, products.BLOCK_GROUP_BYTES // group_size)
    constants = {"has_zero": has_zero, "group_size": group_size, "block_groups": groups}
    return Case(
        f"int4, groups of {group_size}, {'with zeros' if has_zero else 'symmetric'}",
        "_nibble_product",
        {"x_at": "*bf16", "scale_at": "*bf16"} | ({} if has_zero else {"zero_at": "*bf16"}),
        constants | {"block_rows": products.BLOCK_ROWS},
        products.BLOCK_ROWS * groups * group_size,
    )


def rounding_case(fmt: str) -> Case:
    """The rounding of inputs."""
    from quantdraft.engines.kernels.triton_products import BLOCK_COLUMNS

    rounded = "*i8" if fmt == "int8" else "*fp8e4nv"
    constants = {"is_int8": fmt == "int8", "block_columns": BLOCK_COLUMNS}
    arch = 80 if fmt == "int8" else 89
    types = {"x_at": "*bf16", "rounded_at": rounded}
    return Case(f"rounding to {fmt}", "_rounded_rows", types, constants, 0, arch)


def all_cases() -> list[Case]:
    """Every product as the engine launches it: one row or many, few outputs or a head's."""
    formats = ("int8", "fp8", "int8-weight-only", "bf16")
    cases = [byte_case(fmt, *size) for fmt in formats for size in ((1, 2048), (16, 2048))]
    cases += [byte_case(fmt, *size) for fmt in formats for size in ((1, 128256), (16, 128256))]
    cases += [nibble_case(*each) for each in ((128, False), (128, True), (32, False))]
    return [*cases, rounding_case("int8"), rounding_case("fp8")]


def compile_case(case: Case, arch: int) -> Code:
    """Compile a case for a GPU, and read its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from quantdraft.engines.kernels import triton_products

    kernel = getattr(triton_products, case.kernel)
    types = TYPES | case.types
    signature = {
        name: "constexpr" if name in case.constants else types.get(name, "i32")
        for name in kernel.arg_names
    }
    # A number of rows may be any; the others are what the engine pads.
    divisible = [
        (index,)
        for index, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and name not in {"num_rows", "num_groups"}
    ]
    source = ASTSource(
        kernel, signature, case.constants, {at: [["tt.divisibility", 16]] for at in divisible}
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return read_code(case, arch, compiled.asm["cubin"], compiled.metadata.shared)


def read_code(case: Case, arch: int, cubin: bytes, shared_bytes: int) -> Code:
    """Return what a kernel's binary needs and does."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool("cuobjdump", "-res-usage", file.name)
        listing = tool("nvdisasm", "-c", file.name)
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    loop = longest_loop(listing)
    thread_bytes = case.weight_bytes / (case.num_warps * THREADS)
    return Code(
        case.name,
        arch,
        registers,
        stack,
        shared_bytes,
        len(loop),
        round(len(loop) / thread_bytes, 2) if thread_bytes else None,
        count_loads(loop),
    )


def tool(name: str, *arguments: str) -> str:
    """Run one of the programs that triton brings along, and return what it prints."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def longest_loop(listing: str) -> list[str]:
    """Return the instructions of the longest loop: from a label to the jump back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    longest: list[str] = []
    for line in listing.splitlines():
        if found := re.match(r"\s*(\.L_x_\d+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(found[1])
            jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", found[1])
            # A jump to itself ends every kernel, and waits for nothing.
            start = labels.get(jump[1], len(instructions)) if jump else len(instructions)
            if len(instructions) - start > max(1, len(longest)):
                longest = instructions[start:]
    return longest


def count_loads(loop: list[str]) -> dict[str, int]:
    """Count loads from global memory by their bits."""
    counts: dict[str, int] = {}
    for instruction in loop:
        if found := LOAD.search(instruction):
            parts = found[0].split(".")
            bits = next((part.lstrip("US") for part in parts if part in WIDTHS), "32")
            counts[bits] = counts.get(bits, 0) + 1
    return counts


def table(codes: list[Code]) -> str:
    """Return the codes as a Markdown table."""
    lines = [
        "| product | sm | registers | stack, bytes | shared, bytes | loop | instructions a byte |",
        "|---|---|---|---|---|---|---|",
    ]
    for code in codes:
        a_byte = "–" if code.instructions_a_byte is None else f"{code.instructions_a_byte:.2f}"
        numbers = (code.registers, code.stack_bytes, code.shared_bytes, code.loop_instructions)
        middle = " | ".join(f"{number}" for number in numbers)
        lines.append(f"| {code.name} | {code.arch} | {middle} | {a_byte} |")
    return "\n".join(lines)


@click.command()
@click.option(
    "--arch", "archs", type=int, multiple=True, default=ARCHS, help="Capability, 90: 9.0."
)
@click.option("--json", "is_json", is_flag=True, help="Print a list instead of a table.")
def main(archs: tuple[int, ...], is_json: bool) -> None:
    """Compile every product, and print what its code costs."""
    codes = [
        compile_case(case, arch) for case in all_cases() for arch in archs if arch >= case.min_arch
    ]
    click.echo(json.dumps([asdict(code) for code in codes], indent=1) if is_json else table(codes))


if __name__ == "__main__":
    main()
