"""The program: all kinds of calls, each as often as it stands here."""

import argparse
import traceback
import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np

import rnnfast
from fuzz import bare, c_calls, layers, networks, training
from fuzz.attempts import Attempt, Rng, check, choose
from fuzz.forms import spoil

TARGETS: tuple[Callable[[Rng], Attempt], ...] = (
    *[bare.bare_forward, bare.bare_backward, layers.whole_layer] * 4,
    *[layers.quantized_layer, bare.bare_formats] * 2,
    *[
        bare.tokens,
        layers.streaming,
        layers.one_cell,
        layers.readout,
        bare.activation,
        bare.structure,
        bare.unequal_rows,
        c_calls.c_interface,
        layers.steps_to_come,
        bare.wavefront,
    ]
    * 2,
    bare.rounded,
    training.adam_step,
    training.ctc,
    layers.state_dict,
    training.pruning,
    layers.constructor,
    networks.associative_memory,
    networks.modern_memory,
    networks.echo_states,
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/fuzz", description="Make hostile calls and check what comes of them."
    )
    parser.add_argument("--calls", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first call (default: 0)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    ends: Counter[tuple[str, str]] = Counter()
    for k in range(arguments.first, arguments.first + arguments.calls):
        rng = np.random.default_rng([arguments.seed, k])
        rnnfast.set_num_threads(int(rng.integers(1, 4)))
        attempt = choose(rng, TARGETS)(rng)
        try:
            if attempt.slots and not attempt.bad:
                spoil(rng, attempt)
            ends[attempt.name, check(attempt, compare=rng.random() < 0.3)] += 1
        except Exception:  # noqa: BLE001 whatever it is, it is what we look for
            traceback.print_exc()
            print(f"\n{attempt.name}: {attempt.bad or 'legal'}")
            print(f"repeat with: python tests/fuzz --calls 1 --seed {arguments.seed} --first {k}")
            return 1
    words = ("right", "accepted", "refused")
    print(f"{'':24}", *(f"{word:>9}" for word in words))
    for name in sorted({name for name, _ in ends}):
        print(f"{name:24}", *(f"{ends[name, word]:9}" for word in words))
    print(f"{arguments.calls} calls with seed {arguments.seed}: no failure")
    return 0
