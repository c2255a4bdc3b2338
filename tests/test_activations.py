"""sigmoid and tanh against exact values; `python tests/ulp.py` looks at every float32."""

import activation_tables
import numpy as np
import pytest
from ulp import ACTIVATIONS, LIMIT, errors32, sample64, worst32, worst64

from rnnfast import _core

by_name = pytest.mark.parametrize("name", ACTIVATIONS)
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])

# One float32 in 997, a prime: every sign and exponent (infinity and NaN among them), 8000 mantissas of each.
FLOAT32 = np.arange(0, 2**32, 997, dtype=np.uint64).astype(np.uint32).view(np.float32)


@by_name
def test_float32_is_within_the_limit_at_every_exponent(name: str) -> None:
    error, x = worst32(name, FLOAT32)
    assert error <= LIMIT, f"{error} ULP at {x!r}"


@by_name
def test_float32_is_within_the_limit_around_powers_of_two_and_of_e(name: str) -> None:
    # Where a formula changes its branch or its exponent: 64 floats on both sides.
    centres = np.concatenate([2.0 ** np.arange(-30, 8), np.arange(1, 300) * np.log(2) / 2]).astype(np.float32)
    bits = centres.view(np.uint32)[:, None] + np.arange(-64, 65).astype(np.uint32)
    x = bits.ravel().view(np.float32)
    error, worst = worst32(name, np.concatenate([x, -x]))
    assert error <= LIMIT, f"{error} ULP at {worst!r}"


@by_name
def test_float64_is_within_the_limit(name: str) -> None:
    error, x = worst64(name, sample64(6000))
    assert error <= LIMIT, f"{error} ULP at {x!r}"


@by_name
def test_float64_is_within_the_limit_where_one_entry_of_a_table_follows_the_other(name: str) -> None:
    # Halfway between multiples of ln 2 / 8, and of the steps that tables of tanh have, 8 numbers on both sides.
    steps = [np.log(2) / 8, *(float(activation_tables.tanh_step(tanh)) for tanh in activation_tables.TANHS)]
    centres = np.concatenate([(np.arange(40) + 0.5) * step for step in steps])
    x = (centres.view(np.int64)[:, None] + np.arange(-8, 9)).view(np.float64).ravel()
    error, worst = worst64(name, np.concatenate([x, -x]))
    assert error <= LIMIT, f"{error} ULP at {worst!r}"


@by_name
def test_results_stay_in_the_range(name: str) -> None:
    low, high = ACTIVATIONS[name].range
    for x in (FLOAT32[~np.isnan(FLOAT32)], sample64(400_000)):
        y = ACTIVATIONS[name].computed(x)
        assert y.min() == low
        assert y.max() == high


@by_dtype
def test_tanh_is_odd(dtype: str) -> None:
    x = FLOAT32[~np.isnan(FLOAT32)] if dtype == "float32" else sample64(400_000)
    np.testing.assert_array_equal(_core.tanh(-x), -_core.tanh(x))


ZERO_INF_NAN = (0.0, -0.0, np.inf, -np.inf, np.nan)
SPECIAL = {"sigmoid": (0.5, 0.5, 1.0, 0.0, np.nan), "tanh": (0.0, -0.0, 1.0, -1.0, np.nan)}


@by_dtype
@by_name
def test_special_values(name: str, dtype: str) -> None:
    y = ACTIVATIONS[name].computed(np.array(ZERO_INF_NAN, dtype))
    expected = np.array(SPECIAL[name], dtype)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y[:4]), np.signbit(expected[:4]))


@by_dtype
def test_subnormal_numbers_count_as_zero(dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.array([info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny / 2], dtype)
    x = np.concatenate([x, -x])
    np.testing.assert_array_equal(_core.sigmoid(x), np.full(6, 0.5, dtype))
    assert (np.abs(_core.tanh(x)) < info.tiny).all()


@by_dtype
@by_name
def test_a_number_gets_the_same_bits_wherever_it_stands(name: str, dtype: str) -> None:
    f = ACTIVATIONS[name].computed
    x = np.linspace(-20, 20, 131).astype(dtype)
    whole = f(x)
    for n in range(40):
        np.testing.assert_array_equal(f(x[n : n + 1]), whole[n : n + 1])
        np.testing.assert_array_equal(f(x[:n]), whole[:n])
    np.testing.assert_array_equal(f(x[::-3]), whole[::-3])
    np.testing.assert_array_equal(f(x[:130].reshape(2, 5, 13).T), whole[:130].reshape(2, 5, 13).T)


def test_the_measure_itself() -> None:
    tiny = np.finfo(np.float32).tiny
    ulp = 2.0**-23
    for computed, exact, error in (
        (1.0, 1.0, 0.0),
        (1 + ulp, 1.0, 1.0),
        (1 - ulp, 1.0, 1.0),
        (1.0, 1 - ulp / 4, 0.5),
        (0.0, tiny * (1 + ulp), 1.0),
        (tiny / 2, 0.0, 0.0),
        (tiny * (1 + ulp), tiny / 2, 2.0**22 + 1),
        (np.nan, np.nan, 0.0),
        (np.nan, 1.0, np.inf),
        (1.0, np.nan, np.inf),
    ):
        assert errors32(np.array([computed], np.float32), np.array([exact])) == error


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="the tables are made with numbers of 64 bits")
def test_tables_are_those_that_their_script_writes() -> None:
    assert activation_tables.HEADER.read_text(encoding="utf-8") == activation_tables.header()
