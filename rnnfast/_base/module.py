"""What layers, cells and `Linear` share: named parameters, how they start, and how they are kept in files."""

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, singledispatch
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from .. import _core
from .arrays import Array, ArrayLike, checked, float_dtype, quiet
from .blocks import packed
from .named import checked_values
from .names import BIASES, PROJECTION, SCALE, WEIGHTS, parameter_names
from .scalars import RNG, Flag, Number, choice, flag, generator, number
from .tensors import write_tensors

Shape: TypeAlias = tuple[str, tuple[int, ...]]  # of a parameter, with its name
Check: TypeAlias = Callable[[Any, Any, str], Any]  # of a module's option: from a value and its name to what is kept
# What constructors make of their arguments, or of what some of the classes do not take
MADE = (
    *("parameters", "fixed", "rng", "fan", "gates", "directions", "cell"),
    *("proj_size", "h_size", "state_sizes", "reservoirs", "readout", "_runners", "operands", "_packed", "_plain"),
)
PACKAGE = __name__.partition(".")[0]


CLASSES: dict[str, type["Module"]] = {}  # this package's, by the names that files have of them


@cache
def parameters_of(kind: type) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a constructor."""
    return inspect.signature(kind).parameters


@dataclass
class Kept:
    """What a copy starts from in place of an `rng`: parameters, which it takes out of `tensors`, and a generator."""

    tensors: dict[str, Any]
    rng: "np.random.Generator | None" = None  # names in quotes: numpy.random takes 12 ms to import
    required: ClassVar[Any] = ["C", "A", "W", "E"]

    def take(self, shapes: Iterable[Shape], dtype: np.dtype[Any]) -> dict[str, Array]:
        """Return the parameters of these names and shapes, and none that is not there."""
        parameters: dict[str, Array] = {}
        for name, shape in shapes:
            if name not in self.tensors:
                msg = f"{name}: expected an array of shape {shape}, got none"
                raise ValueError(msg)
            array = self.tensors.pop(name)
            checked(array, name, shape, dtype)
            parameters[name] = np.require(array, requirements=self.required)  # itself where it will do
        return parameters


def check_assignable(module: "Module", name: str) -> None:
    """Refuse to change what has decided what a module is, or what its class has no use for."""
    kind = kind_of(module)
    if name in parameters_of(kind) and name not in module.changeable:
        msg = f"{name}: expected no assignment, since the {kind.__name__} is made for it; make a new one"
        raise AttributeError(msg, name=name, obj=module)
    is_value = not callable(getattr(kind, name, callable))
    if name not in parameters_of(kind) and (is_value or name in module.changeable) and name != "rng":
        msg = f"{name}: expected no assignment, since {kind.__name__} has no such option"
        raise AttributeError(msg, name=name, obj=module)


def is_own(kind: type) -> bool:
    """Return whether a class is one of this package, not a user's that derives from one."""
    return kind.__module__.partition(".")[0] == PACKAGE


class Stateful(ABC):
    """What layers and `Modules` do alike with their parameters: values to load, and files."""

    @abstractmethod
    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by their names: the arrays themselves, not copies."""

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
        for key, a in own.items():
            if not a.flags.writeable:
                msg = f"{key}: expected an array to write to, got a read-only one"
                raise ValueError(msg)
        for key, value in checked_values(state_dict, own, "state_dict").items():
            np.copyto(own[key], value)

    def save(self, path: str | PathLike[str], *, sparse: Flag = False) -> None:
        """Write the constructors' arguments and the parameters to a safetensors file, for `rnnfast.load`.

        Parameters
        ----------
        path : path-like
            An older file is overwritten once all of the new one is on the disk; a link is followed.
        sparse : bool, optional
            True: of each weight_ih and weight_hh only blocks that are not all zeros, 16 units of a gate by one column,
            and a bitmap of them. A matrix that would be no smaller stays whole.

        Raises
        ------
        OSError
            If the file cannot be written, or is a folder, a device or the like.
        TypeError
            For a class derived from one of rnnfast, which `load` could not find.
        """
        tensors, metadata = self.state_dict(), {"rnnfast": json.dumps(description_of(self))}
        if flag(sparse, "sparse"):
            heights = {name: owner.hidden_size for name, owner in owners_of_matrices(self).items()}
            tensors, blocks = packed(tensors, heights)
            metadata |= blocks
        write_tensors(path, tensors, metadata)


class Module(Stateful):
    """The base class of layers, cells, `Linear` and Hopfield networks, with named parameters.

    Attributes
    ----------
    parameters : dict of ndarrays
        Contiguous arrays by torch's names; each is also an attribute of the layer. The next call uses parameters that
        were changed in place. Assigning to the attribute copies the values in place.
    dtype : dtype
        float32 or float64.
    rng : numpy.random.Generator
        Draws the initial weights and, in layers, the dropout masks; in a `Hopfield`, the orders of updates.

    Notes
    -----
    The constructor's arguments are attributes. Options that do not determine parameters, such as rates of dropout, can
    be assigned between calls, and are checked like the constructor's arguments. Assigning any other option raises
    AttributeError.

    Examples
    --------
    >>> import rnnfast
    >>> layer = rnnfast.GRU(3, 4, rng=0)
    >>> isinstance(layer, rnnfast.Module), list(layer.parameters)
    (True, ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0'])
    """

    parameters: dict[str, Array]
    gates = 1  # blocks of rows in each parameter
    fan: int | None  # H; in `Linear`, I; None where all parameters start at zero
    changeable: ClassVar[Mapping[str, Check]] = {"rng": lambda _, value, __: generator(value)}
    kept_as = "rng"  # the argument of the constructor in whose place a copy gets what is `Kept`

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if is_own(cls):
            CLASSES[cls.__name__] = cls

    def __init__(self, shapes: Iterable[Shape], fan: int | None, dtype: object, rng: Any, seed: Any = None) -> None:
        self.dtype = float_dtype(dtype)
        self.fan = fan
        if isinstance(rng, Kept):
            self.rng = generator(rng.rng, seed)
            self.parameters = rng.take(shapes, self.dtype)
            return
        self.rng = generator(rng, seed)
        self.parameters = {name: np.zeros(shape, self.dtype) for name, shape in shapes}
        if fan is not None:
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
            parameters = vars(self).get("parameters")  # None while the module is being made
            if parameters and name in parameters:
                np.copyto(parameters[name], checked(value, name, parameters[name].shape, parameters[name].dtype))
                return
            if parameters is not None:
                check_assignable(self, name)
            check = self.changeable.get(name)
            super().__setattr__(name, check(self, value, name) if check else value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *vars(self).get("parameters", ())]

    def __repr__(self) -> str:
        """Return the constructor's call, without what is at its default."""
        return f"{type(self).__name__}({words_of(kind_of(self), arguments_of(self))})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy keep: the constructor's arguments, the state_dict, the generator and the rest."""
        arguments = arguments_of(self)
        own = {name: value for name, value in vars(self).items() if name not in {*arguments, *MADE, *self.changeable}}
        return {"arguments": arguments, "state_dict": self.state_dict(), "rng": self.rng, "attributes": own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        kept = Kept(dict(state["state_dict"]), state["rng"])
        kind = kind_of(self)
        kind.__init__(self, **state["arguments"], **{kind.kept_as: kept})
        self.parameters |= kept.tensors  # those that a user's class has added
        vars(self).update(state["attributes"])

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by torch's names: the arrays themselves, as torch does, not copies."""
        return dict(self.parameters)


class RecurrentModule(Module):
    """What layers and cells have in common: they run a cell."""

    cell: str  # its name in `_core.cells`
    fixed: Mapping[str, Array] = MappingProxyType({})  # by the kernels' names, what of their parameters is not learned
    input_size: int
    hidden_size: int
    num_heads: int = 1  # into which the units are divided for the recurrent product
    format: str | None = None  # of matrices with fewer bits
    bias: bool

    if not TYPE_CHECKING:  # see Module

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            vars(self)["_plain"] = {}  # those there were made for the options before

        def __delattr__(self, name: str) -> None:
            super().__delattr__(name)
            vars(self)["_plain"] = {}


def with_fixed(module: RecurrentModule, arrays: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
    """Return one direction's parameters with what is fixed in its place."""
    return tuple(map(module.fixed.get, parameter_names(module.cell), arrays))


def owners_of_matrices(module: Any) -> dict[str, RecurrentModule]:
    """Return the layers and cells whose weight_ih and weight_hh are in a module, by the names in its state_dict."""
    if isinstance(module, RecurrentModule):
        return {name: module for name in module.parameters if name.startswith(WEIGHTS) and not name.endswith(SCALE)}
    parts = module.items() if isinstance(module, Mapping) else ()
    return {f"{part}.{name}": owner for part, own in parts for name, owner in owners_of_matrices(own).items()}


def kind_of(module: Module) -> Any:
    """Return the class of this package: the module's, or what a user's class derives from."""
    return next(kind for kind in type(module).__mro__ if is_own(kind))


def words_of(kind: Any, arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a constructor's call in words, without what is at its default."""
    defaults = {name: p.default for name, p in parameters_of(kind).items()}
    words = [
        repr(value) if defaults[name] is inspect.Parameter.empty else f"{name}={value!r}"
        for name, value in arguments.items()
        if isinstance(value, np.ndarray) or value != defaults[name]
    ]
    return ", ".join(words)


def arguments_of(module: Module) -> dict[str, Any]:
    """Return the constructor's arguments, but for the one in whose place a copy gets what is kept."""
    kind = kind_of(module)
    arguments = {name: getattr(module, name) for name in parameters_of(kind) if name not in (kind.kept_as, "seed")}
    # The bias of a `Linear` and the peephole of a cell are the array itself or None.
    flags = {name: arguments[name] for name in ("bias", "peephole") if name in arguments}
    has = {name: value is not None and value is not False for name, value in flags.items()}
    own = {"dtype": str(module.dtype)} if "dtype" in arguments else {}
    return arguments | own | has


@singledispatch
def description_of(module: Any) -> dict[str, Any]:
    """Return the class by name, and what its constructor needs beside the parameters, for JSON.

    Modules in a container are described there.
    """
    if type(module) is not kind_of(module):
        msg = f"self: expected a class of rnnfast's own, got {type(module).__name__}; its state_dict() can be saved"
        raise TypeError(msg)
    arguments = {name: a.tolist() if isinstance(a, np.ndarray) else a for name, a in arguments_of(module).items()}
    return {"class": type(module).__name__, "arguments": arguments}


def described(description: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
    """Make the module that `description_of` describes, of parameters that it takes out of `tensors`."""
    kind: Any = CLASSES[description["class"]]
    return kind(**description["arguments"], **{kind.kept_as: Kept(tensors)})


def copy_of(module: Module) -> Any:
    """Return this package's module with these parameters, copied."""
    kept = Kept({name: np.array(p) for name, p in module.parameters.items()}, module.rng)
    kind = kind_of(module)
    return kind(**arguments_of(module), **{kind.kept_as: kept})


@dataclass(frozen=True, eq=False, repr=False)
class Tape:
    """What a training forward keeps for its backward. It is only read: any number of backwards may use it.

    Attributes
    ----------
    owner : Module
        The layer, cell or other module whose forward returned it.
    x, y : ndarray or PackedSequence
        The input and the output of that forward.

    Examples
    --------
    >>> import rnnfast
    >>> _, tape = rnnfast.Linear(2, 1, rng=0).forward([[1, 2]])
    >>> isinstance(tape, rnnfast.Tape)
    True
    """

    owner: Module
    x: Any
    y: Any

    def __repr__(self) -> str:
        x, y = (np.shape(a[0] if isinstance(a, tuple) else a) for a in (self.x, self.y))  # of packed ones, the data
        return f"<{type(self).__name__} of {self.owner!r}, x {x}, y {y}>"


def check_tape(tape: object, owner: Module) -> None:
    """Refuse what is no tape of this module."""
    if not isinstance(tape, Tape):
        msg = f"tape: expected the tape of a forward, got {type(tape).__name__}"
        raise TypeError(msg)
    if tape.owner is not owner:
        msg = f"tape: expected a tape of this {owner!r}, got one of another {tape.owner!r}"
        raise ValueError(msg)


def num_parameters(layer: Module | Array | Iterable[Any], merged_bias: Flag = False) -> int:
    """Count the parameters of a layer or cell, or of several.

    Parameters
    ----------
    layer : layer, cell, `Linear`, `Modules`, array, or iterable or mapping of these
    merged_bias : bool, optional
        Count b_ih and b_hh, which torch keeps separate, as a single bias, like most of the literature. They are only
        distinct in the new gate of the GRU that resets after the product, and are counted once there, too.

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
        own = layer.parameters.items()
        return sum(p.size for name, p in own if not name.startswith(merged) and not name.endswith(SCALE))
    if isinstance(layer, np.ndarray):
        return layer.size
    if isinstance(layer, str) or not isinstance(layer, Iterable):
        msg = f"layer: expected a layer, a cell or a sequence of them, got {type(layer).__name__}"
        raise TypeError(msg)
    parts = layer.values() if isinstance(layer, Mapping) else layer
    return sum(num_parameters(part, merged_bias) for part in parts)


Fill: TypeAlias = Callable[["np.random.Generator", int, int], Array]


def _xavier(rng: "np.random.Generator", rows: int, columns: int) -> Array:
    bound = math.sqrt(6 / (rows + columns))
    return rng.uniform(-bound, bound, (rows, columns))


def _orthogonal(rng: "np.random.Generator", rows: int, columns: int) -> Array:
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    uniform: Array = q * np.copysign(1, np.diagonal(r))  # without the choice of signs that LAPACK made
    return uniform


def _identity(rng: "np.random.Generator", rows: int, columns: int) -> Array:  # noqa: ARG001
    return np.eye(rows, columns)


def _small(rng: "np.random.Generator", rows: int, columns: int) -> Array:
    return rng.normal(0, 0.001, (rows, columns))


# How w_ih (and a readout's weight) and w_hh start, one block of H rows at a time
SCHEMES: dict[str, tuple[Fill, Fill]] = {
    "xavier": (_xavier, _xavier),
    "orthogonal": (_xavier, _orthogonal),
    "identity": (_small, _identity),
}


@quiet
def initialize(
    layer: Module,
    scheme: str,
    *,
    forget_bias: Number | None = None,
    rng: RNG | None = None,
    seed: RNG | None = None,
) -> None:
    """Draw the parameters of a layer anew, in place.

    The weights of each gate are drawn as separate blocks, w_ih [H,I] and w_hh [H,H]; with several heads, w_hh has a
    block [H/heads,H/heads] for each. The weight [O,I] of a `Linear` is treated like a w_ih, and so is the projection
    w_hr [P,H]; w_hh is then [H,P], with orthogonal columns. U is the uniform and N the normal distribution. Peepholes
    are initialised like biases, learned initial states and the bias of a normalised c to zero, and gains to one.

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
        For the LSTM without coupled gates and the SLSTM: the initial bias of the forget gate. b_ih is set to this value
        and b_hh to 0.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        By default the layer's own generator goes on.
    seed : as `rng`, optional
        Its older name.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or `forget_bias` is given for a layer without that gate or without
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
    >>> irnn = rnnfast.RNN(1, 2, nonlinearity="relu", rng=0)
    >>> rnnfast.initialize(irnn, "identity")
    >>> irnn.weight_hh_l0
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """
    given: object = layer
    if not isinstance(given, Module) or layer.fan is None:
        msg = f"layer: expected a layer, a cell or Linear, got {type(layer).__name__}"
        raise TypeError(msg)
    choice(scheme, "scheme", ("torch", *SCHEMES))
    letters = _core.cells[layer.cell].gates if isinstance(layer, RecurrentModule) else ""
    if forget_bias is not None:
        forget_bias = number(forget_bias, "forget_bias", layer.dtype.type)
        if "f" not in letters or not getattr(layer, "bias", False):
            msg = f"forget_bias: expected None for a layer without a biased forget gate, got it for {layer!r}"
            raise ValueError(msg)
    source = layer.rng if rng is None and seed is None else generator(rng, seed)
    for name, parameter in layer.parameters.items():
        if name.startswith(("initial", "bias_c")):
            parameter.fill(0)
        elif name.startswith("gain"):
            parameter.fill(1)
        elif scheme == "torch":
            bound = 1 / math.sqrt(layer.fan)
            parameter[...] = source.uniform(-bound, bound, parameter.shape)
        elif parameter.ndim == 1:
            parameter.fill(0)
        else:
            recurrent = name.startswith("weight_hh")
            fill, heads = SCHEMES[scheme][recurrent], getattr(layer, "num_heads", 1) if recurrent else 1
            for block in np.split(parameter, 1 if name.startswith(PROJECTION) else layer.gates * heads):
                block[...] = fill(source, *block.shape)
        if forget_bias is not None and name.startswith(BIASES):
            np.split(parameter, layer.gates)[letters.index("f")].fill(forget_bias if name.startswith("bias_ih") else 0)
