"""A program for test_keras: what rnnfast.keras computes on the JAX backend, beside Keras itself.

A process has one backend of Keras, so this is a program of its own, with KERAS_BACKEND=jax in its environment.
"""

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from tolerances import relative_error

import rnnfast.keras

B, T, I, H = 5, 7, 4, 6
rng = np.random.default_rng(0)
x = rng.standard_normal((B, T, I)).astype(np.float32)
mask = rng.random((B, T)) < 0.5  # with holes, which are computed here


def results(layer: Any) -> list[Any]:
    """Return outputs and gradients under jit."""

    def loss(weights: Any, x: Any) -> Any:
        outputs, _ = layer.stateless_call(weights, [v.value for v in layer.non_trainable_variables], x, mask=mask)
        return sum((out * jnp.sin(jnp.arange(out.size)).reshape(out.shape)).sum() for out in outputs), outputs

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, outputs), gradients = step([v.value for v in layer.trainable_variables], x)
    leaves: list[Any] = jax.tree.leaves((outputs, gradients))
    return leaves


def main() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("LSTM", {}),
        ("GRU", {"go_backwards": True}),
        ("GRU", {"reset_after": False, "zero_output_for_mask": True}),
        ("SimpleRNN", {"activation": "relu", "go_backwards": True, "zero_output_for_mask": True}),
    ]
    for kind, own in cases:
        options = {**own, "return_sequences": True}
        theirs, ours = (getattr(m, kind)(H, return_state=True, **options) for m in (keras.layers, rnnfast.keras))
        for layer in (theirs, ours):
            layer.build(x.shape)
        theirs.set_weights([rng.standard_normal(w.shape) / 2 for w in theirs.get_weights()])
        ours.set_weights(theirs.get_weights())
        expected = results(theirs)
        for layer in (ours, rnnfast.keras.accelerate(theirs)):
            assert "rnnfast_forward" in str(jax.make_jaxpr(lambda x, layer=layer: layer(x))(x))
            for a, e in zip(results(layer), expected, strict=True):
                assert relative_error(np.asarray(a), np.asarray(e)) < 1e-5

    losses: list[list[float]] = []
    for accelerate in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((T, I)), keras.layers.GRU(H, dropout=0.2), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        model.predict(x, verbose=0)  # what is compiled before is not kept
        if accelerate:
            rnnfast.keras.accelerate(model)
        losses.append(model.fit(x, x[:, 0, :1], epochs=3, shuffle=False, verbose=0).history["loss"])
        assert ("rnnfast_forward" in str(jax.make_jaxpr(model)(x))) == accelerate
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


if __name__ == "__main__":
    main()
