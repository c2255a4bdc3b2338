"""rnnfast.torch against torch.nn: values, gradients, rules of autograd, compilation, and what a model goes through."""

import copy
import gc
import importlib
import io
import itertools
import os
import pickle
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')

import rnnfast  # noqa: E402
import rnnfast.torch as ours  # noqa: E402
from rnnfast import _core  # noqa: E402
from rnnfast.torch import _kernels, _modules  # noqa: E402
from rnnfast.torch._derivatives import without_onednn  # noqa: E402
from rnnfast.torch._modules import MODES  # noqa: E402

prune, checkpoint = (importlib.import_module(f"torch.{name}") for name in ("nn.utils.prune", "utils.checkpoint"))
make_fx = importlib.import_module("torch.fx.experimental.proxy_tensor").make_fx

T, B, I, H = 6, 3, 5, 7
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of an array's largest element; torch's own float32 rounds too
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "GRU": ("GRU", {}),
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
}
by_layer = pytest.mark.parametrize("layer", LAYERS)
by_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
FORMS = ("batch", "unbatched", "packed", "packed, not sorted")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def twins(layer: str, **options: Any) -> tuple[Any, Any]:
    """Return torch's module and ours with the same parameters of their own."""
    name, own = LAYERS[layer]
    sizes = options.pop("sizes", (I, H))
    theirs = getattr(torch.nn, name)(*sizes, **own, **options)
    return theirs, ours.accelerate(copy.deepcopy(theirs))


def flat(value: Any) -> list[Any]:
    """Return the tensors of a result."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return [value.data, value.batch_sizes]
    return [t for part in value for t in flat(part)]


def state_of(module: Any, x: Any, *batch: int) -> Any:
    """Return a state that collects its gradient."""
    rows = module.num_layers * (1 + module.bidirectional)
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    parts = [torch.randn(rows, *batch, n, dtype=x.dtype, requires_grad=True) for n in sizes]
    return tuple(parts) if isinstance(module, torch.nn.LSTM) else parts[0]


def solve(module: Any, x: Any, state: Any, form: str = "batch") -> list[Any]:
    """Return what comes of a module, then the gradients of x, of the state and of the parameters."""
    x = x.detach().requires_grad_()
    state = None if state is None else [t.detach().requires_grad_() for t in flat(state)]
    given: Any = x
    if form.startswith("packed"):
        lengths = [T, T - 1, 2] if form == "packed" else [2, T, T - 3]
        given = torch.nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=module.batch_first, enforce_sorted=form == "packed"
        )
    hx = None if state is None else tuple(state) if isinstance(module, torch.nn.LSTM) else state[0]
    torch.manual_seed(1)  # of dropout
    results = flat(module(given, hx))
    inputs = [x, *(state or ()), *module.parameters()]
    outputs = [t for t in results if t.is_floating_point()]
    douts = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype).reshape(t.shape).sin() for t in outputs]
    return [*results, *torch.autograd.grad(outputs, inputs, douts)]


def assert_close(actual: list[Any], expected: list[Any]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if b.is_floating_point() and b.numel():
            assert (a - b).abs().max() <= TOLERANCE[b.dtype] * b.abs().max()
        else:
            assert torch.equal(a, b)


class KernelCall(NamedTuple):
    """A call of the kernels."""

    name: str
    arguments: tuple[Any, ...]  # without the first, a cell or a tape, which is not to be kept alive
    tape: Any  # a weak reference to the tape that a forward returned


class Watched:
    """The calls with tensors, of which it makes a list."""

    tensors: Any = _kernels.TENSORS

    def __init__(self) -> None:
        self.gather, self.calls = self.tensors.gather, list[KernelCall]()

    def forward(self, *arguments: Any) -> Any:
        results = self.tensors.forward(*arguments)
        training = arguments[-2]
        name, tape = ("forward", weakref.ref(results[-3])) if training else ("inference", None)
        self.calls.append(KernelCall(name, arguments[1:], tape))
        return results

    def backward(self, *arguments: Any) -> Any:
        self.calls.append(KernelCall("backward", arguments[1:], None))
        return self.tensors.backward(*arguments)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[KernelCall]:
    """Return a list that fills with the calls that are made."""
    watched = Watched()
    for module in (_kernels, _modules):
        monkeypatch.setattr(module, "TENSORS", watched)
    return watched.calls


OPTIONS = [
    dict(zip(("num_layers", "bidirectional", "bias", "batch_first", "dropout"), values, strict=True))
    for values in itertools.product((1, 2), (False, True), (True, False), (False, True), (0.0, 0.4))
    if values[0] > 1 or values[4] == 0
]


# What is computed


@pytest.mark.parametrize("form", FORMS)
@by_dtype
@by_layer
def test_values_and_gradients_are_torchs_dropout_included(layer: str, dtype: Any, form: str) -> None:
    for options in OPTIONS:
        theirs, module = twins(layer, **options, dtype=dtype)
        unbatched = form == "unbatched"
        shape = (T, I) if unbatched else (B, T, I) if theirs.batch_first else (T, B, I)
        x = torch.randn(shape, dtype=dtype)
        for state in (None, state_of(module, x, *(() if unbatched else (B,)))):
            assert_close(solve(module, x, state, form), solve(theirs, x, state, form))


@by_layer
def test_no_gradients_give_the_same_bits_and_keep_nothing(layer: str) -> None:
    _, module = twins(layer, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    expected = flat(module(x))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            for a, b in zip(flat(module(x)), expected, strict=True):
                assert torch.equal(a, b)
                assert a.grad_fn is None
    module.requires_grad_(False)
    assert all(t.grad_fn is None for t in flat(module(x)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(B,), (0,), ()], ids=str)
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells_are_torchs(kind: str, batch: tuple[int, ...], bias: bool) -> None:
    theirs = getattr(torch.nn, kind)(I, H, bias, dtype=torch.float64)
    cell = ours.accelerate(copy.deepcopy(theirs))
    assert type(cell) is getattr(ours, kind)
    x = torch.randn(*batch, I, dtype=torch.float64, requires_grad=True)
    h, c = (torch.randn(*batch, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for hx in (None, (h, c) if kind == "LSTMCell" else h):
        found = []
        for module in (cell, theirs):
            results = flat(module(x, hx))
            loss = sum((t * (1 + k)).sin().sum() for k, t in enumerate(results))
            inputs = [x, *(flat(hx) if hx is not None else ()), *module.parameters()]
            found.append([*results, *torch.autograd.grad(loss, inputs)])
        assert_close(*found)


@by_layer
def test_no_sequences_work_and_no_steps_are_torchs_error(layer: str) -> None:
    theirs, module = twins(layer, bidirectional=True)
    assert_close(solve(module, torch.randn(T, 0, I), None), solve(theirs, torch.randn(T, 0, I), None))
    with pytest.raises(RuntimeError, match="sequence length"):
        module(torch.randn(0, B, I))


@by_layer
def test_arguments_may_lie_anywhere_in_memory(layer: str) -> None:
    theirs, module = twins(layer, dtype=torch.float64)
    x = torch.randn(I, 2 * B, T, dtype=torch.float64).permute(2, 1, 0)[:, ::2]
    state = state_of(module, x, B)
    for m in (theirs, module):
        m.weight_hh_l0.data = m.weight_hh_l0.data.T.contiguous().T
    assert_close(solve(module, x, state), solve(theirs, x, state))
    y, _ = module(x.detach().requires_grad_())
    y.sum().backward()  # of a dy that is one number


def test_contiguous_tensors_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = ours.LSTM(I, H), torch.randn(T, B, I)
    calls = calls_of(monkeypatch)
    y, _ = module(x)
    tape, weights = calls[0].tape(), [w.detach() for w in module.parameters()]
    assert _core.reads_from(tape, (*weights, x))
    assert not _core.reads_from(tape, (*weights, x.clone()))
    assert y.is_contiguous()


@pytest.mark.parametrize("form", FORMS)
@by_layer
def test_without_dlpacks_functions_the_bits_are_the_same(
    layer: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module = twins(layer, num_layers=2, bidirectional=True)
    x = torch.randn(*((T,) if form == "unbatched" else (T, B)), I)
    state = state_of(module, x, *(() if form == "unbatched" else (B,)))
    cell, h = ours.GRUCell(I, H), torch.randn(B, H, requires_grad=True)
    found = []
    for _ in range(2):
        after = cell(torch.ones(B, I), h)
        single = ours.GRU(I, H, batch_first=True)
        single.load_state_dict({f"{name}_l0": p.detach() for name, p in cell.named_parameters()})
        found.append(solve(module, x, state, form))
        found[-1] += [
            after,
            *torch.autograd.grad(after.sum(), [h, *cell.parameters()]),
            *solve(single, x.expand(B, *x.shape) if x.dim() == 2 else x, None),
        ]
        with torch.no_grad():
            found[-1] += [*flat(module(x)), cell(torch.ones(B, I), h)]
        for place in (_kernels, _modules):
            monkeypatch.setattr(place, "TENSORS", None)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_views_with_the_other_sign_are_read_as_they_are() -> None:
    module = ours.GRU(I, H)
    x, dy = (torch.randn(T, B, n, dtype=torch.complex64).conj().imag for n in (I, H))
    assert x.is_neg()
    assert dy.is_neg()
    results = [module(part)[0] for part in (x, x.resolve_neg())]
    assert torch.equal(*results)
    pairs = zip(results, (dy, dy.resolve_neg()), strict=True)
    gradients = [torch.autograd.grad(y, list(module.parameters()), d) for y, d in pairs]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@by_layer
def test_tensors_may_be_resized_and_get_other_memory_between_calls(layer: str) -> None:
    theirs, module = twins(layer)
    found = []
    for m in (theirs, module):
        x = torch.linspace(-1, 1, T * B * I).reshape(T, B, I)
        m(x)[0].sum().backward()
        x.resize_(2 * T, B, I).fill_(0.5)
        m.weight_hh_l0.data = m.weight_hh_l0.data.clone() / 2
        y, _ = m(x)
        m.zero_grad()
        y.sum().backward()
        found.append([y, *(p.grad for p in m.parameters())])
    assert_close(*found)


def test_memory_that_a_tensor_gets_after_forward_is_read_within_its_bounds() -> None:
    module, x = ours.GRU(I, H), torch.randn(T, B, I)
    y, _ = module(x)
    with torch.no_grad():
        module.weight_hh_l0.data = torch.full_like(module.weight_hh_l0, 0.25)
    y.sum().backward()  # as in torch, of values that are not those of forward
    again, expected = ours.GRU(I, H), copy.deepcopy(module)
    again.load_state_dict(module.state_dict())
    expected.zero_grad()
    expected(x)[0].sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(module.parameters(), expected.parameters(), strict=True))


# Errors

CALLS: dict[str, Callable[[Any], Any]] = {
    "four axes": lambda m: m(torch.zeros(T, B, 1, I)),
    "another input size": lambda m: m(torch.zeros(T, B, I + 1)),
    "another dtype": lambda m: m(torch.zeros(T, B, I, dtype=torch.float64)),
    "a state of another size": lambda m: m(torch.zeros(T, B, I), states(m, 1, B + 1, H)),
    "a batched state for one sequence": lambda m: m(torch.zeros(T, I), states(m, 1, B, H)),
    "a state of one sequence for a batch": lambda m: m(torch.zeros(T, B, I), states(m, 1, H)),
    "a state of another dtype": lambda m: m(torch.zeros(T, B, I), states(m, 1, B, H, dtype=torch.float64)),
    "no steps": lambda m: m(torch.zeros(0, B, I)),
    "a state in one tensor or in two": lambda m: m(torch.zeros(T, B, I), torch.zeros(2, 1, B, H)),
    "a list": lambda m: m([0.0]),
}


def states(module: Any, *shape: int, **options: Any) -> Any:
    h = torch.zeros(*shape, **options)
    return (h, h) if isinstance(module, torch.nn.LSTM) else h


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@by_layer
def test_errors_are_torchs(layer: str, call: Callable[[Any], Any]) -> None:
    theirs, module = twins(layer)
    with pytest.raises((AttributeError, RuntimeError, TypeError, ValueError)) as expected:
        call(theirs)
    with pytest.raises(expected.type) as error:
        call(module)
    assert str(error.value) == str(expected.value)


def test_accelerate_takes_a_module() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        ours.accelerate(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_half_precision_is_torchs(kind: str, dtype: Any) -> None:
    theirs = getattr(torch.nn, kind)(I, H)
    module = ours.accelerate(copy.deepcopy(theirs)).to(dtype)
    theirs.to(dtype)
    x = torch.randn(*(() if kind.endswith("Cell") else (T,)), B, I, dtype=dtype)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(flat(module(x)), flat(theirs(x)), strict=True))
        if not kind.endswith("Cell"):  # what torch's module does not have
            y, _ = module(x, lengths=[T, 2, 0])
            expected, _ = module.float()(x.float(), lengths=[T, 2, 0])
            assert (y.float() - expected).abs().max() < 0.02
            assert not y[2:, 1].any()
    module.float()
    assert flat(module(x.float()))[0].dtype == torch.float32


# The rules of autograd


def functions(module: Any, *state: Any) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Yield the layer as functions of its input and state, and of its parameters, with their arguments."""
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    lengths = [3, 1]

    def of_input(x: Any, *parts: Any) -> Any:
        return flat(module(x, parts if len(parts) == 2 else parts[0]))

    def of_packed(x: Any) -> Any:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
        return [t for t in flat(module(packed)) if t.is_floating_point()]

    def of_parameters(*parameters: Any) -> Any:
        named = dict(zip(dict(module.named_parameters()), parameters, strict=True))
        return flat(torch.func.functional_call(module, named, (x,)))

    yield of_input, (x, *state)
    yield of_packed, (x,)
    yield of_parameters, tuple(module.parameters())


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}], ids=str)
@by_layer
def test_first_and_second_derivatives_are_those_of_finite_differences(layer: str, options: dict[str, Any]) -> None:
    _, module = twins(layer, sizes=(3, 4 if layer == "LSTM projected" else 2), **options, dtype=torch.float64)
    state = flat(state_of(module, torch.zeros((), dtype=torch.float64), 2))
    for function, arguments in functions(module, *state):
        assert torch.autograd.gradcheck(function, arguments)
        assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_second_derivatives_of_cells(kind: str) -> None:
    cell = getattr(ours, kind)(3, 2, dtype=torch.float64)
    x, h, c = (torch.randn(2, n, dtype=torch.float64, requires_grad=True) for n in (3, 2, 2))
    if kind == "LSTMCell":
        assert torch.autograd.gradgradcheck(lambda x, h, c: cell(x, (h, c)), (x, h, c))
    else:
        assert torch.autograd.gradgradcheck(cell, (x, h))


@by_layer
@by_dtype
def test_a_gradient_penalty_trains_as_with_torch(layer: str, dtype: Any) -> None:
    found = []
    width = LAYERS[layer][1].get("proj_size", H)
    for module in twins(layer, sizes=(width, H), num_layers=2, dtype=dtype):
        torch.manual_seed(2)
        x = torch.randn(T, B, width, dtype=dtype, requires_grad=True)
        with without_onednn:  # torch's LSTM has no second derivatives otherwise
            y, _ = module(module(x)[0])  # the second time, x depends on the weights
            (dx, dw) = torch.autograd.grad(y.square().sum(), (x, module.weight_hh_l0), create_graph=True)
            loss = dx.square().sum() + dw.square().sum() + y.sum()
            found.append(list(torch.autograd.grad(loss, module.parameters())))
    assert_close(*found)


@by_layer
def test_gradients_are_taken_again_from_a_graph_that_is_kept(layer: str) -> None:
    _, module = twins(layer)
    y, _ = module(torch.randn(T, B, I))
    first, again = (torch.autograd.grad(y.sum(), module.parameters(), retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="a second time"):
        y.sum().backward()


@pytest.mark.parametrize("B", [B, 200], ids=["copied", "shared"])  # the memory of y, with the tape
@by_layer
def test_y_may_be_changed_in_place(layer: str, B: int) -> None:
    found: list[list[Any]] = []
    for m in twins(layer, num_layers=2):
        y, last = m(torch.linspace(-1, 1, T * B * I).reshape(T, B, I))
        if m.__class__.__module__.startswith("torch"):  # whose LSTM lets nobody
            y = y.clone()
        y.mul_(y.detach().cos()).relu_()
        found.append([y, *torch.autograd.grad(y.sum() + flat(last)[-1].sum(), list(m.parameters()))])
    assert_close(*found)


@pytest.mark.parametrize("changed", ["x", "state", "weight_ih_l0", "bias_hh_l0"])
@by_layer
def test_a_change_in_place_before_backward_is_an_error(layer: str, changed: str) -> None:
    _, module = twins(layer)
    x = torch.randn(T, B, I)
    state = state_of(module, x, B)
    y, _ = module(x, state)
    total = y.sum()
    tensors = {"x": x, "state": flat(state)[0], **dict(module.named_parameters())}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@by_layer
def test_the_inputs_gradient_is_computed_where_it_is_needed(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = twins(layer, num_layers=2)
    calls = calls_of(monkeypatch)
    for needed in (False, True):
        module(torch.randn(T, B, I, requires_grad=needed))[0].sum().backward()
        above, first = (call.arguments[-3] for call in calls if call.name == "backward")
        assert (above, first) == (True, needed)
        calls.clear()


@by_layer
def test_the_initial_states_gradients_are_computed_where_they_are_needed(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module = twins(layer, bidirectional=True)
    calls = calls_of(monkeypatch)
    for steps, rows in itertools.product((1, T), (B, 70)):  # weights as they are, and packed
        x = torch.randn(steps, rows, I)
        parts = flat(state_of(module, x, rows))
        found = []
        for needed in (True, False):
            state = [part.detach().requires_grad_(needed) for part in parts]
            y, _ = module(x, tuple(state) if isinstance(module, torch.nn.LSTM) else state[0])
            found.append(torch.autograd.grad(y.square().sum(), list(module.parameters())))
            assert calls[-1].arguments[-2] is needed
        assert all(map(torch.equal, *found))


@by_layer
def test_only_some_results_and_some_parameters_may_take_part(layer: str) -> None:
    theirs, module = twins(layer, dtype=torch.float64)
    found = []
    for m in (module, theirs):
        m.weight_ih_l0.requires_grad_(False)
        torch.manual_seed(2)
        last = flat(m(torch.randn(T, B, I, dtype=torch.float64)))[-1]
        found.append(list(torch.autograd.grad(last.sum(), [m.weight_hh_l0, m.bias_ih_l0])))
    assert_close(*found)


@by_layer
def test_tapes_go_with_the_graph(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = twins(layer)
    calls = calls_of(monkeypatch)
    total = module(torch.randn(T, B, I))[0].sum()
    tape = calls[0].tape
    assert tape() is not None
    total.backward(retain_graph=True)
    assert tape() is not None
    total.backward()
    assert tape() is None, "backward lets go of it, though the loss is still there"
    module(torch.randn(T, B, I))
    assert calls[-1].tape() is None, "so does the end of the graph"
    with torch.no_grad():
        module(torch.randn(T, B, I))
    assert calls[-1].name == "inference"


@by_layer
def test_checkpointed_activations_are_computed_again(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = twins(layer, num_layers=2)
    x = torch.randn(T, B, I, requires_grad=True)
    calls = calls_of(monkeypatch)
    y = checkpoint.checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    assert [call.tape() for call in calls] == [None, None]
    y.sum().backward()
    (expected,) = torch.autograd.grad(module(x)[0].sum(), x)
    assert torch.equal(x.grad, expected)


def test_saved_tensors_may_lie_elsewhere_until_backward() -> None:
    module, x = ours.LSTM(I, H, bidirectional=True), torch.randn(T, B, I, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].sum(), x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        y, _ = module(x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected[0])


@pytest.mark.parametrize(
    "kept",
    {
        "changes allowed": torch.autograd.graph.allow_mutation_on_saved_tensors,
        "copies of x alone": lambda: torch.autograd.graph.saved_tensors_hooks(
            lambda t: t.clone() if t.shape == (T, B, I) else t, lambda t: t
        ),
        "on the CPU": torch.autograd.graph.save_on_cpu,
    }.items(),
    ids=lambda item: item[0],
)
@by_layer
def test_hooks_decide_what_backward_reads(layer: str, kept: tuple[str, Callable[[], Any]]) -> None:
    name, hooks = kept
    theirs, module = twins(layer)
    x = torch.linspace(-1, 1, T * B * I).reshape(T, B, I)
    expected = torch.autograd.grad(theirs(x)[0].sum(), list(theirs.parameters()))
    with hooks():
        y, _ = module(x)
        if name != "on the CPU":
            x.mul_(3)
        found = torch.autograd.grad(y.sum(), list(module.parameters()))
    assert_close(list(found), list(expected))


@by_layer
def test_hooks_may_come_after_forward(layer: str) -> None:
    theirs, module = twins(layer)
    x = torch.linspace(-1, 1, T * B * I).reshape(T, B, I)
    expected = torch.autograd.grad(flat(theirs(x))[1].sum(), list(theirs.parameters()))
    h = flat(module(x))[1]
    saved_x = h.grad_fn._raw_saved_tensors[len(list(module.parameters()))]
    saved_x.register_hooks(lambda t: t.clone(), lambda t: t)
    x.mul_(3)
    assert_close(list(torch.autograd.grad(h.sum(), list(module.parameters()))), list(expected))


@by_layer
def test_a_gradient_penalty_may_be_checkpointed(layer: str) -> None:
    found = []
    for m in twins(layer, dtype=torch.float64):
        x = torch.linspace(-1, 1, T * B * I, dtype=torch.float64).reshape(T, B, I).requires_grad_()

        def penalty(x: Any, m: Any = m) -> Any:
            with without_onednn:
                return torch.autograd.grad(m(x)[0].sum(), x, create_graph=True)[0].square().sum()

        checkpoint.checkpoint(penalty, x, use_reentrant=False).backward()
        found.append([x.grad, *(p.grad for p in m.parameters())])
    assert_close(*found)


def test_memory_does_not_grow_over_ten_thousand_steps() -> None:
    module, x = ours.LSTM(4, 8), torch.randn(50, 4, 4)  # whose tape is 50 kB
    peaks = []
    for step in range(10_000):
        module(x)[0].sum().backward()
        if step % 1000 == 999:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[0] < 20_000, "kB; a tape kept at each step would be 500 MB"
    gc.collect()


def test_the_number_of_threads_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch)
    before, own = torch.get_num_threads(), rnnfast.get_num_threads()
    module, x = ours.GRU(64, 128), torch.randn(20, 16, 64)
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            y, _ = module(x)
            with torch.no_grad():
                module(x)
            results.append([y, *torch.autograd.grad(y.sum(), module.parameters())])
    finally:
        torch.set_num_threads(before)
    assert [call.arguments[-1] for call in calls] == [1, 1, 1, 3, 3, 3]
    assert rnnfast.get_num_threads() == own
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_number_of_threads_that_cannot_be_is_an_error() -> None:
    parameters = [(torch.zeros(H, I), torch.zeros(H, H), None, None)]
    for n in (-1, 100_000):
        with pytest.raises(ValueError, match="threads: expected 0, for as many as are set, to 1024"):
            _core.inference("rnn_tanh", torch.zeros(T, B, I), parameters, threads=n)


# Compiled

torchscript_is_deprecated = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch uses it itself


class Tagger(torch.nn.Module):  # type: ignore[misc]
    """A model with every kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(I, H, 2, bidirectional=True)
        self.gru = torch.nn.GRU(2 * H, H, bias=False, batch_first=True)
        self.rnn = torch.nn.RNN(H, H, nonlinearity="relu")
        self.cell = torch.nn.LSTMCell(H, 4)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        y, (h, c) = self.lstm(x)
        y, _ = self.rnn(self.gru(y)[0])
        return self.out(torch.tanh(self.cell(y[0])[0])).sum() + h.sum() + c.square().sum()


class Pair(torch.nn.Module):  # type: ignore[misc]
    """A model that TorchScript can compile."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(I, H)
        self.cell = torch.nn.GRUCell(H, H)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(self.rnn(x)[0][0]).sum()


@torchscript_is_deprecated
@pytest.mark.parametrize(
    ("make", "backend", "dynamic"),
    [(Tagger, "aot_eager", False), (Tagger, "aot_eager", True), (Pair, "inductor", False)],
)
def test_whole_graphs_compile(make: Callable[[], Any], backend: str, dynamic: bool) -> None:
    torch.compiler.reset()
    model = ours.accelerate(make())
    compiled = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    for B in (3, 2) if dynamic else (3,):
        x = torch.randn(T, B, I, requires_grad=True)
        inputs = [x, *model.parameters()]
        found = [[loss, *torch.autograd.grad(loss, inputs)] for loss in (compiled(x), model(x))]
        assert_close(*found)
    with torch.no_grad():
        assert_close([compiled(x)], [model(x)])


def test_compilation_of_torchs_own_modules_is_as_if_ours_were_not_there() -> None:
    assert not torch._dynamo.config.allow_rnn
    torch.compiler.reset()
    for name in ("LSTM", "GRU"):
        theirs = getattr(torch.nn, name)(4, 8)
        x = torch.randn(3, 2, 4)
        y, _ = torch.compile(theirs, backend="aot_eager")(x)  # traced, the LSTM's backward is none
        y.sum().backward()
        assert_close([y], [theirs(x)[0]])


class Derived(ours.GRU):
    """A subclass of ours."""


def test_subclasses_of_ours_compile_too() -> None:
    torch.compiler.reset()
    parametrised = ours.GRU(I, H)
    torch.nn.utils.parametrize.register_parametrization(parametrised, "weight_hh_l0", torch.nn.Identity())
    for module in (Derived(I, H), parametrised):
        x = torch.randn(T, B, I)
        assert_close([torch.compile(module, backend="aot_eager", fullgraph=True)(x)[0]], [module(x)[0]])


@by_layer
def test_one_graph_serves_all_numbers_of_steps_and_sequences(layer: str) -> None:
    torch.compiler.reset()
    _, module = twins(layer)
    compiled = torch.compile(module, backend="aot_eager", dynamic=True, fullgraph=True)
    compiled(torch.randn(T, B, I))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((T + 1, B, I), (T, B + 1, I), (2 * T, 4 * B, I)):
            x = torch.randn(shape)
            assert_close([compiled(x)[0]], [module(x)[0]])


SAMPLES = [
    (cell, dtype, D, bias, packed, P)
    for cell, P in (*((cell, 0) for cell in MODES.values()), ("lstm", 3))
    for dtype, D, bias, packed in (
        (torch.float32, 1, True, False),
        (torch.float64, 2, False, False),
        (torch.float32, 2, True, True),
    )
]


@pytest.mark.parametrize(("cell", "dtype", "D", "bias", "packed", "P"), SAMPLES, ids=str)
def test_the_operator_keeps_to_the_rules_of_operators(
    cell: str, dtype: Any, D: int, bias: bool, packed: bool, P: int
) -> None:
    G = _core.cells[cell].num_gates
    more = [(n * H,) for n in _core.cells[cell].parameters.values()] + ([(P, H)] if P else [])
    shapes = [(G * H, I), (G * H, P or H), *([(G * H,)] * 2 if bias else []), *more] * D
    weights = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    x = torch.randn((6, I) if packed else (2, B, I), dtype=dtype, requires_grad=True)
    sizes = P or H, *[H] * (len(_core.cells[cell].states) - 1)
    states = [torch.randn(D, B, n, dtype=dtype, requires_grad=True) for n in sizes]
    batch_sizes = torch.tensor([3, 2, 1]) if packed else None
    uneven = (None, None) if packed else (torch.tensor([2, 0, 1]), torch.eye(2, B))
    call = (cell, bias, P > 0, False, x, states, batch_sizes, weights, *uneven, True)
    torch.library.opcheck(torch.ops.rnnfast.forward.default, call)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@by_layer
def test_gradients_of_each_sequence_are_torchs_where_it_has_them(layer: str) -> None:
    found = []
    for module in twins(layer):

        def loss(parameters: Any, x: Any, module: Any = module) -> Any:
            y, _ = torch.func.functional_call(module, parameters, (x,))
            return y.square().sum()

        x = torch.linspace(-1, 1, 4 * T * I).reshape(4, T, I)
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
        try:
            found.append(each(dict(module.named_parameters()), x))
        except RuntimeError as error:  # of GRU and RNN
            found.append(str(error))
    if isinstance(found[1], str):
        assert found[0] == found[1]
    else:
        assert_close(list(found[0].values()), list(found[1].values()))


def test_flop_counters_count_the_matrices() -> None:
    FlopCounterMode = importlib.import_module("torch.utils.flop_counter").FlopCounterMode
    module, x = ours.GRU(I, H, bidirectional=True), torch.randn(T, B, I)
    forward = 2 * T * B * 2 * 3 * H * (I + H)
    for needs_dx in (False, True):
        with FlopCounterMode(display=False) as counter:
            y, _ = module(x.detach().requires_grad_(needs_dx))
            assert counter.get_total_flops() == forward
            y.sum().backward()
        assert counter.get_total_flops() == 3 * forward - (0 if needs_dx else 2 * T * B * 2 * 3 * H * I)


@pytest.mark.filterwarnings("ignore")  # those of torch's own exporter
def test_onnx_models_are_made_of_torchs_operators() -> None:
    pytest.importorskip("onnxscript", reason="onnxscript, which torch exports with, is not installed")
    model = ours.accelerate(torch.nn.Sequential(torch.nn.GRU(I, H)))
    exported = torch.onnx.export(model, (torch.randn(T, B, I),), dynamo=True, verbose=False).model_proto
    assert "GRU" in {node.op_type for node in exported.graph.node}
    assert type(model[0]) is ours.GRU


def test_export_keeps_the_operators() -> None:
    model = ours.accelerate(Tagger())
    x = torch.randn(T, B, I)
    sizes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}
    program = torch.export.export(model, (x,), dynamic_shapes={"x": sizes})
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("rnnfast.forward.default") == 5
    for other in (x, torch.randn(2 * T, B + 1, I)):
        assert_close([program.module()(other)], [model(other)])


# What else looks at a call


@torchscript_is_deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own checks
@by_layer
def test_torchs_transforms_and_traces_see_torchs_operators(layer: str) -> None:
    theirs, module = twins(layer, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)

    def tangent(m: Any) -> Any:
        with torch.autograd.forward_ad.dual_level():
            y, _ = m(torch.autograd.forward_ad.make_dual(x, x.cos()))
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    assert_close([tangent(module)], [tangent(theirs)])
    dx = [torch.func.grad(lambda x, m=m: m(x)[0].sin().sum())(x) for m in (module, theirs)]
    assert_close(dx[:1], dx[1:])
    traced = torch.jit.trace(module, (x,))
    assert_close(flat(traced(x)), flat(theirs(x)))


@by_layer
def test_gradients_may_be_taken_for_many_vectors_at_once(layer: str) -> None:
    theirs, module = twins(layer, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(lambda x, m=m: m(x)[0], x, vectorize=vectorize)
        for m, vectorize in ((module, True), (theirs, False))
    ]
    assert_close(jacobians[:1], jacobians[1:])


@by_layer
def test_graphs_that_modes_record_compute(layer: str) -> None:
    _, module = twins(layer)
    x = torch.randn(T, B, I)
    assert torch.equal(make_fx(lambda x: module(x)[0])(torch.ones(T, B, I))(x), module(x)[0])


def test_threads_leave_torchs_flags_as_they_are() -> None:
    module, x = ours.LSTM(I, H), torch.randn(T, B, I)
    before = torch._C._get_mkldnn_enabled()

    def work(_: int) -> None:
        for _ in range(40):
            torch.func.grad(lambda x: module(x)[0].sum())(x)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert torch._C._get_mkldnn_enabled() == before


@torchscript_is_deprecated
def test_a_script_is_torchs() -> None:
    model, x = Pair(), torch.randn(T, B, I)
    expected = model(x)
    scripted = torch.jit.script(ours.accelerate(model))
    assert_close([scripted(x)], [expected])
    assert ours.accelerate(scripted) is scripted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@by_layer
def test_autocast_runs_in_float32(layer: str, dtype: Any) -> None:
    _, module = twins(layer)
    x = torch.randn(T, B, I, requires_grad=True)
    state = state_of(module, x, B)
    with torch.autocast("cpu", dtype=dtype):
        y, last = module(torch.nn.Identity()(x).to(dtype), states_as(state, dtype))
    assert {t.dtype for t in (y, *flat(last))} == {torch.float32}
    given = x.detach().to(dtype).float().requires_grad_()
    expected, _ = module(given, states_as(states_as(state, dtype), torch.float32))
    if dtype == torch.bfloat16:  # products are rounded
        assert not torch.equal(y, expected)
        assert torch.allclose(y, expected, atol=0.02)
        twin: Any = rnnfast.convert.from_torch(module)
        twin.precision = "bfloat16"
        parts = tuple(part.detach().float().numpy() for part in flat(states_as(state, dtype)))
        rounded, _, tape = twin.forward(given.detach().numpy(), parts if len(parts) > 1 else parts[0])
        assert torch.equal(y, torch.from_numpy(rounded))
        dx, _, _ = twin.backward(tape, torch.ones_like(y).numpy())
        y.sum().backward()
        assert torch.equal(x.grad.to(dtype), torch.from_numpy(dx).to(dtype))
    else:
        assert torch.equal(y, expected)
        y.sum().backward()
    assert x.grad.dtype == torch.float32
    cell = ours.GRUCell(I, H)
    with torch.autocast("cpu", dtype=dtype):
        assert cell(x[0].to(dtype)).dtype == torch.float32


def states_as(state: Any, dtype: Any) -> Any:
    return tuple(t.to(dtype) for t in state) if isinstance(state, tuple) else state.to(dtype)


# What a module goes through


def saved_and_loaded(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded_from_torch(module: Any) -> Any:
    own = {"nonlinearity": module.nonlinearity} if isinstance(module, torch.nn.RNN) else {}
    own |= {"proj_size": module.proj_size} if module.proj_size else {}
    other = type(module)(I, H, 2, bidirectional=True, **own)
    other.load_state_dict(ours.restore(copy.deepcopy(module)).state_dict())
    return other


CHANGES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "save": saved_and_loaded,
    "state_dict": loaded_from_torch,
    "double and back": lambda m: m.double().float(),
    "flatten": lambda m: m.flatten_parameters() or m,
    "shared memory": lambda m: m.share_memory(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@by_layer
def test_modules_are_the_same_after(layer: str, change: Callable[[Any], Any]) -> None:
    _, module = twins(layer, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    expected = flat(module(x))
    changed = change(module)
    assert type(changed) is type(module)
    assert repr(changed) == repr(module)
    assert_close(flat(changed(x)), expected)


def test_double_computes_in_double() -> None:
    theirs, module = twins("GRU")
    x = torch.randn(T, B, I, dtype=torch.float64)
    assert_close(solve(module.double(), x, None), solve(theirs.double(), x, None))


def weight_norm(module: Any) -> Any:
    return torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")


def pruned(module: Any) -> Any:
    prune.random_unstructured(module, "weight_hh_l0", amount=0.3)
    return module


@pytest.mark.parametrize("change", [weight_norm, pruned])
@by_layer
def test_weights_may_be_computed_from_others(layer: str, change: Callable[[Any], Any]) -> None:
    found = []
    for module in twins(layer, dtype=torch.float64):
        torch.manual_seed(2)
        changed = change(module)
        found.append(solve(changed, torch.randn(T, B, I, dtype=torch.float64), None))
    assert_close(*found)


# accelerate and restore


def test_accelerate_changes_classes_alone_and_restore_changes_them_back() -> None:
    model = Tagger()
    model.lstm.register_forward_hook(lambda module, *_: called.append(module))
    model.again = model.gru  # in two places
    modules, parameters, state = list(model.modules()), list(model.parameters()), model.state_dict()
    classes, text = [type(m) for m in modules], repr(model)
    called: list[Any] = []
    model.eval()
    x = torch.randn(T, B, I)
    expected = model(x)

    assert ours.accelerate(model) is model
    assert [type(m) for m in (model.lstm, model.gru, model.rnn, model.cell)] == [
        ours.LSTM,
        ours.GRU,
        ours.RNN,
        ours.LSTMCell,
    ]
    assert isinstance(model.lstm, torch.nn.LSTM)
    assert model.again is model.gru
    assert not any(m.training for m in model.modules())
    assert repr(model) == text
    assert_close([model(x)], [expected])
    assert called == [model.lstm, model.lstm]
    assert ours.restore(ours.accelerate(model)) is model
    for now, before in ((model.modules(), modules), (model.parameters(), parameters)):
        assert all(a is b for a, b in zip(now, before, strict=True))
    assert [type(m) for m in model.modules()] == classes
    assert state.keys() == model.state_dict().keys()


class Own(torch.nn.LSTM):  # type: ignore[misc]
    """A subclass with a forward of its own."""

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 (the name in torch)
        return super().forward(input, hx)


class Checked(torch.nn.GRU):  # type: ignore[misc]
    """A subclass with its own of what torch's forward calls."""

    def check_forward_args(self, *args: Any) -> None:
        super().check_forward_args(*args)


class Subclass(torch.nn.LSTM):  # type: ignore[misc]
    """A subclass whose forward is torch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.factor = 2

    def twice(self, x: Any) -> Any:
        return self.factor * self(x)[0]


class SubclassOfCell(torch.nn.GRUCell):  # type: ignore[misc]
    """A subclass of a cell."""


class Base(torch.nn.RNNBase):  # type: ignore[misc]
    """A module of its own kind."""


def replaced() -> Any:
    module = torch.nn.LSTM(I, H)
    module.forward = module.forward
    return module


NO_REASON = "accelerate has not been called since it was made"
LEFT: dict[str, tuple[Callable[[], Any], str | None]] = {  # with what the report says
    "half precision": (
        lambda: torch.nn.GRU(I, H).bfloat16(),
        "parameters torch.bfloat16 on cpu, not float32 or float64 on the CPU",
    ),
    "no memory yet": (
        lambda: torch.nn.GRU(I, H, device="meta"),
        "parameters torch.float32 on meta, not float32 or float64 on the CPU",
    ),
    "own forward": (lambda: Own(I, H), "Own has its own forward"),
    "own checks": (lambda: Checked(I, H), "Checked has its own check_forward_args"),
    "own kind": (lambda: Base("GRU", I, H), "Base has a forward of its own"),
    "replaced forward": (replaced, "its forward has been replaced"),
    "parametrised": (lambda: weight_norm(torch.nn.LSTM(I, H)), "parametrised; parametrise after accelerate"),
    "unknown nonlinearity": (lambda: torch.nn.RNNCell(I, H, nonlinearity="sin"), "nonlinearity 'sin'"),
    "quantised": (
        lambda: torch.ao.nn.quantized.dynamic.LSTM(I, H),
        "quantised, of torch.ao.nn.quantized.dynamic.modules.rnn",
    ),
    "scripted": (lambda: torch.jit.script(torch.nn.GRU(I, H)), "compiled by torch.jit"),
    "not recurrent": (lambda: torch.nn.Linear(I, H), None),
}


@torchscript_is_deprecated
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(("make", "why"), LEFT.values(), ids=LEFT)
def test_what_is_not_computed_is_left_to_torch_and_reported(make: Callable[[], Any], why: str | None) -> None:
    module = make()
    before = type(module)
    model = torch.nn.ModuleList([module])
    assert ours.accelerate(model)[0] is module
    assert type(module) is before
    assert [entry.why for entry in ours.report(model)] == [why] * (why is not None)


def test_the_report_lists_each_module_once_with_its_name() -> None:
    model = Tagger()
    model.again = model.gru
    assert {entry.why for entry in ours.report(model)} == {NO_REASON}
    assert [entry[:2] for entry in ours.report(model)] == [
        ("lstm", "LSTM"),
        ("gru", "GRU"),
        ("rnn", "RNN"),
        ("cell", "LSTMCell"),
    ]
    assert {entry.why for entry in ours.report(ours.accelerate(model))} == {""}
    assert str(ours.report(model)[0]) == "lstm: LSTM, rnnfast"
    model.gru.bfloat16()
    lines = [str(entry) for entry in ours.report(model)]
    assert lines[1].startswith("gru: GRU, left to torch: parameters torch.bfloat16 on cpu")
    assert ours.report(torch.nn.Linear(I, H)) == []
    with pytest.raises(TypeError, match=r"^model: expected a torch\.nn\.Module, got int$"):
        ours.report(1)


def test_opacus_treats_accelerated_modules_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    class ModuleValidator:
        VALIDATORS: ClassVar[dict[type, str]] = {torch.nn.GRU: "refuse", torch.nn.Linear: "look"}
        FIXERS: ClassVar[dict[type, str]] = {torch.nn.GRU: "replace"}

    monkeypatch.setitem(sys.modules, "opacus.validators", SimpleNamespace(ModuleValidator=ModuleValidator))
    model = ours.accelerate(torch.nn.GRU(I, H))
    assert ModuleValidator.VALIDATORS[type(model)] == "refuse"
    assert ModuleValidator.FIXERS == {torch.nn.GRU: "replace", ours.GRU: "replace"}


def test_subclasses_without_a_forward_of_their_own_are_accelerated() -> None:
    model = torch.nn.ModuleDict({"lstm": Subclass(I, H), "cell": SubclassOfCell(I, H)})
    text, x = repr(model), torch.randn(T, B, I)
    expected = [model["lstm"].twice(x), model["cell"](x[0])]
    ours.accelerate(ours.accelerate(model))
    lstm, cell = model["lstm"], model["cell"]
    assert isinstance(lstm, ours.LSTM)
    assert isinstance(lstm, Subclass)
    assert isinstance(cell, ours.GRUCell)
    assert repr(model) == text
    assert_close([lstm.twice(x), cell(x[0])], expected)
    for other in (copy.copy(lstm), copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))):
        assert type(other) is type(lstm)
        assert_close([other.twice(x)], expected[:1])
    y, _ = torch.compile(lstm, backend="aot_eager", fullgraph=True)(x)
    assert_close([2 * y], expected[:1])
    ours.restore(model)
    assert [type(m) for m in (lstm, cell)] == [Subclass, SubclassOfCell]


def test_a_module_alone_may_be_accelerated_while_training() -> None:
    module = torch.nn.GRU(I, H)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    twin, x = copy.deepcopy(module), torch.randn(T, B, I)
    rival = torch.optim.SGD(twin.parameters(), lr=0.1)
    ours.accelerate(module)
    for _ in range(5):
        for m, o in ((module, optimizer), (twin, rival)):
            o.zero_grad()
            m(x)[0].square().sum().backward()
            o.step()
    assert_close(list(module.parameters()), list(twin.parameters()))


def run_in_worker(_: Any) -> list[Any]:
    module = ours.GRU(I, H)
    module.load_state_dict({k: torch.ones_like(p) / 8 for k, p in module.state_dict().items()})
    y, _ = module(torch.ones(T, B, I))
    return [y.detach(), *torch.autograd.grad(y.sum(), module.parameters())]


class Computed(torch.utils.data.Dataset):  # type: ignore[misc]
    """Results of a layer."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, k: int) -> Any:
        return run_in_worker(k)


FORK = """
import os
import signal
import torch
import rnnfast.torch

torch.set_num_threads(2)
H, B = 64, 1024  # so that torch joins the last states and their gradients on threads of its own
lstm = rnnfast.torch.accelerate(torch.nn.LSTM(8, H, num_layers=2, dropout=0.5))
x, order = torch.randn(3, B, 8), torch.arange(B - 1, -1, -1)
packed = torch.nn.utils.rnn.PackedSequence(x.flatten(0, 1), torch.tensor([B, B, B]), order, order)
states = [torch.randn(2, B, H, requires_grad=True) for _ in range(2)]

def solve():
    torch.manual_seed(0)
    y, last = lstm(packed, tuple(states))
    loss = y.data.sum() + sum(part.sum() for part in last)
    return torch.autograd.grad(loss, [*states, *lstm.parameters()])

expected = solve()
child = os.fork()
if child == 0:
    signal.alarm(120)  # ends it where it waits
    torch.set_num_threads(1)
    torch.testing.assert_close(solve(), expected)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_may_compute_on_one_of_torchs_threads() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=300)


def test_workers_that_load_data_may_compute() -> None:
    expected = run_in_worker(0)  # the pool of threads has run before the fork
    for found in torch.utils.data.DataLoader(Computed(), batch_size=None, num_workers=1, timeout=60):
        assert_close(found, expected)
