"""Modules joined under names: their parameters, gradients, files and copies."""

import copy
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modules import normal
from problems import Array, assert_same_bits

import rnnfast
from rnnfast import GRU, LSTM, Linear, LSTMCell, Modules
from rnnfast.training import Adam

V, I, H = 7, 3, 4


def make() -> Modules:
    """Return a model of all that a container may hold."""
    return Modules(
        embedding=normal((V, I), "float32", 1),
        encoder={"lstm": LSTM(I, H, rng=1), "norm": {"scale": np.ones(H)}},
        cell=LSTMCell(H, H, rng=2),
        readout=Linear(H, V, rng=3),
    )


class Tagger(Modules):
    """What a user may make of it: another constructor, another attribute."""

    def __init__(self, tags: list[str]) -> None:
        self.tags = tags
        super().__init__(gru=GRU(I, H, rng=1), readout=Linear(H, len(tags), rng=2))


# Parameters


def test_parameters_are_the_modules_own_under_their_names() -> None:
    model = make()
    lstm = model.encoder.lstm
    expected = {
        "embedding": model.embedding,
        **{f"encoder.lstm.{name}": p for name, p in lstm.parameters.items()},
        "encoder.norm.scale": model["encoder"]["norm"]["scale"],
        **{f"cell.{name}": p for name, p in model.cell.parameters.items()},
        **{f"readout.{name}": p for name, p in model.readout.parameters.items()},
    }
    assert list(model.state_dict()) == list(model.parameters) == list(expected)
    assert all(p is expected[name] for name, p in model.state_dict().items())


def test_layers_with_equal_names_of_parameters_are_both_trained() -> None:
    one, two = LSTM(I, H, rng=1), LSTM(I, H, rng=2)
    model = Modules(one=one, two=two)
    before = copy.deepcopy(model)
    grads = [{name: np.ones_like(p) for name, p in layer.parameters.items()} for layer in (one, two)]
    Adam(model, lr=0.5).step(model.join(one=grads[0], two=grads[1]))
    for name, p in before.state_dict().items():
        assert np.allclose(model.parameters[name], p - 0.5, atol=1e-6)


def test_a_container_is_a_mapping_with_attributes() -> None:
    lstm, values = LSTM(I, H), Linear(H, V)
    model = Modules({"lstm": lstm, "0": values}, values=Linear(H, 1))
    assert list(model) == ["lstm", "0", "values"]
    assert len(model) == 3
    assert model.lstm is model["lstm"] is lstm
    assert model["0"] is values
    assert "lstm" in dir(model)
    assert "0" not in dir(model)
    assert callable(model.values)  # a method comes before a module
    with pytest.raises(AttributeError, match="'Modules' object has no attribute 'lsmt'"):
        _ = model.lsmt
    other = Modules(model, lstm=LSTM(I, H))
    assert other["0"] is values
    assert other.lstm is not lstm


def test_a_container_equals_itself_only() -> None:
    model = make()
    assert model == model
    assert model != Modules(model)
    assert len({model, Modules(model)}) == 2


def test_the_representation_is_the_call() -> None:
    call = "Modules(a=LSTM(3, 4, num_layers=2), b=Modules(c=Linear(4, 1), d=<float32 [7, 3]>))"
    model = Modules(a=LSTM(3, 4, 2), b=Modules(c=Linear(4, 1), d=normal((7, 3), "float32", 1)))
    assert repr(model) == call
    assert repr(Modules({"0": Linear(1, 2), "b": Linear(2, 3)})) == "Modules({'0': Linear(1, 2), 'b': Linear(2, 3)})"
    assert repr(Modules({"if": Linear(1, 2)})) == "Modules({'if': Linear(1, 2)})"
    assert repr(Modules()) == "Modules()"
    assert repr(Tagger(["a"])) == "Tagger(gru=GRU(3, 4), readout=Linear(4, 1))"


def test_an_array_is_assigned_in_place_and_a_module_not_at_all() -> None:
    model = make()
    embedding, values = model.embedding, normal((V, I), "float32", 2)
    model.embedding = values
    assert model.embedding is embedding
    assert np.array_equal(embedding, values)
    model.embedding *= 2
    assert np.array_equal(embedding, 2 * values)
    with pytest.raises(ValueError, match=r"embedding: expected shape \(7, 3\), got \(3, 7\)"):
        model.embedding = values.T
    for name, value in (("readout", Linear(H, V)), ("readout", None), ("another", Linear(H, V))):
        with pytest.raises(AttributeError, match=f"{name}: expected modules as arguments of the constructor"):
            setattr(model, name, value)
    model.comment = "not a module"
    assert model.comment == "not a module"


def test_its_parameters_are_counted_as_those_of_its_modules() -> None:
    model = make()
    count = sum(p.size for p in model.state_dict().values())
    assert rnnfast.num_parameters(model) == count
    assert rnnfast.num_parameters(model, merged_bias=True) == count - 2 * 4 * H
    assert rnnfast.num_parameters({"a": model, "b": [model.embedding]}) == count + V * I


# Values from elsewhere


def test_a_torch_models_state_dict_is_loaded_as_it_is() -> None:
    torch = pytest.importorskip("torch")
    modules = {"embedding": torch.nn.Embedding(V, I), "rnn": torch.nn.GRU(I, H, 2), "head": torch.nn.Linear(H, V)}
    theirs = torch.nn.ModuleDict(modules).double()
    embedding = np.zeros((V, I))
    model = Modules(
        embedding={"weight": embedding}, rnn=GRU(I, H, 2, dtype="float64"), head=Linear(H, V, dtype="float64")
    )
    model.load_state_dict(theirs.state_dict())
    tokens = np.array([[0, 6], [3, 3], [5, 1]])
    y, _ = model.rnn(tokens, embedding=embedding)
    expected = theirs["head"](theirs["rnn"](theirs["embedding"](torch.from_numpy(tokens)))[0])
    assert np.allclose(model.head(y), expected.detach().numpy(), atol=1e-12)


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    values = {name: np.zeros_like(p) for name, p in before.items()}
    values["readout.bias"] = np.zeros(V + 1, np.float32)
    with pytest.raises(ValueError, match=r"readout.bias: expected shape \(7,\), got \(8,\)"):
        model.load_state_dict(values)
    assert_same_bits(model.state_dict(), before)


@pytest.mark.parametrize("model", [Modules(a=Linear(2, 2, rng=1), b=Linear(2, 2, rng=2)), LSTM(4, 4, 2, rng=1)])
def test_parameters_can_be_exchanged(model: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    names = list(before)[: len(before) // 2 * 2]
    other = dict(zip(names, names[len(names) // 2 :] + names[: len(names) // 2], strict=True))
    model.load_state_dict({name: model.state_dict()[other[name]] for name in before})
    assert_same_bits(model.state_dict(), {name: before[other[name]] for name in before})


# Gradients


def test_gradients_are_joined_under_the_names_of_the_parameters() -> None:
    model = make()
    grads = {name: np.ones_like(p) for name, p in model.state_dict().items()}
    lstm = {name: grads[f"encoder.lstm.{name}"] for name in model.encoder.lstm.parameters}
    cell = {name: grads[f"cell.{name}"] for name in model.cell.parameters}
    readout = {name: grads[f"readout.{name}"] for name in model.readout.parameters}
    scale = {"scale": grads["encoder.norm.scale"]}
    encoder = model.encoder.join(lstm=lstm, norm=scale)
    for given in (encoder, {"lstm": lstm, "norm": scale}):
        joined = model.join({"cell": cell}, embedding=grads["embedding"], encoder=given, readout=readout)
        assert joined.keys() == grads.keys()
        assert all(joined[name] is g for name, g in grads.items())


def test_an_embedding_is_trained_with_the_layer_that_reads_it() -> None:
    embedding = normal((V, I), "float32", 1)
    model = Modules(embedding=embedding, lstm=LSTM(I, H, rng=1))
    before = embedding.copy()
    y, _, tape = model.lstm.forward(np.array([[1, 2], [5, 1]]), embedding=model.embedding)
    _, _, lstm_grads = model.lstm.backward(tape, np.ones_like(y))
    with pytest.raises(ValueError, match=r"grads: missing keys: \['embedding'\]; .*: \['lstm.embedding'\]"):
        model.join(lstm=lstm_grads)
    Adam(model).step(model.join(embedding=lstm_grads.pop("embedding"), lstm=lstm_grads))
    assert [row for row in range(V) if not np.array_equal(embedding[row], before[row])] == [1, 2, 5]


# Files


def all_kinds() -> list[Modules]:
    strange = Modules({"0": Linear(1, 2), "ü b": np.ones(3), "if": {"a": np.zeros((2, 3))}, "e": Modules()})
    strided = Modules(
        scalar=np.array(2.0), a=np.ones((6, 4))[::2, ::3], b=np.asfortranarray(normal((3, 4), "float64", 1))
    )
    return [make(), strange, strided, Modules()]


@pytest.mark.parametrize("model", all_kinds(), ids=repr)
def test_a_saved_container_comes_back(model: Modules, tmp_path: Path) -> None:
    model.save(tmp_path / "model.safetensors")
    loaded = rnnfast.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert_same_bits(loaded.state_dict(), model.state_dict())
    for a in loaded.state_dict().values():
        a += 1


def test_a_users_class_is_saved_as_what_it_holds(tmp_path: Path) -> None:
    tagger = Tagger(["a", "b"])
    with pytest.raises(TypeError, match=r"self: expected .*, got Tagger; rnnfast.Modules\(self\) can be saved"):
        tagger.save(tmp_path / "tagger")
    assert not (tmp_path / "tagger").exists()
    Modules(tagger).save(tmp_path / "tagger")
    assert_same_bits(rnnfast.load(tmp_path / "tagger").state_dict(), tagger.state_dict())


LINEAR: dict[str, Any] = {"class": "Linear", "arguments": {"in_features": 2, "out_features": 1}}
DESCRIPTIONS: dict[str, Any] = {
    "no modules": {},
    "a list": {"modules": [["a", LINEAR], ["b", None]]},
    "a module less": {"modules": {"a": LINEAR}},
    "an array less": {"modules": {"b": None}},
    "a module more": {"modules": {"a": LINEAR, "b": None, "c": LINEAR}},
    "an array more": {"modules": {"a": LINEAR, "b": None, "c": None}},
    "an array in a module": {"modules": {"a": LINEAR, "b": None, "a.bias": None}},
    "a dot": {"modules": {"a.weight": None, "a.bias": None, "b": None}},
    "no name": {"modules": {"": LINEAR, "b": None}},
    "another class": {"modules": {"a": {"class": "load", "arguments": {"path": "."}}, "b": None}},
    "a base class": {"modules": {"a": {"class": "Module", "arguments": {}}, "b": None}},
    "huge": {"modules": {"a": {**LINEAR, "arguments": {"in_features": 2**20, "out_features": 2**20}}, "b": None}},
    "a number": {"modules": {"a": 1, "b": None}},
    "nested": {"modules": {"a": {"class": "Modules", "modules": {"weight": None}}, "b": None}},
}


@pytest.mark.parametrize("description", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_file_whose_description_does_not_fit_is_refused(description: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = Modules(a=Linear(2, 1), b=np.ones(3)).state_dict()
    save_file(tensors, tmp_path / "model", {"rnnfast": json.dumps({"class": "Modules", **description})})
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"path: expected a file that save has written, got .*model"):
        rnnfast.load(tmp_path / "model")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.int64, np.float16])
def test_an_array_of_another_dtype_is_refused(dtype: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    description = json.dumps({"class": "Modules", "modules": {"a": None}})
    save_file({"a": np.zeros(3, dtype)}, tmp_path / "model", {"rnnfast": description})
    with pytest.raises(ValueError, match="path: expected a file that save has written"):
        rnnfast.load(tmp_path / "model")


def test_a_description_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    depth = 10**5
    description = '{"class": "Modules", "modules": {"a": ' * depth + "null" + "}}" * depth
    save_file({"a": np.zeros(3)}, tmp_path / "model", {"rnnfast": description})
    with pytest.raises(ValueError, match="path: expected a file that save has written"):
        rnnfast.load(tmp_path / "model")


# Copies


def pickled(original: Any) -> Any:
    return pickle.loads(pickle.dumps(original))


DEEP: dict[str, Callable[[Any], Any]] = {"deepcopy": copy.deepcopy, "pickle": pickled}
by_copy = pytest.mark.parametrize("copied", DEEP.values(), ids=DEEP)


@by_copy
def test_a_deep_copy_has_copies_of_the_modules_and_a_shallow_one_the_modules(copied: Callable[[Any], Any]) -> None:
    model = make()
    deep, shallow = copied(model), copy.copy(model)
    assert repr(deep) == repr(shallow) == repr(model)
    assert_same_bits(deep.state_dict(), model.state_dict())
    for name, p in model.state_dict().items():
        assert not np.may_share_memory(deep.parameters[name], p)
        assert shallow.parameters[name] is p


@by_copy
def test_a_users_class_is_copied_with_what_it_adds(copied: Callable[[Any], Any]) -> None:
    tagger = Tagger(["a", "b"])
    twin = copied(tagger)
    assert type(twin) is Tagger
    assert twin.tags == tagger.tags
    assert twin.tags is not tagger.tags
    assert_same_bits(twin.state_dict(), tagger.state_dict())


@by_copy
def test_modules_that_share_a_generator_share_it_after_copying(copied: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    twin = copied(Modules(gru=GRU(3, 4, rng=rng), readout=Linear(4, 2, rng=rng)))
    assert twin.gru.rng is twin.readout.rng is not rng


@by_copy
def test_a_model_copied_with_its_optimizer_is_trained_by_the_copy(copied: Callable[[Any], Any]) -> None:
    model = make()
    adam = Adam(model, lr=0.5)
    twin, twin_adam = copied((model, adam))
    ones = {name: np.ones_like(p) for name, p in model.state_dict().items()}
    for _ in range(2):
        adam.step(ones)
        twin_adam.step(ones)
    assert_same_bits(twin.state_dict(), model.state_dict())


# Errors


def tied() -> Modules:
    readout = Linear(I, V)
    return Modules(embedding=readout.weight, readout=readout)


def shared() -> Modules:
    lstm = LSTM(I, H)
    return Modules(encoder=lstm, decoder={"lstm": lstm})


def read_only() -> Array:
    return np.broadcast_to(np.ones(3), (2, 3))


LAYER = LSTM(I, H)
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a layer": (lambda: Modules(LAYER), TypeError, "modules: expected a mapping of names to modules, got LSTM"),  # type: ignore[arg-type]
    "a list": (lambda: Modules([LAYER]), TypeError, "modules: expected a mapping of names to modules, got list"),  # type: ignore[arg-type]
    "a list inside": (lambda: Modules(a=[LAYER]), TypeError, r"modules\['a'\]: expected a layer, .*, got list"),
    "none": (lambda: Modules(a=None), TypeError, r"modules\['a'\]: expected a layer, .*, got NoneType"),
    "a class": (lambda: Modules(a=LSTM), TypeError, r"modules\['a'\]: expected a layer, .*, got \w+"),
    "a number inside": (lambda: Modules(a={"b": 1}), TypeError, r"modules\['b'\]: expected a layer, .*, got int"),
    "integers": (lambda: Modules(a=np.ones(3, int)), TypeError, r"modules\['a'\]: expected dtype .*, got int64"),
    "read-only": (lambda: Modules(a=read_only()), ValueError, r"modules\['a'\]: expected a writable array"),
    "a dot": (lambda: Modules({"a.b": LAYER}), ValueError, "modules: expected printable names .* dot, got 'a.b'"),
    "no name": (lambda: Modules({"": LAYER}), ValueError, "modules: expected printable names without a dot, got ''"),
    "no text": (lambda: Modules({"\ud800": LAYER}), ValueError, r"modules: expected printable .*, got '\\ud800'"),
    "a files name": (lambda: Modules(__metadata__=np.ones(1)), ValueError, "modules: .*, got '__metadata__'"),
    "a number": (lambda: Modules({1: LAYER}), TypeError, "modules: expected names of type str, got 1"),  # type: ignore[dict-item]
    "shared": (
        shared,
        ValueError,
        r"modules: expected arrays of their own, got 'decoder.lstm.(\w+)' and 'encoder.\1' that share memory",
    ),
    "tied": (tied, ValueError, "modules: expected arrays of their own, got .*'readout.weight'.* that share memory"),
    "grads": (lambda: make().join([{}]), TypeError, "grads: expected a mapping of names to grads, got list"),  # type: ignore[arg-type]
    "no gradient": (
        lambda: Modules(a=Linear(1, 1), b=Linear(1, 1)).join(a={"weight": np.ones(1), "bias": np.ones(1)}),
        ValueError,
        r"grads: missing keys: \['b.bias', 'b.weight'\]$",
    ),
    "unknown": (
        lambda: Modules(a=Linear(1, 1, bias=False)).join(a={"weight": np.ones(1), "bias": np.ones(1)}, c=np.ones(1)),
        ValueError,
        r"grads: unexpected keys: \['a.bias', 'c'\]$",
    ),
    "a layers state": (
        lambda: Modules(lstm=LAYER).load_state_dict(LAYER.state_dict()),
        ValueError,
        r"state_dict: missing keys: \['lstm.bias_hh_l0', .*\]; unexpected keys: \['bias_hh_l0', .*\]$",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_prefix_that_a_layers_keys_have_in_a_model_is_named() -> None:
    model = Modules(encoder=LSTM(I, H), decoder=LSTM(I, H), readout=Linear(H, V))
    with pytest.raises(ValueError, match=r"keys that start with 'readout\.' fit without it$"):
        Linear(H, V).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"with 'decoder\.' fit without it; .* with 'encoder\.' fit without it$"):
        LSTM(I, H).load_state_dict(model.state_dict())
    parallel = {f"module.{name}": p for name, p in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"keys that start with 'module\.' fit without it$"):
        model.load_state_dict(parallel)
    with pytest.raises(ValueError, match=r"unexpected keys: \[0, None, 'a', 'b'\]$"):
        model.load_state_dict({**model.state_dict(), "b": 1, 0: 1, None: 1, "a": 1})  # type: ignore[dict-item]
