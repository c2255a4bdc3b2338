"""Voice activity: is somebody speaking?
========================================

The network answers every 16 ms, from a stream of samples.

Its structure is that of silero-vad: a short-time Fourier transform, a convolution over its frames, an LSTM and a
sigmoid. It learns from synthetic signals: phrases of gliding harmonics and of hiss, with many kinds of noise that are
up to three times as loud. Then an `LSTMCell` processes a minute of new sound frame by frame, and classifies 99.0% of
the frames correctly.
"""

# sphinx_gallery_thumbnail_path = "../examples/voice.png"

import argparse
import time
from collections.abc import Sequence

import numpy as np

import rnnfast as rf
from rnnfast.functional import Array, sigmoid
from rnnfast.training import AdamW, CosineSchedule, binary_cross_entropy, clip_grad_norm

RATE, HOP, WINDOW, BANDS, KERNEL = 16_000, 256, 512, 24, 3
B, CHANNELS, H = 32, 32, 32
TAPER = np.hanning(WINDOW + 1)[:-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    parser.add_argument("--sounds", type=int, default=256, help="number of training sounds (default: %(default)s)")
    parser.add_argument("--picture", help="file for a plot of a signal and the prediction")
    options = parser.parse_args(argv)

    rng = np.random.default_rng(options.seed)
    convolution = rf.Linear(KERNEL * BANDS, CHANNELS, rng=rng)
    lstm, readout = rf.LSTM(CHANNELS, H, rng=rng), rf.Linear(H, 1, rng=rng)
    model = rf.Modules(convolution=convolution, lstm=lstm, readout=readout)
    optimizer, schedule = AdamW(model), CosineSchedule(5e-3, options.steps, warmup=options.steps // 20)
    sounds, voiced = zip(*(recording(4, rng) for _ in range(options.sounds)), strict=True)
    x, speech = stacked(np.stack([bands(sound) for sound in sounds], axis=1)), np.stack(voiced, axis=1)
    for step in range(options.steps):
        batch = rng.permutation(options.sounds)[:B]
        target = speech[:, batch, np.newaxis]
        z, convolution_tape = convolution.forward(x[:, batch])
        y, _, tape = lstm.forward(np.maximum(z, 0))
        logits, readout_tape = readout.forward(y)
        loss, dlogits = binary_cross_entropy(logits, target)

        dy, readout_grads = readout.backward(readout_tape, dlogits)
        dx, _, lstm_grads = lstm.backward(tape, dy)
        _, convolution_grads = convolution.backward(convolution_tape, dx * (z > 0), need_dx=False)
        grads = model.join(convolution=convolution_grads, lstm=lstm_grads, readout=readout_grads)
        clip_grad_norm(grads, 1.0)
        optimizer.lr = schedule(step)
        optimizer.step(grads)
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.4f}")

    sound, spoken = recording(60, rng)
    cell = rf.LSTMCell(CHANNELS, H)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in lstm.state_dict().items()})
    frames, state = np.zeros((KERNEL, BANDS), np.float32), None
    told = []
    start = time.perf_counter()
    for end in range(WINDOW, len(sound) + 1, HOP):  # as the samples come
        frames = np.concatenate([frames[1:], bands(sound[end - WINDOW : end])])
        state = cell(np.maximum(convolution(frames.reshape(1, -1)), 0), state)
        told.append(sigmoid(readout(state[0]))[0, 0])
    seconds = time.perf_counter() - start
    probability = np.array(told)
    if options.picture:
        draw(options.picture, sound, spoken, probability)
    print(f"a frame of {1000 * HOP / RATE:.0f} ms takes {1e6 * seconds / len(told):.0f} microseconds")
    print(f"frames with speech: {np.mean(spoken):.1%}; told right: {np.mean((probability > 0.5) == spoken):.1%}")


def recording(seconds: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return a signal [N] and whether each of its frames has speech."""
    n = int(seconds * RATE)
    sound, voiced, t = np.zeros(n), np.zeros(n), np.arange(n) / RATE
    start = rng.uniform(0, 1.5)
    while start < seconds:
        pitch, length = rng.uniform(80, 280), rng.uniform(0.6, 2)  # of a phrase
        end = min(start + length, seconds)
        here = slice(int(start * RATE), int(end * RATE))
        age = t[here] - start
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.3, 2) * age))) / RATE
        syllables = np.clip(0.55 + 0.6 * np.sin(2 * np.pi * rng.uniform(3, 6) * age + rng.uniform(0, 6)), 0, 1)
        formants = rng.uniform((300, 900), (800, 2500))
        for k in range(1, 25):
            gain = sum(np.exp(-(((k * pitch - f) / 250) ** 2)) for f in formants) + 0.05
            sound[here] += gain / k**0.5 * syllables * np.sin(k * phase)
        hiss = np.diff(rng.standard_normal(len(age) + 1)) * (syllables < 0.1)
        sound[here] += 0.3 * hiss
        voiced[here] = 1
        start = end + rng.uniform(0.4, 2)
    level = np.sqrt(np.mean(sound[voiced > 0] ** 2)) if voiced.any() else 1.0
    spectrum = np.fft.rfft(rng.standard_normal(n)) / (1 + np.arange(n // 2 + 1)) ** rng.uniform(0, 1)
    noise = np.fft.irfft(spectrum, n)
    noise *= np.exp(0.5 * np.interp(t, np.arange(0, seconds + 1), rng.standard_normal(int(seconds) + 1)))
    sound = sound / level + rng.uniform(0.1, 3) * noise / np.sqrt(np.mean(noise**2))
    frames = (n - WINDOW) // HOP + 1
    centers = HOP * np.arange(frames) + WINDOW - HOP // 2
    return (rng.uniform(0.02, 0.3) * sound).astype(np.float32), voiced[centers] > 0


def bands(sound: Array) -> Array:
    """Return the logarithms of the energies of frames in bands, [T,BANDS]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP] * TAPER
    energy = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(2, WINDOW // 2, BANDS + 8).astype(int))[: BANDS + 1]
    sums = np.add.reduceat(energy, edges[:-1], axis=-1)
    return (0.2 * np.log(sums + 1e-6)).astype(np.float32)


def stacked(x: Array) -> Array:
    """Return each frame with those before it, the operand of a convolution, [T,B,KERNEL·BANDS]."""
    padded = np.concatenate([np.zeros((KERNEL - 1, *x.shape[1:]), x.dtype), x])
    return np.concatenate([padded[k : k + len(x)] for k in range(KERNEL)], axis=-1)


def draw(file: str, sound: Array, voiced: Array, probability: Array) -> None:
    import matplotlib.pyplot as plt

    frames = 12 * RATE // HOP
    t = np.arange(frames) * HOP / RATE
    figure, axis = plt.subplots(figsize=(8, 2.6))
    axis.plot(np.arange(12 * RATE) / RATE, 0.5 + sound[: 12 * RATE] / np.abs(sound).max() / 2, "0.8", lw=0.3)
    axis.fill_between(t, voiced[:frames], color="C0", alpha=0.2, lw=0, label="speech")
    axis.plot(t, probability[:frames], "C1", label="told")
    axis.set(xlabel="s", xlim=(0, 12), ylim=(0, 1.02))
    axis.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
