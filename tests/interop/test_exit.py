"""Programs that end while daemon threads compute through torch or ONNX end with their own status.

Not while they are inside torch's autograd, or while torch frees a tensor: those abort the process by themselves, as
torch asks for the GIL there in functions that must not be unwound.
"""

import importlib.util

import pytest
from scripts import ENDS, run_script

SETTINGS = {
    "torch": """
import torch
import rnnfast.torch

layer = rnnfast.torch.LSTM(64, 128)
x = torch.ones(2000, 16, 64)
kept = []

def call():
    with torch.no_grad():
        kept.append(layer(x))
""",
    "onnx": """
import numpy as np
import rnnfast
from rnnfast.onnx import prepare, to_onnx

model = prepare(to_onnx(rnnfast.LSTM(64, 128)))
x = np.ones((400, 16, 64), np.float32)

def call():
    model.run([x])
""",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_program_ends_with_its_own_status_while_daemon_threads_compute(setting: str) -> None:
    package = setting.split()[0]
    if not importlib.util.find_spec(package):
        pytest.skip(f'{package} is not installed (pip install ".[{package}]")')
    assert run_script(SETTINGS[setting] + ENDS, status=3) == "done\n"
