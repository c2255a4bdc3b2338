"""Forecasting: next year's number of sunspots
==============================================

A GRU reads the yearly numbers of sunspots since 1700 (from statsmodels) and predicts the next one at each step. The
years before 1900 are the training set. Those from 1900 to 1949 are the validation set and select the best weights.
Those from 1950 to 2008 are the test set, where the root mean square error is 16.7. Predicting last year's number gives
33.2. Predicting the mean of the numbers 11, 22, 33, ... years before gives 47.7; the sun's cycle takes about 11 years.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from statsmodels.datasets import sunspots

import rnnfast as rf
from rnnfast.functional import Array
from rnnfast.training import Adam, clip_grad_norm, squared_error

H, FIRST, CHOICE, TEST = 32, 1700, 1900, 1950


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)")
    options = parser.parse_args(argv)

    numbers = sunspots.load().data["SUNACTIVITY"].to_numpy()
    # The root of a count varies about as much at a cycle's maximum as at its minimum.
    series = (np.sqrt(numbers) / 5 - 1).astype(np.float32)[:, np.newaxis]
    x, target = series[:-1], series[1:]  # [T,1]: one sequence
    choice, test = CHOICE - FIRST - 1, TEST - FIRST - 1  # the steps that predict the years 1900 and 1950

    rng = np.random.default_rng(options.seed)
    gru, readout = rf.GRU(1, H, rng=rng), rf.Linear(H, 1, rng=rng)
    model = rf.Modules(gru=gru, readout=readout)
    adam = Adam(model, lr=5e-3)
    least, forecast = np.inf, np.zeros(len(x))
    for step in range(options.steps):
        y, _, tape = gru.forward(x)  # over all years at once: no step sees a later one
        predicted, readout_tape = readout.forward(y)
        here = 25 * np.maximum(predicted[:, 0] + 1, 0) ** 2
        error = rms(here[choice:test] - numbers[choice + 1 : test + 1])
        if error < least:
            least, forecast = error, here

        dpredicted = np.zeros_like(predicted)  # only the years before 1900 train
        loss, dpredicted[:choice] = squared_error(predicted[:choice], target[:choice])
        dy, readout_grads = readout.backward(readout_tape, dpredicted)
        _, _, gru_grads = gru.backward(tape, dy, need_dx=False)
        grads = model.join(gru=gru_grads, readout=readout_grads)
        clip_grad_norm(grads, 1.0)
        adam.step(grads)
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.4f}, error from {CHOICE} to {TEST - 1} {error:.1f}")

    years = range(test + 1, len(numbers))
    guesses = {
        "the last value": numbers[test:-1],
        "the seasonal mean": np.array([numbers[year - 11 :: -11].mean() for year in years]),
        "the GRU": forecast[test:],
    }
    print(f"root mean square error from {TEST} on:")
    for name, guess in guesses.items():
        print(f"  {name:18} {rms(guess - numbers[years]):5.1f}")


def rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))


if __name__ == "__main__":
    main()
