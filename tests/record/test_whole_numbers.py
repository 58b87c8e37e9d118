"""The numbers stay what they are; equal small ones are one object."""

import math

import numpy as np

from quantdraft.record.terms import compact


def test_numbers_stay_what_they_are() -> None:
    values = [0.0, 3.0, 2.5, 4095.0, 4096.0, -1.0, 1e300, math.inf]
    assert compact(values) == tuple(values)
    assert math.isnan(compact([math.nan])[0])
    assert all(type(each) is float for each in compact(np.array(values).tolist()))


def test_equal_whole_numbers_are_one_object() -> None:
    one, other = compact(np.array([7.0, 7.0]).tolist())
    assert one is other
