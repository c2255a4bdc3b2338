"""The examples run, here for a few steps, and print their results; the quickest are held to what they claim."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.name: path for path in (ROOT / "examples").glob("*.py")}
PERCENT = r"(\d+\.\d+)%"
# Of each script the options for few steps, the package that it or its data come from, and how its output ends
RUNS = {
    "adding.py": ("--steps 2", None, r"1: loss 0\.1667\nGRU: loss [\d.]+\nIRNN: loss [\d.]+\ntanh: loss [\d.]+\n"),
    "amplifier.py": (
        "--steps 2 --seconds 0.5",
        None,
        rf"one stream: [\d,]+ samples .*\nerror-to-signal .*: {PERCENT}\n",
    ),
    "digits.py": ("--steps 2", "sklearn", rf"test accuracy: {PERCENT}\n"),
    "distributed.py": ("--steps 2", "torch", r"1 x \d+ threads: .*\n([\d.]+) bits per character of unseen text\n"),
    "hopfield_digits.py": (
        "",
        "sklearn",
        rf"noisy +: +{PERCENT} .*\n(?:.*\n)+modern +: +{PERCENT} of the pixels wrong\n",
    ),
    "mackey_glass.py": ("--units 100", None, r"one step .*: ([\d.]+)\n84 steps .*: ([\d.]+)\n"),
    "naming.py": ("--steps 2", "sklearn", rf"named right: {PERCENT}\n"),
    "ocr.py": ("--steps 2", "sklearn", rf"strings read without a fault: {PERCENT}\n"),
    "ragged_digits.py": ("--epochs 1", "sklearn", rf"( +[1-8] +{PERCENT}  #*\n){{8}}"),
    "reversal.py": ("--steps 2", None, rf"greedy: {PERCENT} right, .*\nsampled: {PERCENT} right, .*\n"),
    "sunspots.py": ("--steps 2", "statsmodels", r"value +([\d.]+)\n.* mean +([\d.]+)\n.* GRU +([\d.]+)\n"),
    "voice.py": (
        "--steps 2 --sounds 8",
        None,
        rf"a frame of 16 ms .*\nframes with .*; told right: {PERCENT}\n",
    ),
    "words.py": ("--steps 2", None, r"by frequencies: (\d+)\n.*, plain: ([\d.]+)\n.*, weight drop: ([\d.]+)\n"),
}


def result(script: str, options: str) -> re.Match[str]:
    """Run a script and return what the end of its output matches."""
    _, package, ending = RUNS[script]
    if package:
        pytest.importorskip(package, reason=f'{package} is not installed (pip install ".[examples,torch]")')
    command = [sys.executable, str(SCRIPTS[script]), *options.split()]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the package that is tested
    run = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = re.search(f"{ending}$", run.stdout)
    assert found, run.stdout
    return found


def test_every_example_is_run_and_listed() -> None:
    assert SCRIPTS.keys() == RUNS.keys()
    listing = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+\.py)\)", listing)) == SCRIPTS.keys()


@pytest.mark.parametrize("script", RUNS)
def test_a_few_steps_come_to_a_result(script: str) -> None:
    result(script, RUNS[script][0])


def test_digits_are_recognized() -> None:
    assert float(result("digits.py", "")[1]) >= 97


def test_the_forecast_of_sunspots_is_better_than_guesses() -> None:
    last_value, seasonal_mean, gru = map(float, result("sunspots.py", "").groups())
    assert gru < min(last_value, seasonal_mean)


def test_an_echo_state_network_goes_on_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[examples]")')
    picture = tmp_path / "series.png"
    one_step, many = map(float, result("mackey_glass.py", f"--picture {picture}").groups())
    assert one_step < 0.001
    assert many < 0.02
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_hopfield_networks_repair_digits(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[examples]")')
    picture = tmp_path / "digits.png"
    noisy, modern = map(float, result("hopfield_digits.py", f"--picture {picture}").groups())
    assert noisy > 10
    assert modern < 1
    assert picture.read_bytes().startswith(b"\x89PNG")
