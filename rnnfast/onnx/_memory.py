"""How much memory the nodes of a model may ask for."""

from collections.abc import Iterable

from .._base.arrays import Array

LEAST_ROOM = 1 << 28  # bytes that the nodes of any model may make: zero states and indices, never near it
COPIES = (
    16  # as many times what it is given may a model make: torch's exporter needs 7 to split, reorder and join weights
)


class Room:
    """How many bytes the nodes of a model may still make of what they are given."""

    def __init__(self, given: Iterable[Array] = ()) -> None:
        self.whole = self.left = LEAST_ROOM
        self.extend(given)

    def extend(self, given: Iterable[Array], width: int = 1) -> None:
        """Allow for more arrays, each element of which may come to be so many."""
        more = COPIES * width * sum(a.size * max(a.itemsize, 4) for a in given)  # integers of 8 bits may become floats
        self.whole, self.left = self.whole + more, self.left + more

    def take(self, needed: int) -> None:
        """Use some of it up."""
        if needed > self.left:
            msg = f"expected results of at most {self.whole} bytes, all nodes together, got {needed} more"
            raise ValueError(msg)
        self.left -= max(needed, 0)  # what a negative size asks for fails when it is made
