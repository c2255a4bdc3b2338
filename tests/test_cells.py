"""Cells: one step each, with the bits of a layer and the values of the oracle and of torch."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from modules import (
    IN_TORCH,
    KINDS,
    ONE_STEP,
    B,
    H,
    I,
    make_cell,
    make_state,
    named_parameters,
    named_states,
    normal,
    parameters_of,
)
from problems import (
    DTYPES,
    REPRESENTATIVES,
    Results,
    assert_close,
    assert_same_bits,
    named,
    num_states,
    parts,
    state_of,
)

import rnnfast
from rnnfast import _core, reference

by_cell = pytest.mark.parametrize("cell", ONE_STEP)
by_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
by_batch = pytest.mark.parametrize("batch", [(), (1,), (B,), (0,)], ids=["one", "B1", "B3", "B0"])


def results(state: Any, dx: Any, dstate0: Any, grads: Results) -> Results:
    """Return everything that came by name."""
    return {**named(dx=dx), **named_states(state, dstate0), **grads}


@by_batch
@by_bias
@pytest.mark.parametrize("dtype", DTYPES)
@by_cell
def test_a_step_is_the_oracles(cell: str, dtype: str, bias: bool, batch: tuple[int, ...]) -> None:
    module = make_cell(cell, dtype=dtype, bias=bias)
    x, state, dstate = (
        normal((*batch, I), dtype, 1),
        make_state(module, batch, 2),
        make_state(module, batch, 4),
    )
    last, tape = module.forward(x, state)
    actual = results(last, *module.backward(tape, dstate))
    n = batch[0] if batch else 1
    parameters = [parameters_of(module, module.parameters)]
    first, dlast = (tuple(s.reshape(1, n, H) for s in parts(ss)) for ss in (state, dstate))
    _, end, kept = reference.forward(cell, x.reshape(1, n, I), parameters, first)
    dx, dstate0, [grads] = reference.backward(kept, None, dlast)
    states = (tuple(s.reshape(*batch, H) for s in ss) for ss in (end, dstate0))
    expected = {**named(dx=dx.reshape(x.shape)), **named_states(*states)}
    assert_close(actual, expected | named_parameters(module, grads))
    assert_same_bits(named_states(module(x, state)), named_states(last))


@by_cell
def test_steps_give_the_bits_of_a_layer(cell: str) -> None:
    kind, own = KINDS[cell]
    layer, module = getattr(rnnfast, kind)(I, H, rng=1, **own), make_cell(cell)
    module.load_state_dict({name: layer.parameters[f"{name}_l0"] for name in module.parameters})
    x = normal((9, B, I), "float32", 1)
    y, last = layer(x)
    state: Any = None
    for x_t, y_t in zip(x, y, strict=True):
        state = module(x_t, state)
        assert np.array_equal(parts(state)[0], y_t)
    for s, s_last in zip(parts(state), parts(last), strict=True):
        assert np.array_equal(s, s_last[0])


@by_batch
@by_cell
def test_no_state_is_zeros(cell: str, batch: tuple[int, ...]) -> None:
    module = make_cell(cell)
    x, zeros = normal((*batch, I), "float32", 1), np.zeros((*batch, H), np.float32)
    last, tape = module.forward(x)
    expected, tape_zeros = module.forward(x, state_of((zeros,) * num_states(cell)))
    actual = results(last, *module.backward(tape, last))
    assert_same_bits(actual, results(expected, *module.backward(tape_zeros, last)))


@by_cell
def test_gradients_are_added_and_the_tape_stays(cell: str) -> None:
    module = make_cell(cell)
    last, tape = module.forward(normal((B, I), "float32", 1), make_state(module, (B,), 2))
    dx, dstate0, grads = module.backward(tape, last)
    summed = {name: np.zeros_like(p) for name, p in module.state_dict().items()}
    none, dstate0_again, same = module.backward(tape, last, need_dx=False, grads=summed)
    assert none is None
    assert same is summed
    assert_same_bits(results(last, dx, dstate0_again, summed), results(last, dx, dstate0, grads))
    module.backward(tape, last, grads=summed)
    assert_close(summed, {name: 2 * g.astype(np.float64) for name, g in grads.items()})


@by_batch
@pytest.mark.parametrize("cell", [cell for cell in REPRESENTATIVES if cell in ONE_STEP])
def test_arrays_as_the_kernels_take_them_give_the_bits_of_others(cell: str, batch: tuple[int, ...]) -> None:
    module = make_cell(cell)
    x, state = normal((*batch, I), "float32", 1), make_state(module, batch, 2)

    def solve(form: Any) -> Results:
        given, first = form(x), state_of(tuple(map(form, parts(state))))
        last, tape = module.forward(given, first)
        dstate = state_of(tuple(map(form, parts(last))))
        assert_same_bits(named_states(module(given, first)), named_states(last))
        for kept, part in zip(tape.state, parts(state), strict=True):
            assert np.array_equal(kept.reshape(part.shape), part)
        return results(last, *module.backward(tape, dstate))

    expected = solve(lambda a: a)
    for form in (memoryview, lambda a: a.view(Derived), lambda a: np.repeat(a, 2, -1)[..., ::2]):
        assert_same_bits(solve(form), expected)


class Derived(np.ndarray[Any, Any]):
    """An array that is not of NumPy's own class."""


@pytest.mark.parametrize("batch", [(), (1,), (B,)], ids=["one", "B1", "B3"])
def test_an_error_of_a_step_names_the_argument_and_changes_nothing(batch: tuple[int, ...]) -> None:
    module = make_cell("lstm")
    x, state = normal((*batch, I), "float32", 1), make_state(module, batch, 2)
    last, tape = module.forward(x, state)
    expected = results(last, *module.backward(tape, last))
    h, c = state
    others = h[None], h[..., :-1], h.astype(np.float64), np.zeros((B + 1, H), np.float32), h[0] if batch else h[None]
    for other in others:
        for given in ((other, c), (h, other)):
            with pytest.raises((TypeError, ValueError), match=r"^state: expected"):
                module(x, given)
            with pytest.raises((TypeError, ValueError), match=r"^dstate: expected"):
                module.backward(tape, given)
    wrong_parts: tuple[Any, ...] = h, (h,), (h, c, c)
    for parts_given in wrong_parts:
        with pytest.raises((TypeError, ValueError), match=r"^dstate: expected a tuple \(h, c\)"):
            module.backward(tape, parts_given)
    for wrong in (x[..., :-1], x[None, None], x.astype(np.float64)):
        with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
            module.forward(wrong, state)
    assert_same_bits(results(module(x, state), *module.backward(tape, last)), expected)


def test_a_step_sees_what_changes_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = rnnfast.RNNCell(I, H, rng=0)
    x = normal((B, I), "float32", 1)

    def assigning(*facts: Any) -> Any:  # as another thread might meanwhile
        monkeypatch.undo()
        module.cell = "rnn_relu"
        return _core.PlainLayer(*facts)

    monkeypatch.setattr(_core, "PlainLayer", assigning)
    assert (module(x) < 0).any()
    h, tape = module.forward(x)
    assert (h >= 0).all()

    module.weight_ih = 2 * module.weight_ih
    expected = module(x)
    assert not np.array_equal(h, expected)
    module.parameters = {name: 2 * p for name, p in module.parameters.items()}
    assert not np.array_equal(module(x), expected)
    expected = module(x)
    module.parameters = MappingProxyType(module.parameters)
    assert np.array_equal(module(x), expected)
    assert list(module.backward(tape, h)[2]) == list(module.parameters)


def test_a_tape_keeps_the_shape_of_x() -> None:
    module, x = make_cell("gru"), normal((B, I), "float32", 1)
    h, tape = module.forward(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy: shapes are to be assigned no more
        x.shape = I, B
    assert tape.x.shape == (B, I)
    zeros = {name: np.zeros_like(p) for name, p in module.parameters.items()}
    assert np.array_equal(module.backward(tape, h, grads=zeros)[0], module.backward(tape, h)[0])


def test_threads_share_a_cell() -> None:
    module, xs = make_cell("lstm"), normal((40, B, I), "float32", 1)
    expected = [parts(make_cell("lstm")(x))[0] for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for h, found in zip(expected, pool.map(module, xs), strict=True):
            assert np.array_equal(h, found[0])


@by_bias
@pytest.mark.parametrize("batch", [(), (B,)], ids=["one", "B3"])
@pytest.mark.parametrize("cell", [cell for cell in IN_TORCH if cell in ONE_STEP])
def test_a_torch_state_dict_gives_torchs_results(cell: str, bias: bool, batch: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    kind, own = KINDS[cell]
    theirs = getattr(torch.nn, f"{kind}Cell")(I, H, bias, **own, dtype=torch.float64)
    module = make_cell(cell, bias=bias, dtype="float64")
    assert list(module.state_dict()) == list(theirs.state_dict())
    module.load_state_dict(theirs.state_dict())
    x, state = normal((*batch, I), "float64", 1), make_state(module, batch, 2)
    inputs = [torch.from_numpy(a).requires_grad_() for a in (x, *parts(state))]
    last = parts(theirs(inputs[0], state_of(tuple(inputs[1:]))))
    sum(s.square().sum() / 2 for s in last).backward()
    actual, tape = module.forward(x, state)
    expected = results(
        tuple(s.detach().numpy() for s in last),
        inputs[0].grad.numpy(),
        tuple(s.grad.numpy() for s in inputs[1:]),
        {name: p.grad.numpy() for name, p in theirs.named_parameters()},
    )
    assert_close(results(actual, *module.backward(tape, actual)), expected)
