"""ONNX models from anywhere: bounded memory, no files, one class of error that names the node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast

onnx: Any = pytest.importorskip("onnx", reason='onnx is not installed (pip install ".[onnx]")')
import fuzz_onnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from rnnfast.onnx import (  # noqa: E402
    ModelError,
    RnnfastBackend,
    _memory,
    from_onnx,
    prepare,
    to_onnx,
)

Change = Callable[[Any], None]  # of a model

H, I = 4, 3
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(nodes: list[Any], inputs: tuple[str, ...], outputs: tuple[str, ...], **constants: Any) -> Any:
    """Return a model; its inputs are floats, but for n."""
    infos = [helper.make_tensor_value_info(name, INT64 if name == "n" else FLOAT, None) for name in inputs]
    ends = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = helper.make_graph(nodes, "graph", infos, ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def node(operator: str, inputs: str, outputs: str = "out", **attributes: Any) -> Any:
    """Return a node that has the name of its operator; names are separated by spaces."""
    return helper.make_node(operator, inputs.split(), outputs.split(), operator, **attributes)


def rnn(x: str, y: str = "out", w: str = "W", r: str = "R") -> Any:
    return helper.make_node("RNN", [x, w, r], [y], f"rnn_{y}")


ROOM = r"expected results of at most \d+ bytes, all nodes together, got \d+ more"
WEIGHTS = {"W": np.ones((1, H, I), np.float32), "R": np.ones((1, H, H), np.float32)}
ONES = np.ones((2, 2, I), np.float32)


# Memory

FOLDED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", "size")], {"size": [1 << 40]}),
    "ConstantOfShape beyond all addresses": ([node("ConstantOfShape", "size")], {"size": [1 << 62, 1 << 62]}),
    "Expand": ([node("Expand", "one size")], {"one": np.float32(1), "size": [1 << 20, 1 << 20]}),
    "Concat": (
        [helper.make_node("Concat", [f"a{k}"] * 2, [f"a{k + 1}"], "Concat", axis=0) for k in range(60)],
        {"a0": np.ones(1, np.float32)},
    ),
    "Gather": ([node("Gather", "row many")], {"row": np.ones((1, 1 << 14)), "many": np.zeros(1 << 16, np.int64)}),
    "Mul": (
        [node("Mul", "row column")],
        {"row": np.ones((1 << 14, 1), np.int64), "column": np.ones(1 << 14, np.int64)},
    ),
    "Range": ([node("Range", "from to step")], {"from": 0, "to": 1 << 50, "step": 1}),
    "TopK": ([node("TopK", "few k", "out places")], {"few": np.ones(2, np.int64), "k": [1 << 40]}),
    "Split": ([node("Split", "few", "out rest", num_outputs=1 << 40)], {"few": np.ones(2, np.int64)}),
}


@pytest.mark.parametrize("case", FOLDED)
def test_what_nodes_make_of_constants_is_bounded(case: str) -> None:
    nodes, constants = FOLDED[case]
    model = model_of(nodes, (), (nodes[-1].output[0],), **constants)
    assert len(model.SerializeToString()) < 700_000
    with pytest.raises(ModelError, match=f"^{case.partition(' ')[0]} '.*': {ROOM}$"):
        prepare(model)
    model.graph.node.append(rnn("X", "Y", nodes[-1].output[0]))
    model.graph.input.append(helper.make_tensor_value_info("X", FLOAT, None))
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS["R"], "R"))
    with pytest.raises(ModelError, match=f"^{case.partition(' ')[0]} '.*': {ROOM}$"):
        from_onnx(model)


WIDE = {"W": np.ones((1, 100, 1), np.float32), "R": np.ones((1, 100, 100), np.float32)}
RUN: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "ConstantOfShape": (
        [node("Shape", "X", "shape"), node("Mul", "shape many", "more"), node("ConstantOfShape", "more")],
        {"many": [1 << 16]},
    ),
    "Expand": ([node("Expand", "X size")], {"size": [1 << 30, 1, 1, 1]}),
    "Concat": (
        [helper.make_node("Concat", [f"a{k or ''}"] * 2, [f"a{k + 1}"], "Concat", axis=0) for k in range(60)],
        {},
    ),
    "Range": ([node("Range", "from n step")], {"from": 0, "step": 1}),
    "RNN": (  # each makes features of units, and steps of these
        [
            each
            for k in range(6)
            for each in (node("Reshape", f"a{k or ''} column", f"x{k}"), rnn(f"x{k}", f"a{k + 1}"))
        ],
        {**WIDE, "column": [-1, 1, 1]},
    ),
    "RNN of no steps": ([node("ConstantOfShape", "size", "x"), rnn("x")], {**WEIGHTS, "size": [0, 1 << 40, I]}),
}


@pytest.mark.parametrize("case", RUN)
def test_what_nodes_make_of_inputs_is_bounded(case: str) -> None:
    nodes, constants = RUN[case]
    given = {"n": np.array(1 << 50)} if case == "Range" else {"a" if case in ("Concat", "RNN") else "X": ONES}
    prepared = prepare(model_of(nodes, tuple(given), (nodes[-1].output[0],), **constants))
    with pytest.raises(ModelError, match=f"^{case.partition(' ')[0]} '.*': {ROOM}$"):
        prepared.run(given)


def test_nodes_that_share_weights_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "LEAST_ROOM", 1 << 16)
    nodes = [node("ConstantOfShape", "size", "R"), *(rnn("X", f"y{k}") for k in range(1000))]
    model = model_of(nodes, ("X",), ("y0",), W=WEIGHTS["W"], size=[1, H, H])
    prepare(model)  # one of them is needed
    with pytest.raises(ModelError, match=rf"^RNN 'rnn_y\d+': {ROOM}$"):
        from_onnx(model)


def test_the_documented_number_of_bytes_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _memory.LEAST_ROOM == 1 << 28
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert f"256 MiB plus {_memory.COPIES} times" in " ".join(page.split())
    monkeypatch.setattr(_memory, "LEAST_ROOM", 1000)
    most = (1000 + _memory.COPIES * 8) // 4  # the size itself has 8 bytes
    for n in (most, most + 1):
        model = model_of([node("ConstantOfShape", "size")], (), ("out",), size=[n])
        if n == most:
            assert prepare(model).run([])[0].size == n
        else:
            with pytest.raises(ModelError, match=ROOM):
                prepare(model)


@pytest.mark.parametrize("sizes", [(1, 1), (200, 3), (2, 100)], ids=str)
@pytest.mark.parametrize("seed", fuzz_onnx.SEEDS)
def test_models_that_exporters_write_stay_far_below_the_limit(
    seed: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "LEAST_ROOM", 0)
    monkeypatch.setattr(_memory, "COPIES", _memory.COPIES // 2)
    model = onnx.ModelProto.FromString(fuzz_onnx.serialized(seed))
    given = {}
    for each in model.graph.input:
        dims = [
            d.dim_value or dict(zip("TB", sizes, strict=True))[d.dim_param] for d in each.type.tensor_type.shape.dim
        ]
        given[each.name] = np.ones(dims, np.float32 if each.type.tensor_type.elem_type == FLOAT else np.int32)
    assert all(np.isfinite(a).all() for a in prepare(model).run(given))
    if seed not in ("folding", "integers"):  # a clip is no layer, and an LSTM and a GRU are none
        from_onnx(model)


@pytest.mark.parametrize("clip", [{}, {"clip": 1.0}], ids=["fused", "stepwise"])
def test_any_number_of_steps_of_no_sequences_takes_no_time(clip: dict[str, Any]) -> None:
    nodes = [helper.make_node("RNN", ["X", "W", "R"], ["Y", "Y_h"], "a", **clip)]
    y, y_h = prepare(model_of(nodes, ("X",), ("Y", "Y_h"), **WEIGHTS)).run([np.zeros((1 << 40, 0, I), np.float32)])
    assert y.shape == (1 << 40, 1, 0, H)
    assert y_h.shape == (1, 0, H)


# Files


def outside(tensor: Any, location: str) -> Any:
    """Return a tensor whose data lie in a file."""
    moved = TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
    )
    moved.external_data.add(key="location", value=location)
    return moved


def with_data_in(location: str, *, attribute: bool = False) -> Any:
    """Return a model of an RNN whose W lies in a file, as an initializer or as the value of a Constant."""
    moved = outside(numpy_helper.from_array(WEIGHTS["W"], "W"), location)
    model = model_of([rnn("X")], ("X",), ("out",), R=WEIGHTS["R"])
    if attribute:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], "W", value=moved))
    else:
        model.graph.initializer.append(moved)
    return model


@pytest.mark.parametrize("attribute", [False, True], ids=["initializer", "attribute"])
@pytest.mark.parametrize("take", [prepare, from_onnx])
def test_data_in_files_are_not_read(
    take: Callable[[Any], Any], attribute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(WEIGHTS["W"].tobytes())
    with pytest.raises(ModelError, match=r"^.*tensor 'W': expected its data in the model, as onnx\.load\(path\)"):
        take(with_data_in("weights", attribute=attribute))


def test_onnx_load_puts_data_of_the_models_own_folder_into_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (folder / "weights", tmp_path / "weights"):
        place.write_bytes(WEIGHTS["W"].tobytes())
    (folder / "link").symlink_to(tmp_path / "weights")
    path = folder / "model.onnx"
    path.write_bytes(with_data_in("weights").SerializeToString())
    assert np.array_equal(from_onnx(onnx.load(path)).weight_ih_l0, WEIGHTS["W"][0])
    for elsewhere in ("../weights", str(tmp_path / "weights"), "link"):
        path.write_bytes(with_data_in(elsewhere).SerializeToString())
        with pytest.raises(onnx.checker.ValidationError):
            onnx.load(path)


# One class of error, which names the node


def drop_input(model: Any) -> None:
    model.graph.node[0].input[0] = ""


def reverse_axes(model: Any) -> None:
    model.graph.node[1].attribute[0].ints[:] = [0, 7, -9, 3]


def of_type(value: Any) -> Change:
    def change(model: Any) -> None:
        model.graph.node[0].attribute.append(value)

    return change


def field(path: str, value: Any) -> Change:
    """Return a change of one field of the model."""

    def change(model: Any) -> None:
        *parts, last = path.split(".")
        message = model
        for part in parts:
            message = message[int(part)] if part.isdigit() else getattr(message, part)
        if last.isdigit():
            message[int(last)] = value
        else:
            setattr(message, last, value)

    return change


def cyclic(model: Any) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def twice(model: Any) -> None:
    model.graph.node.append(model.graph.node[0])


def not_text(model: Any) -> None:
    data = model.SerializeToString().replace(b"Transpose", b"\xff" * 9)
    model.Clear()
    model.ParseFromString(data)


MALFORMED: dict[str, tuple[Change, str]] = {
    "no X": (drop_input, "RNN 'Y_0': "),
    "other axes": (
        reverse_axes,
        "Transpose 'Y_0_beside': |RNN 'Y_1': X: expected Y of RNN 'Y_0', as in a stack, got 'Y_0_beside'",
    ),
    "unknown attribute": (of_type(helper.make_attribute("colour", 3)), "RNN 'Y_0': "),
    "attribute without type": (of_type(onnx.AttributeProto(name="clip")), "RNN 'Y_0': "),
    "attribute of another type": (field("graph.node.0.attribute.0.type", 1), "RNN 'Y_0': "),
    "not UTF-8": (not_text, "model: expected names in UTF-8, got b"),
    "cycle": (cyclic, "RNN 'Y_0': expected inputs, constants and results of nodes before, got h_n"),
    "a name twice": (twice, "RNN 'Y_0': expected a name of its own for each result, got Y_0 again"),
    "no such output": (field("graph.output.0.name", "z"), "model: expected outputs .*, got z"),
    "opset": (field("opset_import.0.version", 1 << 40), "model: "),
    "sizes of a tensor": (field("graph.initializer.0.dims.0", 1 << 40), "tensor 'W_0': "),
    "negative sizes": (field("graph.initializer.0.dims.0", -7), "tensor 'W_0': "),
    "type of a tensor": (field("graph.initializer.0.data_type", 99), "tensor 'W_0': "),
    "integers as weights": (field("graph.initializer.0.data_type", TensorProto.INT32), "RNN 'Y_0': W: expected dtype"),
    "data cut short": (field("graph.initializer.0.raw_data", b"abc"), "tensor 'W_0': "),
    "no features": (field("graph.initializer.0.dims.2", 0), "tensor 'W_0': |RNN 'Y_0': W: expected shape"),
}


@pytest.mark.parametrize("take", [prepare, from_onnx])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_models_are_refused_by_the_name_of_what_is_wrong(case: str, take: Callable[[Any], Any]) -> None:
    change, message = MALFORMED[case]
    model = to_onnx(rnnfast.RNN(I, H, num_layers=2, rng=0))
    change(model)
    if take is prepare and case == "other axes":  # the numbers of axes show when there is an array
        take = lambda model: prepare(model).run([ONES])  # noqa: E731
    with pytest.raises(ModelError, match=f"^(?:{message})"):
        take(model)


def test_a_size_that_makes_room_is_no_size() -> None:
    nodes = [node("TopK", "few k", "none places"), node("Concat", "none n", "size", axis=0)]
    nodes.append(node("ConstantOfShape", "size"))
    constants: dict[str, Any] = {"few": np.ones(2, np.int64), "k": [-(1 << 60)], "n": [1 << 40]}
    with pytest.raises(ModelError, match=f"^ConstantOfShape 'ConstantOfShape': {ROOM}$"):
        prepare(model_of(nodes, (), ("out",), **constants))


def test_strings_are_refused_before_they_become_an_array() -> None:
    words = [b"x" * 1_000_000] + [b""] * 1_000_000  # as an array of NumPy, 4 TB
    tensor = TensorProto(name="words", data_type=TensorProto.STRING, dims=[len(words)], string_data=words)
    model = model_of([node("Identity", "words")], (), ("out",))
    model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match=r"^tensor 'words': expected floats, integers or bools, got STRING$"):
        prepare(model)
    for given in ({"value": tensor}, {"value_strings": words}):
        model = model_of([node("Constant", "", **given)], (), ("out",))
        with pytest.raises(ModelError, match=r"^.*expected floats, integers or bools, got (STRING|strings)$"):
            prepare(model)


def test_what_a_layer_does_not_need_may_be_anything() -> None:
    model = to_onnx(rnnfast.RNN(I, H, rng=0))
    model.graph.initializer.append(
        TensorProto(name="words", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
    )
    model.graph.initializer.append(outside(numpy_helper.from_array(np.zeros(3), "other"), "elsewhere"))
    model.graph.node.append(helper.make_node("Lookup", ["words", "other", "y"], ["z"], domain="mine"))
    assert repr(from_onnx(model)) == f"RNN({I}, {H})"


def test_a_sparse_constant_is_refused() -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "values")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    sparse = helper.make_sparse_tensor(values, places, [1 << 40])
    model = model_of([node("Constant", "", sparse_value=sparse)], (), ("out",))
    with pytest.raises(ModelError, match=r"^Constant 'Constant': expected a dense tensor, got a sparse one$"):
        prepare(model)


def test_a_cyclic_stack_is_refused() -> None:
    model = to_onnx(rnnfast.RNN(H, H, num_layers=2, rng=0))
    model.graph.node[0].input[0] = "y"
    with pytest.raises(ModelError, match=r"^RNN 'Y_0': expected inputs, .*, got y$"):
        from_onnx(model)
    assert issubclass(ModelError, ValueError)


def test_a_model_that_is_refused_is_not_compatible() -> None:
    model = to_onnx(rnnfast.RNN(I, H))
    assert RnnfastBackend.is_compatible(model)
    cyclic(model)
    assert not RnnfastBackend.is_compatible(model)


# Any models


@pytest.mark.parametrize("seed", range(3))
def test_changed_models_end_in_results_or_errors_that_name_the_place(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_memory, "LEAST_ROOM", fuzz_onnx.ROOM)
    with np.errstate(all="raise"):
        ends = sum((fuzz_onnx.check(seed, k) for k in range(150)), start=type(fuzz_onnx.check(seed, 0))())
    for call in ("prepare", "run", "from_onnx", "run_node"):
        assert ends[call, "accepted"] > 3
        assert ends[call, "refused"] > 0
