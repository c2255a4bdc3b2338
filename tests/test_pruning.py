"""Pruning: the cubic, the blocks that stay, masks that hold, streams of pruned layers, and files of their blocks."""

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from modules import make_layer
from problems import REPRESENTATIVES

import rnnfast
from rnnfast._base.blocks import SPARSE, packed, unpacked
from rnnfast._base.formats import FORMATS
from rnnfast.training import SGD, Adam, Pruner

Array = Any


def pruned(layer: Any, density: float, block: tuple[int, int] = (16, 1), **options: Any) -> Pruner:
    """Prune a layer in two steps."""
    pruner = Pruner(layer, density, block, start=0, stop=2, every=1, **options)
    pruner.step()
    pruner.step()
    return pruner


def same_bits(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def train(layer: Any, optimizer: Any, pruner: Pruner, steps: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        y, _, tape = layer.forward(rng.standard_normal((4, 3, layer.input_size), np.float32))
        optimizer.step(layer.backward(tape, y)[2])
        pruner.step()


# The schedule


def test_the_density_falls_along_the_cubic() -> None:
    pruner = Pruner(rnnfast.RNN(40, 50, rng=0), 0.2, (1, 1), start=3, stop=14, every=4)
    found = []
    for t in range(1, 20):
        pruner.step()
        drawn = max((u for u in (3, 7, 11, 14) if u <= t), default=3)
        assert pruner.density == pytest.approx(0.2 + 0.8 * (1 - (drawn - 3) / 11) ** 3, rel=1e-12)
        found.append([float(mask.mean()) for mask in pruner.masks.values()])
    assert found[2] == [1, 1]
    assert np.allclose(found[-1], 0.2, atol=1e-3)
    assert (np.diff(found, axis=0) <= 0).all()


def test_a_shorter_run_still_ends_with_the_density() -> None:
    pruner = Pruner(rnnfast.RNN(3, 20, rng=0), 0.3, (1, 1), start=0, stop=100, every=10)
    for _ in range(45):
        pruner.step()
    pruner.stop = 20
    pruner.step()
    assert pruner.density == 0.3


def test_what_is_left_out_stays_out() -> None:
    layer = rnnfast.GRU(9, 20, rng=0)
    pruner = Pruner(layer, 0.1, (4, 1), start=0, stop=6, every=1)
    before = pruner.masks["weight_hh_l0"].copy()
    for _ in range(6):
        layer.parameters["weight_hh_l0"] += 5 * ~before  # as an optimizer might
        pruner.step()
        mask = pruner.masks["weight_hh_l0"]
        assert not (mask & ~before).any()
        assert not layer.parameters["weight_hh_l0"][~mask].any()
        before = mask.copy()


# The blocks


@pytest.mark.parametrize("block", [(16, 1), (16, 4), (1, 1), (5, 3), (100, 2), (10**30, 10**30), [3, 100]])
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_the_blocks_with_the_most_energy_stay(cell: str, block: Any) -> None:
    I, H, density = 7, 20, 0.4
    layer = make_layer(cell, (I, H))
    before = {name: w.astype(float) for name, w in layer.state_dict().items()}
    pruner = pruned(layer, density, block, keep_diagonal=False)
    assert pruner.masks.keys() == {name for name in before if name.startswith(("weight_ih", "weight_hh"))}
    for name, mask in pruner.masks.items():
        w, energies = before[name], []
        for gate in range(len(w) // H):
            for i in range(0, H, min(block[0], H)):
                for k in range(0, w.shape[1], min(block[1], H)):
                    rows = slice(gate * H + i, gate * H + min(i + block[0], H))
                    part, kept = w[rows, k : k + block[1]], mask[rows, k : k + block[1]]
                    assert kept.all() == kept.any()
                    energies.append((np.mean(part**2), bool(kept.any()), part.size))
        left = sum(size for _, kept, size in energies if kept)
        smallest = min(size for energy, kept, size in energies if kept)
        assert min(e for e, kept, _ in energies if kept) >= max((e for e, kept, _ in energies if not kept), default=0)
        last = min((energy, size) for energy, kept, size in energies if kept)[1]
        assert left - last < density * w.size <= left
        assert smallest > 0
        assert np.array_equal(layer.state_dict()[name], np.where(mask, w, 0))
    for name in before.keys() - pruner.masks.keys():
        assert np.array_equal(layer.state_dict()[name], before[name])


@pytest.mark.parametrize("block", [(16, 1), (16, 4), (1, 1), (5, 3), (100, 2)])
@pytest.mark.parametrize("keep_diagonal", [False, True])
def test_balanced_masks_leave_as_much_in_each_row_of_blocks(block: Any, keep_diagonal: bool) -> None:
    I, H, density = 30, 37, 0.4
    layer = rnnfast.LSTM(I, H, rng=0)
    before = {name: w.astype(float) for name, w in layer.state_dict().items()}
    pruner = pruned(layer, density, block, keep_diagonal=keep_diagonal, balanced=True)
    for name, K in (("weight_ih_l0", I), ("weight_hh_l0", H)):
        mask = pruner.masks[name]
        for w, kept in zip(np.split(before[name], 4), np.split(mask, 4), strict=True):
            for i in range(0, H, block[0]):
                rows = slice(i, min(i + block[0], H))
                energies = np.add.reduceat((w[rows] ** 2).mean(axis=0), range(0, K, block[1]))
                widths = np.add.reduceat(np.ones(K), range(0, K, block[1]))
                if keep_diagonal and K == H:
                    energies[rows.start // block[1] : (rows.stop - 1) // block[1] + 1] = np.inf
                order = np.argsort(-energies / widths)
                n = np.searchsorted(np.cumsum(widths[order]), density * K) + 1
                expected = np.isin(np.arange(K) // block[1], order[: max(n, np.isinf(energies).sum())])
                assert (kept[rows] == expected).all()


@pytest.mark.parametrize("block", [(16, 1), (16, 4), (1, 1), (7, 5)])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_the_diagonal_of_each_gate_stays(cell: str, block: tuple[int, int]) -> None:
    H = 37
    layer = make_layer(cell, (5, H))
    w = layer.parameters["weight_hh_l0"]
    for gate in np.split(w, len(w) // H):
        np.fill_diagonal(gate, 1e-6)
    pruner = pruned(layer, 0.001, block)
    for gate in np.split(pruner.masks["weight_hh_l0"], len(w) // H):
        assert gate.diagonal().all()
        ones = np.add.reduceat(np.add.reduceat(np.eye(H), range(0, H, block[0]), axis=0), range(0, H, block[1]), axis=1)
        blocks = np.repeat(np.repeat(ones > 0, block[0], axis=0)[:H], block[1], axis=1)[:, :H]
        assert np.array_equal(gate, blocks)  # and nothing else
    assert pruner.masks["weight_ih_l0"].sum() <= block[0] * block[1]


def test_without_a_diagonal_there_is_none_to_keep() -> None:
    for layer in (rnnfast.LSTM(3, 16, proj_size=4, rng=0), rnnfast.SLSTM(3, 16, num_heads=2, rng=0)):
        assert pruned(layer, 0.1, (1, 1)).masks["weight_hh_l0"].mean() < 0.11


def test_nan_is_not_lost() -> None:
    layer = rnnfast.RNN(3, 32, rng=0)
    layer.weight_hh_l0[20, 3] = np.nan
    pruned(layer, 0.1)
    assert np.isnan(layer.weight_hh_l0).sum() == 1


# Training


def model_of(seed: int = 0) -> Any:
    return rnnfast.Modules(
        rnn=rnnfast.LSTM(6, 20, rng=seed),
        inner={"cell": rnnfast.GRUCell(20, 4, rng=seed), "embedding": np.ones((3, 6), np.float32)},
        readout=rnnfast.Linear(20, 5, rng=seed),
    )


def test_a_container_has_all_its_layers_pruned_and_nothing_else() -> None:
    model = model_of()
    before = {name: a.copy() for name, a in model.state_dict().items()}
    pruner = pruned(model, 0.3)
    names = {f"{part}.{kind}" for part, kind in (("rnn", "weight_ih_l0"), ("rnn", "weight_hh_l0"))}
    assert pruner.masks.keys() == names | {"inner.cell.weight_ih", "inner.cell.weight_hh"}
    for name, a in model.state_dict().items():
        assert np.array_equal(a, np.where(pruner.masks.get(name, True), before[name], 0))
        assert (a != before[name]).any() == (name in names | {"inner.cell.weight_ih"})


@pytest.mark.parametrize("kind", [Adam, SGD])
def test_masks_hold_against_momentum(kind: Any) -> None:
    layer = rnnfast.LSTM(6, 20, rng=0)
    optimizer = kind(layer, 0.01, **({"momentum": 0.9} if kind is SGD else {}))
    pruner = Pruner(layer, 0.3, start=2, stop=6, every=2)
    train(layer, optimizer, pruner, 12)
    masks = {name: mask.copy() for name, mask in pruner.masks.items()}
    train(layer, optimizer, pruner, 5)
    assert same_bits(masks, pruner.masks)
    for name, mask in masks.items():
        w = layer.state_dict()[name]
        assert w[mask].all()
        assert not w[~mask].any()
        assert not np.signbit(w[~mask]).any()


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 9])
def test_training_goes_on_with_the_same_bits(stop: int) -> None:
    def start(seed: int) -> tuple[Any, Any, Pruner]:
        layer = rnnfast.GRU(6, 20, rng=seed)
        return layer, Adam(layer), Pruner(layer, 0.2, (8, 2), start=1, stop=7, every=2)

    straight = start(0)
    for step in range(10):
        train(*straight, 1, step)
    first, second = start(0), start(1)
    for step in range(stop):
        train(*first, 1, step)
    for to, state in zip(second, first, strict=True):
        to.load_state_dict({name: a.copy() for name, a in state.state_dict().items()})
    for step in range(stop, 10):
        train(*second, 1, step)
    for a, b in zip(straight, second, strict=True):
        assert same_bits(a.state_dict(), b.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": -1}, "t: expected at least 0, got -1"),
        ({"density": 0.0}, "density: expected a number above 0 and up to 1, got 0.0"),
        ({"density": np.nan}, "density: expected a number above 0"),
        ({"mask.weight_hh_l0": np.ones((4, 3), bool)}, r"mask.weight_hh_l0: expected shape \(20, 20\)"),
        ({"mask.bias_hh_l0": np.ones(4, bool)}, "state_dict: unexpected keys: .*mask.bias_hh_l0"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: dict[str, Any], message: str) -> None:
    pruner = pruned(rnnfast.RNN(3, 20, rng=0), 0.2)
    before = {name: a.copy() for name, a in pruner.state_dict().items()}
    other = pruned(rnnfast.RNN(3, 20, rng=1), 0.4).state_dict()
    changes = {name: np.asarray(a, before[name].dtype if name in before else None) for name, a in change.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        pruner.load_state_dict({**other, **changes})
    assert same_bits(before, pruner.state_dict())


def test_a_pruner_shows_what_it_is() -> None:
    layer = rnnfast.RNN(3, 20, rng=0)
    assert repr(Pruner(layer, 0.2, start=1, stop=9, every=2)) == (
        "Pruner(<460 weights in 2 matrices>, 0.2, start=1, stop=9, every=2)"
    )
    others: dict[str, Any] = {"keep_diagonal": False, "balanced": True}
    assert repr(Pruner(layer, 0.2, (8, 2), start=1, stop=9, every=2, **others)) == (
        "Pruner(<460 weights in 2 matrices>, 0.2, block=(8, 2), start=1, stop=9, every=2, "
        "keep_diagonal=False, balanced=True)"
    )


# Streams


@pytest.mark.parametrize("form", [None, *FORMATS])
@pytest.mark.parametrize(("density", "block"), [(0.3, (16, 1)), (0.1, (16, 4)), (0.5, (7, 3))])
@pytest.mark.parametrize("cell", REPRESENTATIVES)
def test_a_stream_gives_the_bits_of_the_layer(cell: str, density: float, block: Any, form: Any) -> None:
    layer: Any = make_layer(cell, (33, 70))
    if form == "int8" and (cell.startswith("slstm") or layer.layer_norm is not None):
        pytest.skip("int8 is refused: tests/test_quantized.py")
    if form is not None and layer.num_heads > 1:
        pytest.skip("weights of fewer bits of several heads are refused: tests/test_quantized.py")
    pruned(layer, density, block)
    layer = layer if form is None else layer.quantize(form)
    x = np.random.default_rng(0).standard_normal((6, 2, 33), np.float32)
    y, _ = layer(x)
    stream = layer.stream(2)
    assert all(np.array_equal(stream.step(x_t), y_t) for x_t, y_t in zip(x, y, strict=True))


# Files


def sizes(module: Any, folder: Path) -> tuple[int, int]:
    """Return the sizes of both files, of which both give the module back."""
    found = []
    for sparse in (False, True):
        module.save(folder / "file", sparse=sparse)
        loaded: Any = rnnfast.load(folder / "file")
        assert repr(loaded) == repr(module)
        assert list(loaded.state_dict()) == list(module.state_dict())
        for name, a in module.state_dict().items():
            b = loaded.state_dict()[name]
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()
        found.append((folder / "file").stat().st_size)
    return found[0], found[1]


@pytest.mark.parametrize("form", [None, *FORMATS])
@pytest.mark.parametrize("kind", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
def test_files_keep_only_blocks_that_are_left(kind: Any, form: Any, tmp_path: Path) -> None:
    layer = kind(33, 70, num_layers=2, rng=0)
    pruned(layer, 0.2)
    whole, sparse = sizes(layer if form is None else layer.quantize(form), tmp_path)
    assert sparse < (0.4 if form is None else 0.6) * whole


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_containers_have_sparse_files(form: Any, tmp_path: Path) -> None:
    model = model_of()
    pruned(model, 0.2, (16, 4))
    if form is not None:
        model = rnnfast.Modules({**model, "rnn": model.rnn.quantize(form)})
    whole, sparse = sizes(model, tmp_path)
    assert sparse < whole


def test_what_would_be_no_smaller_stays_whole(tmp_path: Path) -> None:
    layer = rnnfast.LSTM(33, 70, rng=0)
    whole, sparse = sizes(layer, tmp_path)
    assert sparse <= whole + 40  # metadata
    assert sizes(rnnfast.Linear(3, 4), tmp_path)[1] < 1000
    layer.weight_hh_l0[...] = -0.0  # no zero to leave out
    assert sizes(layer, tmp_path)[1] > whole - 100
    layer.weight_hh_l0[...] = 0
    assert sizes(layer, tmp_path)[1] < 0.5 * whole
    assert sizes(rnnfast.GRU(3, 4, dtype="float64"), tmp_path)[1] > 500


def test_the_format_is_what_the_docs_say() -> None:
    w = np.zeros((4, 3), np.float32)
    w[2:, 1] = 7, 0
    made, metadata = packed({"w": w, "b": np.ones(3)}, {"w": 2})
    assert json.loads(metadata[SPARSE]) == {"w": [4, 3, 2]}
    assert made["w"].tolist() == [7, 0]
    assert made["w.kept"].tolist() == [0b00001000]
    assert np.array_equal(unpacked(made, metadata)["w"], w)


def edit(change: Callable[[dict[str, Array], dict[str, Any]], object]) -> Callable[[Path], None]:
    """Return what rewrites a file with its tensors and its description of blocks changed."""

    def rewrite(path: Path) -> None:
        with safetensors.safe_open(path, "numpy") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        shapes = json.loads(metadata[SPARSE])
        change(tensors, shapes)
        safetensors.numpy.save_file(tensors, path, {**metadata, SPARSE: json.dumps(shapes)})

    return rewrite


def put(name: str, value: Any) -> Callable[[Path], None]:
    return edit(lambda tensors, _: tensors.update({name: value(tensors[name])}))


def shape(*value: Any) -> Callable[[Path], None]:
    return edit(lambda _, shapes: shapes.update({HH: [*value]}))


HH = "weight_hh_l0"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no bitmap": (edit(lambda tensors, _: tensors.pop(f"{HH}.kept")), f"{HH}: expected the numbers of blocks and the"),
    "no numbers": (edit(lambda tensors, _: tensors.pop(HH)), f"{HH}: expected the numbers of blocks and the bitmap"),
    "no description": (edit(lambda _, shapes: shapes.pop(HH)), f"{HH}: expected shape"),
    "another name": (edit(lambda _, shapes: shapes.update(a=[1, 1, 1])), "a: expected the numbers of blocks"),
    "a number less": (put(HH, lambda a: a[:-1]), f"{HH}: expected the [0-9]+ numbers of the blocks in its bitmap"),
    "a number more": (put(HH, lambda a: np.append(a, a[:1])), f"{HH}: expected the [0-9]+ numbers of the blocks"),
    "another rank": (put(HH, lambda a: a[np.newaxis]), f"{HH}: expected the [0-9]+ numbers of the blocks"),
    "another dtype": (put(HH, lambda a: a.astype(float)), f"{HH}: expected dtype float32"),
    "a byte less": (put(f"{HH}.kept", lambda a: a[:-1]), f"{HH}.kept: expected [0-9]+ bits in [0-9]+ bytes"),
    "a byte more": (put(f"{HH}.kept", lambda a: np.append(a, a[:1])), f"{HH}.kept: expected [0-9]+ bits in"),
    "a bit less": (put(f"{HH}.kept", lambda a: a & (a - 1)), f"{HH}: expected the [0-9]+ numbers of the blocks"),
    "bits behind": (put(f"{HH}.kept", lambda a: a | (np.arange(len(a)) == len(a) - 1)), f"{HH}.kept: expected zeros"),
    "bitmap's dtype": (put(f"{HH}.kept", lambda a: a.astype(np.int8)), f"{HH}.kept: expected [0-9]+ bits"),
    "other sizes": (shape(57, 190, 19), f"{HH}.kept: expected [0-9]+ bits in"),
    "another shape": (shape(20, 57, 20), f"{HH}: expected the [0-9]+ numbers of the blocks"),
    "no whole gates": (shape(57, 19, 20), f"{HH}: expected rows of whole gates of 20, got 57"),
    "huge": (shape(2**62, 2**62, 2**62), f"{HH}.kept: expected [0-9]+ bits in"),
    "larger still": (shape(10**400, 1, 1), f"{HH}.kept: expected"),
    "zero": (shape(0, 19, 19), f"{HH}: expected rows, columns and rows of a gate"),
    "negative": (shape(57, -19, 19), f"{HH}: expected rows, columns and rows of a gate"),
    "floats": (shape(57.0, 19, 19), f"{HH}: expected rows, columns and rows of a gate"),
    "bools": (shape(57, True, 19), f"{HH}: expected rows, columns and rows of a gate"),
    "two": (shape(57, 19), f"{HH}: expected rows, columns and rows of a gate"),
    "words": (edit(lambda _, shapes: shapes.update({HH: "57,19,19"})), f"{HH}: expected rows, columns and"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_blocks_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    layer = rnnfast.GRU(5, 19, rng=0)
    pruned(layer, 0.2, (16, 1))
    layer.save(tmp_path / "layer", sparse=True)
    change, message = HOSTILE[name]
    change(tmp_path / "layer")
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"path: expected a file that save has written.*({message})"):
        rnnfast.load(tmp_path / "layer")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["", "?", "[]", "3", "null", '{"weight_hh_l0": null}', "[" * 100_000])
def test_descriptions_of_blocks_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    rnnfast.RNN(3, 4).save(tmp_path / "layer")
    with safetensors.safe_open(tmp_path / "layer", "numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    safetensors.numpy.save_file(tensors, tmp_path / "layer", {**metadata, SPARSE: text})
    with pytest.raises(ValueError, match="path: expected a file that save has written"):
        rnnfast.load(tmp_path / "layer")


@pytest.mark.parametrize("form", [None, *FORMATS])
def test_damaged_files_are_refused_or_read(form: Any, tmp_path: Path) -> None:
    path, rng = tmp_path / "file", np.random.default_rng(0)
    layer: Any = rnnfast.RNN(3, 20, rng=0)
    pruned(layer, 0.2)
    (layer if form is None else layer.quantize(form)).save(path, sparse=True)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: len(data) if rng.random() < 0.7 else rng.integers(len(data))])
        with suppress(ValueError):
            loaded: Any = rnnfast.load(path)
            loaded(np.ones((2, 1, loaded.input_size), np.float32))
