"""The same against torch, where it is installed: layers, cells, gradients, state dicts and 50 steps of training."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from modules import IN_TORCH, KINDS
from problems import Array, Shape, assert_close, make_problem, mapped, named_state, solve, state_of

import rnnfast
from rnnfast import functional, reference, training

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')


class Layer(NamedTuple):
    """One row of the table of layers that torch has too."""

    cell: str
    name: str  # of the class, here and in torch.nn
    options: dict[str, str]


LAYERS = [Layer(cell, *KINDS[cell]) for cell in IN_TORCH]
by_layer = pytest.mark.parametrize("layer", LAYERS, ids=[layer.cell for layer in LAYERS])

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "two directions": {"bidirectional": True},
    "three layers, two directions": {"num_layers": 3, "bidirectional": True},
    "no bias": {"num_layers": 2, "bias": False},
    "batch first": {"batch_first": True, "num_layers": 2, "bidirectional": True},
}
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

T, B, I, H = 7, 5, 6, 19


def tensor(a: Any) -> Any:
    """Return a torch tensor of the array that collects its gradient; a pair of them for a pair."""
    return tuple(map(tensor, a)) if isinstance(a, tuple) else torch.from_numpy(a.copy()).requires_grad_()


def parts(state: Any) -> tuple[Any, ...]:
    """Return the arrays of a state, (h, c) or (h,)."""
    return state if isinstance(state, tuple) else (state,)


def by_name(**values: Any) -> dict[str, Array]:
    """Return NumPy arrays by name, those of a pair as name[0] and name[1]."""
    arrays = {f"{name}[{k}]": a for name, value in values.items() for k, a in enumerate(parts(value))}
    return {name: a.detach().numpy() if isinstance(a, torch.Tensor) else a for name, a in arrays.items()}


def normal(like: Any, seed: int) -> Any:
    """Return normally distributed arrays of the shapes of the given ones."""
    rng = np.random.default_rng(seed)
    drawn = tuple(rng.standard_normal(tuple(a.shape)) for a in parts(like))
    return drawn if isinstance(like, tuple) else drawn[0]


def normal_x(form: dict[str, Any]) -> Array:
    """Return a normally distributed x as a layer of this form takes it."""
    return np.asarray(normal(np.empty((B, T, I) if form.get("batch_first") else (T, B, I)), 1))


def twins(layer: Layer, form: dict[str, Any], sizes: tuple[int, int], suffix: str = "") -> tuple[Any, Any]:
    """Return a layer or cell of float64 in torch, and ours with its state dict."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, layer.name + suffix)(*sizes, **layer.options, **form, dtype=torch.float64)
    ours = getattr(rnnfast, layer.name + suffix)(*sizes, **layer.options, **form, dtype="float64", rng=1)
    ours.load_state_dict({name: p.numpy() for name, p in theirs.state_dict().items()})
    return theirs, ours


def torch_gradients(theirs: Any, outputs: tuple[Any, ...], douts: tuple[Array, ...], x: Any, state: Any) -> Any:
    """Return dx, dstate0 and the parameters' gradients, all by name."""
    torch.autograd.backward(outputs, [torch.from_numpy(d) for d in douts])
    dstate0 = tuple(s.grad for s in parts(state))
    return by_name(dx=x.grad, dstate0=dstate0, **{name: p.grad for name, p in theirs.named_parameters()})


@pytest.mark.parametrize("batch", ["batch", "one sequence"])
@by_form
@by_layer
def test_layers_agree(layer: Layer, form: dict[str, Any], batch: str) -> None:
    theirs, ours = twins(layer, form, (I, H))
    x = normal_x(form) if batch == "batch" else normal(np.empty((T, I)), 1)
    state = normal(ours(x)[1], 2)
    y, last, tape = ours.forward(x, state)
    dy, dstate = normal(y, 3), normal(last, 4)
    dx, dstate0, grads = ours.backward(tape, dy, dstate)
    x_torch, state_torch = tensor(x), tensor(state)
    y_torch, last_torch = theirs(x_torch, state_torch)
    assert_close(by_name(y=y, last=last), by_name(y=y_torch, last=last_torch))
    expected = torch_gradients(theirs, (y_torch, *parts(last_torch)), (dy, *parts(dstate)), x_torch, state_torch)
    assert_close(by_name(dx=dx, dstate0=dstate0, **grads), expected)


@by_form
@by_layer
def test_layers_agree_where_only_x_and_dy_are_given(layer: Layer, form: dict[str, Any]) -> None:
    theirs, ours = twins(layer, form, (I, H))
    x = normal_x(form)
    y, last, tape = ours.forward(x)
    dy = normal(y, 2)
    dx, _, grads = ours.backward(tape, dy)
    x_torch = tensor(x)
    y_torch, last_torch = theirs(x_torch)
    assert_close(by_name(y=y, last=last), by_name(y=y_torch, last=last_torch))
    assert_close(by_name(dx=dx, **grads), torch_gradients(theirs, (y_torch,), (dy,), x_torch, ()))


@by_form
@by_layer
def test_layers_agree_on_tokens(layer: Layer, form: dict[str, Any]) -> None:
    theirs, ours = twins(layer, form, (I, H))
    embedding = torch.nn.Embedding(11, I, dtype=torch.float64)
    tokens = np.random.default_rng(0).integers(11, size=normal_x(form).shape[:2])
    y, last, tape = ours.forward(tokens, embedding=embedding.weight.detach())
    dy, dlast = normal(y, 3), normal(last, 4)
    _, _, grads = ours.backward(tape, dy, dlast)
    y_torch, last_torch = theirs(embedding(torch.from_numpy(tokens)))
    assert_close(by_name(y=y, last=last), by_name(y=y_torch, last=last_torch))
    torch.autograd.backward((y_torch, *parts(last_torch)), [torch.from_numpy(d) for d in (dy, *parts(dlast))])
    expected = {name: p.grad for name, p in theirs.named_parameters()} | {"embedding": embedding.weight.grad}
    assert_close(by_name(**grads), by_name(**expected))


@pytest.mark.parametrize("shape", [(B, I), (I,)], ids=["batch", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@by_layer
def test_cells_agree(layer: Layer, bias: bool, shape: tuple[int, ...]) -> None:
    theirs, ours = twins(layer, {"bias": bias}, (I, H), "Cell")
    x = normal(np.empty(shape), 1)
    state = normal(ours(x), 2)
    last, tape = ours.forward(x, state)
    dstate = normal(last, 3)
    dx, dstate0, grads = ours.backward(tape, dstate)
    x_torch, state_torch = tensor(x), tensor(state)
    last_torch = theirs(x_torch, state_torch)
    assert_close(by_name(last=last), by_name(last=last_torch))
    expected = torch_gradients(theirs, parts(last_torch), parts(dstate), x_torch, state_torch)
    assert_close(by_name(dx=dx, dstate0=dstate0, **grads), expected)


@pytest.mark.parametrize("D", [1, 2])
@by_layer
def test_the_oracle_agrees(layer: Layer, D: int) -> None:
    p: Any = make_problem(layer.cell, np.float64, Shape(T, B, I, H, D))
    theirs = getattr(torch.nn, layer.name)(I, H, **layer.options, bidirectional=D == 2, dtype=torch.float64)
    weights = [w for ps in p.parameters for w in ps if w is not None]
    theirs.load_state_dict({k: torch.from_numpy(w) for k, w in zip(theirs.state_dict(), weights, strict=True)})
    x, state = tensor(p.x), mapped(tensor, p.state0)
    y, last = theirs(x, state_of(state))
    torch.autograd.backward((y, *parts(last)), [torch.from_numpy(d) for d in (p.dy, *p.dstate)])
    names = [f"{name}[{d}]" for d in range(D) for name in ("dw_ih", "dw_hh", "db_ih", "db_hh")]
    expected: dict[str, Any] = {name: w.grad for name, w in zip(names, theirs.parameters(), strict=True)}
    expected |= {"y": y, **named_state(layer.cell, parts(last)), "dx": x.grad}
    expected |= named_state(layer.cell, tuple(s.grad for s in state), "d{}0")
    assert_close(solve(reference, p), {name: a.detach().numpy() for name, a in expected.items()})


@by_layer
def test_functional_takes_torch_tensors_without_a_copy_of_their_own(layer: Layer) -> None:
    theirs, _ = twins(layer, {}, (I, H))
    x = torch.from_numpy(normal(np.empty((T, B, I)), 1))
    parameters = [tuple(p.detach() for p in theirs.parameters())]
    y, last, tape = functional.forward(layer.cell, x, parameters)
    y_torch, last_torch = theirs(x)
    assert_close(by_name(y=y, last=last), by_name(y=y_torch, last=last_torch))
    _, _, [grads] = functional.backward(tape, torch.ones_like(y_torch), need_dx=False)
    y_torch.sum().backward()
    names = [name for name, _ in theirs.named_parameters()]
    expected = by_name(**{name: p.grad for name, p in theirs.named_parameters()})
    assert_close(by_name(**dict(zip(names, grads, strict=True))), expected)


@by_form
@by_layer
def test_state_dicts_have_the_same_names_and_shapes(layer: Layer, form: dict[str, Any]) -> None:
    theirs = getattr(torch.nn, layer.name)(I, H, **layer.options, **form)
    ours = getattr(rnnfast, layer.name)(I, H, **layer.options, **form)
    expected = [(name, tuple(p.shape)) for name, p in theirs.state_dict().items()]
    assert [(name, p.shape) for name, p in ours.state_dict().items()] == expected


@by_layer
def test_a_torch_state_dict_loads_as_it_is_and_ours_loads_into_torch(layer: Layer) -> None:
    theirs = getattr(torch.nn, layer.name)(I, H, 2, **layer.options)
    ours = getattr(rnnfast, layer.name)(I, H, 2, **layer.options)
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    with torch.no_grad():
        assert_close(by_name(y=ours(x)[0]), by_name(y=theirs(torch.from_numpy(x))[0]))
    other = getattr(torch.nn, layer.name)(I, H, 2, **layer.options)
    other.load_state_dict({name: torch.from_numpy(p) for name, p in ours.state_dict().items()})
    for p, q in zip(theirs.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@by_layer
def test_no_time_steps_are_an_error_in_both(layer: Layer) -> None:
    theirs, ours = twins(layer, {}, (I, H))
    with pytest.raises(RuntimeError, match="sequence length"):
        theirs(torch.empty(0, B, I, dtype=torch.float64))
    with pytest.raises(ValueError, match="x: expected"):
        ours(np.empty((0, B, I)))


@by_layer
def test_no_sequences_give_empty_outputs_in_both(layer: Layer) -> None:
    theirs, ours = twins(layer, {}, (I, H))
    y, last = ours(np.empty((T, 0, I)))
    y_torch, last_torch = theirs(torch.empty(T, 0, I, dtype=torch.float64))
    expected = {name: a.shape for name, a in by_name(y=y_torch, last=last_torch).items()}
    assert {name: a.shape for name, a in by_name(y=y, last=last).items()} == expected


# Truncated backpropagation


@pytest.mark.parametrize("k", [1, 3, 7])
@by_layer
def test_windows_that_meet_are_chunks_with_a_detached_state(layer: Layer, k: int) -> None:
    theirs = getattr(torch.nn, layer.name)(I, H, 2, **layer.options).double()
    ours: Any = getattr(rnnfast, layer.name)(I, H, 2, **layer.options, dtype="float64")
    ours.load_state_dict({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    x = np.random.default_rng(0).standard_normal((3 * T, B, I))
    state = None
    for window, chunk in zip(rnnfast.tbptt(ours, x, k, k), torch.from_numpy(x).split(k), strict=True):
        y, state = theirs(chunk, state)
        y.sin().sum().backward()
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        expected = {name: p.grad.numpy().copy() for name, p in theirs.named_parameters()}
        theirs.zero_grad()
        assert_close(window.backward(np.cos(window.y)), expected, 2)


# The parity proof: the same training

STEPS, V, DELAY = 50, 10, 2
CLIP = 0.3  # below the norm of the first steps' gradients, above that of the last
LOSS_TOLERANCE = {"float64": 1e-7, "float32": 1e-3}


def batches(dtype: str) -> Iterator[tuple[Array, Array]]:
    """Yield one-hot symbols x [T,B,V] and as targets [T,B] the symbols DELAY steps before."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        symbols = rng.integers(V, size=(12, 8))
        yield np.eye(V, dtype=dtype)[symbols], np.roll(symbols, DELAY, axis=0)


def our_losses(layer: Layer, dtype: str, weights: dict[str, Array]) -> list[float]:
    rnn = getattr(rnnfast, layer.name)(V, 24, 2, **layer.options, dtype=dtype)
    model = rnnfast.Modules(rnn=rnn, readout=rnnfast.Linear(24, V, dtype=dtype))
    model.load_state_dict(weights)
    adam = training.Adam(model, lr=1e-2)
    losses, norms = [], []
    for x, targets in batches(dtype):
        y, _, rnn_tape = model.rnn.forward(x)
        logits, readout_tape = model.readout.forward(y)
        loss, dlogits = training.softmax_cross_entropy(logits, targets)
        dy, readout_grads = model.readout.backward(readout_tape, dlogits)
        _, _, rnn_grads = model.rnn.backward(rnn_tape, dy, need_dx=False)
        grads = model.join(rnn=rnn_grads, readout=readout_grads)
        norms.append(training.clip_grad_norm(grads, CLIP))
        adam.step(grads)
        losses.append(loss)
    assert min(norms) < CLIP < max(norms), "the proof is to contain steps with and without clipping"
    return losses


@pytest.mark.parametrize("dtype", LOSS_TOLERANCE)
@pytest.mark.parametrize("layer", LAYERS[:3], ids=[layer.cell for layer in LAYERS[:3]])
def test_fifty_steps_of_training_have_the_same_losses(layer: Layer, dtype: str) -> None:
    torch.manual_seed(0)
    rnn = getattr(torch.nn, layer.name)(V, 24, 2, **layer.options)
    model = torch.nn.ModuleDict({"rnn": rnn, "readout": torch.nn.Linear(24, V)}).to(getattr(torch, dtype))
    losses = our_losses(layer, dtype, {k: p.detach().numpy().copy() for k, p in model.named_parameters()})

    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step, (x, targets) in enumerate(batches(dtype)):
        logits = model["readout"](model["rnn"](torch.from_numpy(x))[0])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.from_numpy(targets).reshape(-1))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
        assert losses[step] == pytest.approx(loss.item(), rel=LOSS_TOLERANCE[dtype]), f"step {step}"
    assert losses[-1] < 0.95 * losses[0]
