"""The layers of Keras with an inner loop of their own."""

from typing import Any

import keras

from ._loop import backend, computed, misfit


class _Recurrent:
    """The constructor and the inner loop of LSTM, GRU and SimpleRNN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        backend()
        super().__init__(*args, **kwargs)
        message = misfit(self)
        if message:
            msg = f"{message}; keras.layers.{type(self).__name__} computes it"
            raise ValueError(msg)

    def inner_loop(self: Any, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """Return the last output [B,H], the outputs [B,T,H] and a list of the states [B,H]."""
        message = backend().misfit(sequences)
        if message:
            raise ValueError(message)
        results = computed(self, sequences, initial_state, mask, training)
        if results is None:
            return super().inner_loop(sequences, initial_state, mask, training)  # type: ignore[misc]
        return results


@keras.saving.register_keras_serializable("rnnfast")
class LSTM(_Recurrent, keras.layers.LSTM):  # type: ignore[misc]
    """`keras.layers.LSTM` on rnnfast's kernels.

    Weights, configuration and call arguments are those of the Keras layer. A saved model refers to this class: to load
    it where rnnfast is not installed, `restore` the model before you save it.

    Masks that are True up to a length are computed here, others by Keras's own loop.

    Parameters
    ----------
    *args, **kwargs
        Those of `keras.layers.LSTM`. `unroll`, `use_cudnn` and `implementation` have no effect.

    Raises
    ------
    ValueError
        If the layer has other activations than Keras's defaults, `recurrent_dropout`, a dtype other than float32 or
        float64, or `dropout` with `implementation=1`. When called, if its input is not on the CPU.
    RuntimeError
        If Keras has another backend than torch.

    Examples
    --------
    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import numpy as np
    >>> import rnnfast.keras
    >>> lstm = rnnfast.keras.LSTM(64, return_sequences=True)
    >>> tuple(lstm(np.zeros((32, 50, 28), np.float32)).shape)
    (32, 50, 64)
    """


@keras.saving.register_keras_serializable("rnnfast")
class GRU(_Recurrent, keras.layers.GRU):  # type: ignore[misc]
    """`keras.layers.GRU` on rnnfast's kernels, with both values of `reset_after`. Raises what `LSTM` does.

    Examples
    --------
    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import numpy as np
    >>> import rnnfast.keras
    >>> tuple(rnnfast.keras.GRU(64)(np.zeros((32, 50, 28), np.float32)).shape)
    (32, 64)
    """


@keras.saving.register_keras_serializable("rnnfast")
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):  # type: ignore[misc]
    """`keras.layers.SimpleRNN` on rnnfast's kernels, with tanh or relu. Raises what `LSTM` does.

    Examples
    --------
    >>> import os
    >>> os.environ["KERAS_BACKEND"] = "torch"
    >>> import numpy as np
    >>> import rnnfast.keras
    >>> tuple(rnnfast.keras.SimpleRNN(64)(np.zeros((32, 50, 28), np.float32)).shape)
    (32, 64)
    """
