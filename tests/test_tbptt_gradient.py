"""The truncated gradients of all windows at once."""

from itertools import product
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from modules import (
    ONE_STEP,
    make_cell,
    make_layer,
    make_state,
    named_parameters,
    named_states,
    normal,
    parameters_of,
)
from problems import REPRESENTATIVES, Array, Results, assert_close, assert_same_bits, mapped, named, parts, state_of

import rnnfast
from rnnfast import _core, reference
from rnnfast.ragged import PackedSequence

B, I, H = 3, 7, 6

# T, k1, k2: k2 less than, equal to and more than k1, T and more; what divides and what does not; a single end
WINDOWS = [
    (12, 4, 4),
    (12, 2, 8),
    (11, 4, 3),
    (11, 4, 4),
    (11, 3, 7),
    (11, 3, 11),
    (11, 3, 20),
    (11, 1, 5),
    (11, 1, 1),
    (11, 11, 4),
    (11, 20, 30),
    (13, 5, 2),
    (1, 1, 1),
]

by_cell = pytest.mark.parametrize("cell", REPRESENTATIVES)


def gradient(module: Any, *arguments: Any, **options: Any) -> Results:
    """Return what tbptt_gradient returns by name, without what is None."""
    dx, dstate0, grads = rnnfast.tbptt_gradient(module, *arguments, **options)
    return {**named(dx=dx), **named_states((), dstate0), **grads}


def oracle(layer: Any, x: Array, dy: Array, k1: int, k2: int, losses: Any = "new", state: Any = None) -> Results:
    """Return the sum over separate windows, each with a forward of its own kept."""
    L, p = layer.num_layers, layer.parameters
    layers = [[parameters_of(layer, p, f"_l{k}")] for k in range(L)]
    state0 = None if state is None else parts(state)
    options = {"losses": losses, "layer_norm_eps": getattr(layer, "layer_norm_eps", 1e-5)}
    dx, dstate0, grads = reference.tbptt_gradient(layer.cell, x, layers, dy, k1, k2, state0, **options)
    own = {name: d for k in range(L) for name, d in named_parameters(layer, grads[k][0], f"_l{k}").items()}
    return named(dx=dx) | named_states((), dstate0) | own


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize(("T", "k1", "k2"), WINDOWS)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@by_cell
def test_is_the_sum_of_separate_windows(cell: str, num_layers: int, T: int, k1: int, k2: int, losses: str) -> None:
    layer = make_layer(cell, num_layers=num_layers, dtype="float64")
    x, dy, state = normal((T, B, I), "float64", 1), normal((T, B, H), "float64", 2), make_state(layer, (B,), 3)
    assert_close(
        gradient(layer, x, dy, k1, k2, losses=losses, state=state), oracle(layer, x, dy, k1, k2, losses, state)
    )


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize(("T", "k1", "k2"), WINDOWS)
def test_a_projection_has_windows_too(T: int, k1: int, k2: int, losses: str) -> None:
    for num_layers, sizes, P in ((1, (I, H), 2), (2, (5, 33), 17)):
        layer = make_layer("lstm", sizes, num_layers=num_layers, dtype="float64", proj_size=P)
        x, dy = normal((T, B, sizes[0]), "float64", 1), normal((T, B, P), "float64", 2)
        state = make_state(layer, (B,), 3)
        assert_close(
            gradient(layer, x, dy, k1, k2, losses=losses, state=state), oracle(layer, x, dy, k1, k2, losses, state)
        )


@pytest.mark.parametrize("losses", ["new", "window"])
@by_cell
def test_windows_may_pass_the_chunks_of_time(cell: str, losses: str) -> None:
    """Weights' gradients are summed up by about 256 rows."""
    layer = make_layer(cell, num_layers=2, dtype="float64")
    x, dy = normal((70, 16, I), "float64", 1), normal((70, 16, H), "float64", 2)
    assert_close(gradient(layer, x, dy, 9, 31, losses=losses), oracle(layer, x, dy, 9, 31, losses))


@pytest.mark.parametrize(("sizes", "num_layers"), [((1, 1), 3), ((3, 4), 2), ((40, 17), 2), ((5, 33), 2)])
@by_cell
def test_odd_sizes_are_padded(cell: str, sizes: tuple[int, int], num_layers: int) -> None:
    layer = make_layer(cell, sizes, num_layers=num_layers, dtype="float64")
    x, dy = normal((11, B, sizes[0]), "float64", 1), normal((11, B, sizes[1]), "float64", 2)
    assert_close(gradient(layer, x, dy, 2, 5), oracle(layer, x, dy, 2, 5))


@by_cell
def test_float32_is_as_near_as_the_plain_gradient(cell: str) -> None:
    layer = make_layer(cell, (64, 96), num_layers=2)
    x, dy = normal((50, 8, 64), "float32", 1), normal((50, 8, 96), "float32", 2)
    assert_close(gradient(layer, x, dy, 5, 18), oracle(layer, x, dy, 5, 18), layers=2)


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize("k", [70, 1000])
@by_cell
def test_one_window_is_the_plain_backward_bit_for_bit(cell: str, k: int, losses: str) -> None:
    layer = make_layer(cell, num_layers=2)
    x, dy, state = normal((70, 16, I), "float32", 1), normal((70, 16, H), "float32", 2), make_state(layer, (16,), 3)
    *_, tape = layer.forward(x, state)
    dx, dstate0, grads = layer.backward(tape, dy)
    expected = {**named(dx=dx), **named_states((), dstate0), **grads}
    assert_same_bits(gradient(layer, x, dy, k, k, state=state, losses=losses), expected)


@pytest.mark.parametrize("k1", [5, 16])
@by_cell
def test_windows_side_by_side_are_runs_that_carry_the_state(cell: str, k1: int) -> None:
    T = 4 * k1
    layer = make_layer(cell, num_layers=2, dtype="float64")
    x, dy = normal((T, B, I), "float64", 1), normal((T, B, H), "float64", 2)
    state, dxs, total = None, [], {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    for start in range(0, T, k1):
        _, state, tape = layer.forward(x[start : start + k1], state)
        dxs.append(layer.backward(tape, dy[start : start + k1], grads=total)[0])
    actual = gradient(layer, x, dy, k1, k1)
    assert_close({name: actual[name] for name in ("dx", *total)}, {**named(dx=np.concatenate(dxs)), **total})


# Rows and units are divided among members: few large layers divide their units
@pytest.mark.parametrize(("sizes", "batch"), [((24, 48), 16), ((24, 48), 5), ((40, 200), 2), ((3, 200), 1)])
@by_cell
def test_bits_do_not_depend_on_threads(cell: str, sizes: tuple[int, int], batch: int) -> None:
    layer = make_layer(cell, sizes, num_layers=2)
    x, dy = normal((40, batch, sizes[0]), "float32", 1), normal((40, batch, sizes[1]), "float32", 2)
    cases = [(k1, k2, losses) for (k1, k2), losses in product([(3, 10), (7, 4)], ["new", "window"])]
    results: list[list[Results]] = []
    for threads in (1, 2, 3, 7):
        with rnnfast.threads(threads):
            results.append([gradient(layer, x, dy, k1, k2, losses=losses) for k1, k2, losses in cases])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)


def test_bits_of_a_sequence_do_not_depend_on_its_neighbours() -> None:
    layer = make_layer("gru", num_layers=2)
    x, dy = normal((20, 8, I), "float32", 1), normal((20, 8, H), "float32", 2)
    every, one = (gradient(layer, x[:, b], dy[:, b], 3, 10) for b in (slice(8), slice(2, 3)))
    assert_same_bits(named(dx=one["dx"], dh0=one["dh0"]), named(dx=every["dx"][:, 2:3], dh0=every["dh0"][:, 2:3]))


@pytest.mark.parametrize("cell", ONE_STEP)
def test_a_cell_is_a_layer(cell: str) -> None:
    module, layer = make_cell(cell, dtype="float64"), make_layer(cell, dtype="float64")
    layer.load_state_dict({f"{name}_l0": p for name, p in module.state_dict().items()})
    x, dy, state = normal((9, B, I), "float64", 1), normal((9, B, H), "float64", 2), make_state(module, (B,), 3)
    own = mapped(itemgetter(np.s_[None]), state)
    expected = {name.removesuffix("_l0"): a for name, a in gradient(layer, x, dy, 2, 5, state=own).items()}
    for name in named_states((), state):
        expected[name] = expected[name][0]
    assert_same_bits(gradient(module, x, dy, 2, 5, state=state), expected)
    one = mapped(itemgetter(0), state)
    single = gradient(module, x[:, 0], dy[:, 0], 2, 5, state=one)
    assert_same_bits(
        {"dx": single["dx"], "dh0": single["dh0"]}, {"dx": expected["dx"][:, 0], "dh0": expected["dh0"][0]}
    )


@by_cell
def test_arrays_lie_as_the_layer_has_them(cell: str) -> None:
    layer, first = (make_layer(cell, num_layers=2, batch_first=b) for b in (False, True))
    x, dy = normal((9, B, I), "float32", 1), normal((9, B, H), "float32", 2)
    expected = gradient(layer, x, dy, 2, 5)
    actual = gradient(first, x.swapaxes(0, 1), dy.swapaxes(0, 1), 2, 5)
    assert_same_bits({**actual, "dx": actual["dx"].swapaxes(0, 1)}, expected)
    for one in (layer, first):
        actual = gradient(one, x[:, 0], dy[:, 0], 2, 5)
        assert_same_bits(
            {"dx": actual["dx"], "dh0": actual["dh0"]}, {"dx": expected["dx"][:, 0], "dh0": expected["dh0"][:, 0]}
        )


@by_cell
def test_a_learned_initial_state_has_a_gradient(cell: str) -> None:
    layer = make_layer(cell, num_layers=2, learn_initial_state=True, dtype="float64")
    names = [name for name in layer.parameters if name.startswith("initial")]
    for seed, name in enumerate(names):
        setattr(layer, name, normal((2, H), "float64", seed))
    x, dy = normal((9, B, I), "float64", 1), normal((9, B, H), "float64", 2)
    state = tuple(np.repeat(layer.parameters[name][:, None], B, axis=1) for name in names)
    expected = oracle(layer, x, dy, 2, 5, state=state)
    own = {name: expected[f"dh{k}"].sum(axis=1) for k, name in enumerate(names)}
    assert_close(gradient(layer, x, dy, 2, 5), expected | own)
    given = gradient(layer, x, dy, 2, 5, state=state_of(state))
    assert_close(given, expected | {name: np.zeros((2, H)) for name in names})


@by_cell
def test_tokens_are_one_hot_rows(cell: str) -> None:
    layer = make_layer(cell, num_layers=2, dtype="float64")
    x, dy = np.random.default_rng(1).integers(0, I, (40, B)), normal((40, B, H), "float64", 2)
    expected = oracle(layer, np.eye(I)[x], dy, 3, 10)
    del expected["dx"]
    assert_close(gradient(layer, x, dy, 3, 10), expected)


@pytest.mark.parametrize(("k1", "k2"), [(3, 7), (4, 4), (4, 3)])
def test_dropout_is_that_of_forward(k1: int, k2: int) -> None:
    layers = [make_layer("gru", num_layers=3, dropout=0.5, dtype="float64") for _ in range(2)]
    x, dy = normal((11, B, I), "float64", 1), normal((11, B, H), "float64", 2)
    total: Results = {}
    for end in range(k1, 11 + k1, k1):
        # The windows' own gradients are plain ones of the steps from tau on, with dy of the new ones alone.
        stop, tau = min(end, 11), max(0, min(end, 11) - k2)
        layers[0].rng = np.random.default_rng(5)
        *_, tape = layers[0].forward(x)
        d = np.zeros_like(dy)
        d[max(tau, end - k1) : stop] = dy[max(tau, end - k1) : stop]
        for k in reversed(range(3)):
            d_k, *_, [new] = _core.backward(tape.kept[k], d[tau:stop], steps=(tau, stop))
            d = np.zeros_like(x if k == 0 else dy)
            d[tau:stop] = d_k
            if k:
                d *= tape.masks[k - 1]
            for name, a in named_parameters(layers[0], new, f"_l{k}").items():
                total[name] = total.get(name, np.zeros(())) + a
        total["dx"] = total.get("dx", np.zeros(())) + d
    layers[1].rng = np.random.default_rng(5)
    actual = gradient(layers[1], x, dy, k1, k2)
    assert_close({name: actual[name] for name in total}, total)


def test_dx_is_left_out_on_request() -> None:
    layer = make_layer("lstm", num_layers=2)
    x, dy = normal((9, B, I), "float32", 1), normal((9, B, H), "float32", 2)
    expected = gradient(layer, x, dy, 2, 5)
    del expected["dx"]
    assert_same_bits(gradient(layer, x, dy, 2, 5, need_dx=False), expected)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_no_sequences_have_no_gradient(num_layers: int) -> None:
    layer = make_layer("lstm", num_layers=num_layers)
    actual = gradient(layer, np.ones((5, 0, I), np.float32), np.ones((5, 0, H), np.float32), 2, 3)
    assert actual["dx"].shape == (5, 0, I)
    assert not any(a.any() for a in actual.values())


def test_windows_of_more_steps_than_there_are_go_through_all() -> None:
    layer = make_layer("lstm")
    x, dy = normal((7, B, I), "float32", 1), normal((7, B, H), "float32", 2)
    assert_same_bits(gradient(layer, x, dy, 2**63, 10**30), gradient(layer, x, dy, 7, 7))


def test_steps_without_a_window_contribute_nothing() -> None:
    """Step 0 lies before the first: 1 2 3, 4 5 6."""
    layer = make_layer("lstm", num_layers=2)
    x, dy = normal((7, B, I), "float32", 1), normal((7, B, H), "float32", 2)
    expected = gradient(layer, x, dy, 4, 3)
    dy[0] = np.inf
    assert_same_bits(gradient(layer, x, dy, 4, 3), expected)
    assert not expected["dx"][0].any()
    assert expected["dx"][1:].all()


X, DY = np.ones((5, B, I), np.float32), np.ones((5, B, H), np.float32)
BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "k1": (ValueError, "k1: expected at least 1, got 0", {"k1": 0}),
    "k2": (ValueError, "k2: expected at least 1, got -1", {"k2": -1}),
    "k1 float": (TypeError, "k1: expected an int, got float", {"k1": 2.0}),
    "losses": (ValueError, "losses: expected 'new' or 'window', got 'all'", {"losses": "all"}),
    "dy": (ValueError, r"dy: expected shape \(5, 3, 6\), got \(4, 3, 6\)", {"dy": DY[:4]}),
    "dy dtype": (TypeError, "dy: expected dtype float32, got float64", {"dy": DY.astype("float64")}),
    "x": (ValueError, "x: expected shape", {"x": X[..., :3]}),
    "x packed": (TypeError, "x: expected an array", {"x": PackedSequence(X[:, 0], np.ones(5, np.int64))}),
    "state": (TypeError, r"state: expected a tuple \(h, c\)", {"state": np.ones((1, B, H), np.float32)}),
    "directions": (ValueError, "layer: expected one direction", {"layer": make_layer("lstm", bidirectional=True)}),
    "layer": (TypeError, "layer: expected a recurrent layer or cell, got Linear", {"layer": rnnfast.Linear(I, H)}),
    "cell": (ValueError, r"state: expected shape \(3, 6\), got \(1, 3, 6\)",
             {"layer": make_cell("gru"), "state": np.ones((1, B, H), np.float32)}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_argument(case: str) -> None:
    kind, message, wrong = BAD[case]
    given = {"layer": make_layer("lstm"), "x": X, "dy": DY, "k1": 2, "k2": 3, **wrong}
    with pytest.raises(kind, match=message):
        rnnfast.tbptt_gradient(**given)


# What does not pass through a sum, or has no windows, is refused where it would have to be built
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_dh": 1.0}, "clip_dh: expected none"),
        ({"dstate": (np.ones((1, B, H)),)}, "windows: expected"),
        ({"steps": (0, 3)}, "windows: expected"),
        ({"windows": (0, 1, False, False)}, "windows: expected k1 and k2"),
    ],
)
def test_the_kernel_refuses_what_has_no_windows(options: dict[str, Any], message: str) -> None:
    tape = make_layer("gru").forward(X)[2]
    with pytest.raises(ValueError, match=message):
        _core.backward(tape.kept[0], DY, **{"windows": (2, 3, False, False), **options})


@pytest.mark.parametrize("arguments", [{"resets": np.zeros((5, B), bool)}, {"lengths": [5, 3, 1]}])
def test_the_kernel_refuses_sequences_of_their_own(arguments: dict[str, Any]) -> None:
    tape = make_layer("gru").forward(X, **arguments)[2]
    dy = DY if "resets" in arguments else np.ones((9, H), np.float32)
    with pytest.raises(ValueError, match="windows: expected"):
        _core.backward(tape.kept[0], dy, windows=(2, 3, False, False))
