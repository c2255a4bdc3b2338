"""Sound: an amplifier model, trained by truncated backpropagation
==================================================================

An LSTM learns to sound like an amplifier, and then processes audio in real time.

The amplifier is a synthetic one: a band-pass filter, a gain, an asymmetric tube-like clipping whose bias drops with the
loudness of the last 50 ms, and another filter. An LSTM reads plucked strings at 44,100 samples per second and learns
the amplifier's output by truncated backpropagation through time, in windows of 1,024 samples over sounds of 176,400
samples (Wright, Damskägg, Välimäki, "Real-Time Black-Box Modelling with Recurrent Neural Networks", DAFx 2019). It then
processes a new sound, sample by sample, as a stream: the error has 0.31% of the sound's energy, and a second of sound
takes a fifteenth of a second.
"""

# sphinx_gallery_thumbnail_path = "../examples/amplifier.png"

import argparse
import time
from collections.abc import Sequence

import numpy as np

import rnnfast as rf
from rnnfast.functional import Array
from rnnfast.training import Adam, CosineSchedule, clip_grad_norm

RATE, B, H, WINDOW = 44_100, 16, 32, 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="length of each sound (default: %(default)s)")
    parser.add_argument("--picture", help="file for a plot of 20 ms of the signals")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    sound = np.stack([plucked(options.seconds, rng) for _ in range(B)], axis=1)  # [T,B]
    target = amplifier(sound)
    lstm, readout = rf.LSTM(1, H, rng=rng), rf.Linear(H, 1, rng=rng)
    model = rf.Modules(lstm=lstm, readout=readout)
    adam, schedule = Adam(model), CosineSchedule(1e-2, options.steps, warmup=options.steps // 50)
    step = 0
    while step < options.steps:
        for window in rf.tbptt(lstm, sound[..., np.newaxis], k1=WINDOW, k2=WINDOW):
            if step == options.steps:
                break
            y, tape = readout.forward(window.y)
            y = y + sound[window.start : window.stop, :, np.newaxis]  # it learns what the amplifier adds
            loss, dy = error_to_signal(y[..., 0], target[window.start : window.stop])
            dh, readout_grads = readout.backward(tape, dy[..., np.newaxis])
            grads = model.join(lstm=window.backward(dh), readout=readout_grads)
            clip_grad_norm(grads, 1.0)
            adam.lr = schedule(step)
            adam.step(grads)
            if step % 200 == 0:
                print(f"step {step}: error-to-signal ratio {loss:.4f}")
            step += 1

    new = plucked(options.seconds, rng)
    wanted = amplifier(new[:, np.newaxis])[:, 0]
    stream, heard, out = lstm.stream(), new[:, np.newaxis, np.newaxis], np.empty((1, H), np.float32)
    start = time.perf_counter()
    played = np.empty_like(new)
    weight, bias = readout.weight[0], float(readout.bias[0])
    for t in range(len(new)):  # as the samples come
        played[t] = new[t] + stream.step(heard[t], out)[0] @ weight + bias
    seconds = time.perf_counter() - start
    if options.picture:
        draw(options.picture, new, wanted, played)
    print(f"one stream: {len(new) / seconds:,.0f} samples a second, {len(new) / seconds / RATE:.1f} times real time")
    print(f"error-to-signal ratio of a new sound: {error_to_signal(played, wanted)[0]:.2%}")


def error_to_signal(y: Array, target: Array) -> tuple[float, Array]:
    """Return the energy of the error divided by that of the target, and its gradient."""
    energy = float(np.sum(np.square(target), dtype=np.float64)) + 1e-3
    error = y - target
    return float(np.sum(np.square(error), dtype=np.float64)) / energy, 2 / energy * error


def plucked(seconds: float, rng: np.random.Generator) -> Array:
    """Return notes of decaying harmonics, [T]."""
    T = int(seconds * RATE)
    sound, t = np.zeros(T), np.arange(T) / RATE
    for start in np.cumsum(rng.uniform(0.1, 0.4, 40)):
        first, pitch = int(start * RATE), 82.4 * 2 ** (rng.integers(0, 30) / 12)
        if first >= T:
            break
        age = t[: T - first]
        for k in range(1, 8):
            sound[first:] += (
                rng.uniform(0.02, 0.3) / k * np.exp(-3 * k**0.5 * age) * np.sin(2 * np.pi * k * pitch * age)
            )
    return (0.8 / np.abs(sound).max() * sound).astype(np.float32)


def lowpass(x: Array, frequency: float) -> Array:
    """Return x [T,B] behind one pole, by the Fourier transform of its answer to an impulse."""
    pole, T = np.exp(-2 * np.pi * frequency / RATE), len(x)
    response = (1 - pole) * pole ** np.arange(T)
    spectrum = np.fft.rfft(x, 2 * T, axis=0) * np.fft.rfft(response, 2 * T)[:, np.newaxis]
    return np.fft.irfft(spectrum, axis=0)[:T]


def amplifier(x: Array) -> Array:
    middle = x - lowpass(x, 100)
    sag = lowpass(np.abs(middle), 3)
    driven = 6 * middle + 0.3 - 2 * sag
    clipped = np.where(driven > 0, np.tanh(driven), 0.7 * np.tanh(driven / 0.7))
    return (0.5 * lowpass(clipped - lowpass(clipped, 20), 5000)).astype(np.float32)


def draw(file: str, x: Array, wanted: Array, played: Array) -> None:
    import matplotlib.pyplot as plt

    loud = int(np.argmax(np.abs(wanted[: len(x) - 1000])))
    here = slice(max(loud - 200, 0), max(loud - 200, 0) + RATE // 50)
    t = 1000 * np.arange(here.stop - here.start) / RATE
    figure, axis = plt.subplots(figsize=(8, 3))
    for signal, label, style in ((x, "in", "0.7"), (wanted, "amplifier", "C0"), (played, "LSTM", "C1--")):
        axis.plot(t, signal[here], style, label=label, lw=1.2)
    axis.set_xlabel("ms")
    axis.legend(loc="upper right", frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
