"""The adding problem, with nothing but NumPy and rnnfast: a test of how far back a network remembers.

Each step of a sequence brings a number and a mark, and two numbers of the sequence are marked. Their sum is asked for
after the last step (Hochreiter, Schmidhuber, "Long Short-Term Memory", 1997). Who answers 1 has an error of 1/6; the
loss is below 0.01 after about a thousand steps.
"""

import numpy as np

import rnnfast as rf
from rnnfast.training import Adam, clip_grad_norm, squared_error

T, B, H = 50, 64, 64
rng = np.random.default_rng(0)
lstm, readout = rf.LSTM(2, H, seed=1), rf.Linear(H, 1, seed=2)
adam = Adam({**lstm.state_dict(), **readout.state_dict()}, lr=5e-3)

for step in range(1501):
    numbers, marks = rng.random((T, B), np.float32), np.zeros((T, B), np.float32)
    marks[rng.integers(0, T // 2, B), np.arange(B)] = 1
    marks[rng.integers(T // 2, T, B), np.arange(B)] = 1
    x = np.stack([numbers, marks], axis=-1)  # [T,B,2]
    target = (numbers * marks).sum(axis=0)[:, np.newaxis]  # [B,1]

    _, (h, c), tape = lstm.forward(x)
    answer, readout_tape = readout.forward(h[-1])
    loss, danswer = squared_error(answer, target)
    dh, readout_grads = readout.backward(readout_tape, danswer)
    _, _, lstm_grads = lstm.backward(tape, dstate=(dh[np.newaxis], None), need_dx=False)
    grads = {**lstm_grads, **readout_grads}
    clip_grad_norm(grads, 1.0)
    adam.step(grads)
    if step % 100 == 0:
        print(f"step {step}: loss {loss:.4f}")
