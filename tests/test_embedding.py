"""`Embedding`: values, gradients against torch and sums one by one, padding, files, and what is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast
from rnnfast import Embedding
from rnnfast.training import Adam

Array = Any
V, E = 7, 3
TOKENS = np.random.default_rng(0).integers(0, V, (5, 4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_it_is_torchs(dtype: str, padding_idx: int | None) -> None:
    torch = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    ours = Embedding(V, E, padding_idx, dtype=dtype, rng=0)
    theirs = torch.nn.Embedding(V, E, padding_idx, _weight=torch.from_numpy(ours.weight.copy()))
    y, tape = ours.forward(TOKENS)
    expected = theirs(torch.from_numpy(TOKENS))
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    expected.backward(torch.from_numpy(dy))
    assert y.dtype == dtype
    assert np.array_equal(y, expected.detach().numpy())
    assert np.array_equal(y, ours(TOKENS))
    grads = ours.backward(tape, dy)
    assert np.allclose(grads["weight"], theirs.weight.grad.numpy(), rtol=0, atol=1e-6 if dtype == "float32" else 1e-14)
    again = ours.backward(tape, dy, grads={"weight": grads["weight"].copy()})
    assert np.allclose(again["weight"], 2 * grads["weight"])
    if padding_idx is not None:
        assert not ours.weight[padding_idx].any()
        assert not grads["weight"][padding_idx].any()


def test_it_starts_as_the_generator_says() -> None:
    one, two = Embedding(1000, 20, rng=3), Embedding(1000, 20, rng=np.random.default_rng(3))
    assert np.array_equal(one.weight, two.weight)
    assert abs(one.weight.mean()) < 0.03
    assert abs(one.weight.std() - 1) < 0.03


def test_its_gradient_is_that_which_a_layer_gives() -> None:
    embedding, gru = Embedding(V, E, dtype="float64", rng=0), rnnfast.GRU(E, 4, dtype="float64", rng=1)
    x, taken = embedding.forward(TOKENS)
    y, _, tape = gru.forward(x)
    dx, _, grads = gru.backward(tape, y)
    assert dx is not None
    apart = embedding.backward(taken, dx)["weight"]
    y2, _, tape = gru.forward(TOKENS, embedding=embedding.weight)
    together = gru.backward(tape, y)[2]
    assert np.allclose(y, y2, rtol=0, atol=1e-12)
    assert np.allclose(apart, together["embedding"], rtol=0, atol=1e-12)
    assert np.allclose(grads["weight_ih_l0"], together["weight_ih_l0"], rtol=0, atol=1e-12)


def test_it_can_be_trained_copied_and_kept(tmp_path: Path) -> None:
    model = rnnfast.Modules(embedding=Embedding(V, E, 0, rng=0), readout=rnnfast.Linear(E, 2, rng=1))
    assert list(model.state_dict()) == ["embedding.weight", "readout.weight", "readout.bias"]
    embedding = model.embedding
    y, tape = embedding.forward(TOKENS)
    z, readout_tape = model.readout.forward(y)
    dy, readout_grads = model.readout.backward(readout_tape, np.ones_like(z))
    Adam(model).step(model.join(embedding=embedding.backward(tape, dy), readout=readout_grads))
    assert not embedding.weight[0].any()
    model.save(tmp_path / "model.safetensors")
    loaded = rnnfast.load(tmp_path / "model.safetensors")
    for twin in (copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding)), loaded["embedding"]):  # type: ignore[index]
        assert repr(twin) == repr(embedding) == f"Embedding({V}, {E}, padding_idx=0)"
        assert np.array_equal(twin.weight, embedding.weight)
    assert rnnfast.num_parameters(embedding) == V * E


def test_no_tokens_and_one_token() -> None:
    embedding = Embedding(V, E, rng=0)
    y, tape = embedding.forward(np.zeros((0, 2), int))
    assert y.shape == (0, 2, E)
    assert not embedding.backward(tape, y)["weight"].any()
    y, tape = embedding.forward(np.array(3))
    assert np.array_equal(y, embedding.weight[3])
    assert embedding.backward(tape, y)["weight"][3].any()


def test_the_tape_keeps_its_tokens() -> None:
    embedding, tokens = Embedding(V, E, rng=0), TOKENS.copy()
    y, tape = embedding.forward(tokens)
    before = embedding.backward(tape, y)["weight"]
    tokens[:] = 0
    assert np.array_equal(embedding.backward(tape, y)["weight"], before)


EMBEDDING = Embedding(V, E, rng=0)
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "V": (lambda: Embedding(0, E), ValueError, "num_embeddings: expected at least 1"),
    "E": (lambda: Embedding(V, "3"), TypeError, "embedding_dim: expected an int"),  # type: ignore[arg-type]
    "padding": (lambda: Embedding(V, E, V), ValueError, "padding_idx: expected -7 to 6, got 7"),
    "huge": (lambda: Embedding(2**40, 2**40), ValueError, "num_embeddings, embedding_dim: expected sizes"),
    "rng": (lambda: Embedding(V, E, rng="x"), TypeError, "rng: "),  # type: ignore[arg-type]
    "floats": (lambda: EMBEDDING(np.ones(3)), TypeError, "tokens: expected integers, got float64"),
    "token V": (lambda: EMBEDDING(np.array([V])), ValueError, "tokens: expected 0 to 6, got 7"),
    "token -1": (lambda: EMBEDDING(np.array([-1])), ValueError, "tokens: expected 0 to 6, got -1"),
    "dy": (
        lambda: EMBEDDING.backward(EMBEDDING.forward(TOKENS)[1], np.ones((5, 4, 2), np.float32)),
        ValueError,
        r"dy: expected shape \(5, 4, 3\)",
    ),
    "tape": (
        lambda: EMBEDDING.backward(Embedding(V, E).forward(TOKENS)[1], np.ones((5, 4, E), np.float32)),
        ValueError,
        "tape: expected a tape of this",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
