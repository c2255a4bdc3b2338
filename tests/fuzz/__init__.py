"""Hostile calls: everything that takes an array, with arguments that are odd but legal or that are bad.

A legal call has to give what the oracle gives. A bad one has to raise ValueError or TypeError and to change nothing.
Each call has a random generator of its own, so that any one can be repeated:

    python tests/fuzz --calls 100000 --seed 0
    python tests/fuzz --calls 1 --seed 0 --first 41563
"""

import os

os.environ.setdefault("RNNFAST_BF16", "emulate")  # before the kernels are loaded
