"""`lengths` and `resets` of rnnfast.torch's layers against loops over torch's cells, one sequence after the other."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')

import rnnfast  # noqa: E402
import rnnfast.torch as ours  # noqa: E402

T, B, I, H = 6, 4, 5, 7
LENGTHS = [3, 6, 0, 4]
CELLS = {
    "LSTM": torch.lstm_cell,
    "GRU": torch.gru_cell,
    "RNN_TANH": torch.rnn_tanh_cell,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


def parts(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple | list) else [state]


def one_by_one(module: Any, x: Any, hx: Any, lengths: Any, resets: Any) -> list[Any]:
    """Return y [T,B,*] and the last states, of x [T,B,*]."""
    T, B, _ = x.shape
    D, S, last = 1 + module.bidirectional, 2 if module.mode == "LSTM" else 1, []
    for k, d in itertools.product(range(module.num_layers), range(D)):
        y = [x.new_zeros(T, B, 0)] if d == 0 else y  # type: ignore[has-type] # noqa: F821
        end = f"_l{k}" + "_reverse" * d
        weights = [getattr(module, name + end) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        columns, states = [], []
        for b in range(B):
            n = T if lengths is None else lengths[b]
            zero = x.new_zeros(1, H)
            state = [zero] * S if hx is None else [part[k * D + d, b : b + 1] for part in hx]
            h = [x.new_zeros(H)] * T
            for t in reversed(range(n)) if d else range(n):
                if resets is not None and t + d < n and resets[t + d, b]:
                    state = [zero] * S
                state = parts(CELLS[module.mode](x[t, b][None], state if S > 1 else state[0], *weights))
                h[t] = state[0][0]
            columns.append(torch.stack(h))
            states.append(state)
        y.append(torch.stack(columns, 1))
        last.append([torch.cat([state[s] for state in states]) for s in range(S)])
        if d == D - 1:
            x = torch.cat(y, -1)
    return [x, *(torch.stack([of_layer[s] for of_layer in last]) for s in range(S))]


def called(module: Any, x: Any, hx: Any, lengths: Any, resets: Any) -> list[Any]:
    """Return the same of the module's call."""
    if module.batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    state = hx if hx is None or len(hx) > 1 else hx[0]
    y, last = module(x, state, lengths=lengths, resets=resets)
    return [y.transpose(0, 1) if module.batch_first else y, *parts(last)]


def gradients(outputs: list[Any], inputs: list[Any], **options: Any) -> list[Any]:
    douts = [torch.linspace(-1, 2, t.numel(), dtype=t.dtype).reshape(t.shape).sin() for t in outputs]
    loss = sum((t * d).sum() for t, d in zip(outputs, douts, strict=True)) + 0 * sum(t.sum() for t in inputs)
    return list(torch.autograd.grad(loss, inputs, **options))


def assert_close(actual: list[Any], expected: list[Any]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert (a - b).abs().max() <= {torch.float64: 1e-10, torch.float32: 1e-5}[b.dtype] * b.abs().max()


def arguments(kind: str, options: dict[str, Any], dtype: Any = torch.float64) -> tuple[Any, Any, list[Any], Any]:
    """Return a module, x, the parts of a state, and resets."""
    module = getattr(ours, kind)(I, H, **options, dtype=dtype)
    rows = module.num_layers * (1 + module.bidirectional)
    x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    hx = [torch.randn(rows, B, H, dtype=dtype, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1)]
    resets = torch.rand(T, B) < 0.3
    resets[0, 1] = True
    return module, x, hx, resets


FORMS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
]
by_form = pytest.mark.parametrize("form", FORMS, ids=str)
by_kind = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])


@by_form
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("LSTM", torch.float64), ("GRU", torch.float64), ("RNN", torch.float64), ("LSTM", torch.float32)],
    ids=str,
)
def test_sequences_and_episodes_are_as_if_each_were_alone(kind: str, form: dict[str, Any], dtype: Any) -> None:
    module, x, state, resets = arguments(kind, form, dtype)
    both = itertools.product((None, LENGTHS), (None, resets), (None, state))
    for lengths, given, hx in (*both, ([0] * B, resets, state), ([0] * B, None, None)):
        inputs = [x, *(hx or ()), *module.parameters()]
        expected = one_by_one(module, x, hx, lengths, given)
        dexpected = gradients(expected, inputs)
        actual = called(module, x, hx, lengths and torch.tensor(lengths), given)
        assert_close([*actual, *gradients(actual, inputs, retain_graph=True)], [*expected, *dexpected])
        assert_close(gradients(actual, inputs, create_graph=True), dexpected)
        with torch.no_grad():
            again = called(module, x, hx, lengths, None if given is None else given.to(dtype))
        assert all(torch.equal(a, b) for a, b in zip(again, actual, strict=True))


@by_kind
def test_compiled_graphs_have_them(kind: str) -> None:
    for form in FORMS[1:]:
        torch._dynamo.reset()
        module, x, hx, resets = arguments(kind, form)
        compiled = torch.compile(called, backend="aot_eager", fullgraph=True)
        for lengths, given in ((torch.tensor(LENGTHS), None), (None, resets), (torch.tensor(LENGTHS), resets.int())):
            inputs = [x, *hx, *module.parameters()]
            expected, actual = (function(module, x, hx, lengths, given) for function in (called, compiled))
            assert_close([*actual, *gradients(actual, inputs)], [*expected, *gradients(expected, inputs)])
        with pytest.raises(Exception, match=r"resets: expected bools, or 0 and 1"):
            compiled(module, x, hx, torch.tensor(LENGTHS), 2 * resets.int())
        with pytest.raises(Exception, match=r"lengths: expected 0 to 6, got 7"):
            compiled(module, x, hx, torch.tensor([1, 7, 2, 3]), resets.int())


def test_padding_is_not_read() -> None:
    module, x, hx, resets = arguments("GRU", {"bidirectional": True})
    lengths = torch.tensor(LENGTHS)
    padding = torch.arange(T)[:, None] >= lengths
    spoilt = x.detach().masked_fill(padding[..., None], torch.nan).requires_grad_()
    for function in (called, torch.compile(called, backend="aot_eager", fullgraph=True)):
        for given in (None, resets):
            found = []
            for inputs in (x, spoilt):
                outputs = function(module, inputs, hx, lengths, given)
                assert not outputs[0][padding].any()
                grads = gradients(outputs, list(module.parameters()), create_graph=function is called)
                if function is called:
                    grads += torch.autograd.grad(sum(g.sum() for g in grads), hx)
                found.append([*outputs, *grads])
            assert_close(found[1], found[0])


@by_kind
def test_second_derivatives_and_transforms(kind: str) -> None:
    module, x, _, resets = arguments(kind, {"bidirectional": True})
    lengths = torch.tensor(LENGTHS)
    for sequences in ({"lengths": lengths}, {"resets": resets}, {"lengths": lengths, "resets": resets}):

        def loss(parameters: Any, sequences: Any = sequences) -> Any:
            y, last = torch.func.functional_call(module, parameters, (x.detach(),), sequences)
            return y.square().sum() + parts(last)[0].sum()

        of_ours, named = loss(dict(module.named_parameters())), dict(module.named_parameters())
        expected = torch.autograd.grad(of_ours, list(module.parameters()))
        assert_close(list(torch.func.grad(loss)(named).values()), list(expected))
        small, few = getattr(ours, kind)(2, 2, dtype=torch.float64), {k: v[:2] for k, v in sequences.items()}
        if "resets" in few:
            few["resets"] = resets[:3, :2]
        if "lengths" in few:
            few["lengths"] = torch.tensor([3, 2])
        data = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
        function: Callable[..., Any] = lambda x, small=small, few=few: small(x, **few)[0]  # noqa: E731
        assert torch.autograd.gradgradcheck(function, (data,))


def test_one_sequence_has_a_length_and_resets_without_a_batch() -> None:
    module = ours.LSTM(I, H)
    x, resets = torch.randn(T, I), torch.tensor([0, 0, 1, 0, 1, 0])
    y, _ = module(x, lengths=5, resets=resets)
    episodes = [module(x[first:last])[0] for first, last in ((0, 2), (2, 4), (4, 5))]
    assert torch.equal(y, torch.cat((*episodes, torch.zeros(1, H))))
    assert torch.equal(y, module(x, lengths=torch.tensor([5]), resets=resets)[0])


def test_an_slstm_has_them_too() -> None:
    module = ours.SLSTM(I, H, bidirectional=True, dtype=torch.float64)
    layer = rnnfast.SLSTM(I, H, bidirectional=True, dtype="float64")
    layer.load_state_dict({name: p.detach().numpy() for name, p in module.named_parameters()})
    x, resets = torch.randn(T, B, I, dtype=torch.float64), torch.rand(T, B) < 0.4
    y, state = module(x, lengths=LENGTHS, resets=resets)
    expected, last = layer(x.numpy(), lengths=LENGTHS, resets=resets.numpy())
    assert_close([y, *state], [torch.from_numpy(a) for a in (expected, *last)])


def test_models_that_are_copied_or_hooked_take_them() -> None:
    module, x, _, resets = arguments("GRU", {"num_layers": 2})
    expected = module(x, resets=resets)[0]
    twin = copy.deepcopy(module)
    twin.register_forward_hook(lambda _m, _given, _named, out: out, with_kwargs=True)
    assert torch.equal(twin(x, resets=resets)[0], expected)
    with torch.autograd.graph.save_on_cpu():  # backward does not find the tensors of forward
        actual = twin(x, resets=resets)[0]
    pairs = zip(*(gradients([y], list(m.parameters())) for y, m in ((expected, module), (actual, twin))), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "resets of another shape": (
        {"resets": torch.zeros(B, T)},
        ValueError,
        r"resets: expected shape \(6, 4\), got \(4, ",
    ),
    "a list of resets": ({"resets": [[0] * B] * T}, TypeError, r"resets: expected a tensor .*, got list"),
    "other numbers": ({"resets": torch.full((T, B), 2)}, ValueError, r"resets: expected bools, or 0 and 1"),
    "NaN": ({"resets": torch.full((T, B), torch.nan)}, ValueError, r"resets: expected bools, or 0 and 1"),
    "lengths of another shape": ({"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(4,\), got \(2,\)"),
    "lengths with fractions": ({"lengths": torch.ones(B)}, TypeError, r"lengths: expected integers, got torch.float32"),
    "a length above T": ({"lengths": [1, 2, 3, 7]}, ValueError, r"lengths: expected 0 to 6, got 7"),
    "a length below 0": ({"lengths": [1, 2, 3, -1]}, ValueError, r"lengths: expected 0 to 6, got -1"),
    "no numbers": ({"lengths": ["1"] * B}, TypeError, r"lengths: expected integers"),
}


@pytest.mark.parametrize(("sequences", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(sequences: dict[str, Any], error: type[Exception], message: str) -> None:
    for module in (ours.LSTM(I, H), ours.GRU(I, H, num_layers=2)):
        with pytest.raises(error, match=message):
            module(torch.zeros(T, B, I), **sequences)


def test_packed_sequences_have_lengths_of_their_own() -> None:
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.zeros(T, B, I), [6, 5, 2, 1])
    for name, value in (("lengths", [1] * B), ("resets", torch.zeros(T, B))):
        with pytest.raises(ValueError, match=rf"{name}: expected None, since input is a PackedSequence"):
            ours.RNN(I, H)(packed, **{name: value})
