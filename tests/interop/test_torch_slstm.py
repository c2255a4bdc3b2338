"""rnnfast.torch.SLSTM against the equations in torch, whose autograd derives them, and against rnnfast.SLSTM."""

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
ours: Any = pytest.importorskip("rnnfast.torch")

T, B, I, H = 9, 3, 5, 8
FORMS: list[dict[str, Any]] = [
    {},
    {"num_heads": 4},
    {"num_heads": 2, "forget_gate": "exp", "min_n": 1.0},
    {"num_heads": 2, "min_n": 2.0, "clamp_gates": True},
    {"num_heads": 8, "forget_gate": "exp", "clamp_gates": True, "bias": False},
]
by_form = pytest.mark.parametrize("form", FORMS, ids=str)
by_stack = pytest.mark.parametrize("stack", [{}, {"num_layers": 2, "bidirectional": True}], ids=["layer", "stack"])


def make(form: dict[str, Any], **options: Any) -> Any:
    """Return a module with the same weights in every call."""
    torch.manual_seed(0)
    module = ours.SLSTM(I, H, **form, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    return module


def draw(module: Any, *batch: int) -> tuple[Any, tuple[Any, ...]]:
    """Return x and a state that may have gradients."""
    rows = module.num_layers * (1 + module.bidirectional)
    h, c, n, m = (torch.randn(rows, *batch, H, dtype=torch.float64) for _ in range(4))
    x = torch.randn(T, *batch, I, dtype=torch.float64)
    return x.requires_grad_(), tuple(s.requires_grad_() for s in (h, c, 0.5 + n.abs(), m))


def by_equations(module: Any, x: Any, state: tuple[Any, ...] | None) -> tuple[Any, tuple[Any, ...]]:
    """Return y and the last state, step by step and head by head."""
    L, D, NH = module.num_layers, 1 + module.bidirectional, module.num_heads
    size = H // NH
    last = []
    for k in range(L):
        ys = []
        for d in range(D):
            end = f"_l{k}{'_reverse' if d else ''}"
            weights = dict(module.named_parameters())
            w_ih, w_hh = weights["weight_ih" + end], weights["weight_hh" + end]
            bias: Any = [weights[name + end].chunk(4) for name in ("bias_ih", "bias_hh") if module.bias]
            zeros = x.new_zeros(x.shape[1], H)
            h, c, n, m = (s[k * D + d] for s in state) if state else (zeros,) * 4
            steps = []
            for x_t in reversed(x) if d else x:
                raw = [x_t @ w.T for w in w_ih.chunk(4)]
                for head, gate in itertools.product(range(NH), range(4)):
                    rows = slice(gate * H + head * size, gate * H + (head + 1) * size)
                    part = h[:, head * size : (head + 1) * size] @ w_hh[rows].T
                    raw[gate] = raw[gate] + torch.nn.functional.pad(part, (head * size, H - (head + 1) * size))
                a_i, a_f, a_z, a_o = (sum(terms) for terms in zip(raw, *bias, strict=True))
                log_f = a_f if module.forget_gate == "exp" else torch.nn.functional.logsigmoid(a_f)
                new = a_i if bool((n == 0).all()) else torch.maximum(a_i, m + log_f)
                i, f = torch.exp(a_i - new), torch.exp(m + log_f - new)
                if module.clamp_gates:
                    i, f = i.clamp(max=1), f.clamp(max=1)
                c, n, m = f * c + i * torch.tanh(a_z), f * n + i, new
                if module.min_n is not None:
                    n = n.clamp(min=module.min_n)
                h = torch.sigmoid(a_o) * c / n
                steps.append(h)
            ys.append(torch.stack(steps[::-1] if d else steps))
            last.append((h, c, n, m))
        x = torch.cat(ys, -1)
    return x, tuple(map(torch.stack, zip(*last, strict=True)))


def assert_near(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 1e-12 * e.abs().max().clamp(min=1)


@pytest.mark.parametrize("given", ["a state", "no state"])
@by_stack
@by_form
def test_outputs_and_gradients_are_those_of_the_equations(
    form: dict[str, Any], stack: dict[str, Any], given: str
) -> None:
    module = make(form, **stack)
    x, state = draw(module, B)
    first = state if given == "a state" else None
    wanted = [x, *module.parameters(), *(first or ())]
    results = []
    for run in (module, lambda *call: by_equations(module, *call)):
        y, last = run(x, first)
        torch.manual_seed(1)
        loss = sum((out * torch.randn_like(out)).sum() for out in (y, *last))
        results.append([y, *last, *torch.autograd.grad(loss, wanted)])
    assert_near(*results)


@by_form
def test_state_dicts_and_bits_are_those_of_the_layer(form: dict[str, Any]) -> None:
    module = make(form, num_layers=2, dtype=torch.float32)
    layer: Any = rnnfast.SLSTM(I, H, num_layers=2, **form)
    layer.load_state_dict({name: p.detach() for name, p in module.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)
    y, last = module(torch.from_numpy(x))
    expected_y, expected = layer(x)
    assert np.array_equal(y.detach(), expected_y)
    assert all(np.array_equal(a.detach(), b) for a, b in zip(last, expected, strict=True))
    module.load_state_dict({name: torch.from_numpy(p) for name, p in layer.state_dict().items()})


def test_batch_first_single_sequences_and_packed_ones_are_as_torch_has_them() -> None:
    module = make({"num_heads": 2}, bidirectional=True)
    x, state = draw(module, B)
    y, last = module(x, state)
    module.batch_first = True
    assert torch.equal(module(x.transpose(0, 1), state)[0], y.transpose(0, 1))
    module.batch_first = False
    alone = module(x[:, 0], tuple(s[:, 0] for s in state))
    assert torch.equal(alone[0], y[:, 0])
    assert all(torch.equal(a, s[:, 0]) for a, s in zip(alone[1], last, strict=True))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [4, 9, 1], enforce_sorted=False)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(module(packed, state)[0])
    short, _ = module(x[:4, :1], tuple(s[:, :1] for s in state))
    assert torch.equal(padded[:4, 0], short[:, 0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_second_derivatives_and_transforms_go_through_torchs_operators() -> None:
    module = make({"num_heads": 2})
    x, state = draw(module, 1)

    def last(x: Any, *state: Any) -> Any:
        return module(x, state)[0][-1]

    assert torch.autograd.gradgradcheck(last, (x[:3], *state))
    _, expected = torch.autograd.functional.jvp(lambda x: last(x, *state), x, torch.ones_like(x))
    _, tangent = torch.func.jvp(lambda x: last(x, *state), (x.detach(),), (torch.ones_like(x),))
    assert_near([tangent], [expected])


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_exported_and_copied(tmp_path: Path) -> None:
    module = make({"num_heads": 2, "min_n": 1.0})
    x, _ = draw(module, B)
    y, _ = module(x)
    program = torch.export.export(module, (x.detach(),))
    assert torch.equal(program.module()(x)[0], y)
    torch.save(module, tmp_path / "module.pt")
    for other in (copy.deepcopy(module), torch.load(tmp_path / "module.pt", weights_only=False)):
        assert torch.equal(other(x)[0], y)
        assert repr(other) == "SLSTM(5, 8, num_heads=2, min_n=1.0)"
    assert "bounds" not in module.state_dict()
    assert module.float().bounds.dtype == torch.float32


X = torch.zeros(T, B, I)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "num_heads": (
        lambda: ours.SLSTM(I, H, 3),
        ValueError,
        "num_heads: expected a number that divides hidden_size, 8, got 3",
    ),
    "forget_gate": (
        lambda: ours.SLSTM(I, H, forget_gate="relu"),
        ValueError,
        "forget_gate: expected 'sigmoid' or 'exp'",
    ),
    "min_n": (
        lambda: ours.SLSTM(I, H, min_n=-1),
        ValueError,
        "min_n: expected None or a finite number above 0, got -1",
    ),
    "dropout": (lambda: ours.SLSTM(I, H, dropout=2.0), ValueError, "dropout: expected a probability, got 2"),
    "input": (lambda: ours.SLSTM(I, H)(X[..., :3]), ValueError, "input: expected shape"),
    "input: list": (
        lambda: ours.SLSTM(I, H)([1.0]),
        TypeError,
        "input: expected a Tensor or a PackedSequence, got list",
    ),
    "input: dtype": (
        lambda: ours.SLSTM(I, H)(X.double()),
        TypeError,
        "input: expected a tensor torch.float32 on cpu, got",
    ),
    "hx: h": (lambda: ours.SLSTM(I, H)(X, X), TypeError, r"hx: expected a tuple \(h, c, n, m\), got Tensor"),
    "hx: shape": (
        lambda: ours.SLSTM(I, H)(X, (X,) * 4),
        ValueError,
        r"hx: expected tensors torch.float32 \(1, 3, 8\), got",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()
