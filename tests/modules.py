"""Layers and cells to test, their arguments, and their results by name."""

import copy
import inspect
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
from problems import CELLS, Array, Results, mapped, named, num_states, parts, state_of

import rnnfast
from rnnfast import _core, reference

FORMS: list[dict[str, Any]] = [  # of a class of layers
    {},
    {"peephole": True},
    {"coupled_gates": True},
    {"peephole": True, "coupled_gates": True},
    {"reset_after": False},
    {"nonlinearity": "relu"},
    {"leak": 0.3},
    {"nonlinearity": "relu", "leak": 0.3},
    {"forget_gate": "exp", "num_heads": 2, "min_n": 1.5, "clamp_gates": True},
    {"layer_norm": "inside", "layer_norm_eps": 0.5},  # not so small that normalising enlarges what rows round to
    {"layer_norm": "carried", "layer_norm_eps": 0.5},
]


def kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return by cell the name of the class that has layers of it, and the options that make it so."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in rnnfast.__all__:
        kind = getattr(rnnfast, name)
        if hasattr(kind, "quantize"):
            for form in FORMS:
                has_c = name == "LSTM" or form.get("layer_norm") != "carried"
                if has_c and form.keys() <= inspect.signature(kind).parameters.keys():
                    found.setdefault(kind(2, 2, **form).cell, (name, form))
    return {cell: found[cell] for cell in CELLS}


KINDS = kinds()
ONE_STEP = [cell for cell, (kind, own) in KINDS.items() if hasattr(rnnfast, f"{kind}Cell") and "layer_norm" not in own]
IN_TORCH = [
    cell for cell, (kind, own) in KINDS.items() if kind in ("LSTM", "GRU", "RNN") and {*own} <= {"nonlinearity"}
]
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
T, B, I, H = 5, 3, 7, 6


def make_layer(cell: str, sizes: tuple[int, int] = (I, H), **arguments: Any) -> Any:
    """Return a layer of the cell."""
    kind, own = KINDS[cell]
    if sizes[1] % own.get("num_heads", 1):
        own = {name: value for name, value in own.items() if name != "num_heads"}
    return getattr(rnnfast, kind)(*sizes, **{"rng": 0, **own, **arguments})


def make_cell(cell: str, **arguments: Any) -> Any:
    """Return a cell."""
    kind, own = KINDS[cell]
    return getattr(rnnfast, f"{kind}Cell")(I, H, **{"rng": 0, **own, **arguments})


def normal(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Draw from the normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def make_state(module: Any, batch: tuple[int, ...], seed: int) -> Any:
    """Draw a state, for each part [L·D,*batch,H] of a layer, [*batch,H] of a cell; P in place of H for a projection."""
    rows = (module.num_layers * module.directions,) if hasattr(module, "num_layers") else ()
    drawn = {
        name: normal((*rows, *batch, n), module.dtype, seed + k)
        for k, (name, n) in enumerate(zip(_core.cells[module.cell].states, state_sizes(module), strict=True))
    }
    if "n" in drawn:  # a sum of weights
        drawn["n"] = np.abs(drawn["n"]) + module.dtype.type(0.5)
    return state_of(tuple(drawn.values()))


def state_sizes(module: Any) -> list[int]:
    """Return the sizes of the parts of a state: P of h where that is a projection, else H."""
    H = module.hidden_size
    return [getattr(module, "proj_size", 0) or H, *[H] * (num_states(module.cell) - 1)]


def names_of(module: Any) -> tuple[str, ...]:
    """Return the names of one direction's parameters as the kernels take them."""
    projection = ("weight_hr",) if getattr(module, "proj_size", 0) else ()
    own = ("bias_c" if name == "b_c" else name for name in _core.cells[module.cell].parameters)
    return *PARAMETERS, *own, *projection


def parameters_of(module: Any, arrays: Results, end: str = "") -> tuple[Array | None, ...]:
    """Return one direction's parameters, or arrays like them, as the kernels take them; what is fixed, the module's."""
    names, fixed = names_of(module), {}
    if "leak" in names:
        fixed["leak"] = np.broadcast_to(np.asarray(module.leak, module.dtype), module.hidden_size)
    if "bounds" in names:
        least = -np.inf if module.min_n is None else module.min_n
        bounds = [least, 1 if module.clamp_gates else 2.0**64]
        fixed["bounds"] = np.repeat(np.asarray(bounds, module.dtype), module.hidden_size)
    return tuple(fixed[name] if name in fixed else arrays.get(name + end) for name in names)


def named_parameters(module: Any, arrays: Any, end: str = "") -> Results:
    """Return what the kernels have of one direction by name, as far as it is of the module's parameters."""
    found = zip((name + end for name in names_of(module)), arrays, strict=True)
    return {name: a for name, a in found if name in module.parameters}


def initial(cell: str) -> list[str]:
    """Return the names of the parameters of a learned initial state."""
    return [f"initial_{state}" for state in _core.cells[cell].states]


def named_states(state: Any, dstate0: Any = ()) -> Results:
    """Return the parts of a last state and of the gradient of an initial one, by name."""
    return {f"{name}{k}": part for name, s in (("h", state), ("dh", dstate0)) for k, part in enumerate(parts(s))}


def swap(a: Array, layer: Any) -> Array:
    """Change between time-major and the layer's layout."""
    return a.swapaxes(0, 1) if layer.batch_first else a


def results(y: Any, state: Any, dx: Any, dstate0: Any, grads: Results) -> Results:
    """Return everything that came by name, without what is None."""
    return {**named(y=y, dx=dx), **named_states(state, dstate0), **grads}


def solve_layer(layer: Any, x: Any, **options: Any) -> Results:
    """Run a layer forwards and, with a dy of ones, backwards; return everything that came."""
    y, state, tape = layer.forward(x, **options)
    return results(y, state, *layer.backward(tape, np.ones_like(y)))


def central_differences(f: Callable[[], float], a: Array, step: float = 1e-6) -> Array:
    """Return the gradient of f with respect to a, which f reads."""
    gradient = np.empty_like(a)
    for i in np.ndindex(a.shape):
        kept = a[i]
        a[i] = kept + step
        above = f()
        a[i] = kept - step
        gradient[i] = (above - f()) / (2 * step)
        a[i] = kept
    return gradient


def of_c(cell: str, dc: Array | None, k: int) -> tuple[Array | None, ...] | None:
    """Return the gradients of a layer's states of every step but h, of which that of c is given."""
    return None if dc is None else tuple(dc[k] if name == "c" else None for name in _core.cells[cell].states[1:])


def without(layer: Any, masks: Results) -> tuple[Any, Results]:
    """Return a copy of a layer with the w_hh of a forward with these masks, and the factors of their gradients."""
    rate = layer.weight_dropout[1] if isinstance(layer.weight_dropout, tuple) else layer.weight_dropout
    twin = copy.deepcopy(layer)
    factors = {
        name: np.where(mask if mask.ndim == 2 else mask[:, None], 1 / (1 - rate), 0) for name, mask in masks.items()
    }
    for name, factor in factors.items():
        twin.parameters[name] = (twin.parameters[name] * factor).astype(layer.dtype)
    return twin, factors


def with_gradients_of(factors: Results, values: Results) -> Results:
    """Return results with the gradients of the w_hh multiplied."""
    return {name: a * factors[name] if name in factors else a for name, a in values.items()}


def factors_of(layer: Any, masks: Results) -> list[Array] | None:
    """Return for each layer the factors of h' [D,B,*] of a forward with these masks [B,*], if there are some."""
    D, kept = layer.directions, list(masks.values())
    scale = 1 / (1 - layer.recurrent_dropout)
    return [np.stack(kept[k : k + D]) * scale for k in range(0, len(kept), D)] or None


def candidates_of(layer: Any, masks: Results) -> list[tuple[Array, float]] | None:
    """Return the dropout of each layer's candidates by masks [T,B,H] or [B,H], if there are some."""
    D, kept = layer.directions, [mask[None] if mask.ndim == 2 else mask for mask in masks.values()]
    of_layers = [np.concatenate(kept[k : k + D], axis=-1) for k in range(0, len(kept), D)]
    return [(of_layer, layer.candidate_dropout) for of_layer in of_layers] or None


def zoneout_of(layer: Any, masks: Results) -> list[tuple[Array | None, ...]] | None:
    """Return which units [T,B,D·H] of each layer's states are new by masks [T,B,H], if there are some."""
    ends = ("", "_reverse")[: layer.directions]

    def of_state(k: int, name: str) -> Array | None:
        if f"zoneout_{name}_l{k}" not in masks:
            return None
        return np.concatenate([masks[f"zoneout_{name}_l{k}{end}"] for end in ends], axis=-1)

    states = _core.cells[layer.cell].states
    return [tuple(of_state(k, name) for name in states) for k in range(layer.num_layers)] if masks else None


def oracle(
    layer: Any,
    x: Array,
    state: Any,
    dy: Array | None,
    dstate: Any,
    masks: tuple[Array, ...] = (),
    *,
    held: Any = None,
    dc: Array | None = None,
    dh_layers: Array | None = None,
    clip_dh: float | None = None,
    factors: list[Array] | None = None,
    candidates: list[tuple[Array, float]] | None = None,
    zoneout: Any = None,
    **rows: Any,
) -> Results:
    """Run a stack of the oracle's layers with the layer's parameters; everything time-major and batched.

    `held` is the gate_override of each layer, `factors` are its factors of h', `candidates` its
    candidate_dropout, `zoneout` what the oracle takes; `rows` are lengths and resets. Without `dstate` nothing
    depends on the last state.
    """
    L, D, p = layer.num_layers, layer.directions, layer.parameters
    suffixes = [[f"_l{k}", f"_l{k}_reverse"][:D] for k in range(L)]
    here = [slice(k * D, (k + 1) * D) for k in range(L)]
    learned = layer.learn_initial_state and state is None
    if learned:
        state = tuple(np.repeat(p[n][:, None], x.shape[1], axis=1) for n in initial(layer.cell))
    first, dlast = (None if given is None else parts(given) for given in (state, dstate))
    y, tapes, last = x.astype(np.float64), [], []
    for k in range(L):
        if k and masks:
            y = y * masks[k - 1]
        parameters = [parameters_of(layer, p, suffix) for suffix in suffixes[k]]
        y, state_k, tape = reference.forward(
            layer.cell,
            y,
            parameters,
            mapped(itemgetter(here[k]), first),
            gate_override=held and held[k],
            recurrent_factors=factors and factors[k],
            candidate_dropout=candidates[k] if candidates else None,
            zoneout=zoneout and zoneout[k],
            layer_norm_eps=getattr(layer, "layer_norm_eps", 1e-5),
            **rows,
        )
        tapes.append(tape)
        last.append(state_k)
    dfirst: list[tuple[Array, ...]] = []
    grads: Results = {}
    d = dy
    for k in reversed(range(L)):
        if dh_layers is not None:
            d = dh_layers[k] if d is None else d + dh_layers[k]
        dstate_k, dsteps = mapped(itemgetter(here[k]), dlast), of_c(layer.cell, dc, k)
        d, dstate0_k, new = reference.backward(tapes[k], d, dstate_k, dsteps=dsteps, clip_dh=clip_dh)
        if k and masks:
            d = d * masks[k - 1]
        dfirst.insert(0, dstate0_k)
        for suffix, arrays in zip(suffixes[k], new, strict=True):
            grads |= named_parameters(layer, arrays, suffix)
    state, dstate0 = (tuple(np.concatenate(s) for s in zip(*stacked, strict=True)) for stacked in (last, dfirst))
    if layer.learn_initial_state:
        for name, ds in zip(initial(layer.cell), dstate0, strict=True):
            grads[name] = ds.sum(axis=1) if learned else np.zeros_like(p[name])
    return results(y, state, d, dstate0, grads)
