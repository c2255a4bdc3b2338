"""The benchmarks' own arithmetic, and that what they compare is alike."""

import json
import math
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast
from benchmarks import build_worker, builds, capacity, machine, peers, pruning, report
from benchmarks.limits import Level, Limits, best_of
from benchmarks.plot import roofline
from benchmarks.problems import CELLS, FORWARD, GRIDS, ODD, PACKED, TRAINING, TRAINING_NO_DX, WORKS, Problem
from benchmarks.systems import OURS, SYSTEMS
from rnnfast import _core
from rnnfast.functional import Array

LIMITS = Limits(100e9, [Level("L1", 1000, 400e9), Level("L2", 100_000, 100e9), Level("memory", 1 << 30, 10e9)])


# The limits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loops_that_measure_do_all_their_work(dtype: str) -> None:
    x = np.arange(1, 301, dtype=dtype)
    for n in (0, 1, 127, 300):
        assert _core.read(x[:n], 3) == 3 * x[:n].sum()

    def multiply_adds(a: float, b: float, n: int) -> float:  # x = a * x + b
        return _core.multiply_adds(np.array([a, b], dtype), n)

    chains = multiply_adds(0, 1, 1)
    for n in (1000, 100_000):
        assert n <= multiply_adds(1, 1, n) - multiply_adds(1, 0, n) < n + chains
    assert multiply_adds(0.5, 1, 100_000) == 2 * chains  # where x = x / 2 + 1 ends


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _core.multiply_adds(np.ones(2), 0), ValueError, "n: expected at least 1, got 0"),
        (lambda: _core.multiply_adds(np.ones(3), 1), ValueError, r"factors: expected shape \(2,\), got \(3,\)"),
        (lambda: _core.read(np.ones(2), 0), ValueError, "passes: expected at least 1, got 0"),
        (lambda: _core.read(np.ones((2, 1))), ValueError, r"x: expected shape \(2,\), got \(2, 1\)"),
        (lambda: _core.read(np.ones(2, int)), TypeError, "x: expected dtype float32 or float64, got int64"),
    ],
)
def test_the_loops_that_measure_refuse_what_they_cannot_read(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_limit_reads_w_hh_from_the_smallest_level_that_holds_it() -> None:
    assert [LIMITS.level_of(size).name for size in (1000, 1001, 1 << 40)] == ["L1", "L2", "memory"]


def test_the_limit_is_the_peak_where_rows_are_many_and_the_bandwidth_where_they_are_few() -> None:
    many, few = Problem("lstm", 10, 256, 50, 50), Problem("lstm", 10, 1, 50, 50)  # w_hh: 40,000 bytes, L2
    for work in WORKS:
        assert LIMITS.seconds(many, work) == pytest.approx(many.flops(work) / LIMITS.peak)
    reading = 10 * few.w_hh_bytes / 100e9
    from_x = from_h = 10 * 2 * 4 * 50 * 50 / 100e9
    assert LIMITS.seconds(few, FORWARD) == LIMITS.seconds(few, PACKED) == pytest.approx(from_x + reading)
    assert LIMITS.seconds(few, TRAINING) == pytest.approx(3 * from_x + 2 * reading + from_h)
    assert LIMITS.seconds(few, TRAINING_NO_DX) == pytest.approx(2 * from_x + 2 * reading + from_h)


def test_of_two_measurements_each_figure_is_the_higher() -> None:
    other = Limits(90e9, [replace(level, bandwidth=99e9) for level in LIMITS.levels])
    best = best_of(LIMITS, other)
    assert best.peak == 100e9
    assert [level.bandwidth for level in best.levels] == [400e9, 100e9, 99e9]
    assert best_of(other, LIMITS) == best


def test_caches_are_read_where_linux_tells_them(tmp_path: Path) -> None:
    for k, (kind, level, size) in enumerate([("Data", 1, 48), ("Instruction", 1, 32), ("Unified", 2, 2048)]):
        folder = tmp_path / f"index{k}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", str(level)), ("size", f"{size}K")):
            (folder / name).write_text(text + "\n")
    assert machine.caches(tmp_path) == [("L1", 48 << 10), ("L2", 2048 << 10)]
    assert machine.caches(tmp_path / "none") == machine.TYPICAL


# Problems and systems


def test_equal_problems_have_equal_arrays_and_travel_without_them() -> None:
    problem = Problem("gru", 3, 2, 400, 50)
    assert problem.parameters["w_ih"].shape == (150, 400)
    sent = pickle.dumps(problem)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).parameters["w_ih"], problem.parameters["w_ih"])


def test_grids_name_each_shape_once() -> None:
    for shapes in GRIDS.values():
        assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["rnnfast", "torch", "onnxruntime"])  # the others do not share a process well
def test_systems_compute_the_same_numbers(name: str, cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = SYSTEMS[name]
    for module in system.modules:
        pytest.importorskip(module, reason=f'{module} is not installed (pip install ".[bench]")')
    if dtype not in system.dtypes:
        pytest.skip(f"{name} has no {dtype}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert name in system.start(1)
    problem = Problem(cell, 4, 3, 5, 6, dtype)
    exact = peers.expected(problem, list(WORKS))
    tasks = system.tasks(problem)
    assert tasks
    for work, task in tasks.items():
        assert work in system.works
        for _ in range(2):
            assert peers.difference(task.numbers(task.run()), exact[work]) < (1e-5 if dtype == "float32" else 1e-13)


def test_a_difference_is_infinite_where_arrays_are_missing_or_have_nan() -> None:
    a: dict[str, Array] = {"y": np.array([1.0, -2.0])}
    assert peers.difference({"y": np.array([1.0, -1.5])}, a) == 0.25
    for wrong in ({}, {"y": np.ones(3)}, {"y": np.array([1.0, np.nan])}, a | {"dx": np.ones(2)}):
        assert peers.difference(wrong, a) == math.inf


# Tables


def a_result(work: str, seconds: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    systems = {name: {"memory": 2_500_000, "error": 0.0, "runs": 1, "seconds": s} for name, s in seconds.items()}
    point = {"cell": "lstm", "shape": [1, 2, 3, 4], "work": work, "flops": 10**9, "limit": 0.1}
    return point | {"systems": systems} | more


def test_a_ratio_is_the_median_of_the_rounds_and_the_best_peer_none_of_ourselves() -> None:
    seconds = {OURS: [1.0, 2.0, 4.0], "torch": [2.0, 2.0, 12.0], "jax": [9.0] * 3, f"{OURS}@avx2": [0.1] * 3}
    (point,) = report.points({"results": [a_result(FORWARD, seconds)]})
    assert point.seconds == 2.0
    assert point.gflops == 0.5
    assert point.fraction == 0.05
    assert point.ratios["torch"] == 2.0
    assert (point.best, point.to_best) == ("torch", 2.0)


def test_a_geometric_mean_leaves_out_what_is_missing() -> None:
    assert report.geometric_mean([1.0, None, 4.0]) == pytest.approx(2.0)
    assert report.geometric_mean([None]) is None


def a_run() -> dict[str, Any]:
    second = a_result(FORWARD, {OURS: [1.0], "jax": [0.5]}, shape=[5, 6, 7, 8])
    return dict.fromkeys(["date", "processor", "system", "python", "isa", "compiler", "RNNFAST_ISA"], "text") | {
        "caches": {"L1": 1024},
        "threads": 1,
        "dtype": "float32",
        "rounds": 1,
        "versions": {"rnnfast": "1.0"},
        "limits": {"peak": 1e11, "levels": [{"name": "L1", "size": 1024, "bandwidth": 1e11}]},
        "absent": {"keras": "not installed"},
        "refused": [{"system": "jax", "cell": "lstm", "shape": [1, 2, 3, 4], "work": FORWARD, "why": "it fell over"}],
        "results": [a_result(FORWARD, {OURS: [1.0], "torch": [3.0]}), second],
    }


def test_the_tables_show_every_result_and_what_was_refused() -> None:
    lines = report.markdown(a_run()).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    mean = f"{math.sqrt(1.5):.2f}"
    assert rows == [
        ["geometric means", "of limit", "torch", "jax", "best peer", "least ratio to a peer"],
        rows[1],
        ["lstm, forward", "0.10", "3.00", "0.50", mean, "0.50 jax at 5,6,7,8"],
        ["T,B,I,H", "ms", "GFLOP/s", "MB", "of limit", "torch", "jax", "best peer", "its name", "its MB"],
        rows[4],
        ["1,2,3,4", "1000.000", "1.0", "2.5", "0.10", "3.00", "-", "3.00", "torch", "2.5"],
        ["5,6,7,8", "1000.000", "1.0", "2.5", "0.10", "-", "0.50", "0.50", "jax", "2.5"],
        ["geometric mean", "", "", "", "0.10", "3.00", "0.50", mean, "", ""],
    ]
    assert all(set(cell) <= set("-:") for row in (rows[1], rows[4]) for cell in row)
    assert "- jax, lstm, 1,2,3,4, forward: it fell over" in lines
    assert "- not compared: keras (not installed)" in lines


def test_an_odd_size_is_compared_with_the_sizes_around_it() -> None:
    (odd, (below, above)), *_ = ODD.items()
    speeds = {below: 2.0, odd: 1.0, above: 4.0}  # at equal operations, so many times as fast as in one second
    results = [a_result(FORWARD, {OURS: [1 / speed]}, shape=list(shape)) for shape, speed in speeds.items()]
    rows = report.odd_sizes(report.points({"results": results}))[1]
    assert rows == [["lstm, forward", ",".join(map(str, odd)), "0.50", "0.25"]]
    for some in (results[:2], results[1:]):
        assert not report.odd_sizes(report.points({"results": some}))[1]


# The command


def test_options_have_the_values_that_were_asked_for() -> None:
    options = peers.parse(["1,2,3,4", "5,6,7,8", "--systems", "torch", OURS, "--dtype", "float64", "--rounds", "9"])
    assert options.shapes == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert options.systems == [OURS, "torch"]
    assert (options.dtype, options.rounds, options.threads) == ("float64", 9, 1)
    assert peers.parse(["--grid", "small"]).shapes == GRIDS["small"]
    assert peers.parse([]).shapes == GRIDS["peers"]
    assert len(peers.parse(["--quick"]).shapes) < len(GRIDS["peers"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("1,2,3", "expected four sizes T,B,I,H, got '1,2,3'"),
        ("1,2,3,0", "expected an integer of at least 1, got '0'"),
        ("--rounds x", "expected an integer of at least 1, got 'x'"),
        ("--systems cuda", "invalid choice: 'cuda'"),
    ],
)
def test_options_that_make_no_sense_are_named(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.parse(arguments.split())
    assert message in capsys.readouterr().err


def test_a_run_can_be_shown_again_from_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, table = tmp_path / "first.json", tmp_path / "second.json", tmp_path / "table.md"
    first.write_text(json.dumps(a_run()))
    assert peers.main(["--from", str(first), "--json", str(second), "--markdown", str(table)]) == 0
    assert capsys.readouterr().out == table.read_text() == report.markdown(a_run()) + "\n"
    assert json.loads(second.read_text()) == a_run()


def test_the_roofline_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[plot]")')
    roofline(a_run(), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_the_errors_of_hopfield_networks_are_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[plot]")')
    picture = tmp_path / "capacity.svg"
    for _ in range(2):
        before = picture.read_bytes() if picture.exists() else None
        capacity.main(["--units", "20", "--networks", "1", "--plot", str(picture)])
        assert before in (None, picture.read_bytes())
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in lines[1:7:2]] == ["hebbian", "storkey", "pseudo_inverse"]
    assert set(lines[5].split()[-len(capacity.LOADS) :]) == {"0.00"}


def test_pruned_language_models_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason='matplotlib is not installed (pip install ".[plot]")')
    picture = tmp_path / "pruning.svg"
    sizes = ["--hidden", "32", "--batch", "2", "--steps", "10"]
    pruning.main([*sizes, "--densities", "1", "0.25", "--plot", str(picture)])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows] == ["left", "1.000", "0.250"]
    dense, sparse = ([float(n) for n in row[-3:]] for row in rows[1:])
    assert all(b < a for a, b in zip(dense, sparse, strict=True))
    assert picture.read_text(encoding="utf-8").count("<svg") == 1


# Two builds


CASE = build_worker.Case("training", "lstm", 2, 3, 4, 5)


def a_row(work: str, *seconds: tuple[float, float]) -> builds.Row:
    return builds.Row("avx2", work, CASE, list(seconds))


def test_the_ratio_of_two_builds_is_the_median_of_the_rounds() -> None:
    assert a_row("training", (1.0, 2.0), (3.0, 3.0), (9.0, 1.0)).ratio == 1.0


def test_builds_are_too_slow_by_a_row_or_by_the_mean_of_a_work() -> None:
    rows = [a_row("forward", (1.0, 1.0)), a_row("training", (0.98, 1.0)), a_row("training", (1.0, 1.0))]
    assert not list(builds.missed(rows, 0.98, 0.97))
    assert list(builds.missed(rows, 0.98, 0.985)) == [
        "avx2, training, lstm, 2,3,4,5: 0.980 is below 0.985, of 1 rounds"
    ]
    assert list(builds.missed(rows, 0.992, 0.97)) == ["avx2, training: the mean 0.990 is below 0.992"]  # not of all
    lines = [line for line in builds.tables(rows) if line.startswith("| avx2")]
    assert [line.split("|")[-2].strip() for line in lines] == [
        "1.000",
        "0.980",
        "1.000",
        "lstm 2,3,4,5",
        "lstm 2,3,4,5",
    ]


def test_results_that_differ_are_named() -> None:
    a = dict(build_worker.flat({"y": np.zeros(2), "state": (np.ones(2), np.ones(2)), "dx": None}))
    b = a | {"state[1]": np.full(2, -1.0), "grads.weight_hh_l0": np.ones(1)}
    assert list(a) == ["y", "state[0]", "state[1]"]
    digests = [{name: build_worker.digest(array) for name, array in arrays.items()} for arrays in (a, b)]
    assert builds.different(*digests) == ["state[1]", "grads.weight_hh_l0"]
    assert build_worker.digest(np.zeros(2)) != build_worker.digest(-np.zeros(2))
    (line,) = builds.said([builds.Difference("avx2", CASE, ["y"]), builds.Difference("avx2", CASE, ["dx", "y"])])
    assert line == "avx2, training, lstm, float32: 2 differ, first 2,3,4,5, threads: 1: y, dx"


def test_layers_of_every_cell_are_found() -> None:
    assert sorted(build_worker.layers()) == sorted(_core.cells)


@pytest.mark.parametrize("task", build_worker.TASKS)
def test_a_task_gives_the_same_bits_again(task: str) -> None:
    served, case = build_worker.Served(), replace(CASE, task=task)
    digests = served.digests(**asdict(case))
    assert digests
    assert served.digests(**asdict(case)) == digests
    assert served.prepare(**asdict(case)) >= 0


def test_a_folder_without_a_build_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        builds.parse([str(tmp_path), str(tmp_path)])
    assert "expected a folder with a package rnnfast" in capsys.readouterr().err
    shutil.copytree(Path(rnnfast.__file__).parent, tmp_path / "rnnfast", ignore=shutil.ignore_patterns("*.so"))
    with pytest.raises(SystemExit, match="expected a whole build, got one that would take"):
        builds.Build(tmp_path)
