"""The roofline by a clock that is known, and what follows from it."""

from __future__ import annotations

import pytest
import torch

from quantdraft.measure.latency import roofline
from quantdraft.measure.latency.roofline import default_dtypes, measure_roofline
from quantdraft.record import Roofline
from tests.clock import Clock

CPU = torch.device("cpu")
SMALL = 8 << 20


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(roofline, "BUFFER_BYTES", {"cpu": SMALL})


def test_a_copy_counts_what_is_read_and_what_is_written(small, monkeypatch):
    monkeypatch.setattr(roofline, "_seconds", lambda work, device: 0.5)
    found = measure_roofline(CPU, ["float32"])
    assert found.copy_bytes_per_s == 2 * SMALL / 0.5
    assert found.read_bytes_per_s == SMALL / 0.5
    assert found.matrix_flops_per_s == {"float32": 2 * roofline.FIRST_SIZE**3 / 0.5}
    assert found.buffer_bytes == SMALL


def test_the_faster_way_of_reading_is_the_limit_and_the_best_pass_counts(small, monkeypatch):
    seconds = iter([*[4.0] * 12, *[3.0] * 12, *[2.0] * 11, 1.0])  # copies, sums, products
    monkeypatch.setattr(roofline, "_seconds", lambda work, device: next(seconds))
    monkeypatch.setattr(roofline, "_matrix_rate", lambda name, device: None)
    found = measure_roofline(CPU)
    assert found.copy_bytes_per_s == 2 * SMALL / 4.0
    assert found.read_bytes_per_s == SMALL
    assert len(found.read_samples_bytes_per_s) == roofline.NUM_PASSES


def test_sizes_grow_until_the_next_would_take_too_long(monkeypatch):
    asked = []

    def product(name, size, device):
        asked.append(size)
        return lambda: None

    # A product of 128 takes 1 ms and each size 8 times the last. 4 of 8 ms fit into 0.8 s, 4 of
    # 64 ms (0.256 s) too, 4 of 512 ms do not.
    monkeypatch.setattr(roofline, "_square_product", product)
    monkeypatch.setattr(roofline, "_seconds", lambda work, device: 0.001 * 8 ** (len(asked) - 1))
    rate = roofline._matrix_rate("float32", CPU)
    assert asked == [128, 256, 512]
    assert rate == pytest.approx(2 * 128**3 / 0.001)


@pytest.mark.parametrize("fails_from", [None, 512])
def test_a_first_call_that_loads_a_library_ends_no_search_and_a_late_fault_keeps_the_rate(
    monkeypatch, fails_from
):
    clock, asked = Clock(), []

    def product(name, size, device):
        asked.append(size)

        def work():
            if fails_from is not None and size >= fails_from:
                raise RuntimeError("no such product")
            clock.sleep(0.9 if asked.count(size) == 1 and not called else 0.001)
            called.append(size)

        called: list[int] = []
        return work

    monkeypatch.setattr(roofline, "time", clock)
    monkeypatch.setattr(roofline, "_square_product", product)
    rate = roofline._matrix_rate("bfloat16", CPU)
    assert asked[:3] == [128, 256, 512]
    assert rate == pytest.approx(2 * (256 if fails_from else 2048) ** 3 / 0.001)


def test_products_are_of_random_numbers(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda left, right: (left, right))
    for operand in roofline._square_product("float32", 64, CPU)():
        assert len(operand.unique()) > 1000


def test_a_type_without_a_product_is_left_out(small):
    found = measure_roofline(CPU, ["float8", "float32"])
    assert set(found.matrix_flops_per_s) == {"float32"}
    assert found.copy_bytes_per_s > 0
    assert default_dtypes(CPU) == ("float32", "bfloat16", "int8")


def test_every_default_type_of_a_cpu_has_a_product(monkeypatch):
    monkeypatch.setattr(roofline, "LAST_SIZE", {"cpu": 128})
    assert all(roofline._matrix_rate(name, CPU) for name in default_dtypes(CPU))


def test_fraction_and_limit_of_a_step():
    roof = Roofline(40e9, 30e9, {})
    assert roof.limit_ms(2e9) == pytest.approx(50.0)
    assert roof.bandwidth_fraction(2e9, 200.0) == pytest.approx(0.25)


@pytest.mark.gpu
def test_a_gpu_reads_faster_than_its_host():
    found = measure_roofline(torch.device("cuda"))
    assert found.copy_bytes_per_s > measure_roofline(CPU, ["float32"]).copy_bytes_per_s
    assert found.matrix_flops_per_s["bfloat16"] > 1e12
