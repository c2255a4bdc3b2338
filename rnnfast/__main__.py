"""``python -m rnnfast``: the command line."""

from ._cli import main, program

__all__ = ["main"]

if __name__ == "__main__":
    program()
