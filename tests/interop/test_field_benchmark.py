"""`benchmarks.field` compares calls that do the same, and each row of it is in its tables."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agreement import torch

from benchmarks.problems import FORWARD, TRAINING, TRAINING_NO_DX, Problem
from benchmarks.systems import OURS

field: Any = pytest.importorskip("benchmarks.field", reason='onnxruntime is not installed (pip install ".[bench]")')


@pytest.fixture(autouse=True)
def _restore_torch_threads() -> Iterator[None]:
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)


def test_each_row_is_measured_beside_every_peer_that_can_do_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_file, table = tmp_path / "field.json", tmp_path / "field.md"
    field.main(["--quick", "--rounds", "1", "--json", str(data_file), "--markdown", str(table)])
    data = json.loads(data_file.read_text())
    assert data["refused"] == []
    found = iter(data["results"])
    for row in field.ROWS:
        for work in row.works:
            result: dict[str, Any] = next(found)
            assert [result[name] for name in ("who", "cell", "special", "work")] == [
                row.who,
                row.cell,
                row.special,
                work,
            ]
            session = work in (FORWARD, field.STEP) and row.special not in (field.RESETS, field.NORM)
            assert list(result["systems"]) == [OURS, "torch", *(["onnxruntime"] if session else [])]
    assert next(found, None) is None
    lines = table.read_text().splitlines()
    assert capsys.readouterr().out == table.read_text()
    assert sum(line.startswith(tuple(f"| {row.who} " for row in field.ROWS)) for line in lines) == len(data["results"])


def test_no_row_stands_twice() -> None:
    assert len(set(field.ROWS)) == len(field.ROWS)


def test_a_stack_has_the_operations_of_its_layers() -> None:
    row = field.Row("", "gru", (5, 3, 7, 4), layers=2, directions=2, dx=False)
    first, second = Problem("gru", 5, 3, 7, 4), Problem("gru", 5, 3, 8, 4)
    case = field.Case(row)
    assert case.flops(FORWARD) == 2 * (first.flops(FORWARD) + second.flops(FORWARD))
    assert case.flops(TRAINING_NO_DX) == 2 * (first.flops(TRAINING_NO_DX) + second.flops(TRAINING))


def test_padding_has_no_operations() -> None:
    row = field.Row("", "lstm", (5, 3, 7, 4))
    case = field.Case(replace(row, special=field.LENGTHS))
    assert case.flops(FORWARD) * 15 == field.Case(row).flops(FORWARD) * case.lengths.sum()
