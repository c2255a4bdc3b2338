"""``rnnfast``, or ``python -m rnnfast``: the command line."""

from ._cli import main, program

__all__ = ["main", "program"]

if __name__ == "__main__":
    program()
