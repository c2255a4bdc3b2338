"""The command line: what it prints, what it writes, and what it says to those who ask for the impossible."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast
from rnnfast import bench
from rnnfast.__main__ import main
from rnnfast.lm import Checkpoint, Training

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(60))
SMALL = "--hidden 8 --embed 4 --batch 2 --seq-len 20 --text text.txt".split()
HELD_OUT = re.compile(r"held-out: \d+\.\d{3} bits per character")


def run(arguments: str) -> int:
    """Run a command, {small} standing for a text and small sizes, and return its exit status."""
    try:
        return main([a for word in arguments.split() for a in (SMALL if word == "{small}" else [word])])
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code


def weights(path: str) -> dict[str, Any]:
    return Checkpoint.read(Path(path)).tensors


def assert_same_bits(a: str, b: str) -> None:
    tensors, others = weights(a), weights(b)
    assert tensors.keys() == others.keys()
    assert all(np.array_equal(tensors[name], others[name]) for name in tensors)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start in a folder with a text."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture
def model(capfd: pytest.CaptureFixture[str]) -> Path:
    """Train a model for a few steps."""
    assert run("train {small} --steps 5 --quiet") == 0
    capfd.readouterr()
    return Path("charlm.safetensors")


# What the commands print and write


def test_train_ends_with_the_held_out_bits_a_sample_and_a_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train {small} --steps 20") == 0
    out, err = capfd.readouterr()
    first, *sample, last = out.splitlines()
    assert HELD_OUT.fullmatch(first)
    assert len("\n".join(sample)) == 500
    assert last == "saved; for more: python -m rnnfast sample charlm.safetensors"
    for shown in ("100%", "0:00", "tokens/s", "loss ", "bits per character"):
        assert shown in err
    assert run("sample charlm.safetensors") == 0
    assert len(capfd.readouterr().out) == 501


def test_train_without_a_text_takes_pythons_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train --hidden 4 --embed 4 --steps 2 --quiet --out model") == 0
    out, err = capfd.readouterr()
    assert HELD_OUT.fullmatch(out.rstrip())
    assert err == ""
    assert len(Checkpoint.read(Path("model")).vocabulary) > 90


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_train_takes_each_cell(cell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(f"train {{small}} --cell {cell} --layers 2 --dropout 0.1 --epochs 2 --lr 0.01 --clip 5 --seed 3") == 0
    checkpoint = Checkpoint.read(Path("charlm.safetensors"))
    assert checkpoint.options.cell == cell
    assert checkpoint.steps == 2 * Training(TEXT, checkpoint.options).steps_per_epoch
    assert HELD_OUT.match(capfd.readouterr().out)


def test_sample_continues_the_prompt(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = f"sample {model} --prompt 12 --length 30"
    texts = []
    for options in ("--seed 1", "--seed 1", "--temperature 0", "--temperature 0 --seed 1", ""):
        assert run(f"{command} {options}") == 0
        texts.append(capfd.readouterr().out)
    assert all(text.startswith("12") and len(text) == 33 for text in texts)
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert run(f"sample {model} --stop i") == 0
    assert capfd.readouterr().out.index("i\n") > 0


def test_a_byte_order_mark_and_line_ends_are_no_part_of_the_text(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train {small} --steps 3 --quiet --out one") == 0
    Path("text.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    assert run("train {small} --steps 3 --quiet --out two") == 0
    assert_same_bits("one", "two")
    assert capfd.readouterr().err == ""


def test_info_prints_the_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    assert rnnfast.__version__ in capfd.readouterr().out


def test_bench_prints_a_row_for_each_shape_cell_and_pass(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    assert run("bench --shape 3,2,4,5 2,1,1,8 --cell lstm rnn") == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines() if line[:1].isdigit()]
    passes = [(row[0], row[1], "backward" in row) for row in rows]
    assert passes == [(s, c, b) for s in ("3,2,4,5", "2,1,1,8") for c in ("lstm", "rnn") for b in (False, True)]


@pytest.mark.parametrize("peer", bench.PEERS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_bench_compares_like_with_like(cell: str, peer: str) -> None:
    packages, make = bench.PEERS[peer]
    for package in packages:
        pytest.importorskip(package, reason=f'{package} is not installed (pip install ".[bench]")')
    layer = bench.LAYERS[cell](4, 5, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 4), np.float32)
    y, _ = layer(x)
    calls = make(layer, x, np.ones_like(y))
    theirs: Any = calls[bench.FORWARD]()
    assert np.allclose(np.reshape(theirs[0], y.shape), y, atol=1e-6)
    if bench.BACKWARD in calls:
        dx, _, grads = layer.backward(layer.forward(x)[2], np.ones_like(y))
        dtheirs: Any = calls[bench.BACKWARD]()
        for ours, d in zip((dx, *grads.values()), dtheirs, strict=True):
            assert np.allclose(d, ours, atol=1e-5)


# A run that is stopped and resumed


def ctrl_c_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the signal of Ctrl-C in the middle of a step."""
    train = Training.step

    def interrupted(self: Training) -> float:
        if self.steps + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return train(self)

    monkeypatch.setattr(Training, "step", interrupted)


@pytest.mark.parametrize("dropout", ["", "--layers 2 --dropout 0.2"])
def test_ctrl_c_saves_a_run_that_ends_with_the_same_bits_when_resumed(
    dropout: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(f"train {{small}} {dropout} --epochs 3 --quiet --out straight") == 0
    handler = signal.getsignal(signal.SIGINT)
    ctrl_c_at(7, monkeypatch)
    assert run(f"train {{small}} {dropout} --epochs 3 --out stopped") == 130
    assert signal.getsignal(signal.SIGINT) is handler
    message = capfd.readouterr().err.splitlines()[-1]
    assert re.match(r"saved after 7 of \d+ steps; to go on: python -m rnnfast train --resume stopped$", message)
    assert Checkpoint.read(Path("stopped")).steps == 7
    monkeypatch.undo()
    monkeypatch.chdir(Path(handler_folder)) if (handler_folder := "") else None
    assert run("train --resume stopped --quiet") == 0
    assert_same_bits("stopped", "straight")
