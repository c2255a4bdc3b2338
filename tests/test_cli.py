"""The command line: what it prints, what it writes, and what it says to those who ask for the impossible."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import rnnfast
from rnnfast import bench, gradflow, lm
from rnnfast.__main__ import main
from rnnfast._base import files, tensors
from rnnfast.lm import Checkpoint, Training
from rnnfast.lm_options import LAYERS

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(60))
SMALL = "--hidden 8 --embed 4 --batch 2 --seq-len 20 --text text.txt"
ENV = {**os.environ, "PYTHONPATH": str(Path(rnnfast.__file__).parents[1])}  # of a child in another folder
HELD_OUT = re.compile(r"held-out: \d+\.\d{3} bits per character")


def run(arguments: str) -> int:
    """Run a command, {small} standing for a text and small sizes, and return its exit status."""
    try:
        status: object = main(arguments.replace("{small}", SMALL).split())
    except SystemExit as end:
        status = end.code
    assert isinstance(status, int)
    return status


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
    for shown in ("100%", "0:00", "tokens/s", "loss ", "bits/char"):
        assert shown in err
    assert run("sample charlm.safetensors") == 0
    assert len(capfd.readouterr().out) == 501


def test_train_without_a_text_takes_pythons_own(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train --hidden 4 --embed 4 --steps 2 --quiet --out model") == 0
    out, err = capfd.readouterr()
    assert HELD_OUT.fullmatch(out.rstrip())
    assert err == ""
    assert len(Checkpoint.read(Path("model")).vocabulary) > 90


@pytest.mark.parametrize("cell", LAYERS)
def test_train_takes_each_cell(cell: str, capfd: pytest.CaptureFixture[str]) -> None:
    rates = "--dropout 0.1 --weight-dropout 0.1 --recurrent-dropout 0.1 --zoneout 0.1 --lr 0.01"
    rates += " --candidate-dropout 0.1" if cell != "rnn" else ""
    assert run(f"train {{small}} --cell {cell} --layers 2 {rates} --epochs 2 --clip 5 --seed 3") == 0
    checkpoint = Checkpoint.read(Path("charlm.safetensors"))
    assert checkpoint.options.cell == cell
    assert checkpoint.steps == 2 * Training(TEXT, checkpoint.options).steps_per_epoch
    assert HELD_OUT.match(capfd.readouterr().out)


def test_train_takes_the_rates_of_h_and_of_c() -> None:
    assert run("train {small} --steps 2 --quiet --zoneout 0.1,0.5") == 0
    assert Checkpoint.read(Path("charlm.safetensors")).options.zoneout == (0.1, 0.5)
    assert run("train --resume charlm.safetensors --steps 4 --zoneout 0.1,0.25 --quiet") == 0
    assert Checkpoint.read(Path("charlm.safetensors")).options.zoneout == (0.1, 0.25)


def test_train_prunes(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train {small} --hidden 32 --steps 20 --quiet --density 0.25") == 0
    checkpoint = Checkpoint.read(Path("charlm.safetensors"))
    assert checkpoint.options.density == 0.25
    assert np.mean(checkpoint.tensors["model.rnn.weight_ih_l0"] != 0) < 0.3
    assert run("train --resume charlm.safetensors --steps 30 --quiet") == 0
    assert np.mean(Checkpoint.read(Path("charlm.safetensors")).tensors["model.rnn.weight_ih_l0"] != 0) < 0.3
    assert run("quantize charlm.safetensors --to int8") == 0
    assert run("sample charlm.int8.safetensors --length 5") == 0
    capfd.readouterr()


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
    text = capfd.readouterr().out
    assert text.index("i") == len(text) - len("i\n")


@pytest.mark.parametrize("form", ["bfloat16", "int8"])
def test_a_quantised_model_can_be_sampled(form: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    size, before = model.stat().st_size, model.read_bytes()
    assert run(f"quantize {model} --to {form}") == 0
    out = Path(f"charlm.{form}.safetensors")
    assert capfd.readouterr().out == f"saved {out}; to sample: python -m rnnfast sample {out}\n"
    assert out.stat().st_size < size / 2
    assert Checkpoint.read(out).format == form
    assert run(f"sample {out} --prompt 12 --length 30 --seed 1") == 0
    assert len(capfd.readouterr().out) == 33
    assert run(f"quantize {model} --to {form} -o other") == 0
    assert run(f"quantize {model} --to {form} --out other --force") == 0
    assert Path("other").read_bytes() == out.read_bytes()
    assert model.read_bytes() == before


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


def test_gradflow_prints_the_norm_of_each_gradient_by_distance(capfd: pytest.CaptureFixture[str]) -> None:
    tables = []
    for options in ("", "--seed 0 --horizon 100 --hidden 128", "--seed 1 --horizon 30 --hidden 4", "--horizon 1"):
        assert run(f"gradflow {options}") == 0
        head, *rows = capfd.readouterr().out.partition("\n\n")[2].splitlines()
        assert head.startswith("steps back ")
        tables.append((list(map(int, head[26:].split())), {row[:26].strip(): row[26:].split() for row in rows}))
    assert tables[0] == tables[1]
    assert [distances for distances, _ in tables[1:]] == [[1, 2, 5, 10, 20, 50, 100], [1, 2, 5, 10, 20, 30], [1]]
    distances, columns = tables[0]
    norms = {name: [float(column) for column in row] for name, row in columns.items()}
    assert all(len(row) == len(distances) for row in norms.values())
    assert min(norms, key=lambda name: norms[name][-1]) == "rnn tanh, random start"
    for name, row in norms.items():
        assert row == sorted(row, reverse=True), name
        assert (row[-1] > -1.5) == (name == "rnn relu, identity start")
        assert (row[-1] > -12) == ("identity" in name or "forget bias" in name)


def test_gradflow_starts_at_a_norm_of_one() -> None:
    for name, curve in gradflow.curves(horizon=3, hidden=5, seed=2).items():
        assert len(curve) == 4
        assert (abs(curve[0]) < 1e-12) != name.endswith(": c")


def test_gradflow_draws_a_curve_for_each_row(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[plot]")')
    for file, starts in (("flow.png", b"\x89PNG"), ("flow.pdf", b"%PDF"), ("flow", b"\x89PNG")):
        assert run(f"gradflow --horizon 5 --hidden 4 --plot {file}") == 0
        assert Path(file).read_bytes().startswith(starts)
    capfd.readouterr()
    assert run("gradflow --horizon 5 --hidden 4 --plot flow.svg") == 0
    out, err = capfd.readouterr()
    assert err == ""
    svg = Path("flow.svg").read_text(encoding="utf-8")
    *rows, nothing, last = out.partition("\n\n")[2].splitlines()[1:]
    assert nothing == ""
    assert last == "drawn to flow.svg"
    assert len(rows) == 7
    assert all(f"<!-- {row[:26].strip()} -->" in svg for row in rows)
    assert "10^{0}" in svg  # the axis is logarithmic


def test_gradflow_says_what_a_picture_needs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run("gradflow --plot flow.png") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert '--plot needs matplotlib: pip install "rnnfast[plot]"' in err
    assert run("gradflow --horizon 2 --hidden 2") == 0


@pytest.mark.parametrize("peer", bench.PEERS)
@pytest.mark.parametrize("cell", LAYERS)
def test_bench_compares_like_with_like(cell: str, peer: str) -> None:
    packages, make = bench.PEERS[peer]
    for package in packages:
        pytest.importorskip(package, reason=f'{package} is not installed (pip install ".[bench]")')
    layer = LAYERS[cell](4, 5, rng=0)
    x = np.random.default_rng(0).standard_normal((3, 2, 4), np.float32)
    y, _ = layer(x)
    calls = make(layer, x, np.ones_like(y))
    theirs: Any = calls[bench.FORWARD]()
    assert np.allclose(np.asarray(theirs[0]).reshape(y.shape), y, atol=1e-6)
    if bench.BACKWARD in calls:
        dx, _, grads = layer.backward(layer.forward(x)[2], np.ones_like(y))
        dtheirs: Any = calls[bench.BACKWARD]()
        for ours, d in zip((dx, *grads.values()), dtheirs, strict=True):
            assert np.allclose(d, ours, atol=1e-5)


# A run that is stopped and resumed


@contextmanager
def signalled(name: str, *, at: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Send a signal, by default that of Ctrl-C, when a method of Training is called for the at-th time."""
    method = getattr(Training, name)
    calls = 0

    def interrupted(training: Training, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(number)
        return method(training, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, name, interrupted)
        yield


def failing(path: object, data: bytes) -> None:  # noqa: ARG001
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
by_signal = pytest.mark.parametrize("number", SIGNALS)
posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")


@pytest.fixture(autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Handle signals as Python does by default; under nohup, tests and their children would inherit ignored ones."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@by_signal
@pytest.mark.parametrize("dropout", ["", "--layers 2 --dropout 0.2 --weight-dropout 0.2 --density 0.3"])
def test_a_signal_saves_a_run_that_resumed_ends_with_the_same_bits(
    dropout: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(f"train {{small}} {dropout} --epochs 3 --quiet --out straight") == 0
    handler = signal.getsignal(number)
    with signalled("step", at=7, number=number):
        assert run(f"train {{small}} {dropout} --epochs 3 --out stopped") == 128 + number
    assert signal.getsignal(number) is handler
    message = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"saved after 7 of \d+ steps; to go on: python -m rnnfast train --resume stopped", message)
    assert Checkpoint.read(Path("stopped")).steps == 7
    assert run("train --resume stopped --quiet") == 0
    assert_same_bits("stopped", "straight")


@by_signal
@pytest.mark.parametrize("times", [2, 3])
def test_a_second_signal_ends_the_run_at_once(number: int, times: int, capfd: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        for _ in range(times):
            stack.enter_context(signalled("step", at=4, number=number))
        assert run("train {small} --quiet") == 128 + number
    assert capfd.readouterr().err == "stopped within step 4 without saving\n"
    assert not Path("charlm.safetensors").exists()


@by_signal
def test_signals_while_it_saves_change_nothing(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("train {small} --steps 4 --quiet --out straight") == 0
    capfd.readouterr()
    with ExitStack() as stack:
        stack.enter_context(signalled("step", at=4, number=number))
        for _ in range(3):
            stack.enter_context(signalled("save", at=1, number=number))
        assert run("train {small} --quiet --steps 9") == 128 + number
    assert capfd.readouterr().err.startswith("saved after 4 of 9 steps; to go on: ")
    assert_same_bits("charlm.safetensors", "straight")


@by_signal
def test_a_signal_leaves_the_evaluation_and_saves(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    with signalled("held_out_bits", at=1, number=number):
        assert run("train {small} --quiet --steps 4") == 128 + number
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "saved; to sample: python -m rnnfast sample charlm.safetensors\n"
    assert Checkpoint.read(Path("charlm.safetensors")).steps == 4


@by_signal
def test_a_signal_that_is_ignored_stays_so(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)  # as a script's job in the background has SIGINT
    try:
        with signalled("step", at=2, number=number):
            assert run("train {small} --quiet --steps 4") == 0
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_run_may_have_a_thread_of_its_own() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, "train {small} --quiet --steps 4").result() == 0
        assert pool.submit(run, "sample charlm.safetensors").result() == 0


@posix
def test_a_third_ctrl_c_shows_no_traceback(folder: Path) -> None:
    arguments = SMALL.replace("text.txt", str(folder / "text.txt"))
    command = [sys.executable, "-m", "rnnfast", "train", *arguments.split(), "--steps", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV) as process:
        assert process.stderr is not None
        shown = process.stderr.read(10)  # of the bar
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        shown += process.stderr.read()
    assert process.returncode in (130, -signal.SIGINT)  # the latter if one comes while Python ends
    assert b"Traceback" not in shown
    assert b"Exception" not in shown
    assert b"saved after" in shown or b"without saving" in shown
    for path in folder.glob("*.safetensors"):
        Checkpoint.read(path)  # is whole


# A disk that is full


def test_the_result_is_printed_before_it_is_saved(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = model.read_bytes()
    monkeypatch.setattr(tensors, "write", failing)
    assert run("train {small} --steps 6 --quiet --force") == 2
    out, err = capfd.readouterr()
    assert HELD_OUT.fullmatch(out.rstrip())
    assert "train: charlm.safetensors: No space left on device (help: python -m rnnfast train --help)" in err
    assert model.read_bytes() == old


LIMITED = """
import resource, sys
from rnnfast.__main__ import main

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
sys.exit(main())
"""


@posix
def test_a_run_that_may_write_no_more_says_so(model: Path, folder: Path) -> None:
    old = model.read_bytes()
    command = [sys.executable, "-c", LIMITED, "train", *SMALL.split(), "--steps", "6", "--quiet", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, check=False)
    assert HELD_OUT.fullmatch(done.stdout.rstrip())
    assert re.fullmatch(r"python -m rnnfast train: charlm\.safetensors: File too large .*\n", done.stderr)
    assert done.returncode == 2
    assert model.read_bytes() == old
    assert {path.name for path in folder.iterdir()} == {"text.txt", model.name}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", ["info", "sample {model}", "train {small} --steps 6 --quiet --force", "gradflow"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_standard_output_that_takes_no_more_is_named(command: str, unbuffered: str, model: Path) -> None:
    name, *arguments = command.format(model=model, small=SMALL).split()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rnnfast", name, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENV, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    expected = f"python -m rnnfast {name}: standard output: No space left on device"
    assert done.stderr == f"{expected} (help: python -m rnnfast {name} --help)\n"
    assert done.returncode == 2
    assert Checkpoint.read(model).steps == (6 if name == "train" else 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_bar_that_cannot_be_drawn_loses_no_run(model: Path) -> None:
    command = [sys.executable, "-m", "rnnfast", "train", *SMALL.split(), "--steps", "6", "--force"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, env=ENV, check=False)
    assert HELD_OUT.match(done.stdout)
    assert Checkpoint.read(model).steps == 6


# What is saved on the way, and what is not overwritten


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (9, [6])])
def test_a_run_is_saved_every_so_many_steps(every: int, saved: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    save = Training.save

    def noted(training: Training, path: Path) -> None:
        steps.append(training.steps)
        save(training, path)

    monkeypatch.setattr(Training, "save", noted)
    assert run(f"train {{small}} --steps 6 --quiet --save-every {every}") == 0
    assert steps == saved


def test_what_was_saved_on_the_way_can_be_resumed() -> None:
    assert run("train {small} --steps 9 --quiet --out straight") == 0
    with signalled("step", at=6), signalled("step", at=6):
        assert run("train {small} --steps 9 --quiet --save-every 2 --out stopped") == 130
    assert Checkpoint.read(Path("stopped")).steps == 4
    assert run("train --resume stopped --quiet") == 0
    assert_same_bits("stopped", "straight")


def test_a_save_on_the_way_that_fails_leaves_the_older_file_and_the_run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def third_fails(path: Path, data: bytes) -> None:
        found.append(Checkpoint.read(path).steps if path.exists() else 0)
        (failing if len(found) == 3 else files.write)(path, data)

    monkeypatch.setattr(tensors, "write", third_fails)
    assert run("train {small} --steps 9 --quiet --save-every 2") == 0
    assert found == [0, 2, 4, 4, 8]
    assert capfd.readouterr().err == "step 6 was not saved: charlm.safetensors: No space left on device\n"
    assert Checkpoint.read(Path("charlm.safetensors")).steps == 9


def test_a_model_is_overwritten_by_force_alone(model: Path) -> None:
    old = model.read_bytes()
    assert run("train {small} --steps 6 --quiet") == 2
    assert model.read_bytes() == old
    assert run("train {small} --steps 6 --quiet --force") == 0
    assert Checkpoint.read(model).steps == 6


@posix
def test_the_resumed_file_may_have_another_name(model: Path) -> None:
    link = Path("link")
    link.symlink_to(model)
    assert run(f"train --resume {model} --steps 6 --quiet --out link") == 0
    assert run("train --resume link --steps 7 --quiet") == 0
    assert link.is_symlink()
    assert Checkpoint.read(model).steps == 7


def test_a_run_is_resumed_in_any_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run(f"train --resume ../{model} --steps 6 --quiet") == 0
    assert Checkpoint.read(Path("..", model)).steps == 6


def test_a_finished_run_goes_on_to_a_larger_total(model: Path) -> None:
    assert run(f"train --resume {model} --steps 9 --quiet --out longer") == 0
    assert run("train {small} --steps 9 --quiet --out straight") == 0
    assert_same_bits("longer", "straight")
    assert Checkpoint.read(model).steps == 5


def test_a_resumed_run_may_have_another_rate_and_keeps_the_rest(model: Path) -> None:
    before = Checkpoint.read(model).options
    Path("text.txt").rename("moved.txt")
    assert run(f"train --resume {model} --steps 9 --quiet --lr 0.5 --clip 2 --text moved.txt --hidden 8") == 0
    text = str(Path("moved.txt").absolute())
    assert Checkpoint.read(model).options == replace(before, steps=9, lr=0.5, clip=2.0, text=text)


# Options of all commands


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capfd.readouterr().out == f"rnnfast {rnnfast.__version__}\n"


@pytest.mark.parametrize(
    ("called", "name"), [("/bin/rnnfast", "rnnfast"), (r"rnnfast.exe", "rnnfast"), ("__main__.py", "python -m rnnfast")]
)
def test_messages_name_the_program_as_it_was_called(called: str, name: str) -> None:
    code = f"import sys; sys.argv = [{called!r}, 'brew']; from rnnfast.__main__ import program; program()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: argument COMMAND: invalid choice")
    assert done.stderr.endswith(f"(help: {name} --help)\n")


def test_a_command_has_the_threads_that_it_is_given(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    readout, run_bench = rnnfast.Linear.__call__, bench._print_rows

    def noted(*arguments: Any) -> Any:
        seen.append(rnnfast.get_num_threads())
        return readout(*arguments)

    def noted_bench(*arguments: Any) -> None:
        seen.append(rnnfast.get_num_threads())
        run_bench(*arguments)

    monkeypatch.setattr(rnnfast.Linear, "__call__", noted)
    monkeypatch.setattr(bench, "_print_rows", noted_bench)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    rnnfast.set_num_threads(4)
    for command, expected in {
        f"sample {model} --length 2": 4,
        f"sample {model} --length 2 --threads 3": 3,
        f"train {{small}} --steps 2 --quiet --force --out {model} --threads 2": 2,
        "bench --shape 2,1,1,8 --cell rnn": 1,
        "bench --shape 2,1,1,8 --cell rnn --threads 3": 3,
    }.items():
        seen.clear()
        assert run(command) == 0
        assert set(seen) == {expected}
        assert rnnfast.get_num_threads() == 4


@pytest.mark.parametrize("text", [TEXT.encode(), b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()])
def test_a_text_comes_from_standard_input(
    text: bytes, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def given() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    command = "train {small} --quiet --out piped".replace("{small}", SMALL.replace("text.txt", "-"))
    given()
    assert run(f"{command} --steps 3") == 0
    assert run("train --resume piped --steps 5") == 2
    assert "the run of piped read its text from standard input; pass the text with --text" in capfd.readouterr().err
    given()
    assert run("train --resume piped --steps 5 --quiet --text -") == 0
    assert_same_bits("piped", str(model))


@pytest.mark.parametrize("stdin", [None, io.TextIOWrapper(io.BytesIO(b"ol\xe9"))])
def test_a_standard_input_that_is_no_text_is_named(
    stdin: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("train --text -") == 2
    message = "--text -: standard input is closed" if stdin is None else "--text -: not UTF-8 at byte 2"
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("variable", ["RNNFAST_ISA", "RNNFAST_NUM_THREADS"])
def test_a_bad_value_in_the_environment_is_one_line(variable: str) -> None:
    command, env = [sys.executable, "-m", "rnnfast", "info"], {**ENV, variable: "many"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert re.fullmatch(f".*{variable}: expected .*, got 'many'.*\n", done.stderr)


# What cannot be done: one line that says so, exit status 2, and nothing has been touched

TRAIN, SAMPLE, RESUME = "train {small} --steps 2", "sample model", "train --resume model --steps 9"
ERRORS = {
    "": "COMMAND .* --help",
    "fly": "invalid choice: 'fly' .* --help",
    "train --fly": "train: unrecognized arguments: --fly .* train --help",
    "--fly info more": "info: unrecognized arguments: --fly more .* info --help",
    "train --text none.txt": "--text none.txt: No such file or directory; it has to be a text file in UTF-8",
    "train --text folder": "--text folder: Is a directory",
    "train --text empty.txt": "the text has 0 characters, and at least 20 are needed; use a longer text",
    "train --text short.txt": "the text has 100 characters, and --batch 32 with --seq-len 64 needs 2312; use",
    "train --text latin.txt": "--text latin.txt: not UTF-8 at byte 2; convert it",
    "train --cell transformer": "--cell: invalid choice: 'transformer'",
    "train --hidden 0": "--hidden: expected an integer of at least 1, got '0'",
    "train --layers 1.5": "--layers: expected an integer of at least 1, got '1.5'",
    "train --batch -3": "--batch: expected an integer of at least 1, got '-3'",
    "train --embed many": "--embed: expected an integer of at least 1, got 'many'",
    "train --seq-len 0": "--seq-len: expected an integer of at least 1",
    "train --steps 0": "--steps: expected an integer of at least 1",
    "train --steps 5 --epochs 5": "--epochs: not allowed with argument --steps",
    "train --lr 0": "--lr: expected a number above 0, got '0'",
    "train --lr inf": "--lr: expected a number above 0, got 'inf'",
    "train --clip nan": "--clip: expected a number above 0, got 'nan'",
    "train --dropout 1 --layers 2": "--dropout: expected a number of at least 0 and less than 1, got '1'",
    "train --weight-dropout -1": "--weight-dropout: expected a number of at least 0 and less than 1, got '-1'",
    "train --recurrent-dropout 1": "--recurrent-dropout: expected a number of at least 0 and less than 1, got '1'",
    "train --candidate-dropout 1": "--candidate-dropout: expected a number of at least 0 and less than 1, got '1'",
    "train --cell rnn --candidate-dropout 0.5": "--candidate-dropout: expected 0 for rnn, whose layers have no such",
    "train --zoneout 0.1,1": "--zoneout: expected a number of at least 0 and less than 1, or two such, got '0.1,1'",
    "train --zoneout 0.1,0.1,0.1": "--zoneout: expected a number .*, or two such, got '0.1,0.1,0.1'",
    "train --zoneout 0.1,": "--zoneout: expected a number .*, or two such, got '0.1,'",
    "train --cell gru --zoneout 0.1,0.2": r"--zoneout: expected a probability, got \(0.1, 0.2\)",
    "train --density 0": "--density: expected a number above 0 and up to 1, got '0'",
    "train --density 1.5": "--density: expected a number above 0 and up to 1, got '1.5'",
    "train --density x": "--density: expected a number above 0 and up to 1, got 'x'",
    "train --dropout 0.5": "--dropout acts between layers: it needs --layers of at least 2",
    "train --precision half": "--precision: invalid choice: 'half'",
    "train --seed -1": "--seed: expected an integer of at least 0, got '-1'",
    "train {small} --hidden 900000000": "not enough memory; lower --hidden",
    "train {small} --lr 1e38 --cell rnn": "step [0-9]+ had a loss of (nan|inf), which is not saved; lower --lr",
    f"{TRAIN} --out folder": "--out folder: Is a directory; choose a place where a file can be written",
    f"{TRAIN} --out none/model": "--out none/model: No such file or directory; choose a place",
    f"{TRAIN} --out short.txt/model": "--out short.txt/model: Not a directory; choose a place",
    f"{TRAIN} --out {'x' * 300}": "File name too long",
    f"{TRAIN} --out text.txt": "--out text.txt: this file exists and is not a model",
    f"{TRAIN} --out /dev/null": "--out /dev/null: Not a regular file; choose a place",
    f"{TRAIN} --out model": "--out model: this file is an existing model; --force overwrites it, --resume model",
    f"{TRAIN} --out text.txt --force": "--out text.txt: this file exists and is not a model",
    f"{TRAIN} --save-every 0": "--save-every: expected an integer of at least 1, got '0'",
    f"{TRAIN} --threads 0": "--threads: expected an integer of at least 1, got '0'",
    f"{TRAIN} --threads 100000": "--threads: expected a number of threads from 1 to [0-9]+, got 100000",
    f"{TRAIN} --steps 1{'0' * 30}": "--steps: expected an integer of at least 1",
    f"{TRAIN} --batch 9000000000000000000": "the text has .* needs [0-9]+; use a longer text",
    f"{RESUME} --out other": "--out other: this file is an existing model; --force",
    "train --resume moved --steps 9": "the run of moved had its text in .*: No such file .*; pass the text with --text",
    "train --resume device --steps 9": "device had its text in /dev/zero: Not a regular file; pass the text",
    "train --resume nul --steps 9": "nul had its text in .*: embedded null byte; pass the text with --text",
    "train --resume wide --steps 9": "wide: not a model",
    "train --resume none": "none: No such file or directory",
    "train --resume short.txt": "short.txt: not a model that `python -m rnnfast train` has saved",
    "train --resume model": "model has already run 5 of 5 steps; set a larger total with --steps or --epochs",
    "train --resume model --epochs 1 --hidden 9": "model has --hidden 8; a resumed run cannot change it to 9",
    f"{RESUME} --density 0.2": "model has --density 1.0; a resumed run cannot change it to 0.2",
    f"{RESUME} --seq-len 64": "model has --seq-len 20; a resumed run cannot change it to 64",
    f"{RESUME} --text other.txt": "the text is not the one that the run of model was started with",
    "train --resume integers --steps 9": "integers has weights of int8, which cannot be trained any more",
    "quantize": "FILE, --to",
    "quantize model": "--to",
    "quantize model --to int4": "--to: invalid choice: 'int4'",
    "quantize none --to int8": "none: No such file or directory",
    "quantize text.txt --to int8": "text.txt: not a model",
    "quantize . --to int8": ".: Is a directory",
    "quantize model --to int8 --out model --force": "--out model: this is the original model, which could then",
    "quantize model --to int8 --out other": "--out other: this file is an existing model; --force overwrites it",
    "quantize model --to int8 -o text.txt --force": "--out text.txt: this file exists and is not a model",
    "quantize model --to int8 -o none/model": "--out none/model: No such file or directory; choose a place",
    "quantize integers --to bfloat16 -o new": "integers already has int8 weights; quantize the original model",
    "quantize infinite --to int8": "infinite: weight_hh_l0: expected finite numbers, got inf",
    "sample": "FILE",
    "sample wide": "wide: not a model",
    "sample deep": "deep: not a model",
    "sample none": "none: No such file or directory",
    "sample folder": "folder: Is a directory",
    "sample text.txt": "text.txt: not a model",
    f"{SAMPLE} --length 0": "--length: expected an integer of at least 1",
    f"{SAMPLE} --temperature -1": "--temperature: expected a number of at least 0, got '-1'",
    f"{SAMPLE} --temperature nan": "--temperature: expected a number of at least 0, got 'nan'",
    f"{SAMPLE} --prompt 1+1€": "characters that do not occur in the model's text: '\\+' '€'",
    "bench --shape 1,2,3": "--shape: expected four sizes T,B,I,H, got '1,2,3'",
    "bench --shape 1,2,3,x": "--shape: expected an integer of at least 1, got 'x'",
    "gradflow --horizon 0": "--horizon: expected an integer of at least 1, got '0'",
    "gradflow --hidden 900000000": "not enough memory; lower --hidden",
    "gradflow --horizon 1000000000000": "not enough memory; lower .* --horizon",
    "gradflow --hidden 2 --plot none/flow.png": "none/flow.png: No such file or directory",
    "gradflow --hidden 2 --plot folder": "folder: Is a directory",
    "gradflow --hidden 2 --plot flow.txt": "--plot flow.txt: Format 'txt' is not supported",
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.items(), ids=ERRORS)
def test_errors_are_one_line(
    arguments: str, message: str, model: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[plot]")')
    model.rename("model")
    for name, change in CHANGED.items():
        saved_as(Path(name), **change)
    safetensors.numpy.save_file({"a": np.zeros(1)}, "deep", {lm.FORMAT: "[" * 100_000})
    checkpoint = Checkpoint.read("model")
    checkpoint.quantize("int8").write("integers")
    checkpoint.tensors["model.rnn.weight_hh_l0"][0, 0] = np.inf
    checkpoint.write("infinite")
    Path("folder").mkdir()
    Path("empty.txt").touch()
    Path("short.txt").write_text("x" * 100, encoding="utf-8")
    Path("other.txt").write_text(TEXT.replace("times", "by"), encoding="utf-8")
    Path("latin.txt").write_bytes("olé".encode("latin-1") * 1000)
    before = contents(folder)
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    *bar, line = err.splitlines()
    assert out == ""
    assert all("tokens/s" in shown for shown in bar if shown)
    assert re.search(message, line)
    assert contents(folder) == before


# Copies of the model by name, with the options in which they differ from what their tensors say
CHANGED: dict[str, dict[str, Any]] = {
    "other": {},
    "moved": {"text": "/none/text.txt"},
    "device": {"text": "/dev/zero"},
    "nul": {"text": "a\0b"},
    "wide": {"layers": 2**31},
}


def saved_as(path: Path, **change: Any) -> None:
    """Save a copy of the model."""
    with safetensors.safe_open("model", "numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    description = json.loads(metadata[lm.FORMAT])
    description["options"] |= change
    safetensors.numpy.save_file(tensors, path, {lm.FORMAT: json.dumps(description)})


@pytest.mark.parametrize("shape", ["9,9,9,9000000000000000000", "9000000000000000,9,9,9"])
def test_a_shape_beyond_all_memory_is_one_line(shape: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(f"bench --shape {shape}") == 2
    assert "bench: not enough memory; lower" in capfd.readouterr().err


@posix
@pytest.mark.parametrize("command", ["sample fifo", "train --resume fifo", "train {small} --out fifo"])
def test_a_fifo_is_refused_at_once(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("fifo")
    assert run(command) == 2
    assert "fifo: Not a regular file" in capfd.readouterr().err


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_found_before_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir(mode=0o500)
    assert run(f"{TRAIN} --out folder/model") == 2
    assert "Permission denied" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_seen_enough_is_no_error(model: Path) -> None:
    command = [sys.executable, "-m", "rnnfast", "sample", str(model), "--length", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
