"""The command line: ``python -m rnnfast train | sample | bench | gradflow | info``."""

from .entry import main, program

__all__ = ["main", "program"]
