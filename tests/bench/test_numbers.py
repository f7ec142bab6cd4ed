"""Numbers as they are shown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfpipe.bench.numbers import change, number, share


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.012"),
        (0.99951, "1.00"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (0, "0.000"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@given(st.floats(0, 1e12))
def test_numbers_are_short(value):
    assert len(number(value)) <= 9
    assert math.isclose(float(number(value).replace(",", "")), value, rel_tol=0.06, abs_tol=6e-4)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.009, "+0.9%"), (-0.012, "-1.2%"), (-0.0001, "0.0%"), (0, "0.0%"), (12_345.6, "+1e+06%"), (12.34, "+1,234%")],
)
def test_changes(value, text):
    assert change(value) == text


def test_shares():
    assert (share(0.02), share(0.005)) == ("2%", "0.5%")
