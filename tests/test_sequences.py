"""Layers over sequences as they come, against stacks of the oracle: lengths, resets, held gates, every step.

A job is drawn time-major; `solve` gives it to the layer in one of the layouts and returns what came time-major again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modules import (
    KINDS,
    B,
    H,
    I,
    T,
    factors_of,
    initial,
    make_layer,
    make_state,
    named_states,
    normal,
    oracle,
    results,
    state_sizes,
    with_gradients_of,
    without,
)
from problems import CELLS, DTYPES, REPRESENTATIVES, Array, Results, assert_close, assert_same_bits, parts, state_of
from tolerances import TOLERANCE, relative_error

from rnnfast import _core, pack_padded, pad_packed, reference
from rnnfast._stack import segments

STACKS = [(1, 1), (1, 2), (2, 1), (2, 2)]  # L, D
EVERY: tuple[str, ...] = ("dc", "dh_layers")

by_cell = pytest.mark.parametrize("cell", REPRESENTATIVES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_stack = pytest.mark.parametrize(("L", "D"), STACKS, ids=lambda n: str(n))

# Of three sequences of T = 5 steps
ROWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": [3, 5, 2]},
    "one ends at once": {"lengths": [0, 1, 4]},
    "nothing": {"lengths": [0, 0, 0]},
    "resets": {"resets": 0.4},
    "all resets": {"resets": 1.0},
    "lengths and resets": {"lengths": [4, 0, 5], "resets": 0.4},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "last": {"outputs": "last"},
    "every step": {"steps": EVERY},
    "clipped": {"clip_dh": 0.25},
    "held": {"held": "all"},
    "held by layer": {"held": "each"},
    "learned": {"learned": True},
    "all at once": {"outputs": "last", "steps": EVERY, "clip_dh": 0.5, "held": "each", "learned": True},
}
by_rows = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
by_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@dataclass(frozen=True)
class Job:
    """A layer and the arguments of its forward and its backward, time-major, with NaN in the padding."""

    layer: Any
    x: Array  # [T,B,I]
    state: Any
    dy: Array  # [T,B,D·H], or [B,D·H] of the last outputs
    dstate: Any
    rows: dict[str, Any]  # lengths, resets
    outputs: str = "all"
    held: Any = None
    steps: dict[str, Any] = field(default_factory=dict)  # dc, dh_layers, clip_dh

    @property
    def real(self) -> Array:
        """Whether a step is real, [T,B,1]."""
        T, B = self.x.shape[:2]
        return (np.arange(T)[:, None] < np.asarray(self.rows.get("lengths", [T] * B)))[..., None]


def held_gates(cell: str) -> list[dict[str, float]]:
    """Return one gate that the cell lets be held, and all others of them."""
    values = dict(zip(_core.cells[cell].held, cycle((0.5, 0.25, -0.25, 1.0)), strict=False))
    one = [*values][len(values) // 2 : len(values) // 2 + 1]
    return [{gate: value for gate, value in values.items() if (gate in one) == alone} for alone in (True, False)]


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sequences of a test's length have several segments."""
    monkeypatch.setattr(segments, "LEAST_ROWS", 1)


def make_job(
    layer: Any,
    *,
    sizes: tuple[int, int] = (T, B),
    lengths: Any = None,
    resets: float | None = None,
    outputs: str = "all",
    steps: tuple[str, ...] = (),
    clip_dh: float | None = None,
    held: str | None = None,
    learned: bool = False,
    seed: int = 0,
) -> Job:
    """Draw a job; `resets` is the share of the steps at which an episode begins."""
    (T, B), L, D = sizes, layer.num_layers, layer.directions
    widths = dict(zip(("dh_layers", "dc"), (D * n for n in state_sizes(layer)), strict=False))
    width = widths["dh_layers"]
    rows: dict[str, Any] = {} if lengths is None else {"lengths": np.array(lengths, int)}
    if resets is not None:
        rows["resets"] = np.random.default_rng(seed).random((T, B)) < resets
    gates = held_gates(layer.cell)
    if learned:
        vars(layer)["learn_initial_state"] = True  # which cannot be assigned
        for name, n in zip(initial(layer.cell), state_sizes(layer), strict=True):
            layer.parameters[name] = normal((L * D, n), layer.dtype, seed + 9)
    job = Job(
        layer,
        normal((T, B, layer.input_size), layer.dtype, seed + 1),
        None if learned else make_state(layer, (B,), seed + 3),
        normal((T, B, width) if outputs == "all" else (B, width), layer.dtype, seed + 2),
        make_state(layer, (B,), seed + 5),
        rows,
        outputs,
        None if held is None else gates[0] if held == "all" else [gates[k % 2] for k in range(L)],
        {
            name: normal((L, T, B, widths[name]), layer.dtype, seed + 7)
            for name in steps
            if name != "dc" or "c" in _core.cells[layer.cell].states
        }
        | ({} if clip_dh is None else {"clip_dh": clip_dh}),
    )
    return job if lengths is None else spoiled(job, np.nan)


def spoiled(job: Job, number: float) -> Job:
    """Return the job with this number wherever there is padding."""

    def pad(a: Any) -> Any:
        return np.where(job.real, a, a.dtype.type(number)) if isinstance(a, np.ndarray) and a.ndim > 2 else a

    return replace(job, x=pad(job.x), dy=pad(job.dy), steps={name: pad(a) for name, a in job.steps.items()})


# How a layer is given its arrays: [T,B,*] becomes what it takes, and back
Way = tuple[Callable[[Array, Job], Any], Callable[[Any, Job], Array]]


def time_major(a: Array, _: Job) -> Array:
    return a


def swapped(a: Array, _: Job) -> Array:
    return a.swapaxes(0, 1)


def packed(a: Array, job: Job) -> Any:
    return pack_padded(a, job.rows["lengths"])


def padded(a: Any, job: Job) -> Array:
    return pad_packed(a, total_length=len(job.x))[0]


WAYS: dict[str, Way] = {
    "time-major": (time_major, time_major),
    "batch-first": (swapped, swapped),
    "packed": (packed, padded),
}


def solve(
    job: Job,
    way: str = "time-major",
    *,
    checkpoint: Any = None,
    masks: Any = None,
    grads: Any = None,
    need_dx: bool = True,
) -> Results:
    """Run the layer forwards and backwards; everything that came, time-major."""
    (give, take), rows, outputs = WAYS[way], dict(job.rows), job.outputs
    job.layer.batch_first = way == "batch-first"
    if way == "packed":
        del rows["lengths"]
    if "resets" in rows:
        rows["resets"] = give(rows["resets"], job)
    options = {**rows, "outputs": outputs, "gate_override": job.held, "masks": masks}
    y, last, tape = job.layer.forward(give(job.x, job), job.state, checkpoint=checkpoint, **options)

    def of_layers(a: Any) -> Any:
        if not isinstance(a, np.ndarray):
            return a
        given = [give(of_layer, job) for of_layer in a]
        return np.stack([g.data if way == "packed" else g for g in given])

    dy = give(job.dy, job) if outputs == "all" else job.dy
    steps = {name: of_layers(a) for name, a in job.steps.items()}
    dx, dstate0, new = job.layer.backward(tape, dy, job.dstate, need_dx=need_dx, grads=grads, **steps)
    y = take(y, job) if outputs == "all" else y
    return results(y, last, None if dx is None else take(dx, job), dstate0, new)


def expected(job: Job, masks: tuple[Array, ...] = (), **dropped: Any) -> Results:
    """Return what the oracle gives."""
    L, D, B = job.layer.num_layers, job.layer.directions, job.x.shape[1]
    dy: Any = job.dy
    dstate = job.dstate
    if job.outputs == "last":
        dh, *others = (part.copy() for part in parts(dstate))
        dh[-D:] += dy.reshape(B, D, -1).swapaxes(0, 1)
        dstate, dy = (dh, *others), None
    held = job.held if job.held is None or isinstance(job.held, list) else [job.held] * L
    wanted = oracle(job.layer, job.x, job.state, dy, dstate, masks, held=held, **job.steps, **job.rows, **dropped)
    if job.outputs == "last":
        wanted["y"] = wanted["h0"][-D:].swapaxes(0, 1).reshape(B, -1)
    return wanted


def make_stack(cell: str, L: int, D: int, **options: Any) -> Any:
    return make_layer(cell, num_layers=L, bidirectional=D == 2, **{"dtype": "float64", **options})


def learns(options: dict[str, Any]) -> bool:
    return bool(options.get("learned", False))


@by_options
@by_rows
@by_stack
@by_cell
def test_sequences_as_they_come_are_the_oracles(
    cell: str, L: int, D: int, rows: dict[str, Any], options: dict[str, Any]
) -> None:
    layer = make_stack(cell, L, D, learn_initial_state=learns(options))
    job = make_job(layer, **rows, **options)
    assert_close(solve(job), expected(job), L)


@by_options
@by_rows
@by_cell
def test_sequences_as_they_come_in_single_precision(cell: str, rows: dict[str, Any], options: dict[str, Any]) -> None:
    layer = make_stack(cell, 2, 2, dtype="float32", learn_initial_state=learns(options))
    job = make_job(layer, **rows, **options)
    assert_close(solve(job), expected(job), 2)


@by_options
@by_rows
@by_cell
def test_inference_gives_the_bits_of_forward(cell: str, rows: dict[str, Any], options: dict[str, Any]) -> None:
    job = make_job(make_stack(cell, 2, 2, learn_initial_state=learns(options)), **rows, **options)
    given = {**job.rows, "outputs": job.outputs, "gate_override": job.held}
    (y, last), (y_forward, last_forward, _) = (
        job.layer(job.x, job.state, **given),
        job.layer.forward(job.x, job.state, **given),
    )
    assert_same_bits({"y": y, **named_states(last)}, {"y": y_forward, **named_states(last_forward)})


@pytest.mark.parametrize("way", ["batch-first", "packed"])
@by_options
@by_rows
@by_dtype
@by_cell
def test_the_layout_changes_no_bit(
    cell: str, dtype: str, rows: dict[str, Any], options: dict[str, Any], way: str
) -> None:
    layer = make_stack(cell, 2, 2, dtype=dtype, learn_initial_state=learns(options))
    job = make_job(layer, **{"lengths": [T] * B, **rows}, **options)
    assert_same_bits(solve(job, way), solve(job))


@by_options
@by_rows
def test_sequences_of_projected_states_are_the_oracles(rows: dict[str, Any], options: dict[str, Any]) -> None:
    for D in (1, 2):
        layer = make_stack("lstm", 2, D, proj_size=3, learn_initial_state=learns(options))
        job = make_job(layer, **rows, **options)
        assert_close(solve(job), expected(job), layers=2)


@by_rows
@by_cell
def test_one_sequence_is_a_batch_of_one(cell: str, rows: dict[str, Any]) -> None:
    layer = make_stack(cell, 2, 2)
    given = {**rows, "lengths": rows.get("lengths", [T])[:1]}
    job = make_job(layer, sizes=(T, 1), **given, steps=EVERY)
    whole = solve(job)
    options = (
        {"lengths": job.rows["lengths"], "resets": job.rows["resets"][:, 0]} if "resets" in rows else dict(job.rows)
    )
    state, dstate = (tuple(part[:, 0] for part in parts(s)) for s in (job.state, job.dstate))
    y, last, tape = layer.forward(job.x[:, 0], state_of(state), **options)
    steps = {name: a[:, :, 0] for name, a in job.steps.items()}
    dx, dstate0, grads = layer.backward(tape, job.dy[:, 0], state_of(dstate), **steps)
    single = results(y, last, dx, dstate0, grads)
    for name in single.keys() - grads.keys():
        single[name] = single[name][:, None]
    assert_same_bits(single, whole)


@by_dtype
@by_cell
def test_padding_is_neither_read_nor_written(cell: str, dtype: str) -> None:
    layer = make_stack(cell, 2, 2, dtype=dtype)
    job = make_job(layer, lengths=[2, 0, 4], steps=EVERY)
    actual = solve(job)
    for number in (0, np.inf, -1e30):
        assert_same_bits(solve(spoiled(job, number)), actual)
    padding = ~job.real[..., 0]
    for name in ("y", "dx"):
        assert not actual[name][padding].any()
        assert not np.signbit(actual[name][padding]).any()
        assert actual[name][~padding].all() or cell == "rnn_relu"


@by_cell
def test_a_sequence_without_steps_keeps_its_state_and_its_gradient(cell: str) -> None:
    layer = make_stack(cell, 2, 2)
    job = make_job(layer, lengths=[2, 0, 4])
    _, last, tape = layer.forward(job.x, job.state, **job.rows)
    _, dstate0, _ = layer.backward(tape, job.dy, job.dstate)
    for after, before in (
        *zip(parts(last), parts(job.state), strict=True),
        *zip(parts(dstate0), parts(job.dstate), strict=True),
    ):
        assert np.array_equal(after[:, 1], before[:, 1])
        assert not np.array_equal(after[:, 0], before[:, 0])


@given(st.data())
def test_any_lengths_and_resets(data: Any) -> None:
    cell, (L, D) = data.draw(st.sampled_from(list(KINDS))), data.draw(st.sampled_from(STACKS))
    B, T = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 12))
    options = data.draw(st.sampled_from(list(OPTIONS.values())))
    layer = make_stack(cell, L, D, learn_initial_state=learns(options))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    resets = data.draw(st.sampled_from([None, 0.1, 0.5]))
    job = make_job(layer, sizes=(T, B), lengths=lengths, resets=resets, seed=data.draw(st.integers(0, 99)), **options)
    assert_close(solve(job), expected(job), L)


# Resets


@by_dtype
@by_stack
@by_cell
def test_episodes_are_sequences_of_their_own(cell: str, L: int, D: int, dtype: str) -> None:
    layer = make_stack(cell, L, D, dtype=dtype)
    cuts = [0, 2, 3, 7, 12]
    job = make_job(layer, sizes=(12, B))
    resets = np.zeros((12, B), bool)
    resets[cuts[:-1]] = True
    both = solve(replace(job, rows={"resets": resets}, dstate=None))
    apart = [
        solve(replace(job, x=job.x[slice(*ends)], dy=job.dy[slice(*ends)], dstate=None)) for ends in pairwise(cuts)
    ]
    if L == 1:
        for name in ("y", "dx"):
            assert np.array_equal(both[name], np.concatenate([episode[name] for episode in apart]))
    summed = ("dh0", "dh1", *layer.parameters)
    exact = {name: np.sum([episode[name] for episode in apart], axis=0) for name in summed if name in both}
    exact |= {name: np.concatenate([episode[name] for episode in apart]) for name in ("y", "dx")}
    assert_close({name: both[name] for name in exact}, exact, L)


# The last output


@by_cell
def test_the_last_output_is_the_last_real_one(cell: str) -> None:
    layer = make_stack(cell, 2, 2)
    job = make_job(layer, lengths=[2, 5, 4])
    y, _ = layer(job.x, job.state, **job.rows)
    last, _ = layer(job.x, job.state, **job.rows, outputs="last")
    for b, length in enumerate([2, 5, 4]):
        assert np.array_equal(last[b, :H], y[length - 1, b, :H])
        assert np.array_equal(last[b, H:], y[0, b, H:])


# Held gates


@pytest.mark.parametrize("cell", [cell for cell in CELLS if _core.cells[cell].held])
@by_dtype
def test_a_held_gate_has_its_value_and_its_weights_no_gradient(cell: str, dtype: str) -> None:
    layer = make_stack(cell, 2, 2, dtype=dtype)
    job = make_job(layer, lengths=[2, 0, 4])
    for name in _core.cells[cell].held:
        y, _, tape = layer.forward(job.x, job.state, **job.rows, gate_override=[None, {name: 0.375}])
        _, _, grads = layer.backward(tape, job.dy)
        gates = [tape.gates(0), tape.gates(1)]
        assert np.array_equal(gates[1][name], np.where(job.real, 0.375, np.zeros_like(y)))
        assert not np.array_equal(gates[0][name], gates[1][name])
        for parameter, gradient in grads.items():
            letters = _core.cells[cell].gates
            if parameter.startswith("peephole"):  # g has none
                letters = letters.replace("g", "")
            if parameter.startswith("weight") and _core.cells[cell].normalises:
                continue  # they are in the mean and the deviation of all gates
            if parameter.startswith(("gain_c", "bias_c")):
                continue
            if name in letters:
                block = np.split(gradient, len(letters))[letters.index(name)]
                assert block.any() == ("_l1" not in parameter), parameter


def test_a_closed_forget_gate_leaves_the_old_cell_no_influence() -> None:
    layer = make_stack("lstm", 1, 1)
    job = make_job(layer, resets=0.3)
    h, c = job.state
    given = {**job.rows, "gate_override": {"f": 0.0}}
    y, _, tape = layer.forward(job.x, (h, c), **given)
    y_other, _, _ = layer.forward(job.x, (h, c + 1000), **given)
    assert np.array_equal(y, y_other)
    assert not np.array_equal(y, layer(job.x, (h, c), **job.rows)[0])
    _, (dh0, dc0), _ = layer.backward(tape, job.dy)
    assert dh0.any()
    assert not dc0.any()


# Every step


@by_rows
@by_stack
@by_cell
def test_the_tape_shows_the_oracles_states_and_gates(cell: str, L: int, D: int, rows: dict[str, Any]) -> None:
    layer = make_stack(cell, L, D, batch_first=True)
    job = make_job(layer, **rows)
    given = dict(job.rows)
    if "resets" in given:
        given["resets"] = given["resets"].T
    _, _, tape = layer.forward(job.x.swapaxes(0, 1), job.state, **given)
    y, eps = job.x, getattr(layer, "layer_norm_eps", 1e-5)
    for k in range(L):
        state = tuple(s[k * D : (k + 1) * D] for s in parts(job.state))
        y, _, theirs = reference.forward(cell, y, layer.of_layer(k), state, **job.rows, layer_norm_eps=eps)
        gates = reference.gates(theirs)
        wanted = {name: np.concatenate([g[name] for g in gates], axis=2) for name in gates[0]}
        wanted |= dict(zip(("h", "c_of_every_step"), theirs.steps, strict=False))
        actual = {"h": tape.h(k), **tape.gates(k - L)}
        if "c" in _core.cells[cell].states:
            actual["c_of_every_step"] = tape.c(k)
        assert_close({name: a.swapaxes(0, 1) for name, a in actual.items()}, wanted, L)


@by_dtype
def test_what_the_tape_shows_is_its_own_memory(dtype: str) -> None:
    layer = make_stack("lstm", 2, 1, dtype=dtype)
    y, _, tape = layer.forward(make_job(layer).x)
    assert np.shares_memory(tape.h(1), y)
    assert np.shares_memory(tape.c(0), tape.c(0))
    assert not tape.h(0).flags.writeable
    assert not tape.c(0).flags.writeable
    assert y.flags.writeable


# Bounded gradients


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@by_dtype
@by_cell
def test_bad_numbers_meet_the_bound_as_in_the_oracle(cell: str, dtype: str, bad: float) -> None:
    job = make_job(make_stack(cell, 1, 1, dtype=dtype), clip_dh=0.25)
    clean = solve(job)
    job.dy[-1, 1, 2] = bad
    actual = solve(job)
    with np.errstate(invalid="ignore"):
        wanted = expected(job)
    for name in ("dx", "dh0"):
        assert np.array_equal(actual[name][:, [0, 2]], clean[name][:, [0, 2]])
        known = np.isfinite(wanted[name])
        assert np.array_equal(actual[name][~known], wanted[name][~known], equal_nan=True)
        assert relative_error(actual[name][known], wanted[name][known]) <= TOLERANCE[np.dtype(dtype)]
    if cell != "rnn_relu":  # whose unit may have been at rest
        assert np.isnan(actual["dh0"][:, 1]).any() == (np.isnan(bad) or cell != "rnn_tanh")


@by_dtype
@by_cell
def test_the_bound_holds_at_every_step_and_a_wide_one_does_nothing(cell: str, dtype: str) -> None:
    job = make_job(make_stack(cell, 1, 1, dtype=dtype))
    assert_same_bits(solve(replace(job, steps={"clip_dh": np.inf})), solve(job))
    for t in range(1, T + 1):  # the first of t steps passes its gradient on to the initial state
        bounded = solve(replace(job, x=job.x[:t], dy=job.dy[:t], steps={"clip_dh": 2.0**-9}))
        assert np.abs(bounded["dh0"]).max() == 2.0**-9


# Checkpoints


CHECKPOINTS = (1, 50, 64, 100, 129, 1000, "auto")
LONG = (150, 4)  # chunks of 64 steps, or more where sequences end
LONG_ROWS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": [150, 0, 90, 131]},
    "resets": {"resets": 0.05},
    "lengths and resets": {"lengths": [149, 20, 0, 3], "resets": 0.1},
}


@by_options
@pytest.mark.parametrize("rows", LONG_ROWS.values(), ids=LONG_ROWS)
@pytest.mark.parametrize(("L", "D"), [(2, 1), (2, 2)], ids=str)
@by_cell
def test_checkpoints_change_no_bit(cell: str, L: int, D: int, rows: dict[str, Any], options: dict[str, Any]) -> None:
    for dtype, checkpoints in zip(DTYPES, (CHECKPOINTS[::2], CHECKPOINTS[1::2]), strict=True):
        layer = make_stack(cell, L, D, dtype=dtype, learn_initial_state=learns(options))
        job = make_job(layer, sizes=LONG, **rows, **options)
        plain = solve(job)
        for checkpoint in checkpoints:
            assert_same_bits(solve(job, checkpoint=checkpoint), plain)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all at once"]], ids=["plain", "all at once"])
@pytest.mark.parametrize("rows", LONG_ROWS.values(), ids=LONG_ROWS)
def test_checkpoints_change_no_bit_of_a_projection(rows: dict[str, Any], options: dict[str, Any]) -> None:
    for D, dtype in zip((1, 2), DTYPES, strict=True):
        layer = make_stack("lstm", 2, D, dtype=dtype, proj_size=3, learn_initial_state=learns(options))
        job = make_job(layer, sizes=LONG, **rows, **options)
        assert_same_bits(solve(job, checkpoint=64), solve(job))


@pytest.mark.parametrize(("L", "D"), [(3, 1), (3, 2)], ids=str)
@pytest.mark.parametrize("rows", LONG_ROWS.values(), ids=LONG_ROWS)
def test_checkpoints_draw_the_same_dropout(L: int, D: int, rows: dict[str, Any]) -> None:
    def layer() -> Any:
        return make_stack("lstm", L, D, dropout=0.4, weight_dropout=0.3, recurrent_dropout=0.3)

    plain, saving = (solve(make_job(layer(), sizes=LONG, **rows, steps=EVERY), checkpoint=k) for k in (None, 70))
    assert_same_bits(saving, plain)


# Weight dropout


@pytest.mark.parametrize(
    ("rows", "options", "checkpoint", "weight_dropout"),
    [
        ("whole", "plain", None, 0.4),
        ("whole", "plain", 64, ("rows", 0.25)),
        ("lengths and resets", "all at once", None, ("rows", 0.25)),
        ("lengths and resets", "all at once", 64, 0.4),
    ],
)
@by_cell
def test_weights_that_are_left_out_are_the_oracles(
    cell: str, rows: str, options: str, checkpoint: Any, weight_dropout: Any
) -> None:
    own, learned = OPTIONS[options], learns(OPTIONS[options])
    for dtype, D in zip(DTYPES, (1, 2), strict=True):
        layer = make_stack(cell, 2, D, dtype=dtype, weight_dropout=weight_dropout, learn_initial_state=learned)
        job = make_job(layer, sizes=LONG, **LONG_ROWS[rows], **own)
        w_hh = {name: p for name, p in layer.parameters.items() if name.startswith("weight_hh")}
        masks = {
            name: np.random.default_rng(k).random(p.shape[: 1 if isinstance(weight_dropout, tuple) else 2]) < 0.7
            for k, (name, p) in enumerate(w_hh.items())
        }
        twin, factors = without(layer, masks)
        wanted = with_gradients_of(factors, expected(replace(job, layer=twin)))
        assert_close(solve(job, checkpoint=checkpoint, masks=masks), wanted, 2)


@pytest.mark.parametrize("checkpoint", [None, 64])
@by_cell
def test_gradients_of_masked_weights_are_added_to_those_given(cell: str, checkpoint: Any) -> None:
    layer = make_stack(cell, 2, 2, weight_dropout=0.5, learn_initial_state=True)
    job, masks = make_job(layer, learned=True), layer.forward(normal((1, 1, I), "float64", 0))[2].weight_masks
    made = solve(job, masks=masks)
    grads = {name: np.ones_like(p) for name, p in layer.parameters.items()}
    solve(job, checkpoint=checkpoint, masks=masks, grads=grads)
    assert_close(grads, {name: 1 + made[name] for name in grads})
    again = {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    solve(job, checkpoint=checkpoint, masks=masks, grads=again)
    assert_same_bits(again, {name: made[name] for name in again})


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_that_are_left_out_do_not_depend_on_the_layout(way: str) -> None:
    layers = [make_stack("gru", 2, 2, weight_dropout=0.5) for _ in range(2)]
    one, other = (make_job(layer, lengths=[3, 5, 2]) for layer in layers)
    assert_same_bits(solve(one, way), solve(other))


# Recurrent dropout


@pytest.mark.parametrize(
    ("rows", "options", "checkpoint", "per_gate"),
    [
        ("whole", "plain", 64, True),
        ("lengths and resets", "all at once", None, True),
        ("lengths and resets", "all at once", 64, False),
    ],
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_what_products_do_not_see_of_h_is_the_oracles(
    cell: str, rows: str, options: str, checkpoint: Any, per_gate: bool
) -> None:
    own, learned = OPTIONS[options], learns(OPTIONS[options])
    for dtype, D in zip(DTYPES, (1, 2), strict=True):
        rates = {"recurrent_dropout": 0.4, "recurrent_dropout_per_gate": per_gate}
        layer = make_stack(cell, 2, D, dtype=dtype, **rates, learn_initial_state=learned)
        job = make_job(layer, sizes=LONG, **LONG_ROWS[rows], **own)
        masks = layer.forward(np.zeros_like(job.x))[2].recurrent_masks
        wanted = expected(job, factors=factors_of(layer, masks))
        assert_close(solve(job, checkpoint=checkpoint, masks=masks), wanted, 2)


@pytest.mark.parametrize("way", WAYS)
def test_what_products_do_not_see_does_not_depend_on_the_layout(way: str) -> None:
    layers = [make_stack("gru", 2, 2, recurrent_dropout=0.5) for _ in range(2)]
    one, other = (make_job(layer, lengths=[3, 5, 2]) for layer in layers)
    assert_same_bits(solve(one, way), solve(other))


@pytest.mark.parametrize("sizes", [(1, 1), (257, 1), (65, 4)], ids=str)
@by_cell
def test_dropout_changes_nothing_that_a_short_last_segment_keeps(cell: str, sizes: tuple[int, int]) -> None:
    layer, again = (make_stack(cell, 2, 2, dropout=0.4) for _ in range(2))
    assert_same_bits(solve(make_job(again, sizes=sizes), checkpoint=64), solve(make_job(layer, sizes=sizes)))


@pytest.mark.parametrize("checkpoint", [None, 64])
@by_rows
@by_cell
def test_gradients_are_added_to_those_given(cell: str, rows: dict[str, Any], checkpoint: Any) -> None:
    layer = make_stack(cell, 2, 2, learn_initial_state=True)
    job = make_job(layer, **rows, learned=True)
    made = solve(job)
    grads = {name: np.ones_like(p) for name, p in layer.parameters.items()}
    solve(job, checkpoint=checkpoint, grads=grads)
    assert_close(grads, {name: 1 + made[name] for name in grads})
    again = {name: np.zeros_like(p) for name, p in layer.parameters.items()}
    solve(job, checkpoint=checkpoint, grads=again, need_dx=False)
    assert_same_bits(again, {name: made[name] for name in again})


@pytest.mark.parametrize("checkpoint", [None, 64])
@pytest.mark.parametrize("lengths", [[0, 0, 0], [3, 0, 5]])
@pytest.mark.parametrize("embedded", [False, True])
def test_tokens_have_lengths_too(lengths: list[int], embedded: bool, checkpoint: Any) -> None:
    layer = make_stack("gru", 2, 2)
    tokens = np.random.default_rng(0).integers(0, I, (T, B))
    rows = np.eye(I) if not embedded else normal((I, I), "float64", 4)
    given = {"embedding": rows} if embedded else {}
    y, last, tape = layer.forward(tokens, lengths=lengths, checkpoint=checkpoint, **given)
    y_rows, last_rows, tape_rows = layer.forward(rows[tokens], lengths=lengths)
    (none, dstate0, grads), (dx, dstate0_rows, grads_rows) = (
        layer.backward(t, np.ones_like(y)) for t in (tape, tape_rows)
    )
    assert none is None
    if embedded:
        grads_rows["embedding"] = np.zeros_like(rows)
        np.add.at(grads_rows["embedding"], tokens, dx)
    assert_close(results(y, last, None, dstate0, grads), results(y_rows, last_rows, None, dstate0_rows, grads_rows))
    taken = pack_padded(tokens, lengths)
    assert np.array_equal(
        layer(taken, **given)[0].data, pack_padded(layer(tokens, lengths=lengths, **given)[0], lengths).data
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_below_the_smallest_normal_number_are_zero_with_checkpoints_too(dtype: str) -> None:
    """Of two directions as well, whose dx is a sum."""
    layer = make_layer("lstm", bidirectional=True, dtype=dtype)
    x = normal((40, 60, I), dtype, 1)
    dy = (normal((40, 60, 2 * H), dtype, 2) * 50 * np.finfo(dtype).tiny).astype(dtype)
    expected, actual = (
        layer.backward(layer.forward(x, checkpoint=checkpoint)[2], dy, need_dx=True)[0] for checkpoint in (None, 10)
    )
    tiny = np.abs(expected[expected != 0]).min()
    assert tiny >= np.finfo(dtype).tiny
    assert (expected == 0).any()
    assert expected.tobytes() == actual.tobytes()


@pytest.mark.parametrize("cell", KINDS)
def test_checkpoints_keep_the_sign_of_zero(cell: str) -> None:
    """A gate that is held at zero lets nothing pass, of either sign."""
    layer = make_layer(cell)
    x, dy = normal((40, 60, I), "float32", 1), normal((40, 60, H), "float32", 2)
    for held in (None, *({gate: 0.0} for gate in _core.cells[cell].held)):
        expected, actual = (
            layer.backward(layer.forward(x, gate_override=held, checkpoint=checkpoint)[2], dy)
            for checkpoint in (None, 10)
        )
        for a, b in zip(parts(expected[1]), parts(actual[1]), strict=True):
            assert a.tobytes() == b.tobytes()
