"""RecurrentPPO of sb3-contrib before and after `rnnfast.torch.accelerate`: frames per second of rollouts and training.

python -m benchmarks.recurrent_ppo [--environments N] [--steps T] [--units H] [--iterations N]

The task is CartPole without velocities, so that the policy has to remember. Both have one thread, the same seed, and
take turns by iteration: a rollout of N x T frames, then ten epochs of training on them.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import sb3_contrib
import torch
from stable_baselines3.common.env_util import make_vec_env

import rnnfast.torch
from benchmarks.machine import describe


class WithoutVelocities(gymnasium.ObservationWrapper):  # type: ignore[misc]
    """CartPole whose observations are the cart's place and the pole's angle."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        space = env.observation_space
        self.observation_space = gymnasium.spaces.Box(space.low[::2], space.high[::2], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[::2]


def learner(environments: int, steps: int, units: int, accelerate: bool, **options: Any) -> Any:
    """Return a RecurrentPPO that is ready for its first rollout."""
    env = make_vec_env(lambda: WithoutVelocities(gymnasium.make("CartPole-v1")), environments, seed=0)
    options = {"policy_kwargs": {"lstm_hidden_size": units}, **options}
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=steps, seed=0, device="cpu", **options)
    if accelerate:
        rnnfast.torch.accelerate(model.policy)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--environments", type=int, default=8)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, sb3-contrib {sb3_contrib.__version__}, {machine['date']}\n")

    frames = options.environments * options.steps
    models, callbacks = [], []
    for accelerate in (False, True):
        models.append(learner(options.environments, options.steps, options.units, accelerate))
        _, callback = models[-1]._setup_learn(frames * (options.iterations + 1))
        callbacks.append(callback)
    times: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
    for _ in range(options.iterations):
        for model, callback, (rollouts, trainings) in zip(models, callbacks, times, strict=True):
            start = time.perf_counter()
            model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=options.steps)
            between = time.perf_counter()
            model.train()
            rollouts.append(between - start)
            trainings.append(time.perf_counter() - between)
    print(f"{options.environments} environments, {options.steps} steps, {options.units} units\n")
    print("| frames per second | before | after | times as fast |")
    print("|---|--:|--:|--:|")
    for k, phase in enumerate(("rollout", "training")):
        before, after = (frames / statistics.median(seconds[k]) for seconds in times)
        print(f"| {phase} | {before:.0f} | {after:.0f} | {after / before:.2f} |")
    before, after = (frames / (statistics.median(both[0]) + statistics.median(both[1])) for both in times)
    print(f"| both | {before:.0f} | {after:.0f} | {after / before:.2f} |")


if __name__ == "__main__":
    main()
