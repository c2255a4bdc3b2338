"""Packing: nothing is lost, nothing of the padding leaks, torch agrees; batches of like lengths hold all, once."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import Array

import rnnfast
from rnnfast import PackedSequence, length_bucketed_batches, pack_padded, pad_packed
from rnnfast._base.packed import checked_packed, rows

rf: Any = rnnfast  # these calls are not what the types allow

LENGTHS = {
    "equal": [4, 4, 4],
    "rising": [1, 2, 3, 4],
    "falling": [5, 3, 1],
    "mixed": [2, 5, 2, 1, 5],
    "zeros": [0, 3, 0, 2],
    "none": [0, 0],
    "one": [6],
    "no_sequences": [],
}
DTYPES = ("float32", "float64", "int64", "uint8", "bool", ">f4")

by_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
by_layout = pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
ragged_lengths = st.lists(st.integers(0, 9), max_size=12)


def make_padded(lengths: list[int], dtype: str = "float64", features: tuple[int, ...] = (3,), more: int = 0) -> Array:
    """Return x [T,B,*] with the numbers from 1 up, and 0 in the padding, of which there are `more` steps."""
    T, B = max(lengths, default=0) + more, len(lengths)
    x = np.arange(1, 1 + T * B * int(np.prod(features))).reshape(T, B, *features)
    x[np.arange(T)[:, None] >= np.array(lengths, int)] = 0
    return x.astype(dtype)


def swap(x: Array, batch_first: bool) -> Array:
    return x.swapaxes(0, 1) if batch_first else x


def assert_same(a: Array, b: Array) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert np.array_equal(a, b)


# Packing and back


@by_layout
@by_dtype
@by_lengths
@pytest.mark.parametrize("features", [(3,), (), (2, 3)], ids=str)
def test_there_and_back(lengths: list[int], dtype: str, features: tuple[int, ...], batch_first: bool) -> None:
    x = swap(make_padded(lengths, dtype, features, more=2), batch_first)
    packed = pack_padded(x, lengths, batch_first=batch_first)
    assert packed.data.shape == (sum(lengths), *features)
    again, n = pad_packed(packed, batch_first=batch_first, total_length=x.shape[1 if batch_first else 0])
    assert_same(again, x)
    assert_same(n, np.array(lengths, np.int64))


def test_a_packed_sequence_is_pickled_by_its_public_name() -> None:
    packed = pack_padded(np.zeros((3, 2)), [3, 1])
    data = pickle.dumps(packed)
    assert b"rnnfast.ragged" in data
    again = pickle.loads(data)
    assert type(again) is PackedSequence
    assert_same(pad_packed(again)[0], pad_packed(packed)[0])


@given(ragged_lengths)
def test_packed_rows_are_the_steps_of_the_longest_first(lengths: list[int]) -> None:
    x = make_padded(lengths)
    data, batch_sizes, sorted_indices, unsorted_indices = pack_padded(x, lengths)
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    running = [[b for b in order if lengths[b] > t] for t in range(len(x))]
    assert sorted_indices.tolist() == order
    assert sorted_indices[unsorted_indices].tolist() == unsorted_indices[sorted_indices].tolist() == sorted(order)
    assert batch_sizes.tolist() == [len(bs) for bs in running]
    assert data.tolist() == [x[t, b].tolist() for t, bs in enumerate(running) for b in bs]


@by_layout
@given(lengths=ragged_lengths, more=st.integers(0, 3))
def test_row_numbers_are_those_of_the_layout(batch_first: bool, lengths: list[int], more: int) -> None:
    x = make_padded(lengths, more=more)
    numbers, batch_sizes, order = rows(np.array(lengths, np.int64), len(x), batch_first=batch_first)
    packed = pack_padded(x, lengths)
    laid_out = np.ascontiguousarray(swap(x, batch_first)).reshape(len(x) * len(lengths), 3)
    assert_same(laid_out[numbers], packed.data)
    assert_same(batch_sizes, packed.batch_sizes)
    assert_same(order, packed.sorted_indices)


@by_layout
@by_lengths
def test_padding_is_neither_read_nor_kept(lengths: list[int], batch_first: bool) -> None:
    x = make_padded(lengths, more=1)
    padding = np.arange(len(x))[:, None] >= np.array(lengths, int)
    spoiled = np.where(padding[..., None], np.nan, x)
    packed = pack_padded(swap(spoiled, batch_first), lengths, batch_first=batch_first)
    assert_same(packed.data, pack_padded(x, lengths).data)
    again, _ = pad_packed(packed, total_length=len(x))
    assert_same(again, x)


@by_layout
def test_any_layout_of_x_packs_alike(batch_first: bool) -> None:
    lengths = LENGTHS["mixed"]
    x = make_padded(lengths)
    expected = pack_padded(x, lengths)
    wide = np.repeat(np.repeat(np.repeat(x, 2, 0), 3, 1), 2, 2)[::2, ::3, ::2]
    for a in (wide, np.asfortranarray(x), x[::-1][::-1]):
        assert_same(pack_padded(swap(a, batch_first), lengths, batch_first=batch_first).data, expected.data)


def test_packing_copies() -> None:
    x = make_padded([3, 3])
    packed = pack_padded(x, [3, 3])
    again, _ = pad_packed(packed)
    assert not np.shares_memory(packed.data, x)
    assert not np.shares_memory(again, packed.data)


@pytest.mark.parametrize("kind", [list, tuple, np.int8, np.uint8, np.int32, np.uint64])
def test_lengths_are_integers_of_any_kind(kind: Callable[[Any], Any]) -> None:
    lengths = LENGTHS["mixed"]
    x = make_padded(lengths)
    assert_same(pack_padded(x, kind(lengths)).data, pack_padded(x, np.array(lengths)).data)


@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", -1.5), ("float64", np.nan), ("float32", np.inf), ("int64", -100), ("uint8", 255.0)]
)
def test_the_fill_stands_beyond_each_end(dtype: str, fill: float) -> None:
    lengths = LENGTHS["zeros"]
    x = make_padded(lengths, dtype, more=2)
    x[np.arange(len(x))[:, None] >= np.array(lengths)] = fill
    again, _ = pad_packed(pack_padded(x, lengths), total_length=len(x), fill=fill)
    np.testing.assert_array_equal(again, x)


def test_either_index_says_the_other() -> None:
    lengths = LENGTHS["zeros"] + LENGTHS["rising"]
    packed = pack_padded(make_padded(lengths), lengths)
    for part in ("sorted_indices", "unsorted_indices"):
        for a, b in zip(checked_packed(packed._replace(**{part: None}), "packed"), packed, strict=True):
            assert_same(a, b)


def test_without_indices_the_sequences_are_in_the_order_of_their_places() -> None:
    lengths = LENGTHS["falling"]
    x = make_padded(lengths)
    data, batch_sizes, *_ = pack_padded(x, lengths)
    assert_same(pad_packed(PackedSequence(data, batch_sizes))[0], x)


def test_any_order_among_equal_lengths_is_right() -> None:
    lengths = [2, 3, 2, 3]
    x = make_padded(lengths)
    order = np.array([3, 1, 0, 2])
    data, batch_sizes, *_ = pack_padded(x[:, order], [lengths[b] for b in order])
    again, n = pad_packed(PackedSequence(data, batch_sizes, order))
    assert_same(again, x)
    assert n.tolist() == lengths


# Beside torch


@by_layout
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), more=st.integers(0, 3))
def test_packed_is_what_torch_packs(batch_first: bool, lengths: list[int], more: int) -> None:
    torch = pytest.importorskip("torch")
    x = swap(make_padded(lengths, "float32", more=more), batch_first)
    ours = pack_padded(x, lengths, batch_first=batch_first)
    # Among equal lengths torch promises no order, so that it is handed ours.
    in_order = torch.from_numpy(x).index_select(0 if batch_first else 1, torch.from_numpy(ours.sorted_indices))
    n = torch.tensor([lengths[b] for b in ours.sorted_indices])
    theirs = torch.nn.utils.rnn.pack_padded_sequence(in_order, n, batch_first)
    assert_same(ours.data, theirs.data.numpy())
    assert_same(ours.batch_sizes, theirs.batch_sizes.numpy())


@by_layout
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), more=st.integers(0, 3))
def test_each_pads_what_the_other_packs(batch_first: bool, lengths: list[int], more: int) -> None:
    torch = pytest.importorskip("torch")
    utils = torch.nn.utils.rnn
    x = swap(make_padded(lengths, "float32", more=more), batch_first)
    T = x.shape[1 if batch_first else 0]
    tensors = map(torch.from_numpy, pack_padded(x, lengths, batch_first=batch_first))
    theirs, n = utils.pad_packed_sequence(utils.PackedSequence(*tensors), batch_first, total_length=T)
    assert_same(theirs.numpy(), x)
    assert n.tolist() == lengths
    packed = utils.pack_padded_sequence(torch.from_numpy(x), n, batch_first, enforce_sorted=False)
    ours, n = pad_packed(PackedSequence(*packed), batch_first=batch_first, total_length=T)
    assert_same(ours, x)
    assert n.tolist() == lengths


# Batches of like lengths

some_lengths = st.lists(st.integers(0, 500), max_size=200)


@given(
    lengths=some_lengths,
    batch_size=st.integers(1, 20),
    bucket=st.integers(1, 10),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_sequence_is_in_one_batch(
    lengths: list[int], batch_size: int, bucket: int, shuffle: bool, seed: int
) -> None:
    batches = length_bucketed_batches(lengths, batch_size, shuffle=shuffle, rng=seed, bucket=bucket)
    assert sorted(n for batch in batches for n in batch.tolist()) == list(range(len(lengths)))
    sizes = sorted(map(len, batches))
    assert all(n == batch_size for n in sizes[1:])
    assert all(0 < n <= batch_size for n in sizes)
    for batch in batches:
        assert np.array_equal(batch, batch[np.argsort(-np.array(lengths)[batch], kind="stable")])


@given(lengths=some_lengths, batch_size=st.integers(1, 20), shuffle=st.booleans(), seed=st.integers(0, 99))
def test_in_a_bucket_no_batch_reaches_into_another(
    lengths: list[int], batch_size: int, shuffle: bool, seed: int
) -> None:
    batches = length_bucketed_batches(lengths, batch_size, shuffle=shuffle, rng=seed, bucket=200)
    n = [[lengths[k] for k in batch] for batch in batches]
    ends = [
        end for batch in (sorted(n, key=lambda batch: (-max(batch), -min(batch))) if shuffle else n) for end in batch
    ]
    assert ends == sorted(lengths, reverse=True)


def test_batches_are_drawn_anew_unless_seeded() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    rng = np.random.default_rng(1)

    def drawn(**options: Any) -> list[list[int]]:
        return [batch.tolist() for batch in length_bucketed_batches(lengths, 8, **options)]

    assert drawn(rng=1) == drawn(rng=1) == drawn(rng=rng) != drawn(rng=rng)
    assert drawn(rng=1) != drawn(rng=2)
    assert drawn() != drawn()
    assert drawn(shuffle=False) == drawn(shuffle=False)
    longest = [lengths[batch].max() for batch in length_bucketed_batches(lengths, 8, rng=1, bucket=125)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_a_bucket_is_a_sample_of_all() -> None:
    lengths = np.arange(400)  # sorted, as files often are
    batches = length_bucketed_batches(lengths, 10, rng=0, bucket=4)
    spans = [int(np.ptp(lengths[batch])) for batch in batches]
    assert max(spans) > 50  # a bucket of neighbours would span 40
    assert np.mean(spans) < 150  # the mean of ten at random would be 330


# What does not fit

X = make_padded([2, 3, 1])
GOOD = pack_padded(X, [2, 3, 1])


def bad_packed(**parts: Any) -> Any:
    return pad_packed(GOOD._replace(**parts))


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "x str": (lambda: rf.pack_padded("x", [1]), TypeError, "x: expected "),
    "x vector": (lambda: pack_padded(X[0, 0], [1]), ValueError, r"x: expected shape \(T, B, ...\), got \(3,\)"),
    "x vector, batch first": (
        lambda: pack_padded(X[0, 0], [1], batch_first=True),
        ValueError,
        r"x: expected shape \(B, T, ...\), got \(3,\)",
    ),
    "batch_first": (lambda: rf.pack_padded(X, [2, 3, 1], batch_first=1), TypeError, "batch_first: expected a bool"),
    "negative": (lambda: pack_padded(X, [2, -3, 1]), ValueError, "lengths: expected 0 to 3, got -3"),
    "above T": (lambda: pack_padded(X, [2, 4, 1]), ValueError, "lengths: expected 0 to 3, got 4"),
    "above int64": (
        lambda: pack_padded(X, np.array([1, 2, 2**64 - 1], np.uint64)),
        ValueError,
        "lengths: expected .* got 18446744073709551615",
    ),
    "above all": (lambda: pack_padded(X, [1, 2, 2**70]), TypeError, "lengths: expected numbers, got a list that NumPy"),
    "too few": (lambda: pack_padded(X, [2, 1]), ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
    "too few, batch first": (
        lambda: pack_padded(X[:2], [2, 1, 1], batch_first=True),
        ValueError,
        r"lengths: expected shape \(2,\), got \(3,\)",
    ),
    "matrix": (lambda: pack_padded(X, [[2, 3, 1]]), ValueError, r"lengths: expected shape \(3,\), got \(1, 3\)"),
    "floats": (lambda: pack_padded(X, [2.0, 3.0, 1.0]), TypeError, "lengths: expected integers, got float64"),
    "empty floats": (lambda: pack_padded(X[:, :0], np.empty(0)), TypeError, "lengths: expected integers, got float64"),
    "bools": (lambda: pack_padded(X, [True, True, False]), TypeError, "lengths: expected integers, got bool"),
    "no array": (lambda: rf.pack_padded(X, [[1], [1, 2], 1]), TypeError, "lengths: expected an array, got list"),
    "none": (lambda: rf.pack_padded(X, None), TypeError, "lengths: expected an array, got NoneType"),
    "a tuple": (lambda: rf.pad_packed(tuple(GOOD)), TypeError, "packed: expected an rnnfast.PackedSequence, got tuple"),
    "data set": (lambda: bad_packed(data={1.0}), TypeError, "packed.data: expected "),
    "short data": (
        lambda: bad_packed(data=GOOD.data[1:]),
        ValueError,
        r"packed.data: expected shape \(6, ...\), the sum of batch_sizes, got \(5, 3\)",
    ),
    "sizes beyond 64 bits": (
        lambda: bad_packed(data=np.ones(0), batch_sizes=[2**62] * 4),
        ValueError,
        r"packed.data: expected shape \(18446744073709551616, ...\)",
    ),
    "scalar data": (lambda: bad_packed(data=np.array(1.0)), ValueError, r"packed.data: expected shape .* got \(\)"),
    "rising": (
        lambda: bad_packed(batch_sizes=[3, 1, 2]),
        ValueError,
        r"packed.batch_sizes: expected none to be above the one before, got \[1 2\]",
    ),
    "zero": (lambda: bad_packed(batch_sizes=[3, 3, 0]), ValueError, "packed.batch_sizes: expected at least 1, got 0"),
    "float sizes": (
        lambda: bad_packed(batch_sizes=[3.0, 2.0, 1.0]),
        TypeError,
        "packed.batch_sizes: expected integers",
    ),
    "few indices": (
        lambda: bad_packed(sorted_indices=[1, 0]),
        ValueError,
        "packed.sorted_indices: expected at least the 3 sequences of the first step, got 2",
    ),
    "repeated": (
        lambda: bad_packed(sorted_indices=[1, 1, 0]),
        ValueError,
        r"packed.sorted_indices: expected each of 0 to 2 once, got \[1 1 0\]",
    ),
    "beyond": (
        lambda: bad_packed(unsorted_indices=[1, 0, 3]),
        ValueError,
        "packed.unsorted_indices: expected each of 0 to 2 once",
    ),
    "not inverse": (
        lambda: bad_packed(unsorted_indices=[0, 1, 2]),
        ValueError,
        "packed.unsorted_indices: expected the inverse of sorted_indices",
    ),
    "more in one": (
        lambda: bad_packed(unsorted_indices=[1, 0, 2, 3]),
        ValueError,
        "packed.unsorted_indices: expected the inverse of sorted_indices",
    ),
    "total_length": (
        lambda: pad_packed(GOOD, total_length=2),
        ValueError,
        "total_length: expected at least 3, .* got 2",
    ),
    "total_length float": (lambda: rf.pad_packed(GOOD, total_length=3.0), TypeError, "total_length: expected an int"),
    "fill": (lambda: rf.pad_packed(GOOD, fill="0"), TypeError, "fill: expected a number, got str"),
    "fill of int": (
        lambda: pad_packed(GOOD._replace(data=np.arange(6)), fill=0.5),
        ValueError,
        "fill: expected a number of dtype int64, got 0.5",
    ),
    "fill of uint8": (
        lambda: pad_packed(GOOD._replace(data=np.arange(6, dtype=np.uint8)), fill=-1),
        ValueError,
        "fill: expected a number of dtype uint8, got -1",
    ),
    "bucket lengths": (lambda: length_bucketed_batches([1, -2], 2), ValueError, "lengths: expected at least 0, got -2"),
    "batch_size": (lambda: length_bucketed_batches([1], 0), ValueError, "batch_size: expected at least 1, got 0"),
    "bucket": (lambda: length_bucketed_batches([1], 1, bucket=0), ValueError, "bucket: expected at least 1, got 0"),
    "shuffle": (lambda: rf.length_bucketed_batches([1], 1, shuffle=1), TypeError, "shuffle: expected a bool"),
    "rng": (lambda: length_bucketed_batches([1], 1, rng=-1), ValueError, "rng: "),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
