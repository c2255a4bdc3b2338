"""What layers, cells and `Linear` share: named parameters, how they start, and how they are kept in files."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from . import _core, _files
from ._arraylike import ArrayLike
from ._scalars import Flag, Number, choice, flag, held, number
from .functional import Array, checked, checked_target, quiet

if TYPE_CHECKING:
    from .container import Modules

Shape: TypeAlias = tuple[str, tuple[int, ...]]  # of a parameter, with its name
UNREADABLE = ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError  # what bad files raise
EFFORT = 10_000  # that NumPy may spend to tell whether two arrays overlap; past it, they count as overlapping
MADE = "parameters", "rng", "fan", "gates", "directions", "cell", "_names"  # what constructors make of their arguments


def explain_missing(name: str, error: ModuleNotFoundError) -> None:
    """Say how to get the framework of ``rnnfast.<name>``, if that is the module which was not found."""
    if error.name == name:
        msg = f'rnnfast.{name} needs {name}, which is not installed: pip install "rnnfast[{name}]"'
        raise ModuleNotFoundError(msg, name=name) from error


@cache
def parameters_of(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a constructor."""
    return inspect.signature(kind).parameters


@dataclass
class Kept:
    """What a copy starts from in place of a seed: parameters, which it takes out of `tensors`, and a generator."""

    tensors: dict[str, Any]
    rng: np.random.Generator | None = None

    def take(self, shapes: Iterable[Shape], dtype: np.dtype[Any]) -> dict[str, Array]:
        """Return the parameters of these names and shapes, and none that is not there."""
        parameters: dict[str, Array] = {}
        for name, shape in shapes:
            if name not in self.tensors:
                msg = f"{name}: expected an array of shape {shape}, got none"
                raise ValueError(msg)
            array = self.tensors.pop(name)
            checked(array, name, shape, dtype)
            parameters[name] = np.require(array, requirements=["C", "A", "W", "E"])  # itself where it will do
        return parameters


class Stateful(ABC):
    """What layers and `Modules` do alike with their parameters: values to load, and files."""

    @abstractmethod
    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by their names: the arrays themselves, not copies."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """Return the class by name, and what its constructor needs beside the parameters, for JSON."""

    @classmethod
    @abstractmethod
    def _described(cls, description: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
        """Make what `_description` describes, of parameters that it takes out of `tensors`."""

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy the values of `state_dict` into the parameters, in place.

        Parameters
        ----------
        state_dict : mapping of arrays
            With the keys, shapes and dtypes of `state_dict()`. A torch module's own state dict will do.

        Raises
        ------
        TypeError, ValueError
            If a key is missing or unknown, or a value is no array, or of another dtype or shape. Then nothing
            has been changed.
        """
        own = self.state_dict()
        for key, value in checked_values(state_dict, own, "state_dict").items():
            np.copyto(own[key], value)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the constructors' arguments and the parameters to a safetensors file, for `rnnfast.load`.

        Parameters
        ----------
        path : path-like
            An older file is overwritten once all of the new one is on the disk; a link is followed.

        Raises
        ------
        OSError
            If the file cannot be written, or is a folder, a device or the like.
        TypeError
            For a class derived from one of rnnfast, which `load` could not find.
        """
        import json

        from safetensors.numpy import save

        description = json.dumps(self._description())
        tensors = {name: np.require(a, requirements="C") for name, a in self.state_dict().items()}
        _files.write(path, save(tensors, {"rnnfast": description}))


class Module(Stateful):
    """The base of layers, cells and `Linear`: named parameters, and the constructor's arguments as attributes.

    Attributes
    ----------
    parameters : dict of ndarrays
        Contiguous, by torch's names; each is an attribute of the layer too. A change in place is seen by the
        next call. Assigning to the attribute copies in place.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator
        Draws the initial weights and, in layers, the dropout masks.
    """

    parameters: dict[str, Array]
    gates = 1  # blocks of rows in each parameter
    fan: int  # H; in `Linear`, I

    def __init__(self, shapes: Iterable[Shape], fan: int, dtype: object, seed: Any) -> None:
        self.dtype = _float_dtype(dtype)
        self.fan = fan
        if isinstance(seed, Kept):
            self.rng = generator(seed.rng)
            self.parameters = seed.take(shapes, self.dtype)
            return
        self.rng = generator(seed)
        self.parameters = {name: np.zeros(shape, self.dtype) for name, shape in shapes}
        initialize(self, "torch")

    if not TYPE_CHECKING:  # type checkers know the parameters' names by the classes' annotations, and would take any

        def __getattr__(self, name: str) -> Array:
            parameters = vars(self).get("parameters", {})  # there are none yet while a copy is being made
            if name not in parameters:
                msg = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(msg, name=name, obj=self)
            parameter: Array = parameters[name]
            return parameter

        def __setattr__(self, name: str, value: object) -> None:
            parameter = vars(self).get("parameters", {}).get(name)
            if parameter is None:
                super().__setattr__(name, value)
            else:
                np.copyto(parameter, checked(value, name, parameter.shape, parameter.dtype))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *vars(self).get("parameters", ())]

    def __repr__(self) -> str:
        """Return the constructor's call, without what is at its default."""
        defaults = {name: p.default for name, p in parameters_of(self._kind()).items()}
        words = [
            repr(value) if defaults[name] is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value in self._arguments().items()
            if value != defaults[name]
        ]
        return f"{type(self).__name__}({', '.join(words)})"

    def _arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, but for the seed."""
        names = [name for name in parameters_of(self._kind()) if name != "seed"]
        return {name: str(self.dtype) if name == "dtype" else getattr(self, name) for name in names}

    def _kind(self) -> Any:
        """Return the class of this package: this one's, or what a user's class derives from."""
        package = __name__.partition(".")[0]
        return next(kind for kind in type(self).__mro__ if kind.__module__.partition(".")[0] == package)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy keep: the constructor's arguments, the state_dict, the generator and the rest."""
        arguments = self._arguments()
        own = {name: value for name, value in vars(self).items() if name not in {*arguments, *MADE}}
        return {"arguments": arguments, "state_dict": self.state_dict(), "rng": self.rng, "attributes": own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        kept = Kept(dict(state["state_dict"]), state["rng"])
        self._kind().__init__(self, **state["arguments"], seed=kept)
        self.parameters |= kept.tensors  # those that a user's class has added
        vars(self).update(state["attributes"])

    def _copy(self) -> Any:
        """Return this package's layer with these parameters, copied."""
        kept = Kept({name: np.array(p) for name, p in self.parameters.items()}, self.rng)
        return self._kind()(**self._arguments(), seed=kept)

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by torch's names: the arrays themselves, as torch does, not copies."""
        return dict(self.parameters)

    def _description(self) -> dict[str, Any]:
        if type(self) is not self._kind():
            msg = f"self: expected a class of rnnfast's own, got {type(self).__name__}; its state_dict() can be saved"
            raise TypeError(msg)
        return {"class": type(self).__name__, "arguments": self._arguments()}

    @classmethod
    def _described(cls, description: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
        return cls(**description["arguments"], seed=Kept(tensors))

    def _check_grads(self, grads: dict[str, Array] | None, *read: Any, **others: Array) -> dict[str, Array] | None:
        """Return views of what a backward is to add into, checked also against what it reads.

        `others` are what `grads` has an entry for beside the parameters.
        """
        if grads is None:
            return None
        own = {**self.parameters, **others}
        checked_keys(grads, own, "grads")
        into = {
            name: checked_target(grads[name], f"grads[{name!r}]", parameter.shape, parameter.dtype)
            for name, parameter in own.items()
        }
        sources = [*self.parameters.values(), *_arrays(read)]
        pairs = (*combinations(into.values(), 2), *product(into.values(), sources))
        if any(np.may_share_memory(a, b) for a, b in pairs):
            msg = "grads: expected arrays of their own, got some that overlap each other or what backward reads"
            raise ValueError(msg)
        return into

    def _check_tape(self, tape: object) -> None:
        if not isinstance(tape, Tape):
            msg = f"tape: expected the tape of a forward, got {type(tape).__name__}"
            raise TypeError(msg)
        if tape.owner is not self:
            msg = f"tape: expected a tape of this {self!r}, got one of another {tape.owner!r}"
            raise ValueError(msg)


@dataclass(frozen=True, eq=False, repr=False)
class Tape:
    """What a training forward keeps for its backward. It is only read: any number of backwards may use it."""

    owner: Module
    x: Any  # x and y as the caller has them
    y: Any

    def __repr__(self) -> str:
        x, y = (np.shape(a[0] if isinstance(a, tuple) else a) for a in (self.x, self.y))  # of packed ones, the data
        return f"<{type(self).__name__} of {self.owner!r}, x {x}, y {y}>"


def checked_keys(given: object, own: Mapping[str, object], name: str) -> Mapping[str, Any]:
    """Return a mapping that has the keys of one of our own."""
    if not isinstance(given, Mapping):
        msg = f"{name}: expected a mapping of names to arrays, got {type(given).__name__}"
        raise TypeError(msg)
    if given.keys() != own.keys():
        found = {"missing": own.keys() - given.keys(), "unexpected": given.keys() - own.keys()}
        parts = [f"{kind} keys: {sorted(keys, key=str)}" for kind, keys in found.items() if keys]
        parts += [f"the keys that start with {prefix!r} fit without it" for prefix in _prefixes(given, own)]
        msg = f"{name}: {'; '.join(parts)}"
        raise ValueError(msg)
    return given


def _prefixes(given: Mapping[Any, object], own: Mapping[str, object]) -> list[str]:
    """Return what stands before our keys in a mapping that has all of them, as that of a model with this layer does."""
    first = next(iter(own), None)
    found = (key.removesuffix(first) for key in given if first and isinstance(key, str) and key.endswith(f".{first}"))
    return sorted(prefix for prefix in found if all(prefix + key in given for key in own))


def checked_values(given: object, own: Mapping[str, Array], name: str) -> dict[str, Array]:
    """Return the values of a mapping that are to be copied to the arrays of the same keys."""
    mapping = checked_keys(given, own, name)
    values = {key: checked(mapping[key], key, a.shape, a.dtype) for key, a in own.items()}
    for key, value in values.items():
        if any(np.may_share_memory(value, a) for a in own.values()):
            values[key] = value.copy()  # where two names are exchanged, it would be overwritten before it is read
    return values


def checked_floats(a: object, name: str) -> Array:
    """Return `a` as an ndarray of float32 or float64."""
    array = _core.asarray(a, name)
    if array.dtype not in (np.float32, np.float64):
        msg = f"{name}: expected dtype float32 or float64, got {array.dtype}"
        raise TypeError(msg)
    return array


def check_apart(arrays: Mapping[str, Array], name: str) -> None:
    """Refuse arrays that share memory: what changes each of them once would change that memory twice."""
    spans = sorted((*np.lib.array_utils.byte_bounds(a), key) for key, a in arrays.items() if a.size)
    before: list[tuple[int, str]] = []  # the ends and keys of those that reach beyond the start of the next
    for start, end, key in spans:
        before = [(other_end, other) for other_end, other in before if other_end > start]
        for _, other in before:
            if np.may_share_memory(arrays[key], arrays[other], max_work=EFFORT):  # type: ignore[arg-type] # any int
                msg = f"{name}: expected arrays of their own, got {other!r} and {key!r} that share memory"
                raise ValueError(msg)
        before.append((end, key))


def _arrays(values: Iterable[Any]) -> Iterator[Array]:
    """Return the arrays among values and tuples of values, leaving out what is None."""
    for value in values:
        if isinstance(value, tuple):
            yield from _arrays(value)
        elif value is not None:
            yield value


def num_parameters(layer: Module | Array | Iterable[Any], merged_bias: Flag = False) -> int:
    """Count the parameters of a layer or cell, or of several.

    Parameters
    ----------
    layer : layer, cell, `Linear`, `Modules`, array, or iterable or mapping of these
    merged_bias : bool, optional
        Count b_ih and b_hh, which torch keeps apart, as the one bias of most of the literature. (Only in the
        new gate of the GRU that resets after its product are they not interchangeable; they are counted once
        there too.)

    Returns
    -------
    int

    Raises
    ------
    TypeError
        If `layer` is anything else.

    Examples
    --------
    >>> import rnnfast
    >>> num_parameters([rnnfast.RNN(20, 128), rnnfast.Linear(128, 10)], merged_bias=True)
    20362
    """
    merged_bias = flag(merged_bias, "merged_bias")
    if isinstance(layer, Module):
        merged = "bias_hh" if merged_bias else ()
        return sum(p.size for name, p in layer.parameters.items() if not name.startswith(merged))
    if isinstance(layer, np.ndarray):
        return layer.size
    if isinstance(layer, str) or not isinstance(layer, Iterable):
        msg = f"layer: expected a layer, a cell or a sequence of them, got {type(layer).__name__}"
        raise TypeError(msg)
    parts = layer.values() if isinstance(layer, Mapping) else layer
    return sum(num_parameters(part, merged_bias) for part in parts)


Fill: TypeAlias = Callable[[np.random.Generator, int, int], Array]


def _xavier(rng: np.random.Generator, rows: int, columns: int) -> Array:
    bound = math.sqrt(6 / (rows + columns))
    return rng.uniform(-bound, bound, (rows, columns))


def _orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    uniform: Array = q * np.copysign(1, np.diagonal(r))  # without the choice of signs that LAPACK made
    return uniform


def _identity(rng: np.random.Generator, rows: int, columns: int) -> Array:  # noqa: ARG001
    return np.eye(rows, columns)


def _small(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return rng.normal(0, 0.001, (rows, columns))


# How w_ih (and a readout's weight) and w_hh start, one block of H rows at a time
SCHEMES: dict[str, tuple[Fill, Fill]] = {
    "xavier": (_xavier, _xavier),
    "orthogonal": (_xavier, _orthogonal),
    "identity": (_small, _identity),
}


@quiet
def initialize(layer: Module, scheme: str, *, forget_bias: Number | None = None, seed: Any = None) -> None:
    """Draw the parameters of a layer anew, in place.

    The weights of each gate are a block of their own, w_ih [H,I] and w_hh [H,H]. The weight [O,I] of a
    `Linear` is treated like a w_ih. U is the uniform, N the normal distribution. Learned initial states start
    at zero.

    ================ ================================ ================================ =============
    scheme           w_ih                             w_hh                             b_ih and b_hh
    ================ ================================ ================================ =============
    ``"torch"``      U(-k, k), k = 1 / sqrt(H)        U(-k, k)                         U(-k, k)
    ``"xavier"``     U(-a, a), a = sqrt(6 / (H + I))  U(-a, a), a = sqrt(6 / (H + H))  0
    ``"orthogonal"`` U(-a, a), a = sqrt(6 / (H + I))  uniform over orthogonal matrices 0
    ``"identity"``   N(0, 0.001²)                     the identity                     0
    ================ ================================ ================================ =============

    In a `Linear`, k = 1 / sqrt(I). Sources: xavier [1]_, orthogonal [2]_, identity [3]_.

    Parameters
    ----------
    layer : layer, cell or `Linear`
    scheme : {"torch", "xavier", "orthogonal", "identity"}
        ``"identity"`` on an ``RNN(..., nonlinearity="relu")`` is the IRNN [3]_.
    forget_bias : float, optional
        For the LSTM: what the bias of the forget gate starts with, b_ih being this and b_hh 0.
    seed : int, Generator or what `numpy.random.default_rng` takes, optional
        By default the layer's own generator goes on.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or `forget_bias` is given for a layer without that gate or without
        biases.

    References
    ----------
    .. [1] Glorot, Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks",
       AISTATS 2010.
    .. [2] Saxe, McClelland, Ganguli, "Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear
       Neural Networks", arXiv:1312.6120, 2013.
    .. [3] Le, Jaitly, Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units",
       arXiv:1504.00941, 2015.

    Examples
    --------
    >>> import rnnfast
    >>> irnn = rnnfast.RNN(1, 2, nonlinearity="relu", seed=0)
    >>> rnnfast.initialize(irnn, "identity")
    >>> irnn.weight_hh_l0
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    if not isinstance(layer, Module):
        msg = f"layer: expected a layer, a cell or Linear, got {type(layer).__name__}"
        raise TypeError(msg)
    choice(scheme, "scheme", ("torch", *SCHEMES))
    if forget_bias is not None:
        forget_bias = number(forget_bias, "forget_bias", layer.dtype.type)
        if getattr(layer, "cell", None) != "lstm" or not getattr(layer, "bias", False):
            msg = f"forget_bias: expected None for a layer without a biased forget gate, got it for {layer!r}"
            raise ValueError(msg)
    rng = layer.rng if seed is None else generator(seed)
    for name, parameter in layer.parameters.items():
        if name.startswith("initial"):
            parameter.fill(0)
        elif scheme == "torch":
            bound = 1 / math.sqrt(layer.fan)
            parameter[...] = rng.uniform(-bound, bound, parameter.shape)
        elif parameter.ndim == 1:
            parameter.fill(0)
        else:
            fill = SCHEMES[scheme][name.startswith("weight_hh")]
            for block in np.split(parameter, layer.gates):
                block[...] = fill(rng, *block.shape)
        if forget_bias is not None and name.startswith("bias"):
            np.split(parameter, layer.gates)[1].fill(forget_bias if name.startswith("bias_ih") else 0)


def load(path: str | PathLike[str]) -> "Module | Modules":
    """Make the layer, cell, `Linear` or `Modules` that its `save` wrote.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Module or Modules
        Of the class of the saved one, with the constructors' arguments and the parameters, and generators of its own.
        Type checkers learn the class by ``assert isinstance(layer, LSTM)``.

    Raises
    ------
    OSError
        If the file cannot be read, or is no regular file.
    ValueError
        If it is not one that `save` wrote.

    Examples
    --------
    >>> import rnnfast, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rnnfast.GRU(3, 4, batch_first=True).save(f"{folder}/gru.safetensors")
    ...     rnnfast.load(f"{folder}/gru.safetensors")
    GRU(3, 4, batch_first=True)
    """
    import json

    import safetensors

    _files.check_readable(path)
    metadata: dict[str, str] = {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            description = json.loads(metadata["rnnfast"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            made: Module | Modules = described(description, tensors)
            if tensors:
                raise ValueError([*tensors])
    except (*UNREADABLE, safetensors.SafetensorError) as error:
        msg = f"path: expected a file that save has written, got {str(path)!r}: {error!r}"
        if "rnnfast.lm" in metadata:
            what = f"path: expected the file of a layer, got that of a language model, {str(path)!r}"
            msg = f"{what}; to load it: rnnfast.lm.Checkpoint.read({str(path)!r}).model()"
        raise ValueError(msg) from error
    return made


def described(description: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
    """Make what a file describes, of parameters that it takes out of `tensors`."""
    import rnnfast

    kind = vars(rnnfast)[description["class"]]
    if not issubclass(kind, Stateful):
        raise TypeError(kind)
    return kind._described(description, tensors)


# What the constructors share

PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def recurrent_shapes(G: int, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one direction's parameters."""
    shapes = (G * H, I), (G * H, H), (G * H,), (G * H,)
    return dict(zip(PARAMETERS[: 4 if bias else 2], shapes, strict=False))


def gru_cell(reset_after: bool) -> str:
    """Return the kernels' name of a GRU."""
    return "gru" if reset_after else "gru_reset_before"


def elman_cell(nonlinearity: str) -> str:
    """Return the kernels' name of an Elman network."""
    return "rnn_" + choice(nonlinearity, "nonlinearity", ("tanh", "relu"))


def reordered(a: Array, order: Sequence[int]) -> Array:
    """Return the blocks of rows, one for each gate, in another order."""
    return np.concatenate([np.split(a, len(order))[gate] for gate in order])


def _float_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        for known in (np.dtype(np.float32), np.dtype(np.float64)):
            if dtype is not None and np.dtype(dtype) == known:  # None would be NumPy's default
                return known
    except (TypeError, ValueError):  # not a dtype at all
        pass
    msg = f"dtype: expected float32 or float64, got {dtype!r}"
    raise TypeError(msg)


def generator(seed: Any) -> np.random.Generator:
    """Return the generator of a seed."""
    try:
        return np.random.default_rng(held(seed))
    except (TypeError, ValueError) as error:
        msg = f"seed: {error}"
        raise type(error)(msg) from None
