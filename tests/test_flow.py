"""Gradient flow: the norms are those of the derivatives by each state, in every layer and direction."""

from typing import Any

import numpy as np
import pytest
from modules import IN_TORCH, KINDS, PARAMETERS, H, I, initial, make_layer, make_state, normal, parameters_of
from problems import DTYPES, Array, parts, state_of
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import GradientFlow, _core, functional, gradient_flow, pack_padded, reference

FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "no_bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "three": {"num_layers": 3},
    "two_bidirectional": {"num_layers": 2, "bidirectional": True},
}
T, B = 5, 2

by_cell = pytest.mark.parametrize("cell", KINDS)
by_form = pytest.mark.parametrize("form", FORMS)


def squashed_c(layer: Any, own: Any, c: Array) -> Array:
    """Return what the output gate multiplies, of a c [..., H]."""
    if layer.cell == "lstm_norm":
        gain, b = own[6:]
        c = gain * (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + layer.eps) + (
            0 if b is None else b
        )
    squashed: Array = np.tanh(c)
    return squashed


def loss(layer: Any, x: Array, state: Any, dy: Array, moved: tuple[int, int, int], part: str, change: Array) -> float:
    """Return sum(dy * y) with the state (layer, direction, time) moved; h moves with c."""
    L, D = layer.num_layers, layer.directions
    for k in range(L):
        ys = []
        for d in range(D):
            own = [parameters_of(layer, layer.parameters, f"_l{k}{'_reverse' if d else ''}")]
            now = tuple(s[k * D + d][None] for s in parts(state))
            hs = {}
            for t in range(T)[:: -1 if d else 1]:
                _, after = functional.inference(layer.cell, x[t : t + 1], own, state_of(now), layer_norm_eps=layer.eps)
                h, *c = parts(after)
                if (k, d, t) == moved and part == "h":
                    h = h + change
                elif (k, d, t) == moved and len(c) > 1:  # h = o c / n
                    h = h * (1 + change / c[0])
                    c = [c[0] + change, *c[1:]]
                elif (k, d, t) == moved:
                    o = h / squashed_c(layer, own[0], c[0])
                    c = [c[0] + change]
                    if layer.cell.endswith("peephole"):  # o sees c
                        p_o = np.asarray(own[0][4])[-layer.hidden_size :]
                        o = reference.sigmoid(np.log(o / (1 - o)) + p_o * change)
                    h = o * squashed_c(layer, own[0], c[0])
                now = (h, *c)
                hs[t] = h[0]
            ys.append(np.array([hs[t] for t in range(T)]))
        x = np.concatenate(ys, axis=2)
    return float(np.vdot(dy, x))


@by_form
@by_cell
def test_the_norms_are_those_of_the_central_differences(cell: str, form: str) -> None:
    size = 3
    layer = make_layer(cell, (I, size), dtype="float64", **FORMS[form])
    L, D = layer.num_layers, layer.directions
    x, dy = normal((T, B, I), "float64", 1), normal((T, B, D * size), "float64", 2)
    state = make_state(layer, (B,), 3)
    step = 1e-5  # the error of the difference is step^2, that of rounding 1e-16 / step
    flow = gradient_flow(layer, x, dy, state=state)
    for part, norms in zip("hc", flow, strict=True):
        assert (norms is None) == (part not in _core.cells[cell].states)
        if norms is None:
            continue
        expected = np.zeros((L, D, T))
        for moved in np.ndindex(L, D, T):
            for unit in np.eye(B * size).reshape(-1, B, size):
                above, below = (loss(layer, x, state, dy, moved, part, s * step * unit) for s in (1, -1))
                expected[moved] += ((above - below) / (2 * step)) ** 2
        assert norms.shape == expected.shape
        np.testing.assert_allclose(norms, np.sqrt(expected), rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@by_cell
def test_the_gradient_of_a_state_is_what_the_rest_of_the_sequence_gives_it(cell: str, dtype: str) -> None:
    layer = make_layer(cell, dtype=dtype)
    x, dy = normal((30, B, I), dtype, 1), normal((30, B, H), dtype, 2)
    norms = gradient_flow(layer, x, dy).h[0, 0]
    expected = [np.linalg.norm(dy[-1])]
    for t in reversed(range(29)):
        _, state = layer(x[: t + 1])
        _, _, tape = layer.forward(x[t + 1 :], state)
        _, dstate0, _ = layer.backward(tape, dy[t + 1 :])
        expected.insert(0, np.linalg.norm(parts(dstate0)[0] + dy[t]))
    assert relative_error(norms, np.array(expected)) <= TOLERANCE[np.dtype(dtype)]


@pytest.mark.parametrize("cell", IN_TORCH)
def test_torch_finds_the_same_gradients(cell: str) -> None:
    torch = pytest.importorskip("torch")
    layer = make_layer(cell, dtype="float64", num_layers=2)
    x, dy = normal((T, B, I), "float64", 1), normal((T, B, H), "float64", 2)
    kind, own = KINDS[cell]
    kept: list[list[Any]] = [[], []]
    steps = torch.from_numpy(x).unbind()
    for k, states in enumerate(kept):
        theirs = getattr(torch.nn, f"{kind}Cell")(H if k else I, H, dtype=torch.float64, **own)
        theirs.load_state_dict({name: torch.from_numpy(layer.parameters[f"{name}_l{k}"]) for name in PARAMETERS})
        now = None
        for step in steps:
            now = theirs(step, now)
            for s in parts(now):
                s.retain_grad()
            states.append(parts(now))
        steps = [s[0] for s in states]
    torch.stack(steps).backward(torch.from_numpy(dy))
    expected = np.array([[[torch.linalg.norm(s.grad) for s in state] for state in states] for states in kept])
    for k, norms in enumerate(norms for norms in gradient_flow(layer, x, dy) if norms is not None):
        assert relative_error(norms[:, 0], expected[..., k]) <= TOLERANCE[norms.dtype]


def make_stack(cell: str, **options: Any) -> Any:
    return make_layer(cell, dtype="float64", num_layers=2, bidirectional=True, **options)


def assert_close(flow: GradientFlow, expected: GradientFlow) -> None:
    for a, b in zip(flow, expected, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert relative_error(a, b) <= TOLERANCE[a.dtype]


X, DY = normal((T, B, I), "float64", 1), normal((T, B, 2 * H), "float64", 2)


@by_cell
def test_tokens_give_what_their_rows_give(cell: str) -> None:
    layer = make_stack(cell)
    tokens, embedding = np.random.default_rng(0).integers(0, I, (T, B)), normal((I, I), "float64", 3)
    assert_close(gradient_flow(layer, tokens, DY), gradient_flow(layer, np.eye(I)[tokens], DY))
    assert_close(gradient_flow(layer, tokens, DY, embedding=embedding), gradient_flow(layer, embedding[tokens], DY))


@by_cell
def test_batch_first_changes_the_view_only(cell: str) -> None:
    layer, twin = make_stack(cell), make_stack(cell, batch_first=True)
    assert_close(gradient_flow(twin, X.swapaxes(0, 1), DY.swapaxes(0, 1)), gradient_flow(layer, X, DY))


@by_cell
def test_one_sequence_is_a_batch_of_one(cell: str) -> None:
    layer = make_stack(cell)
    state, states = (make_state(layer, batch, 3) for batch in ((), (1,)))
    assert_close(
        gradient_flow(layer, X[:, 0], DY[:, 0], state=state), gradient_flow(layer, X[:, :1], DY[:, :1], state=states)
    )


@by_cell
def test_a_learned_state_is_where_sequences_start(cell: str) -> None:
    layer, twin = make_stack(cell, learn_initial_state=True), make_stack(cell)
    state = make_state(twin, (1,), 3)
    for name, part in zip(initial(layer.cell), parts(state), strict=True):
        layer.parameters[name][...] = part[:, 0]
    assert_close(gradient_flow(layer, X[:, :1], DY[:, :1]), gradient_flow(twin, X[:, :1], DY[:, :1], state=state))


def test_dropout_is_left_out() -> None:
    layer, twin = make_layer("gru", num_layers=2, dropout=0.5), make_layer("gru", num_layers=2)
    x, dy = normal((T, B, I), "float32", 1), normal((T, B, H), "float32", 2)
    before = layer.rng.bit_generator.state
    assert np.array_equal(gradient_flow(layer, x, dy).h, gradient_flow(twin, x, dy).h)
    assert layer.rng.bit_generator.state == before


def test_norms_are_right_where_squares_are_not() -> None:
    rnn = make_layer("rnn_relu", (1, 2), dtype="float64", bias=False)
    rnn.weight_ih_l0 = np.ones((2, 1))
    x, dy = np.ones((3, 1, 1)), np.zeros((3, 1, 2))
    dy[-1] = 3, 4
    for factor in (1e-120, 1e120):
        rnn.weight_hh_l0 = factor * np.eye(2)
        np.testing.assert_allclose(gradient_flow(rnn, x, dy).h[0, 0], [5 * factor**2, 5 * factor, 5], rtol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    rnn = make_layer("rnn_relu", dtype="float64")
    dy = np.zeros((3, 1, H))
    dy[1, 0, 0] = bad
    norms = gradient_flow(rnn, np.ones((3, 1, I)), dy).h[0, 0]
    assert np.array_equal(norms[1:], [bad, 0], equal_nan=True)
    assert not np.isfinite(norms[0])


def test_no_sequences_have_no_gradients() -> None:
    flow = gradient_flow(make_layer("lstm"), np.ones((T, 0, I), np.float32), np.ones((T, 0, H), np.float32))
    assert flow.c is not None
    assert not flow.h.any()
    assert not flow.c.any()


X32, DY32 = X.astype(np.float32), DY[..., :H].astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (rnnfast.LSTMCell(I, H), X32, DY32),
            {},
            TypeError,
            "layer: expected an LSTM, GRU, RNN or SLSTM, got LSTMCell",
        ),
        ((rnnfast.GRU(I, H), X32[..., 1:], DY32), {}, ValueError, rf"x: expected shape \(T, B, {I}\) .* got"),
        ((rnnfast.GRU(I, H), X, DY32), {}, TypeError, "x: expected dtype float32, got float64"),
        ((rnnfast.GRU(I, H), X32, DY32[1:]), {}, ValueError, r"dy: expected shape \(5, 2, 6\), got \(4, 2, 6\)"),
        ((rnnfast.GRU(I, H), X32[:, 0], DY32), {}, ValueError, r"dy: expected shape \(5, 6\), got \(5, 2, 6\)"),
        ((rnnfast.GRU(I, H), X32, None), {}, TypeError, "dy: "),
        ((rnnfast.GRU(I, H), X32, DY32), {"state": DY32}, ValueError, r"state: expected shape \(1, 2, 6\)"),
        ((rnnfast.GRU(I, H), X32, DY32), {"embedding": {1}}, TypeError, "embedding: "),
    ],
)
def test_errors_name_the_argument(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gradient_flow(*arguments, **options)


@by_cell
def test_packed_sequences_give_what_their_lengths_give(cell: str) -> None:
    layer = make_stack(cell)
    for lengths in ([2, T], [T - 1, 0], [0, 0]):
        padded = gradient_flow(layer, X, DY, lengths=lengths)
        packed = gradient_flow(layer, pack_padded(X, lengths), pack_padded(DY, lengths))
        for a, b in zip(padded, packed, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert a.any() == any(lengths)
                assert np.array_equal(a[..., : b.shape[-1]], b)
