"""States are tuples inside, with a place for each part, however many a cell has."""

import numpy as np
import pytest
from problems import CELLS

from rnnfast import _core
from rnnfast._base import state

H = np.arange(3.0)


@pytest.fixture(autouse=True)
def cell_of_four_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(state.STATES, "four", ("h", "c", "n", "m"))


@pytest.mark.parametrize("cell", CELLS)
def test_the_parts_are_those_of_the_cells_file(cell: str) -> None:
    assert state.STATES[cell] == _core.cells[cell].states
    assert state.parts_of(cell, None, "state") == (None,) * len(_core.cells[cell].states)


def test_one_part_is_an_array_to_users() -> None:
    [h] = state.parts_of("gru", H, "state")
    assert h is H
    assert state.state_of((h,)) is H


@pytest.mark.parametrize(("cell", "given"), [("lstm", (H, None)), ("lstm", [H, H]), ("four", (H, None, H, None))])
def test_several_parts_are_a_tuple_to_users(cell: str, given: tuple[object, ...]) -> None:
    parts = state.parts_of(cell, given, "state")
    assert all(part is a for part, a in zip(parts, given, strict=True))
    assert state.state_of(parts) == parts


@pytest.mark.parametrize(
    ("cell", "given", "error", "message"),
    [
        ("gru", (H, H), TypeError, "state: expected one array, h, got a tuple of 2"),
        ("lstm", H, TypeError, "state: expected a tuple (h, c), got ndarray"),
        ("lstm", (H,), ValueError, "state: expected a tuple (h, c), got a tuple of 1"),
        ("four", [H, H], ValueError, "state: expected a tuple (h, c, n, m), got a list of 2"),
    ],
)
def test_messages_name_the_parts(cell: str, given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        state.parts_of(cell, given, "state")
    assert str(caught.value) == message


def test_learned_initial_states_are_named_for_the_parts() -> None:
    assert state.initial_names("gru") == ["initial_h"]
    assert state.initial_names("four") == ["initial_h", "initial_c", "initial_n", "initial_m"]


def test_what_is_not_there_is_filled_with_zeros() -> None:
    parts = np.ones(3), np.ones(3)
    state.fill(parts, (H, None))
    assert [part.tolist() for part in parts] == [H.tolist(), [0, 0, 0]]
    assert state.each(np.negative, (None, H))[0] is None
