"""What `rng`, and its older name `seed`, mean in every public function, class and method that has them."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from public import MODULES, public_callables

import rnnfast
from rnnfast.hopfield import Hopfield
from rnnfast.lm import CharLM, Options

# Those that have arguments of other libraries, and those that are behind the command line.
OTHERS = {f"rnnfast.{name}" for name in ("bench", "gradflow", "jax", "keras", "onnx", "torch")}
MODEL = CharLM("ab", Options(hidden=3, embed=2))


def found(argument: str) -> Iterator[tuple[str, Any]]:
    """Return what has an argument of this name, with a default, by the names that users call it by."""
    for module_name in MODULES:
        module = importlib.import_module(module_name) if module_name not in OTHERS else None
        for name, value in public_callables(module) if module else ():
            has = inspect.signature(value).parameters.get(argument)
            if has and has.default is not has.empty and name.partition(".")[0] in getattr(module, "__all__", ()):
                yield name, value


def stored() -> Hopfield:
    network = Hopfield(30, dtype="float64", rng=0)
    network.weight[...] = np.random.default_rng(0).standard_normal((30, 30))
    return network


WITH_RNG, WITH_SEED = dict(found("rng")), dict(found("seed"))
SEQUENCES = [np.full((n, 1), n, np.float64) for n in (4, 2, 5, 3, 1, 2, 3, 4)]
# What is required, by the names of the arguments; self by that of the class
ARGUMENTS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(("input_size", "in_features", "num_embeddings", "embedding_dim"), lambda: 3),
    **dict.fromkeys(("hidden_size", "out_features"), lambda: 4),
    "units": lambda: 30,
    "batch_size": lambda: 2,
    "lengths": lambda: [len(x) for x in SEQUENCES],
    "sequences": lambda: SEQUENCES,
    "X": lambda: SEQUENCES,
    "y": lambda: [len(x) % 2 for x in SEQUENCES],
    "series": lambda: np.sin(np.arange(60.0)),
    "states": lambda: np.where(np.arange(30) % 3, 1, -1),
    "layer": lambda: rnnfast.GRU(3, 4, rng=0),
    "scheme": lambda: "xavier",
    "CharLM": lambda: MODEL,
    "Hopfield": stored,
}
OPTIONS = {"epochs": 1, "patience": None}  # of what is fitted


def required(value: Any, owner: str = "") -> dict[str, Any]:
    parameters = inspect.signature(value).parameters
    names = [name for name, p in parameters.items() if p.default is p.empty]
    return {name: ARGUMENTS[owner if name == "self" else name]() for name in names}


def drawn(name: str, **given: Any) -> list[bytes]:
    """Return what a call draws."""
    value = WITH_RNG[name]
    arguments = required(value, name.partition(".")[0])
    options = {name: option for name, option in OPTIONS.items() if name in inspect.signature(value).parameters}
    made = value(**arguments, **options, **given)
    if hasattr(made, "get_params"):
        made.fit(**required(made.fit))
        made = made.model_
    elif isinstance(made, rnnfast.Module):
        made = [*made.parameters.values(), made.rng.random(3)]
    elif made is None:
        made = arguments["layer"]
    arrays = made.parameters.values() if isinstance(made, rnnfast.Module | rnnfast.Modules) else made
    return [np.asarray(part).tobytes() for item in arrays for part in (item if isinstance(item, tuple) else [item])]


def test_no_call_has_only_the_older_name() -> None:
    others = {name for name, value in WITH_SEED.items() if "rng" not in inspect.signature(value).parameters}
    assert others == {"Options"}, "which are the command line's, and are kept in files"
    assert len(WITH_SEED) > 10


@pytest.mark.parametrize("name", WITH_RNG)
def test_rng_is_whatever_default_rng_takes(name: str) -> None:
    expected = drawn(name, rng=5)
    kinds = np.random.SeedSequence, np.random.PCG64, np.random.default_rng, np.int64, np.array
    for made in (5, *(kind(5) for kind in kinds)):
        assert drawn(name, rng=made) == expected
    assert drawn(name, rng=[5, 6]) == drawn(name, rng=(5, 6)) != expected
    assert drawn(name)
    assert drawn(name, rng=None)


@pytest.mark.parametrize("name", WITH_RNG)
def test_a_generator_goes_on(name: str) -> None:
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    first, second = drawn(name, rng=rng), drawn(name, rng=rng)
    assert first == drawn(name, rng=5) != second == [drawn(name, rng=again), drawn(name, rng=again)][1]


@pytest.mark.parametrize("name", [name for name in WITH_SEED if name in WITH_RNG])
def test_seed_is_the_older_name_of_rng(name: str) -> None:
    for value in (5, np.random.SeedSequence(5), np.random.default_rng(5)):
        assert drawn(name, seed=value) == drawn(name, rng=5)
    assert drawn(name, rng=5, seed=None) == drawn(name, rng=5)
    for given in ({"rng": 5, "seed": 5}, {"rng": 0, "seed": np.random.default_rng(0)}):
        with pytest.raises(TypeError, match=r"^rng, seed: expected one of them"):
            drawn(name, **given)
    with pytest.raises(ValueError, match=r"^rng: "):
        drawn(name, seed=-1)


@pytest.mark.parametrize("name", WITH_RNG)
def test_what_is_unsuitable_names_rng(name: str) -> None:
    for bad in ("x", -1, 1.5, np.array(["a"]), [-1], [None], object(), np.random):
        with pytest.raises((TypeError, ValueError), match=r"^rng: "):
            drawn(name, rng=bad)
