"""The character language model and its runs: what a window, an epoch, a file and a sample have to hold."""

import json
import math
import re
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast import lm
from rnnfast._base.formats import FORMATS, Format
from rnnfast.lm import CharLM, Checkpoint, Options, Training, UsageError, encode
from rnnfast.lm_options import DROPOUTS
from rnnfast.training import softmax_cross_entropy

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(60))
SMALL = Options(hidden=12, embed=5, batch=3, seq_len=20, lr=0.01)
RUNS = {
    **{cell: replace(SMALL, cell=cell) for cell in lm.LAYERS},
    "two layers, dropout": replace(
        SMALL,
        layers=2,
        dropout=0.3,
        weight_dropout=0.2,
        recurrent_dropout=0.2,
        candidate_dropout=0.1,
        zoneout=(0.1, 0.2),
    ),
    "pruned": replace(SMALL, hidden=20, density=0.3, steps=30),
}
by_run = pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)


def weights(training: Training) -> dict[str, Any]:
    return {name: a.copy() for name, a in training.model.state_dict().items()}


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained() -> Training:
    training = Training(TEXT, replace(SMALL, hidden=32, lr=0.02))
    for _ in range(300):
        training.step()
    return training


@pytest.fixture
def saved(trained: Training, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    trained.save(path)
    return path


# The model


@by_run
def test_the_loss_falls(options: Options) -> None:
    training = Training(TEXT, options)
    losses = [training.step() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@by_run
def test_windows_with_carried_state_give_the_bits_of_the_whole(options: Options) -> None:
    model = CharLM("".join(sorted(set(TEXT))), options)
    tokens = encode(TEXT[:90], model.vocabulary).reshape(30, 3)
    whole, _ = model(tokens)
    first, state = model(tokens[:13])
    second, _ = model(tokens[13:], state)
    assert np.array_equal(np.concatenate([first, second]), whole)


def test_the_embeddings_gradient_is_summed_by_token() -> None:
    model = CharLM("abc", SMALL)
    tokens = np.array([[0, 2], [2, 2]])
    logits, _, tape = model.forward(tokens)
    dlogits = np.ones_like(logits)
    grads = model.backward(tape, dlogits)
    _, _, rows = model.rnn.forward(model.embedding[tokens])
    dx, _, _ = model.rnn.backward(rows, model.readout.backward(tape.readout, dlogits)[0])
    expected = np.stack([dx[0, 0], np.zeros_like(dx[0, 0]), dx[0, 1] + dx[1, 0] + dx[1, 1]])
    assert relative_error(grads["embedding.weight"], expected) <= TOLERANCE[dx.dtype]


@by_run
def test_the_model_and_its_gradients_are_torchs(options: Options) -> None:
    torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    none: dict[str, Any] = dict.fromkeys(DROPOUTS, 0.0)
    options = replace(options, **none)
    model = CharLM("".join(sorted(set(TEXT))), options)
    layer = getattr(torch.nn, type(model.rnn).__name__)
    twin = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(len(model.vocabulary), options.embed),
            "rnn": layer(options.embed, options.hidden, options.layers),
            "readout": torch.nn.Linear(options.hidden, len(model.vocabulary)),
        }
    ).double()
    twin.load_state_dict({name: torch.from_numpy(a) for name, a in model.state_dict().items()})
    tokens = encode(TEXT[:93], model.vocabulary).reshape(31, 3)
    logits, _, tape = model.forward(tokens[:-1])
    _, dlogits = softmax_cross_entropy(logits, tokens[1:])
    grads = model.backward(tape, dlogits)
    theirs = twin["readout"](twin["rnn"](twin["embedding"](torch.from_numpy(tokens[:-1])))[0])
    targets = torch.from_numpy(tokens[1:]).long().ravel()
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), targets).backward()
    assert relative_error(logits, theirs.detach().numpy()) <= 1e-5
    for name, p in twin.named_parameters():
        assert relative_error(grads[name], p.grad.numpy()) <= 1e-5, name


# The run


def test_the_streams_are_the_text_and_the_last_tenth_is_held_out() -> None:
    training = Training(TEXT, SMALL)
    tokens = encode(TEXT, training.model.vocabulary)
    held_out = len(tokens) // 10
    assert np.array_equal(training.held_out, tokens[-held_out:])
    assert training.streams.shape == ((len(tokens) - held_out) // 3, 3)
    assert np.array_equal(training.streams.T.ravel(), tokens[: training.streams.size])


def test_an_epoch_starts_from_a_zero_state_and_a_window_from_the_last_one() -> None:
    first, second = Training(TEXT, SMALL), Training(TEXT, SMALL)
    n = first.steps_per_epoch
    for training in (first, second):
        for _ in range(n):
            training.step()
    other = np.ones((1, 3, 12), np.float32)
    second.state = other, other
    assert first.step() == second.step()
    second.state = other, other
    assert first.step() != second.step()


def test_held_out_bits_do_not_depend_on_the_chunks(trained: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    bits = trained.held_out_bits()
    tokens = trained.held_out[:, np.newaxis]
    loss, _ = softmax_cross_entropy(trained.model(tokens[:-1])[0], tokens[1:])
    assert bits == pytest.approx(loss / np.log(2))
    monkeypatch.setattr(lm, "CHUNK", 7)
    assert trained.held_out_bits() == pytest.approx(bits)


@pytest.mark.parametrize("stop", ["before the first step", "in an epoch", "between epochs", "in the second epoch"])
@by_run
def test_a_resumed_run_ends_with_the_same_bits(options: Options, stop: str, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    straight = Training(TEXT, options)
    n = straight.steps_per_epoch
    assert n > 2
    stops = {"before the first step": 0, "in an epoch": 2, "between epochs": n, "in the second epoch": n + 1}
    losses = [straight.step() for _ in range(2 * n + 2)]
    stopped = Training(TEXT, options)
    for _ in range(stops[stop]):
        stopped.step()
    stopped.save(path)
    checkpoint = Checkpoint.read(path)
    resumed = Training(TEXT, checkpoint.options)
    resumed.resume(checkpoint)
    assert [resumed.step() for _ in range(resumed.steps, len(losses))] == losses[stops[stop] :]
    assert same_bits(weights(resumed), weights(straight))


def test_a_pruned_run_ends_with_its_density(tmp_path: Path) -> None:
    options = RUNS["pruned"]
    training = Training(TEXT, options)
    for _ in range(options.steps):
        training.step()
        assert training.pruner is not None
        started, ended = training.steps > 3, training.steps >= 21
        assert (training.pruner.density < 1) == started
        assert (training.pruner.density == 0.3) == ended
    layer = training.model.rnn
    for name, w in layer.state_dict().items():
        share = np.mean(w != 0)
        assert share == 1 if name.startswith("bias") else 0.3 <= share <= 0.4  # 2 of 5 in each row
    training.save(tmp_path / "model")
    checkpoint = Checkpoint.read(tmp_path / "model")
    assert same_bits(checkpoint.model().rnn.state_dict(), layer.state_dict())
    quantized = checkpoint.quantize("int8")
    quantized.write(tmp_path / "quantized")
    assert not any(name.startswith("pruner") for name in Checkpoint.read(tmp_path / "quantized").tensors)


PRUNED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no mask": lambda tensors: tensors.pop("pruner.mask.weight_hh_l0"),
    "a mask more": lambda tensors: tensors.update({"pruner.mask.bias_hh_l0": np.ones(80, bool)}),
    "the mask's shape": lambda tensors: tensors.update({"pruner.mask.weight_hh_l0": np.ones((20, 80), bool)}),
    "the mask's dtype": lambda tensors: tensors.update({"pruner.mask.weight_hh_l0": np.full((80, 20), 0.5)}),
    "no t": lambda tensors: tensors.pop("pruner.t"),
    "another t": lambda tensors: tensors.update({"pruner.t": np.full((), 1)}),
    "negative t": lambda tensors: tensors.update({"pruner.t": np.full((), -1)}),
    "a density of 0": lambda tensors: tensors.update({"pruner.density": np.zeros(())}),
    "a density that is none": lambda tensors: tensors.update({"pruner.density": np.full((), np.nan)}),
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruner_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    Training(TEXT, RUNS["pruned"]).save(tmp_path / "model.safetensors")
    Checkpoint.read(tmp_path / "model.safetensors")
    spoil(lambda tensors, _: PRUNED[name](tensors))(tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"model\.safetensors: not a model"):
        Checkpoint.read(tmp_path / "model.safetensors")


def test_a_run_is_not_resumed_with_another_text(saved: Path) -> None:
    checkpoint = Checkpoint.read(saved)
    with pytest.raises(UsageError, match="the text is not the one"):
        Training(TEXT.replace("9", "8") + "9", checkpoint.options).resume(checkpoint)


@pytest.mark.parametrize("length", [20, 69])
def test_a_text_that_is_too_short_for_the_sizes_is_refused(length: int) -> None:
    message = f"the text has {length} characters, and --batch 3 with --seq-len 20 needs 70; use a longer text, or lower"
    with pytest.raises(UsageError, match=message):
        Training(TEXT[:length], SMALL)


@pytest.mark.parametrize("batch", [1, 3, 10**30])
@pytest.mark.parametrize("length", [0, 1, 19])
def test_a_text_that_is_too_short_for_any_sizes_is_refused(length: int, batch: int) -> None:
    options = replace(SMALL, batch=min(batch, sys.maxsize), seq_len=1)
    with pytest.raises(UsageError, match=f"the text has {length} characters, and at least 20 are needed; use a longer"):
        Training(TEXT[:length], options)


@pytest.mark.parametrize(("batch", "seq_len"), [(3, 20), (1, 1), (7, 1), (1, 50)])
def test_the_shortest_text_is_enough(batch: int, seq_len: int) -> None:
    options = replace(SMALL, batch=batch, seq_len=seq_len)
    needed = max(20, math.ceil(batch * (seq_len + 1) / 0.9))
    with pytest.raises(UsageError):
        Training(TEXT[: needed - 1], options)
    training = Training(TEXT[:needed], options)
    for _ in range(3):
        assert np.isfinite(training.step())
    assert np.isfinite(training.held_out_bits())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hidden": 0}, ValueError),
        ({"layers": 1.0}, TypeError),
        ({"batch": True}, TypeError),
        ({"lr": "1"}, TypeError),
        ({"clip": np.nan}, ValueError),
        ({"dropout": 1}, ValueError),
        ({"weight_dropout": ("rows", 0.5)}, TypeError),
        ({"density": 0}, ValueError),
        ({"density": 1.1}, ValueError),
        ({"seed": -1}, ValueError),
        ({"cell": "transformer"}, ValueError),
        ({"text": Path("text")}, TypeError),
    ],
)
def test_options_out_of_range_are_named(change: dict[str, Any], error: type[Exception]) -> None:
    (name,) = change
    with pytest.raises(error, match=f"^{name}: expected "):
        replace(SMALL, **change)


def test_options_are_numbers_of_python_that_a_file_can_hold(tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"hidden": np.int64(12), "lr": np.float32(0.5), "dropout": 0, "steps": np.uint8(3)}
    options = replace(SMALL, **numbers)
    assert options == replace(SMALL, lr=0.5, steps=3)
    training = Training(TEXT, options)
    training.save(tmp_path / "model")
    assert Checkpoint.read(tmp_path / "model").options == options


# The sample


def test_temperature_0_takes_the_likeliest_character(trained: Training) -> None:
    model, text = trained.model, "7 ti"
    continued = "".join(model.sample(text, length=20, temperature=0))
    for character in continued:
        logits, _ = model(encode(text, model.vocabulary)[:, np.newaxis])
        assert character == model.vocabulary[logits[-1, 0].argmax()]
        text += character
    assert continued.startswith("mes")


def test_characters_are_drawn_as_the_softmax_says(trained: Training) -> None:
    model, temperature, n = trained.model, 1.7, 3000
    drawn = "".join(c for seed in range(n) for c in model.sample("1", length=1, temperature=temperature, rng=seed))
    logits, _ = model(encode("1", model.vocabulary)[:, np.newaxis])
    z = logits[-1, 0].astype(np.float64) / temperature
    p = np.exp(z) / np.exp(z).sum()
    observed = np.array([drawn.count(c) for c in model.vocabulary])
    assert np.abs(observed - n * p).max() < 4 * np.sqrt(n / 4)  # four standard deviations at most


def test_a_seed_gives_the_same_text_and_none_another(trained: Training) -> None:
    texts = ["".join(trained.model.sample(rng=seed, temperature=1, length=200)) for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_sampling_leaves_the_run_as_it_was(trained: Training) -> None:
    before = weights(trained), trained.model.rng.bit_generator.state
    list(trained.model.sample(length=5))
    assert same_bits(weights(trained), before[0])
    assert trained.model.rng.bit_generator.state == before[1]


@pytest.mark.parametrize("stop", [".", " is ", ".\n"])
def test_a_sample_ends_with_the_stop(trained: Training, stop: str) -> None:
    text = "".join(trained.model.sample("12 ", stop=stop, rng=0))
    assert text.endswith(stop)
    assert text.count(stop) == 1
    assert len("".join(trained.model.sample("12 ", stop="never", length=50, rng=0))) == 50


def test_a_prompt_in_other_characters_is_refused(trained: Training) -> None:
    with pytest.raises(UsageError, match="'é' '€'"):
        next(trained.model.sample("1 é €"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"length": 0}, ValueError),
        ({"length": 2.0}, TypeError),
        ({"temperature": -1}, ValueError),
        ({"temperature": np.nan}, ValueError),
        ({"temperature": "hot"}, TypeError),
    ],
)
def test_a_sample_refuses_what_does_not_fit_before_it_starts(
    trained: Training, options: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = options
    with pytest.raises(error, match=f"^{name}: expected "):
        trained.model.sample(**options)


@pytest.mark.parametrize("temperature", [5e-324, 1e308])
def test_an_extreme_temperature_is_no_error(trained: Training, temperature: float) -> None:
    with np.errstate(all="raise"):
        assert len("".join(trained.model.sample("1", length=20, temperature=temperature))) == 20


@pytest.mark.parametrize("text", ["", "abc", "aé€😀\n\0", "\ud800"])
def test_tokens_are_indices_of_the_vocabulary(text: str) -> None:
    vocabulary = "".join(sorted(set(text)))
    assert "".join(vocabulary[token] for token in encode(text, vocabulary)) == text


def test_a_text_may_have_any_characters(tmp_path: Path) -> None:
    training = Training(TEXT + "é€😀\ud800", SMALL)
    training.step()
    training.save(tmp_path / "model")
    assert Checkpoint.read(tmp_path / "model").model().vocabulary == training.model.vocabulary


@pytest.mark.parametrize("vocabulary", ["", "aa", ["a", "b"], None])
def test_a_vocabulary_is_a_str_of_different_characters(vocabulary: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^vocabulary: expected"):
        CharLM(vocabulary, SMALL)


# Fewer bits


@pytest.mark.parametrize("form", FORMATS)
def test_a_quantised_model_predicts_as_well(form: Format, trained: Training, tmp_path: Path) -> None:
    path, twin = tmp_path / "quantised", Training(TEXT, trained.options)
    trained.save(path)
    checkpoint = Checkpoint.read(path)
    checkpoint.quantize(form).write(path)
    read = Checkpoint.read(path)
    assert (read.options, read.steps, read.format) == (checkpoint.options, checkpoint.steps, form)
    twin.model = read.model()
    assert same_bits(twin.model.state_dict(), trained.model.quantize(form).state_dict())
    assert twin.held_out_bits() < 1.01 * trained.held_out_bits()
    assert list(twin.model.sample("1", rng=3)) == list(trained.model.quantize(form).sample("1", rng=3))
    with pytest.raises(UsageError, match=f"quantised has weights of {form}, which cannot be trained"):
        Training(TEXT, trained.options).resume(read)
    with pytest.raises(TypeError, match="forward: expected a layer to train"):
        twin.step()
    with pytest.raises(TypeError, match=f"parameters: expected those of a model that was quantised to {form}"):
        CharLM("abc", SMALL, format=form)


def test_samples_are_drawn_from_what_a_call_predicts(trained: Training) -> None:
    text = "".join(trained.model.sample("1", length=40, temperature=0))
    logits, _ = trained.model(encode(f"1{text}", trained.model.vocabulary)[:-1, np.newaxis])
    assert text == "".join(trained.model.vocabulary[token] for token in logits[:, 0].argmax(axis=1))


# The file

SAVE_AGAIN = """
from rnnfast.lm import Checkpoint, Training

text = "".join(f"{n} times {n} is {n * n}.\\n" for n in range(60))
checkpoint = Checkpoint.read(sys.argv[1])
training = Training(text, checkpoint.options)
training.resume(checkpoint)
try:
    training.save(sys.argv[1])
except OSError as error:
    print(error.filename)
"""


def test_a_file_gives_the_model_back(trained: Training, saved: Path) -> None:
    model = Checkpoint.read(saved).model()
    assert same_bits(model.state_dict(), trained.model.state_dict())
    assert list(model.sample("1", rng=3)) == list(trained.model.sample("1", rng=3))


def spoil(change: Callable[[dict[str, Any], dict[str, str]], object]) -> Callable[[Path], None]:
    """Return what rewrites a file with its tensors and its metadata changed."""

    def rewrite(path: Path) -> None:
        with safetensors.safe_open(path, "numpy") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        change(tensors, metadata)
        safetensors.numpy.save_file(tensors, path, metadata)

    return rewrite


def described(options: dict[str, Any] | None = None, **changes: Any) -> Callable[[Path], None]:
    """Return what changes the description in a file, and the options in it."""

    def change(_: dict[str, Any], metadata: dict[str, str]) -> None:
        description = json.loads(metadata[lm.FORMAT])
        description["options"] |= options or {}
        metadata[lm.FORMAT] = json.dumps({**description, **changes})

    return spoil(change)


SPOILED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("to be or not to be"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "layer": lambda path: rnnfast.LSTM(2, 3).save(path),
    "no metadata": lambda path: safetensors.numpy.save_file({"a": np.ones(3)}, path),
    "not json": spoil(lambda _, metadata: metadata.update({lm.FORMAT: "?"})),
    "other json": spoil(lambda _, metadata: metadata.update({lm.FORMAT: "[1]"})),
    "other cell": spoil(lambda _, metadata: metadata.update({lm.FORMAT: metadata[lm.FORMAT].replace("lstm", "x")})),
    "missing weight": spoil(lambda tensors, _: tensors.pop("model.readout.bias")),
    "other shape": spoil(lambda tensors, _: tensors.update({"model.readout.bias": np.ones(2, np.float32)})),
    "other dtype": spoil(lambda tensors, _: tensors.update({"model.readout.bias": np.ones(2, np.int8)})),
    "unknown weight": spoil(lambda tensors, _: tensors.update({"model.more": np.ones(2, np.float32)})),
    "unknown array": spoil(lambda tensors, _: tensors.update({"more": np.ones(2, np.float32)})),
    "no steps of Adam": spoil(lambda tensors, _: tensors.pop("adam.t")),
    "no m of Adam": spoil(lambda tensors, _: tensors.pop("adam.m.embedding.weight")),
    "other v of Adam": spoil(lambda tensors, _: tensors.update({"adam.v.readout.bias": np.ones(2, np.float32)})),
    "no state": spoil(lambda tensors, _: tensors.pop("state.c")),
    "other state": spoil(lambda tensors, _: tensors.update({"state.h": np.ones((1, 2, 32), np.float32)})),
    "deep json": spoil(lambda _, metadata: metadata.update({lm.FORMAT: "[" * 100_000})),
    "no description": spoil(lambda _, metadata: metadata.update({lm.FORMAT: "{}"})),
    "more in the description": described(more=1),
    "another path": described(path="other"),
    "unknown option": described({"more": 1}),
    "text of another type": described({"text": 3}),
    "cell of another type": described({"cell": ["lstm"]}),
    "other cell of the same arrays": described({"cell": "rnn"}),
    **{
        f"{name} {value}": described({name: value})
        for name, values in {
            "hidden": (0, -1, 31, 2**28, 2**62, 2**80, 32.0, "32", True, None),
            "layers": (0, 2, 2**31, 2**62),
            "embed": (0, 4, 2**28, 2**62),
            "batch": (0, 2, 2**40),
            "seq_len": (0, -1, 2**70, 1.5),
            "steps": (0, -5, None),
            "lr": (0, -1, math.nan, math.inf, "1", 10**400),
            "clip": (0, math.nan),
            "dropout": (-0.1, 1, math.nan),
            "weight_dropout": (1, ["rows", 0.5]),
            "candidate_dropout": (1, "x"),
            "zoneout": (1, [0.5], [0.5, 1]),
            "density": (0.5, 0, 1.5, "1"),
            "seed": (-1, 1.0),
        }.items()
        for value in values
    },
    "a format without its arrays": described(format="int8"),
    "an unknown format": described(format="int4"),
    "a format of another type": described(format=["int8"]),
    "no vocabulary": described(vocabulary=""),
    "short vocabulary": described(vocabulary="abc"),
    "characters twice": described(vocabulary="a" * len(set(TEXT))),
    "vocabulary of another type": described(vocabulary=sorted(set(TEXT))),
    "negative steps": described(steps=-1),
    "other steps": described(steps=299),
    "steps of another type": described(steps=300.0),
    "no generator": described(generator={}),
    "generator of another type": described(generator=[1]),
    "another generator": described(
        generator={**np.random.default_rng(0).bit_generator.state, "bit_generator": "MT19937"}
    ),
    "generator out of range": described(
        generator={**np.random.default_rng(0).bit_generator.state, "state": {"state": 2**200, "inc": -1}}
    ),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_a_file_that_is_not_ours_is_refused(change: Callable[[Path], object], saved: Path) -> None:
    change(saved)
    with pytest.raises(UsageError, match=r"model\.safetensors: not a model"):
        Checkpoint.read(saved)


def test_damaged_bytes_are_refused_or_read(saved: Path) -> None:
    data = saved.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(8, head)] = rng.choice([*b'0123456789-e.,[]{}" a'])
        saved.write_bytes(damaged)
        with suppress(UsageError), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of dropout, which acts between layers, where there is one
            checkpoint = Checkpoint.read(saved)
            read += 1
            list(checkpoint.model().sample(length=2, rng=0))
            training = Training(TEXT, checkpoint.options)
            training.resume(checkpoint)
            training.step()
    assert 0 < read < 300


def test_a_huge_size_in_a_file_takes_no_memory(saved: Path) -> None:
    for sizes in ({"layers": 2**31}, {"embed": 2**40}, {"hidden": 2**40}, {"batch": 2**40}, {"layers": 2**62}):
        described(options=sizes)(saved)
        tracemalloc.start()
        try:
            with pytest.raises(UsageError, match="not a model"):
                Checkpoint.read(saved)
            assert tracemalloc.get_traced_memory()[1] < 30 * saved.stat().st_size
        finally:
            tracemalloc.stop()


def test_a_run_is_not_resumed_with_other_sizes(saved: Path) -> None:
    checkpoint = Checkpoint.read(saved)
    for change in ({"hidden": 16}, {"layers": 2}, {"batch": 2}, {"cell": "gru"}):
        training = Training(TEXT, replace(checkpoint.options, **change))
        before = weights(training)
        with pytest.raises(ValueError, match=r"expected shape|missing keys: "):
            training.resume(checkpoint)
        assert same_bits(weights(training), before)
        assert training.steps == 0


def test_models_of_a_file_share_no_memory(saved: Path) -> None:
    checkpoint = Checkpoint.read(saved)
    one, two = checkpoint.model().state_dict(), checkpoint.model().state_dict()
    for name, a in one.items():
        assert not np.may_share_memory(a, two[name])
        assert not np.may_share_memory(a, checkpoint.tensors[f"model.{name}"])


@pytest.mark.parametrize("path", [str, Path])
def test_a_path_may_be_a_str(path: Callable[[Path], Any], trained: Training, tmp_path: Path) -> None:
    file = path(tmp_path / "model")
    trained.save(file)
    assert Checkpoint.read(file).steps == trained.steps


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
def test_a_file_that_cannot_be_written_leaves_the_old_one(saved: Path, trained: Training) -> None:
    old = saved.read_bytes()
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); " + SAVE_AGAIN
    done = subprocess.run([sys.executable, "-c", limited, saved], capture_output=True, text=True, check=True)
    assert done.stdout == f"{saved}\n"
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]
    with pytest.raises(OSError, match="directory"):
        trained.save(saved.parent)


def test_load_says_what_loads_a_language_model(saved: Path) -> None:
    with pytest.raises(ValueError, match="language model") as error:
        rnnfast.load(saved)
    code = re.search(r"rnnfast\.lm\..*\.model\(\)$", str(error.value))
    assert code is not None
    assert isinstance(eval(code[0]), CharLM)
