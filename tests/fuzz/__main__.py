"""`python tests/fuzz` is the program."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # where this package is, and what it shares with the tests

from fuzz.program import main  # noqa: E402

sys.exit(main())
