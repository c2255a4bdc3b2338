"""What the cells of the kernels are as layers and as nodes."""

from typing import Any, NamedTuple

from .. import layers
from .._stack.recurrent import Recurrent


class Form(NamedTuple):
    """What a cell of the kernels is as a layer and as a node."""

    layer: type[Recurrent[Any]]
    options: dict[str, Any]  # of the layer
    operator: str
    attributes: dict[str, Any]  # of the node; a list has an entry for each direction


FORMS = {
    "lstm": Form(layers.LSTM, {}, "LSTM", {}),
    "lstm_peephole": Form(layers.LSTM, {"peephole": True}, "LSTM", {}),
    "cifg": Form(layers.LSTM, {"coupled_gates": True}, "LSTM", {"input_forget": 1}),
    "cifg_peephole": Form(layers.LSTM, {"peephole": True, "coupled_gates": True}, "LSTM", {"input_forget": 1}),
    "gru": Form(layers.GRU, {}, "GRU", {"linear_before_reset": 1}),
    "gru_reset_before": Form(layers.GRU, {"reset_after": False}, "GRU", {}),
    "rnn_tanh": Form(layers.RNN, {}, "RNN", {"activations": ["Tanh"]}),
    "rnn_relu": Form(layers.RNN, {"nonlinearity": "relu"}, "RNN", {"activations": ["Relu"]}),
}
