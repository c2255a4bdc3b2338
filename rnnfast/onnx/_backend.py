"""The backend as `onnx.backend.base` describes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from .. import _core
from .._base.arrays import Array, quiet
from ._graphs import behind, check_order, constants_of, opset_of, refuse_others, step_of
from ._memory import Room
from ._nodes import RecurrentNode
from ._operators import KINDS
from ._protos import alone, operator_of


class RnnfastRep(BackendRep):  # type: ignore[misc]
    """A model that is ready to run, as returned by `prepare`. Its constant weights are converted once.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rep = rnnfast.onnx.prepare(rnnfast.onnx.to_onnx(rnnfast.GRU(3, 4, rng=0)))
    >>> y, h_n = rep.run([np.ones((5, 2, 3), np.float32)])
    >>> y.shape
    (5, 2, 4)
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        opset, graph = opset_of(model), model.graph
        check_order(graph)
        refuse_others(graph)
        given = {each.name for each in graph.initializer}
        self._inputs = [each.name for each in graph.input if each.name not in given]
        self._outputs = [each.name for each in graph.output]
        self._results: Any = namedtupledict("Outputs", self._outputs)
        nodes, needed = behind(graph, self._outputs)
        constants, room = constants_of(graph, opset, nodes, needed)
        self._steps = [
            RecurrentNode(node, opset, constants, room) if operator_of(node) in KINDS else step_of(node, opset)
            for node in nodes
            if not constants.keys() >= set(filter(None, node.output))
        ]
        read = {*self._outputs, *(name for step in self._steps for name in step.reads)}
        self._constants = {name: constant for name, constant in constants.items() if name in read}

    @quiet
    def run(self, inputs: Sequence[object] | Mapping[str, object], **kwargs: Any) -> tuple[Array, ...]:  # noqa: ARG002
        """Run the model.

        Parameters
        ----------
        inputs : sequence of arrays, or mapping
            The inputs of the graph that are not constants, in its order, or by name.
        **kwargs
            Ignored; other backends use them.

        Returns
        -------
        named tuple of ndarrays
            The outputs of the graph in its order; ``outputs["name"]`` works as well.

        Raises
        ------
        TypeError, ValueError
            If the inputs are not those of the graph, or not arrays.
        ModelError
            If a node cannot process them, or would need more memory than `rnnfast.onnx` allows. It is a ValueError, and
            also a TypeError if a dtype is wrong. The message names the node and its input, what was expected and what
            was given.
        """
        given = inputs if isinstance(inputs, Mapping) else dict(zip(self._inputs, inputs, strict=False))
        if given.keys() != {*self._inputs} or len(inputs) != len(self._inputs):
            got = ", ".join(given) if given is inputs else f"{len(inputs)} arrays"
            msg = f"inputs: expected {', '.join(self._inputs)}, got {got}"
            raise ValueError(msg)
        values = self._constants | {name: _core.asarray(a, f"inputs: {name}") for name, a in given.items()}
        room = self._room(values)
        for step in self._steps:
            values |= step(values, room)
        results: tuple[Array, ...] = self._results(*map(values.get, self._outputs))
        return results

    def _room(self, values: Mapping[str, Array]) -> Room:
        """Return the room of a run: an element of an input may come to be as wide as all recurrent nodes together."""
        room = Room(self._constants.values())
        width = sum(step.width(values) for step in self._steps if isinstance(step, RecurrentNode))
        room.extend((values[name] for name in self._inputs), 1 + width)
        return room


class RnnfastBackend(Backend):  # type: ignore[misc]
    """The backend as a class; the functions of this module are its methods.

    Examples
    --------
    >>> import rnnfast
    >>> rnnfast.onnx.RnnfastBackend.is_compatible(rnnfast.onnx.to_onnx(rnnfast.GRU(3, 4)))
    True
    """

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:  # noqa: ARG003
        """Return whether `prepare` supports the model's operators, its opset and the device."""
        try:
            opset_of(model)
            check_order(model.graph)
            refuse_others(model.graph)
        except ValueError:
            return False
        return cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether models can run on a device, which is true only for ``"CPU"``.

        Examples
        --------
        >>> import rnnfast
        >>> rnnfast.onnx.supports_device("CPU"), rnnfast.onnx.supports_device("CUDA")
        (True, False)
        """
        return device.partition(":")[0] == "CPU"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> RnnfastRep:  # noqa: ARG003
        """Check a model and convert its weights, to run it many times.

        Parameters
        ----------
        model : onnx.ModelProto
            As `onnx.load` returns it, in float32 or float64.
        device : str, optional
            ``"CPU"``.
        **kwargs
            Ignored; other backends use them.

        Returns
        -------
        RnnfastRep
            A model that ``.run(inputs)`` runs.

        Raises
        ------
        ModelError
            If the model has unsupported operators, all of which are named, an older opset or another dtype, a node that
            does not match its operator's schema or has invalid attributes or weights, or tensors with data in a file.
        TypeError, ValueError
            If it is not a `ModelProto`, or the device is not the CPU.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> from rnnfast.onnx import prepare, to_onnx
        >>> prepared = prepare(to_onnx(rnnfast.GRU(3, 4, batch_first=True)))
        >>> prepared.run([np.zeros((2, 5, 3), np.float32)])["y"].shape
        (2, 5, 4)
        """
        cls._check_device(device)
        return RnnfastRep(model)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Sequence[object] | Mapping[str, object], device: str = "CPU", **kwargs: Any
    ) -> tuple[Array, ...]:
        """Prepare a model and run it once.

        Parameters
        ----------
        model : onnx.ModelProto
            As `onnx.load` returns it, in float32 or float64.
        inputs : sequence of arrays, or mapping
            The inputs of the graph that are not constants, in its order, or by name.
        device : str, optional
            ``"CPU"``.
        **kwargs
            Ignored; other backends use them.

        Returns
        -------
        named tuple of ndarrays
            The outputs of the graph in its order; ``outputs["name"]`` works as well.

        Raises
        ------
        ModelError, TypeError, ValueError
            As `prepare` and `RnnfastRep.run` do.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> from rnnfast.onnx import run_model, to_onnx
        >>> y, h_n = run_model(to_onnx(rnnfast.GRU(3, 4)), [np.zeros((5, 2, 3), np.float32)])
        >>> y.shape, h_n.shape
        ((5, 2, 4), (1, 2, 4))
        """
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Sequence[object],
        device: str = "CPU",
        outputs_info: Any = None,  # noqa: ARG003
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """Run one node.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of arrays
            The inputs for which the node has a name, in its order.
        device : str, optional
            ``"CPU"``.
        outputs_info : optional
            Ignored; other backends use them.
        opset_version : int, optional
            The opset of the node, by default the newest in the onnx package.

        Returns
        -------
        named tuple of ndarrays
            The outputs for which the node has a name.

        Raises
        ------
        ModelError, TypeError, ValueError
            As `prepare` and `RnnfastRep.run` do.

        Examples
        --------
        >>> import numpy as np
        >>> from rnnfast.onnx import run_node
        >>> node = onnx.helper.make_node("RNN", ["X", "W", "R"], ["Y", ""], activations=["Softsign"], hidden_size=1)
        >>> x, w = np.ones((2, 1, 1), np.float32), np.ones((1, 1, 1), np.float32)
        >>> run_node(node, [x, w, w])["Y"].ravel()
        array([0.5, 0.6], dtype=float32)
        """
        cls._check_device(device)
        if not isinstance(node, onnx.NodeProto):
            msg = f"node: expected an onnx.NodeProto, got {type(node).__name__}"
            raise TypeError(msg)
        prepared = RnnfastRep(alone(node, kwargs.get("opset_version", onnx.defs.onnx_opset_version())))
        names = [*filter(None, node.input)]
        if len(inputs) != len(names):
            msg = f"inputs: expected {', '.join(names)}, got {len(inputs)} arrays"
            raise ValueError(msg)
        return prepared.run(dict(zip(names, inputs, strict=True)))

    @classmethod
    def _check_device(cls, device: str) -> None:
        if not cls.supports_device(device):
            msg = f"device: expected 'CPU', got {device!r}"
            raise ValueError(msg)
