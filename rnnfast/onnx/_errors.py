"""What is wrong with a model, with the place where it is wrong."""

from onnx.checker import ValidationError


class ModelError(ValueError):
    """A model that cannot be read or run. The message begins with the node or tensor at fault.

    Examples
    --------
    >>> import onnx
    >>> import rnnfast.onnx
    >>> node = onnx.helper.make_node("Sin", ["x"], ["y"])
    >>> graph = onnx.helper.make_graph([node], "g", [], [])
    >>> try:
    ...     rnnfast.onnx.prepare(onnx.helper.make_model(graph))
    ... except rnnfast.onnx.ModelError as error:
    ...     print("refused")
    refused
    """


class ModelTypeError(ModelError, TypeError):
    """A `ModelError` about a type or dtype."""


class SchemaError(ModelError, ValidationError):  # type: ignore[misc]
    """A `ModelError` about a node that is not what the schema of its operator says."""


class at:  # a class, as a generator would cost more at each node
    """Raise what goes wrong inside as a ModelError that names the place."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ModelError | MemoryError):
            return
        # The onnx package raises anything, given a malformed node.
        kinds = {TypeError: ModelTypeError, ValidationError: SchemaError}
        kind = next((ours for theirs, ours in kinds.items() if isinstance(error, theirs)), ModelError)
        what = str(error).removeprefix(f"{self.place}: ").partition("\n")[0] or type(error).__name__
        msg = f"{self.place}: {what}"
        raise kind(msg) from error
