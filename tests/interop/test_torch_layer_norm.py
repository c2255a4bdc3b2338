"""Layer normalisation against the definitions in use, written as torch modules that autograd derives.

A module makes its parameters of those of a layer, by their names, so that autograd's gradients have these names too.
"""

from typing import Any

import numpy as np
import pytest

import rnnfast

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')

T, B, I, H = 9, 4, 5, 6


def norm(v: Any, gain: Any, bias: Any = None, eps: float = 1e-5) -> Any:
    """Return the rows of v, normalised."""
    return torch.nn.functional.layer_norm(v, v.shape[-1:], gain, bias, eps)


def reordered(parameters: dict[str, Any], ours: str, theirs: str) -> dict[str, Any]:
    """Return the parameters with the gates, which are in our order, in theirs."""
    order = [ours.index(gate) for gate in theirs]

    def of(p: Any) -> Any:
        blocks = p.chunk(len(ours))
        return torch.cat([blocks[k] for k in order])

    return {name: p if name in ("gain_c", "bias_c") else of(p) for name, p in parameters.items()}


class HasteLSTM(torch.nn.Module):  # type: ignore[misc]
    """Ba, Kiros, Hinton, 2016, with one bias: products have gains, c is normalised within the tanh."""

    layer = ("LSTM", "inside", 1e-5)

    def __init__(self, of_layer: dict[str, Any]) -> None:
        super().__init__()
        p = reordered(of_layer, "ifgo", "igfo")
        self.kernel, self.recurrent_kernel = p["weight_ih"].T, p["weight_hh"].T
        self.bias = p["bias_ih"] + p["bias_hh"]
        self.gamma = torch.stack([p["gain_ih"], p["gain_hh"]])
        self.gamma_h, self.beta_h = p["gain_c"], p["bias_c"]

    def forward(self, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the state after a step."""
        h, c = state
        v = norm(x @ self.kernel, self.gamma[0]) + norm(h @ self.recurrent_kernel, self.gamma[1]) + self.bias
        i, g, f, o = v.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * norm(c, self.gamma_h, self.beta_h).tanh(), c


class TorchScriptLSTM(torch.nn.Module):  # type: ignore[misc]
    """The custom LSTM of torch's benchmarks: all that is normalised has a gain and a bias, and c is carried so."""

    layer = ("LSTM", "carried", 1e-5)

    def __init__(self, of_layer: dict[str, Any]) -> None:
        super().__init__()
        p = of_layer
        self.weight_ih, self.weight_hh = p["weight_ih"], p["weight_hh"]
        self.layernorm_i = p["gain_ih"], p["bias_ih"]
        self.layernorm_h = p["gain_hh"], p["bias_hh"]
        self.layernorm_c = p["gain_c"], p["bias_c"]

    def forward(self, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the state after a step."""
        h, c = state
        gates = norm(x @ self.weight_ih.T, *self.layernorm_i) + norm(h @ self.weight_hh.T, *self.layernorm_h)
        i, f, g, o = gates.chunk(4, -1)
        c = norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), *self.layernorm_c)
        return o.sigmoid() * c.tanh(), c


class AddonsLSTM(torch.nn.Module):  # type: ignore[misc]
    """TensorFlow Addons' LayerNormLSTMCell: as torch's, with Keras's bias beside and a larger eps."""

    layer = ("LSTM", "carried", 1e-3)

    def __init__(self, of_layer: dict[str, Any]) -> None:
        super().__init__()
        p = of_layer
        self.kernel, self.recurrent_kernel = p["weight_ih"].T, p["weight_hh"].T
        self.bias = torch.linspace(-1, 1, 4 * H, dtype=torch.float64)
        self.kernel_norm = p["gain_ih"], p["bias_ih"] - self.bias
        self.recurrent_norm = p["gain_hh"], p["bias_hh"]
        self.state_norm = p["gain_c"], p["bias_c"]

    def forward(self, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the state after a step."""
        h, c = state
        z = norm(x @ self.kernel, *self.kernel_norm, eps=1e-3)
        z = z + norm(h @ self.recurrent_kernel, *self.recurrent_norm, eps=1e-3) + self.bias
        i, f, g, o = z.chunk(4, -1)
        c = norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), *self.state_norm, eps=1e-3)
        return o.sigmoid() * c.tanh(), c


class HasteGRU(torch.nn.Module):  # type: ignore[misc]
    """The GRU of haste, which resets after the product."""

    layer = ("GRU", "inside", 1e-5)

    def __init__(self, of_layer: dict[str, Any]) -> None:
        super().__init__()
        p = reordered(of_layer, "rzn", "zrn")
        self.kernel, self.recurrent_kernel = p["weight_ih"].T, p["weight_hh"].T
        self.bias, self.recurrent_bias = p["bias_ih"], p["bias_hh"]
        self.gamma = torch.stack([p["gain_ih"], p["gain_hh"]])

    def forward(self, x: Any, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the state after a step."""
        (h,) = state
        x_z, x_r, x_g = norm(x @ self.kernel, self.gamma[0], self.bias).chunk(3, -1)
        h_z, h_r, h_g = norm(h @ self.recurrent_kernel, self.gamma[1], self.recurrent_bias).chunk(3, -1)
        z, r = (x_z + h_z).sigmoid(), (x_r + h_r).sigmoid()
        g = (x_g + r * h_g).tanh()
        return (z * h + (1 - z) * g,)


def make(definition: Any) -> tuple[Any, dict[str, Any]]:
    """Return the layer of a definition, with drawn parameters, and these as tensors that have gradients."""
    kind, layer_norm, eps = definition.layer
    layer = getattr(rnnfast, kind)(I, H, dtype="float64", rng=0, layer_norm=layer_norm, layer_norm_eps=eps)
    rng = np.random.default_rng(1)
    for name, p in layer.parameters.items():
        p += 0.5 * rng.standard_normal(p.shape)
        assert name.endswith("_l0")
    return layer, {name[:-3]: torch.tensor(p, requires_grad=True) for name, p in layer.parameters.items()}


def parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("definition", [HasteLSTM, TorchScriptLSTM, AddonsLSTM, HasteGRU], ids=lambda d: d.__name__)
def test_outputs_states_and_all_gradients_are_those_of_the_definition(definition: Any) -> None:
    layer, parameters = make(definition)
    module = definition(parameters)
    torch.manual_seed(0)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    first = tuple(torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in parts(layer(np.zeros((1, I)))[1]))
    state, steps = first, []
    for x_t in x:
        state = module(x_t, state)
        steps.append(state[0])
    y = torch.stack(steps)
    douts = [torch.randn_like(a) for a in (y, *state)]
    given: dict[str, Any] = {"x": x, **{f"{name}0": s for name, s in zip("hc", first, strict=False)}, **parameters}
    grads = torch.autograd.grad([y, *state], list(given.values()), douts)
    expected = [y, *state, *grads]

    def ours(tensors: Any) -> Any:
        arrays = tuple(t.detach().numpy()[None] for t in tensors)
        return arrays if len(arrays) > 1 else arrays[0]

    y, last, tape = layer.forward(x.detach().numpy(), ours(first))
    dx, dfirst, grads = layer.backward(tape, douts[0].numpy(), ours(douts[1:]))
    found = [y, *(s[0] for s in parts(last)), dx, *(s[0] for s in parts(dfirst)), *grads.values()]
    assert [name[:-3] for name in grads] == list(parameters)
    for name, a, tensor in zip(["y", *"hc"[: len(first)], *given], found, expected, strict=True):
        b = tensor.detach().numpy()
        assert a.shape == b.shape, name
        assert np.abs(a - b).max() <= 1e-10 * np.abs(b).max(), name
