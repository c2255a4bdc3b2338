"""The compiled kernels: one layer, all its directions, one call. See `rnnfast.functional` for the public form."""

from collections.abc import Mapping, Sequence
from types import GenericAlias
from typing import Any, Generic, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

_Array: TypeAlias = NDArray[Any]
_Parameters: TypeAlias = Sequence[Sequence[object] | PackedParameters]
_Grads: TypeAlias = list[tuple[Any, ...]]  # arrays, or None where there is no bias

least_steps_of_wave: int
_C_API: Any  # the capsule of csrc/c/capi.h
xla_handlers: Mapping[str, Any]  # capsules of the functions of csrc/xla/layers.cpp

@final
class CellShape:
    @property
    def name(self) -> str: ...
    @property
    def num_gates(self) -> int: ...
    @property
    def num_phases(self) -> int: ...
    @property
    def gates(self) -> str: ...
    @property
    def held(self) -> str: ...
    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> dict[str, int]: ...
    @property
    def projects(self) -> bool: ...
    @property
    def has_candidate(self) -> bool: ...
    @property
    def normalises(self) -> bool: ...

cells: Mapping[str, CellShape]

_State = TypeVar("_State", default=Any)  # of the layer: h, or (h, c)

@final
class Tape(Generic[_State]):
    """What a training forward keeps for its backward. Opaque and read-only."""

    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    @property
    def cell(self) -> str: ...
    def gate(self, name: str) -> _Array: ...
    @property
    def gates(self) -> str: ...
    @property
    def memory(self) -> tuple[_Array, _Array, _Array]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def state0(self) -> tuple[_Array | None, ...]: ...
    @property
    def states(self) -> tuple[_Array, ...]: ...
    @property
    def y(self) -> _Array: ...

@final
class PackedParameters:
    """Parameters of a direction, of fewer bits, as calls read them. Opaque and read-only."""

    @property
    def nbytes(self) -> int: ...

def pack(cell: str, parameters: Sequence[object]) -> PackedParameters: ...
def inference(
    cell: str,
    x: object,
    parameters: _Parameters,
    state0: Sequence[object] | None = None,
    out: Sequence[object] | None = None,
    embedding: object | None = None,
    batch_sizes: object | None = None,
    threads: int = 0,
    *,
    resets: object | None = None,
    ends: object | None = None,
    start: Sequence[object] | None = None,
    gate_override: Mapping[str, float] | None = None,
    reverse: bool = False,
    steps: tuple[int, int] | None = None,
    memory: Sequence[object] | None = None,
    recurrent_factors: object | None = None,
    zoneout: Sequence[object] | None = None,
    candidate_dropout: tuple[object, float] | None = None,
    layer_norm_eps: float | None = None,
    rounded: bool = False,
) -> tuple[_Array, tuple[_Array, ...]]: ...
def forward(
    cell: str,
    x: object,
    parameters: _Parameters,
    state0: Sequence[object] | None = None,
    out: Sequence[object] | None = None,
    embedding: object | None = None,
    batch_sizes: object | None = None,
    threads: int = 0,
    *,
    resets: object | None = None,
    ends: object | None = None,
    start: Sequence[object] | None = None,
    gate_override: Mapping[str, float] | None = None,
    reverse: bool = False,
    steps: tuple[int, int] | None = None,
    memory: Sequence[object] | None = None,
    recurrent_factors: object | None = None,
    zoneout: Sequence[object] | None = None,
    candidate_dropout: tuple[object, float] | None = None,
    layer_norm_eps: float | None = None,
    rounded: bool = False,
) -> tuple[_Array, tuple[_Array, ...], Tape]: ...
def backward(
    tape: Tape,
    dy: object | None = None,
    dstate: Sequence[object] | None = None,
    need_dx: bool = True,
    grads: _Parameters | None = None,
    out: Sequence[object] | None = None,
    threads: int = 0,
    *,
    dsteps: Sequence[object] | None = None,
    clip_dh: float = 0.0,
    flow: Sequence[object] | None = None,
    dstart: Sequence[object] | None = None,
    steps: tuple[int, int] | None = None,
    windows: tuple[int, int, bool, bool] | None = None,
) -> tuple[_Array | None, tuple[_Array, ...], _Grads]: ...

@final
class PlainLayer:
    """The calls of a layer without options, or of a cell, on arrays as the kernels take them."""

    def __init__(
        self,
        cell: str,
        axes: int,
        dtype: np.dtype[Any],
        I: int,
        state_sizes: tuple[int, ...],
        names: tuple[tuple[str, ...], ...],
        fixed: tuple[object, ...],
    ) -> None: ...
    def inference(self, parameters: object, x: object, state: object) -> tuple[_Array, Any] | None: ...
    def forward(self, parameters: object, x: object, state: object) -> tuple[_Array, Any, Tape] | None: ...
    def backward(
        self, parameters: object, tape: Tape, dy: object, dstate: object, need_dx: bool
    ) -> tuple[_Array | None, Any, dict[str, _Array]] | None: ...

def forward_wave(
    cell: str,
    x: object,
    parameters: Sequence[_Parameters],
    state0: Sequence[Sequence[object] | None] | None,
    training: bool,
    *,
    out: Sequence[Sequence[object] | None] | None = None,
    start: Sequence[Sequence[object] | None] | None = None,
    dropout: Sequence[object] | None = None,
    resets: object | None = None,
    gate_override: Sequence[Mapping[str, Any] | None] | None = None,
    recurrent_factors: Sequence[object] | None = None,
    zoneout: Sequence[Sequence[object] | None] | None = None,
    candidate_dropout: Sequence[tuple[object, float]] | None = None,
    layer_norm_eps: float | None = None,
) -> list[tuple[Any, ...]]: ...
def backward_wave(
    tapes: Sequence[Tape],
    dy: object | None,
    dstate: Sequence[Sequence[object] | None] | None,
    need_dx: bool,
    *,
    grads: Sequence[_Parameters] | None = None,
    out: Sequence[Sequence[object] | None] | None = None,
    dropout: Sequence[object] | None = None,
    clip_dh: float = 0.0,
) -> list[tuple[_Array | None, tuple[_Array, ...], _Grads]]: ...
def wave_pays(
    cell: str, T: int, B: int, I: int, H: int, P: int, heads: int, layers: int, wide: bool, backward: bool
) -> bool: ...
def advance(tape: Tape, steps: tuple[int, int], resets: object | None = None) -> tuple[_Array, ...]: ...
def shift(tape: Tape, steps: int) -> None: ...
def tape_row(cell: str, H: int, dtype: object, P: int = 0) -> tuple[int, int, int]: ...
def chunks(batch_sizes: object | None, T: int, B: int, H: int) -> _Array: ...
def check_pairs(name: str) -> None: ...
def check_gate_override(cell: str, gate_override: object, dtype: object) -> None: ...
def sigmoid(x: object, out: object | None = None) -> _Array: ...
def tanh(x: object, out: object | None = None) -> _Array: ...
def random_bits(key: int, place: int, rate: float, t: object, b: object, n: int) -> _Array: ...
def multiply_adds(factors: object, n: int) -> float: ...
def read(x: object, passes: int = 1) -> float: ...
def asarray(x: object, name: str = "x", dtype: np.dtype[Any] | None = None) -> _Array: ...
def checked(x: object, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Array: ...
def checked_target(
    x: object, name: str, shape: tuple[int, ...] | None = None, dtype: np.dtype[Any] | None = None
) -> _Array: ...
def linear(x: object, weight: object, bias: object | None = None, out: object | None = None) -> _Array: ...
def linear_backward(
    x: object,
    weight: object,
    bias: object | None,
    dy: object,
    need_dx: bool = True,
    grads: Sequence[object] | None = None,
) -> tuple[_Array | None, tuple[_Array, _Array | None]]: ...

@final
class SparseReservoir:
    """A reservoir as lists of its connections. Opaque and read-only."""

    def states(self, x: object, h: object) -> _Array: ...

@final
class Tensors:
    """The calls of layers with tensors of a class and of a class of parameters."""

    def __init__(self, tensor: type, parameter: type) -> None: ...
    def gather(
        self,
        kind: tuple[str, bool, bool, bool],
        I: int,
        H: int,
        P: int,
        stored: dict[str, Any],
        names: list[str],
        x: object,
        hx: object,
        is_step: bool,
    ) -> tuple[tuple[Any, ...], bool] | None: ...
    def forward(
        self,
        kind: tuple[str, bool, bool, bool],
        weights: int,
        tensors: tuple[Any, ...],
        batch_sizes: object | None,
        training: bool,
        threads: int,
    ) -> tuple[Any, ...] | None: ...
    def backward(
        self,
        tape: Tape,
        weights: int,
        tensors: tuple[Any, ...],
        dlast: tuple[Any, ...],
        is_step: bool,
        need_dx: bool,
        need_dstates: bool,
        threads: int,
    ) -> tuple[Any, ...] | None: ...

def reads_from(tape: Tape, arrays: tuple[object, ...]) -> bool: ...
def sparse_reservoir(
    w_ih: object,
    w_hh: object,
    b_ih: object,
    b_hh: object,
    leak: object | None,
    is_relu: bool,
    before: SparseReservoir | None = None,
) -> SparseReservoir | None: ...
def softmax_cross_entropy(
    logits: object, targets: object, mean: bool, ignore_index: int | None = None
) -> tuple[float, _Array]: ...
def ctc_loss(
    logits: object, lengths: object, labels: object, ends: object, blank: int, mean: bool
) -> tuple[float, _Array]: ...
def sum_of_squares(x: object) -> float: ...
def sgd_step(p: object, g: object, v: object | None, lr: float, momentum: float) -> None: ...
def adam_step(
    p: object, g: object, m: object, v: object, lr: float, b1: float, b2: float, eps: float, decay: float = 0.0
) -> None: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...
def xla_tape_bytes(cell: str, dtype: np.dtype[Any], T: int, B: int, I: int, H: int, masked: bool) -> int: ...
