"""The C interface from outside: what compilers make of its header, and Python's bits without the GIL."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import capi
import numpy as np
import pytest
from capi import API, INVALID, Call, Handle, Stream, Table, in_rows
from modules import KINDS, make_layer, normal
from problems import (
    CELLS,
    DTYPES,
    Array,
    Problem,
    Results,
    Shape,
    assert_same_bits,
    make_problem,
    named,
    named_gradients,
    named_grads,
    named_state,
    of_states,
    parts,
    state_of,
)

import rnnfast
from rnnfast import _core, functional

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "c-api.md").read_text(encoding="utf-8")

by_cell = pytest.mark.parametrize("cell", CELLS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="compiles C")

WARNINGS = ("-Wall", "-Wextra", "-pedantic", "-Werror")


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def compiled(source: str, folder: Path, *flags: str, name: str = "example.c") -> Path:
    """Compile a shared library in the folder."""
    (folder / name).write_text(source, encoding="utf-8")
    library = (folder / name).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    undefined = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    command = ["cc", "-shared", "-fPIC", *undefined, f"-I{rnnfast.get_include()}", *flags, str(folder / name)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


def python_include() -> str:
    return f"-I{sysconfig.get_path('include')}"


def cythonized(source: str, folder: Path) -> Path:
    """Compile an extension module against the package as it is installed."""
    pytest.importorskip("Cython")
    (folder / "example.pyx").write_text(source, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "cython", "-Werror", "example.pyx"], cwd=folder, check=True)
    return compiled((folder / "example.c").read_text(encoding="utf-8"), folder, python_include())


def imported(extension: Path) -> Any:
    spec = importlib.util.spec_from_file_location("example", extension)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cythonized((HERE / "capi_example.pyx").read_text(encoding="utf-8"), tmp_path_factory.mktemp("cython"))


@pytest.fixture(scope="module")
def example(extension: Path) -> Any:
    return imported(extension)


# The header


@pytest.mark.parametrize("language", ["-std=c99", "-std=c11", "-xc++ -std=c++11", "-xc++ -std=c++20"])
@pytest.mark.parametrize("python", ["", "#include <Python.h>\n"], ids=["alone", "with Python.h"])
def test_the_header_is_c_and_cpp(language: str, python: str, tmp_path: Path) -> None:
    first = python or ("" if "++" in language else "#include <complex.h>\n")  # its macro I
    flags = ("-isystem", sysconfig.get_path("include"), *language.split(), *WARNINGS)
    compiled(f"{first}#include <rnnfast/capi.h>\nint size(void) {{ return sizeof(rnnfast_api); }}\n", tmp_path, *flags)


def test_the_structs_of_these_tests_are_those_of_the_header(tmp_path: Path) -> None:
    structs: dict[str, Any] = {
        "api": Table,
        "weights": capi.Weights,
        "stack": capi.Stack,
        "layer": capi.Layer,
        "forward_args": capi.ForwardArgs,
        "gradients": capi.Gradients,
        "backward_args": capi.BackwardArgs,
    }
    offsets = [f"offsetof(rnnfast_{struct}, {name})" for struct in structs for name, *_ in structs[struct]._fields_] + [
        f"sizeof(rnnfast_{struct})" for struct in structs
    ]
    source = f"#include <rnnfast/capi.h>\nconst size_t offsets[] = {{{', '.join(offsets)}}};\n"
    library = ctypes.CDLL(str(compiled(source, tmp_path)))
    expected = [getattr(mirror, name).offset for mirror in structs.values() for name, *_ in mirror._fields_]
    expected += [ctypes.sizeof(mirror) for mirror in structs.values()]
    assert list((ctypes.c_size_t * len(offsets)).in_dll(library, "offsets")) == expected


# The version


def capsule_of(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put another table in the extension's place."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    monkeypatch.setattr(_core, "_C_API", new(ctypes.addressof(table), capi.CAPSULE, None))


VERSIONS: dict[str, tuple[dict[str, int], str]] = {
    "too old": ({"version": 2, "oldest": 1}, "version 3 of .* has version 2: install a newer rnnfast"),
    "too new": ({"version": 7, "oldest": 4}, "version 3 of .* has version 7: compile the extension again"),
    "too small": ({"size": 64}, "version 3 of .* has version 3"),
    "as compiled": ({}, ""),
    "newer": ({"version": 4, "size": ctypes.sizeof(Table) + 8}, ""),
}


@pytest.mark.parametrize("case", VERSIONS)
def test_a_table_that_does_not_serve_the_header_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "#include <Python.h>\n#include <rnnfast/capi.h>\nconst void* fetch(void) { return rnnfast_import(); }\n"
    fetch = ctypes.PyDLL(str(compiled(source, tmp_path, python_include()))).fetch
    fetch.restype = ctypes.c_void_p
    changes, message = VERSIONS[case]
    table = Table.from_buffer_copy(API)
    for name, value in changes.items():
        setattr(table, name, value)
    capsule_of(table, monkeypatch)
    if message:
        with pytest.raises(ImportError, match=f"^rnnfast: this extension was compiled for {message}"):
            fetch()
    else:
        assert fetch() == ctypes.addressof(table)


@pytest.mark.parametrize("version", [1, 2])
def test_an_extension_that_was_compiled_for_an_older_version_is_told_to_compile_again(
    version: int, tmp_path: Path
) -> None:
    header = Path(rnnfast.get_include(), "rnnfast", "capi.h").read_text(encoding="utf-8")
    older = header.replace("RNNFAST_API_VERSION 3", f"RNNFAST_API_VERSION {version}")
    assert older != header
    source = f"#include <Python.h>\n{older}\nconst void* fetch(void) {{ return rnnfast_import(); }}\n"
    fetch = ctypes.PyDLL(str(compiled(source, tmp_path, python_include()))).fetch
    fetch.restype = ctypes.c_void_p
    with pytest.raises(ImportError, match=f"compiled for version {version} .* has version 3: compile the extension"):
        fetch()


def test_an_extension_cannot_be_imported_beside_a_table_that_is_too_old(
    extension: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table.from_buffer_copy(API)
    table.version, table.oldest = 1, 0
    capsule_of(table, monkeypatch)
    with pytest.raises(ImportError, match=r"compiled for version 3 .* has version 1"):
        imported(extension)


# Bit for bit


Rows = tuple[Array | None, Array | None]  # batch_sizes, resets


def unequal(cell: str, dtype: str, sizes: list[int], shape: Shape, *, resets: bool = True) -> tuple[Problem, Rows]:
    """Return a problem of rows of unequal steps, and what says so."""
    N, batch_sizes = sum(sizes), np.array(sizes)
    starts = (np.random.default_rng(0).random(N) < 0.2).astype(np.uint8) if resets else None
    return in_rows(make_problem(cell, dtype, shape._replace(T=1, B=N)), batch_sizes), (batch_sizes, starts)


def by_python(problem: Problem, rows: Rows = (None, None), passes: int = 1) -> Results:
    """Return what `functional` gives, the gradients of the weights summed up over the passes."""
    p, (batch_sizes, resets) = problem, rows
    starts = None if resets is None else resets.astype(bool)
    state, dstate = state_of(p.state0), state_of(p.dstate)
    masks = p.options("recurrent_factors", "candidate_dropout")
    if p.zoneout is not None:
        masks["zoneout"] = state_of(p.zoneout)
    y, last, tape = functional.forward(
        p.cell, p.x, p.parameters, state, batch_sizes=batch_sizes, resets=starts, **masks
    )
    dx, dstate0, grads = functional.backward(tape, p.dy, dstate)
    for _ in range(1, passes):
        functional.backward(tape, p.dy, dstate, grads=grads)
    return {"y": y, **named_state(p.cell, parts(last)), **named_gradients(p.cell, dx, parts(dstate0), grads)}


FORMS: dict[str, Callable[[str, str, int], tuple[Problem, Rows]]] = {
    "whole": lambda cell, dtype, D: (make_problem(cell, dtype, Shape(40, 9, 7, 33, D)), (None, None)),
    "one row": lambda cell, dtype, D: (make_problem(cell, dtype, Shape(1, 1, 5, 6, D)), (None, None)),
    "no bias": lambda cell, dtype, D: (make_problem(cell, dtype, Shape(5, 3, 1, 20, D), bias=False), (None, None)),
    "dy alone": lambda cell, dtype, D: (
        make_problem(cell, dtype, Shape(5, 3, 4, 8, D)).without("state0", "dstate"),
        (None, None),
    ),
    "last state alone": lambda cell, dtype, D: (
        make_problem(cell, dtype, Shape(5, 3, 4, 8, D)).without("dy", "dc"),
        (None, None),
    ),
    "resets": lambda cell, dtype, D: (
        make_problem(cell, dtype, Shape(30, 9, 4, 17, D)),
        (None, np.tile(np.array([0, 0, 3, 0, 255], np.uint8), 54).reshape(30, 9)),
    ),
    "unequal": lambda cell, dtype, D: unequal(cell, dtype, [5, 5, 4, 1], Shape(0, 0, 7, 19, D), resets=False),
    "unequal with resets": lambda cell, dtype, D: unequal(cell, dtype, [60] * 4 + [9] * 90, Shape(0, 0, 3, 16, D)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("D", [1, 2])
@by_dtype
@by_cell
def test_training_without_the_gil_gives_pythons_bits(cell: str, dtype: str, D: int, form: str, example: Any) -> None:
    problem, rows = FORMS[form](cell, dtype, D)
    expected = by_python(problem, rows, passes=2)
    for packed in (False, True):
        call = Call(problem, *rows)
        example.train(call, 2, packed)
        assert_same_bits(call.results, expected)


MASKS: dict[str, Callable[[Problem, tuple[int, ...]], dict[str, Any]]] = {  # of a problem and of its rows
    "zoneout": lambda p, rows: {"zoneout": tuple(drawn(*rows, width(p)) for _ in p.state_sizes)},
    "zoneout of one state": lambda p, rows: {"zoneout": (0.25, *(drawn(*rows, width(p)) for _ in p.state_sizes[1:]))},
    "mean": lambda p, _: {"zoneout": (0.25,) * len(p.state_sizes)},
    "recurrent dropout": lambda p, _: {"recurrent_factors": factors(p)},
    "recurrent dropout of gates": lambda p, _: {"recurrent_factors": factors(p, _core.cells[p.cell].num_gates)},
    "candidates": lambda p, rows: {"candidate_dropout": (drawn(*rows, width(p)), 0.4)},
    "candidates of sequences": lambda p, _: {"candidate_dropout": (drawn(1, 5, width(p)), 0.4)},
}


def drawn(*shape: int) -> Array:
    return np.random.default_rng(0).random(shape) < 0.6


def width(problem: Problem) -> int:
    return len(problem.parameters) * problem.hidden_size


def factors(problem: Problem, *gates: int) -> Array:
    return drawn(len(problem.parameters), 5, *gates, problem.hidden_size).astype(problem.x.dtype) * 2


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("cell", ["lstm", "cifg_peephole", "gru", "gru_reset_before", "rnn_tanh"])
def test_masks_of_training_give_pythons_bits(cell: str, mask: str) -> None:
    if "candidates" in mask and not _core.cells[cell].has_candidate:
        return
    whole = make_problem(cell, "float32", Shape(9, 5, 4, 13, 2)), (None, None)
    for problem, rows in (whole, unequal(cell, "float64", [5, 5, 4, 1], Shape(0, 0, 7, 19, 2))):
        problem = replace(problem, **MASKS[mask](problem, problem.x.shape[:-1]))
        assert_same_bits(Call(problem, *rows).solve(Handle()), by_python(problem, rows))
        call = Call(problem, *rows)
        call.forward.pack = (pack := Handle(call.layer)).value
        assert_same_bits(call.solve(Handle()), by_python(problem, rows))
        del pack


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before", "rnn_tanh"])
def test_rounded_factors_give_pythons_bits(cell: str) -> None:
    """By the option of a layer in C, which conftest's variable gives every machine."""
    whole = make_problem(cell, "float32", Shape(9, 5, 4, 13, 2)), (None, None)
    for p, rows in (whole, unequal(cell, "float32", [5, 5, 4, 1], Shape(0, 0, 7, 19, 1))):
        sizes, resets = rows[0], None if rows[1] is None else rows[1].astype(bool)
        y, last, tape = _core.forward(
            p.cell, p.x, p.parameters, p.state0, batch_sizes=sizes, resets=resets, rounded=True
        )
        gradients = named_gradients(cell, *_core.backward(tape, p.dy, p.dstate))
        expected = {"y": y, **named_state(cell, last), **gradients}
        call = Call(p, *rows)
        exact = {name: a.copy() for name, a in call.solve(Handle()).items()}
        call.layer.precision = 1
        assert_same_bits(call.solve(Handle()), expected)
        assert not np.array_equal(exact["y"], expected["y"])
        call.forward.pack = (pack := Handle(call.layer)).value
        assert_same_bits(call.solve(Handle()), expected)
        call.layer.precision = 0
        with pytest.raises(ValueError, match="pack: expected one of the layer's cell, dtype"):
            call.solve(Handle())
        del pack


@by_cell
def test_any_number_of_threads_gives_the_same_bits(cell: str, example: Any) -> None:
    problem = make_problem(cell, "float32", Shape(30, 40, 64, 96, 2))
    rnnfast.set_num_threads(1)
    expected = by_python(problem)
    for n in (2, 5):
        assert API.set_num_threads(n) == 0
        assert rnnfast.get_num_threads() == API.get_num_threads() == n
        call = Call(problem)
        example.train(call)
        assert_same_bits(call.results, expected)


def test_many_threads_train_at_once(example: Any) -> None:
    problems = [make_problem(cell, "float32", Shape(30, 16, 32, 48, 1 + k % 2)) for k, cell in enumerate(CELLS * 3)]
    expected = [by_python(problem, passes=5) for problem in problems]
    calls = [Call(problem) for problem in problems]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda call: example.train(call, 5, packed=call.layer.num_directions == 1), calls))
    for call, results in zip(calls, expected, strict=True):
        assert_same_bits(call.results, results)


@pytest.mark.parametrize("L", [1, 3])
@by_dtype
@pytest.mark.parametrize("cell", KINDS)
def test_a_stream_without_the_gil_gives_the_layers_bits(cell: str, dtype: str, L: int, example: Any) -> None:
    layer = make_layer(cell, num_layers=L, dtype=dtype)
    x = normal((50, 3, 7), dtype, 1)
    y = np.empty((50, 3, 6), dtype)
    example.stream(layer, x, y)
    assert np.array_equal(y, layer(x)[0])


def test_what_compiled_code_is_told_has_the_argument_in_it(example: Any) -> None:
    with pytest.raises(ValueError, match="dy, dstate: expected at least one gradient"):
        example.train(Call(make_problem("gru", "float32", Shape(5, 3, 7, 6)).without("dy", "dstate")))


# The page


@by_dtype
@by_cell
def test_the_programs_in_c_give_pythons_bits(cell: str, dtype: str, tmp_path: Path) -> None:
    source = "\n".join(blocks_of("c"))
    if dtype == "float64":
        source = source.replace("float", "double")
    program = ctypes.CDLL(str(compiled(source, tmp_path, "-std=c99", *WARNINGS)))
    pointer = ctypes.c_void_p

    layer = make_layer(cell, num_layers=2, dtype=dtype)
    x, y = normal((50, 7), dtype, 1), np.empty(6, dtype)
    arguments = ctypes.byref(capi.stack_of(layer)), ctypes.c_ssize_t(50), pointer(x.ctypes.data), pointer(y.ctypes.data)
    assert program.feed(pointer(capi.address()), *arguments) == 0
    assert np.array_equal(y, layer(x)[0][-1])

    problem = make_problem(cell, dtype, Shape(20, 4, 5, 6)).without("state0", "dy", "dstate")
    target = normal((1, 4, 6), dtype, 2)
    _, state, _ = functional.forward(cell, problem.x, problem.parameters)
    h, *others = parts(state)
    problem = replace(problem, dstate=(h - target, *(None for _ in others)))
    expected = by_python(problem)
    call, tape, dh = Call(problem), Handle(), np.empty_like(target)
    arrays = (pointer(a.ctypes.data) for a in (problem.x, target, call.y, call.state[0], dh))
    sizes = ctypes.c_ssize_t(20), ctypes.c_ssize_t(4)
    objects = ctypes.byref(call.layer), call.backward.gradients, pointer(tape.value)
    assert program.step(pointer(capi.address()), *objects, *sizes, *arrays) == 0
    results = {**named(y=call.y, h=call.state[0]), **named_grads(call.grads)}
    assert_same_bits(results, {name: expected[name] for name in results})


@pytest.mark.parametrize("late", [False, True])
def test_the_run_in_c_ends_at_its_deadline(late: bool, tmp_path: Path) -> None:
    run = ctypes.CDLL(str(compiled("\n".join(blocks_of("c")), tmp_path, "-std=c99", *WARNINGS))).run
    run.restype, pointer = ctypes.c_ssize_t, ctypes.c_void_p
    layer = make_layer("gru", (64, 256))
    x = normal((5000, 1, 64), "float32", 1)  # so many steps that it asks
    expected, y = layer(x)[0], np.zeros((5000, 1, 256), np.float32)
    stream, h = Stream(layer), np.empty((1, 1, 256), np.float32)
    deadline = ctypes.c_long(0 if late else 2**62)
    arrays = pointer(x.ctypes.data), pointer(y.ctypes.data)
    steps = run(pointer(capi.address()), pointer(stream.value), ctypes.c_ssize_t(5000), *arrays, deadline)
    assert 0 < steps < 5000 if late else steps == 5000
    capi.check(API.stream_get_state(stream.value, capi.state_of(h)))
    assert np.array_equal(y[:steps], expected[:steps])
    assert not y[steps:].any()
    assert np.array_equal(h[0], expected[steps - 1])


def test_the_module_in_cython_runs(tmp_path: Path) -> None:
    [source] = blocks_of("cython")
    module = imported(cythonized(source, tmp_path))
    layer = rnnfast.GRU(5, 8, rng=0)
    x = normal((60, 5), "float32", 1)
    p = layer.parameters
    weights = [p[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    y = layer(x)[0][:, 0]
    assert module.first_above(*weights, x, np.sort(y)[-2]) == y.argmax()
    assert module.first_above(*weights, x, 1.0) == -1


# Memory

COUNTED = r"""
#include <stdlib.h>
#include <rnnfast/capi.h>

static size_t allocations;

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static void count(void) { __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED); }
void* malloc(size_t n) { count(); return __libc_malloc(n); }
void* calloc(size_t n, size_t size) { count(); return __libc_calloc(n, size); }
void* realloc(void* p, size_t n) { count(); return __libc_realloc(p, n); }
void* aligned_alloc(size_t alignment, size_t n) { count(); return __libc_memalign(alignment, n); }

/* The allocations of ten passes after `first` ones; -1 if one fails. */
ptrdiff_t allocations_of(const rnnfast_api* api, const rnnfast_layer* layer, const rnnfast_forward_args* forward,
                         const rnnfast_backward_args* backward, rnnfast_pack* pack, int first) {
  size_t before = 0;
  for (int i = 0; i < first + 10; ++i) {
    if (i == first) before = allocations;
    if (api->forward(layer, forward) || api->backward(forward->tape, backward)) return -1;
    if (api->pack_update(pack, layer)) return -1;
  }
  return (ptrdiff_t)(allocations - before);
}
"""

COUNT = """
import ctypes, sys
import capi, rnnfast
from problems import CELLS, Shape, make_problem
from test_capi import unequal
count = ctypes.CDLL(sys.argv[1]).allocations_of
count.restype = ctypes.c_ssize_t
for threads in (1, 2):
    rnnfast.set_num_threads(threads)
    for cell in CELLS:
        whole = make_problem(cell, "float32", Shape(20, 16, 24, 64, 2)), (None, None)
        for problem, rows in (whole, unequal(cell, "float32", [9, 9, 3], Shape(0, 0, 5, 7, 2))):
            call, tape = capi.Call(problem, *rows), capi.Handle()
            call.forward.tape, pack = tape.value, capi.Handle(call.layer)
            arguments = [ctypes.byref(s) for s in (call.layer, call.forward, call.backward)]
            table = ctypes.c_void_p(capi.address())
            print(*(count(table, *arguments, ctypes.c_void_p(pack.value), first) for first in (0, 2)))
"""


@pytest.mark.skipif(sys.platform != "linux" or not os.confstr("CS_GNU_LIBC_VERSION"), reason="counts glibc's malloc")
def test_a_training_loop_allocates_nothing_after_its_first_steps(tmp_path: Path) -> None:
    library = compiled(COUNTED, tmp_path, "-std=gnu11", "-Wno-attributes")
    paths = os.pathsep.join(path for path in (str(HERE), str(HERE.parent), *sys.path) if path)
    command = [sys.executable, "-c", COUNT, str(library)]
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": paths}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    counts = [[int(n) for n in line.split()] for line in run.stdout.splitlines()]
    assert len(counts) == 2 * 2 * len(CELLS)
    assert all(later == 0 for _, later in counts), counts
    assert counts[0][0] > 0, "nothing was counted"


# What is refused


def misaligned(address: int) -> int:
    return address + 1


def set_fields(**fields: Any) -> Callable[[Any], None]:
    def change(struct: Any) -> None:
        for name, value in fields.items():
            setattr(struct, name, value(getattr(struct, name)) if callable(value) else value)

    return change


def first_of(array: str, **fields: Any) -> Callable[[Any], None]:
    """Change the first of a struct's array of structs."""
    return lambda struct: set_fields(**fields)(getattr(struct, array)[0])


def entry_of(array: str, s: int, change: Callable[[int], int]) -> Callable[[Any], None]:
    """Change a pointer in a struct's array of pointers."""

    def apply(struct: Any) -> None:
        pointers = getattr(struct, array)
        pointers[s] = change(pointers[s])

    return apply


SOME = np.ones(100).ctypes.data
LAYER_SIZE = ctypes.sizeof(capi.Layer)
REFUSED: dict[str, tuple[str, str, Callable[[Any], None], str]] = {
    "more": ("lstm_peephole", "layer", first_of("weights", more=None), "peephole: expected an array, got NULL"),
    "peephole": (
        "cifg_peephole",
        "layer",
        first_of("weights", more=capi.state_of(None)),
        "peephole: expected an array, got NULL",
    ),
    "peephole: alignment": (
        "lstm_peephole",
        "layer",
        first_of("weights", more=(ctypes.c_void_p * 1)(misaligned(SOME))),
        "peephole: expected an array aligned to its elements",
    ),
    "dmore": (
        "lstm_peephole",
        "backward",
        lambda s: entry_of("dmore", 0, lambda _: s.dx)(s.gradients[0]),
        "dmore: expected memory of its own, got an array that overlaps dx|dx: .* overlaps dmore",
    ),
    "layer: no size": ("lstm", "layer", set_fields(size=0), f"layer->size: expected {LAYER_SIZE}, got 0"),
    "layer: other size": ("lstm", "layer", set_fields(size=56), f"layer->size: expected {LAYER_SIZE}, got 56"),
    "cell: NULL": ("lstm", "layer", set_fields(cell=None), "cell: expected the name of a cell, got NULL"),
    "cell: none": ("lstm", "layer", set_fields(cell=b"gro"), "cell: expected the name of a cell, got 'gro'"),
    "cell: long": ("lstm", "layer", set_fields(cell=b"g" * 999), "cell: expected the name of a cell, got 'ggg"),
    "dtype": ("lstm", "layer", set_fields(dtype=7), "dtype: expected RNNFAST_FLOAT32 or RNNFAST_FLOAT64, got 7"),
    "I: none": ("lstm", "layer", set_fields(input_size=0), "I, H: expected at least 1, got 0, 6"),
    "H: negative": ("lstm", "layer", set_fields(hidden_size=-6), "I, H: expected at least 1, got 7, -6"),
    "D: none": ("lstm", "layer", set_fields(num_directions=0), "D: expected 1 or 2, got 0"),
    "D: three": ("lstm", "layer", set_fields(num_directions=3), "D: expected 1 or 2, got 3"),
    "heads: of an LSTM": ("lstm", "layer", set_fields(num_heads=2), "num_heads: expected 0 or 1 for lstm, got 2"),
    "heads: rest": ("slstm", "layer", set_fields(num_heads=4), "num_heads: expected a number that divides H, 6, got 4"),
    "heads: negative": (
        "slstm",
        "layer",
        set_fields(num_heads=-2),
        "num_heads: expected a number that divides H, 6, got -2",
    ),
    "eps: of an LSTM": ("lstm", "layer", set_fields(layer_norm_eps=1), "layer_norm_eps: expected 0 for lstm, got 1"),
    "eps: negative": (
        "gru_norm",
        "layer",
        set_fields(layer_norm_eps=-1),
        "layer_norm_eps: expected a positive number, or 0 for 1e-5, got -1",
    ),
    "precision": ("lstm", "layer", set_fields(precision=2), "precision: expected RNNFAST_FULL or RNNFAST_ROUNDED, got"),
    "precision: norm": (
        "lstm_norm",
        "layer",
        set_fields(precision=1),
        "precision: expected RNNFAST_FULL for layer_norm, got lstm_norm",
    ),
    "precision: heads": (
        "slstm",
        "layer",
        set_fields(precision=1, num_heads=2),
        "precision: expected RNNFAST_FULL for several heads of slstm",
    ),
    "gain": ("gru_norm", "layer", first_of("weights", more=None), "gain_ih: expected an array, got NULL"),
    "H: huge": ("lstm", "layer", set_fields(hidden_size=2**40), "I, H: expected sizes that fit the address space"),
    "I: huge": ("lstm", "layer", set_fields(input_size=2**62), "I, H: expected sizes that fit the address space"),
    "weights": ("lstm", "layer", set_fields(weights=None), "weights: expected an array, got NULL"),
    "w_hh": ("lstm", "layer", first_of("weights", w_hh=None), "w_ih, w_hh: expected arrays, got NULL"),
    "forward: size": ("lstm", "forward", set_fields(size=8), "args->size: expected 136, got 8"),
    "T: none": ("lstm", "forward", set_fields(T=0), "T, B: expected at least 1, got 0, 3"),
    "B: none": ("lstm", "forward", set_fields(B=0), "T, B: expected at least 1, got 5, 0"),
    "T: huge": ("lstm", "forward", set_fields(T=2**62), "T, B: expected sizes that fit the address space"),
    "T, B: huge": ("lstm", "forward", set_fields(T=2**32, B=2**32), "T, B: expected sizes that fit the address space"),
    "x: NULL": ("lstm", "forward", set_fields(x=None), "x, y: expected arrays, got NULL"),
    "y: NULL": ("lstm", "forward", set_fields(y=None), "x, y: expected arrays, got NULL"),
    "x: unaligned": ("lstm", "forward", set_fields(x=misaligned), "x: expected an array aligned to its elements"),
    "y: x": ("lstm", "forward", lambda s: setattr(s, "y", s.x), "y: expected memory of its own, got .* overlaps x"),
    "state: state0": (
        "lstm",
        "forward",
        lambda s: setattr(s, "state", s.state0),
        r"state\[0\]: expected memory of its own, .* overlaps state0\[0\]",
    ),
    "c: unaligned": (
        "lstm",
        "forward",
        entry_of("state", 1, misaligned),
        r"state\[1\]: expected an array aligned to its elements",
    ),
    "zoneout: rate": (
        "gru",
        "layer",
        set_fields(zoneout=(ctypes.c_double * 1)(1)),
        r"zoneout\[0\]: expected at least 0",
    ),
    "zoneout: masks": (
        "lstm",
        "forward",
        lambda s: setattr(s, "zoneout_masks", (ctypes.c_void_p * 2)(None, s.y)),
        r"y: expected memory of its own, got an array that overlaps zoneout_masks\[1\]",
    ),
    "factors: unaligned": (
        "lstm",
        "forward",
        set_fields(recurrent_factors=misaligned(SOME)),
        "recurrent_factors: expected an array aligned to its elements",
    ),
    "factors: heads": (
        "slstm",
        "forward",
        set_fields(recurrent_factors=SOME),
        "recurrent_factors: expected NULL, since h is a projection, or w_hh is of heads",
    ),
    "candidates: none": (
        "rnn_tanh",
        "forward",
        set_fields(candidate_mask=SOME),
        "candidate_mask: expected NULL, since rnn_tanh drops no candidate",
    ),
    "candidates: rate": (
        "gru",
        "forward",
        set_fields(candidate_mask=SOME, candidate_dropout=1.0),
        "candidate_dropout: expected at least 0 and less than 1, got 1",
    ),
    "candidates: rate alone": (
        "gru",
        "forward",
        set_fields(candidate_dropout=0.5),
        "candidate_dropout: expected 0 without a candidate_mask, got 0.5",
    ),
    "candidates: overlap": (
        "gru",
        "forward",
        lambda s: setattr(s, "candidate_mask", s.y),
        "y: expected memory of its own, got an array that overlaps candidate_mask",
    ),
    "backward: size": ("lstm", "backward", set_fields(size=88), "args->size: expected 56, got 88"),
    "no gradient": ("gru", "backward", set_fields(dy=None, dstate=None), "dy, dstate: expected at least one gradient"),
    "no gradients": (
        "lstm",
        "backward",
        lambda s: set_fields(dy=None, dstate=capi.state_of(None, None))(s),
        "dy, dstate: expected at least one gradient",
    ),
    "gradients": ("lstm", "backward", set_fields(gradients=None), "gradients: expected an array, got NULL"),
    "dw_ih": ("lstm", "backward", first_of("gradients", dw_ih=None), "dw_ih: expected an array, got NULL"),
    "db_hh": ("lstm", "backward", first_of("gradients", db_hh=None), "db_hh: expected an array, got NULL"),
    "dx: dy": ("lstm", "backward", lambda s: setattr(s, "dx", s.dy), "dx: expected memory of its own, .* overlaps dy"),
    "dstate0: dstate": (
        "lstm",
        "backward",
        lambda s: setattr(s, "dstate0", s.dstate),
        r"dstate0\[0\]: expected memory of its own, .* dstate\[0\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_says_what_does_not_fit_and_writes_nothing(case: str) -> None:
    cell, struct, change, message = REFUSED[case]
    call = Call(make_problem(cell, "float32", Shape(5, 3, 7, 6)))
    change(getattr(call, struct))
    before = {name: a.copy() for name, a in call.results.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        call.solve(Handle())
    if struct == "backward":
        forward = ("y", "h", "c")
        before |= {name: call.results[name] for name in forward if name in before}
    assert_same_bits(call.results, before)


SIZES: dict[str, tuple[list[int], int, str]] = {
    "ascending": ([2, 3], 2, "batch_sizes: expected positive integers in descending order, got 3 at step 1"),
    "zero": ([2, 0], 2, "batch_sizes: expected positive integers in descending order, got 0 at step 1"),
    "sum": ([2**62] * 3, 2, "batch_sizes: expected a sum that fits the address space"),
    "other B": ([3, 2], 2, "B: expected 3, the first of batch_sizes, got 2"),
}


@pytest.mark.parametrize("case", SIZES)
def test_batch_sizes_that_are_none_are_refused(case: str) -> None:
    sizes, B, message = SIZES[case]
    call = Call(*unequal_call([3, 2]))
    wrong = np.array(sizes)
    call.forward.batch_sizes, call.forward.B, call.forward.T = wrong.ctypes.data, B, len(wrong)
    with pytest.raises(ValueError, match=f"^{message}$"):
        call.solve(Handle())


def unequal_call(sizes: list[int]) -> tuple[Problem, Array | None, Array | None]:
    problem, rows = unequal("gru", "float32", sizes, Shape(0, 0, 7, 6))
    return problem, *rows


def test_handles_that_do_not_fit_are_refused() -> None:
    call = Call(make_problem("gru", "float32", Shape(5, 3, 7, 6)))
    other = Call(make_problem("gru", "float32", Shape(5, 3, 7, 5)))
    tape, pack = Handle(), Handle(call.layer)
    none = ctypes.POINTER(ctypes.c_void_p)()
    refused: list[tuple[Callable[[], int], str]] = [
        (lambda: API.forward(None, call.forward), "layer: expected a pointer, got NULL"),
        (lambda: API.forward(call.layer, None), "args: expected a pointer, got NULL"),
        (lambda: API.backward(None, call.backward), "tape: expected a tape, got NULL"),
        (lambda: API.backward(tape.value, None), "args: expected a pointer, got NULL"),
        (
            lambda: API.backward(tape.value, call.backward),
            "tape: expected one that a forward has filled, got an empty one",
        ),
        (lambda: API.tape_create(none), "tape: expected a pointer, got NULL"),
        (lambda: API.pack_create(call.layer, none), "pack: expected a pointer, got NULL"),
        (lambda: API.pack_create(None, ctypes.c_void_p()), "layer: expected a pointer, got NULL"),
        (lambda: API.pack_update(None, call.layer), "pack: expected a pack, got NULL"),
        (
            lambda: API.pack_update(pack.value, other.layer),
            "layer: expected the cell, dtype and sizes of the pack, got others",
        ),
        (lambda: API.set_num_threads(0), "n: expected a number of threads from 1 to 1024, got 0"),
        (lambda: API.set_num_threads(1025), "n: expected a number of threads from 1 to 1024, got 1025"),
    ]
    for refuse, message in refused:
        assert refuse() == INVALID
        assert API.message().decode() == message
    other.forward.pack = pack.value
    with pytest.raises(ValueError, match=r"^pack: expected one of the layer's cell, dtype and sizes, got another$"):
        other.solve(tape)
    API.tape_destroy(None)
    API.pack_destroy(None)


def test_a_gradient_of_a_bias_that_there_is_not_is_refused() -> None:
    call = Call(make_problem("gru", "float32", Shape(5, 3, 7, 6), bias=False))
    call.backward.gradients[0].db_ih = SOME
    with pytest.raises(ValueError, match=r"^db_ih: expected NULL as the bias is, got an array$"):
        call.solve(Handle())


@pytest.mark.parametrize("dmore", [None, capi.state_of(None)], ids=["NULL", "of NULL"])
def test_a_gradient_of_another_parameter_may_be_unwanted(dmore: Any) -> None:
    problem = make_problem("lstm_peephole", "float32", Shape(5, 3, 7, 6))
    call, expected = Call(problem), Call(problem)
    call.backward.gradients[0].dmore = dmore
    wanted = {name: a for name, a in expected.solve(Handle()).items() if name != "dmore[0]"}
    actual = call.solve(Handle())
    assert (actual.pop("dmore[0]") == 7).all()  # as it was
    assert_same_bits(actual, wanted)


def test_a_stream_says_what_does_not_fit() -> None:
    layer, scales = make_layer("gru"), np.ones(100, np.float32)
    c = SOME
    stream = ctypes.c_void_p()
    unfit: list[tuple[dict[str, Any], int, str]] = [
        ({"cell": b"gro"}, 1, "cell: expected the name of a cell, got 'gro'"),
        ({"dtype": 7}, 1, "dtype: expected RNNFAST_FLOAT32 or RNNFAST_FLOAT64, got 7"),
        ({"hidden_size": 0}, 1, "L, I, H, B: expected at least 1, got less"),
        ({}, 0, "L, I, H, B: expected at least 1, got less"),
        ({"input_size": 2**61}, 1, "L, I, H, B: expected sizes that fit the address space, got more"),
        ({"layers": (capi.Weights * 1)()}, 1, "w_ih, w_hh: expected arrays, got NULL"),
        ({"format": 3}, 1, "format: expected RNNFAST_SAME, RNNFAST_BFLOAT16 or RNNFAST_INT8, got 3"),
        ({"format": 1, "dtype": 1}, 1, "format: expected RNNFAST_SAME for float64, got 1"),
        ({"format": 2}, 1, "scales: expected an array for RNNFAST_INT8, got NULL"),
        ({"format": 2, "scales": capi.state_of(scales, None, None)}, 1, "scales: expected arrays, got NULL"),
    ]
    for change, B, message in unfit:
        stack = capi.stack_of(layer)
        set_fields(**change)(stack)
        assert API.stream_create(stack, B, stream) == INVALID
        assert API.message().decode() == message
    seeing = make_layer("lstm_peephole")
    peephole = capi.stack_of(seeing)
    peephole.layers[0].more = None
    assert API.stream_create(peephole, 1, stream) == INVALID
    assert API.message().decode() == "peephole: expected an array, got NULL"
    normalised = capi.stack_of(make_layer("gru_norm"))
    set_fields(format=2, scales=capi.state_of(scales, scales, None))(normalised)
    assert API.stream_create(normalised, 1, stream) == INVALID
    assert API.message().decode() == "format: expected another format for gru_norm, got int8"
    stack = capi.stack_of(layer)
    assert API.stream_create(stack, 2**48, stream) == capi.NO_MEMORY
    assert API.stream_create(None, 1, stream) == INVALID
    assert stream.value is None
    API.stream_destroy(None)

    capi.check(API.stream_create(stack, 1, stream))
    refused: list[tuple[Callable[[], int], str]] = [
        (lambda: API.stream_run(stream, -1, c, c), "T: expected at least 0, got -1"),
        (lambda: API.stream_run(stream, 1, None, c), "x, y: expected arrays, got NULL"),
        (lambda: API.stream_run_until(stream, 1, c, None, capi.Stop(), None), "x, y: expected arrays, got NULL"),
        (lambda: API.stream_run_until(stream, 1, c, c, capi.Stop(), None), "stop: expected a function, got NULL"),
        (lambda: API.stream_get_state(stream, capi.state_of(None)), "state[0]: expected an array, got NULL"),
        (lambda: API.stream_set_state(stream, None), "state: expected an array, got NULL"),
        (lambda: API.stream_reset(None, None), "stream: expected a stream, got NULL"),
    ]
    for refuse, message in refused:
        assert refuse() == INVALID
        assert API.message().decode() == message
    API.stream_destroy(stream)


def test_a_forward_that_fails_leaves_its_tape_empty() -> None:
    call, tape = Call(make_problem("lstm", "float32", Shape(5, 3, 7, 6))), Handle()
    call.solve(tape)
    call.forward.T = 0
    assert API.forward(call.layer, call.forward) == INVALID
    assert API.backward(tape.value, call.backward) == INVALID


def test_memory_that_is_not_there_is_told() -> None:
    call, tape = Call(make_problem("lstm", "float32", Shape(5, 3, 7, 6))), Handle()
    call.forward.T, call.forward.x, call.forward.y = 2**48, 2**57, 2**60
    with pytest.raises(MemoryError, match=r"^expected enough memory, got none$"):
        call.solve(tape)


# What the interface promises


def test_a_tape_may_be_filled_by_any_layers_one_after_the_other() -> None:
    tape = Handle()
    for k, cell in enumerate(CELLS * 2):
        for form in FORMS:
            problem, rows = FORMS[form](cell, DTYPES[k % 2], 2 - k % 3 // 2)
            assert_same_bits(Call(problem, *rows).solve(tape), by_python(problem, rows))


@by_cell
def test_backward_may_run_again(cell: str) -> None:
    call, tape = Call(make_problem(cell, "float32", Shape(30, 9, 4, 17, 2))), Handle()
    first = {name: a.copy() for name, a in call.solve(tape).items()}
    capi.check(API.backward(tape.value, call.backward))
    assert_same_bits(call.results, first)


def test_a_run_asks_with_the_number_of_steps_and_refuses_other_calls() -> None:
    layer = make_layer("gru", (64, 256), num_layers=2)
    x, y = normal((5000, 1, 64), "float32", 1), np.empty((5000, 1, 256), np.float32)
    stream, asked = Stream(layer), []
    statuses: set[int] = set()

    def stop(_: object, t: int) -> int:
        asked.append(t)
        statuses.update((API.stream_reset(stream.value, None), API.stream_get_state(stream.value, capi.state_of(h))))
        return 0

    h = np.empty((2, 1, 256), np.float32)
    capi.check(API.stream_run_until(stream.value, 5000, x.ctypes.data, y.ctypes.data, capi.Stop(stop), None))
    assert np.array_equal(y, layer(x)[0])
    assert asked == sorted(set(asked))
    assert 0 < asked[0] <= asked[-1] < 5000
    assert statuses == {capi.BUSY}
    capi.check(API.stream_reset(stream.value, None))


def test_a_run_of_no_steps_needs_no_arrays() -> None:
    stream = Stream(make_layer("gru"))
    capi.check(API.stream_run(stream.value, 0, None, None))


def test_a_tape_in_many_threads_is_refused_or_serves() -> None:
    problem = make_problem("lstm", "float32", Shape(60, 16, 32, 48))
    expected, tape = by_python(problem), Handle()
    call = Call(problem)
    call.solve(tape)
    gradients = {name for name in expected if name.startswith("d")}

    def work(own: Call) -> None:
        for _ in range(20):
            status = API.backward(tape.value, own.backward)
            if status == 0:
                assert_same_bits({n: own.results[n] for n in gradients}, {n: expected[n] for n in gradients})
            else:
                assert status == capi.BUSY
                assert API.message() == b"tape: expected one call at a time, got one while another one runs"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [Call(problem) for _ in range(4)]))
    work(call)


@pytest.mark.parametrize("form", ["whole", "resets", "unequal"])
@by_cell
def test_results_that_nobody_wants_are_left_out(cell: str, form: str) -> None:
    problem, rows = FORMS[form](cell, "float32", 2)
    expected = by_python(problem, rows)
    call = Call(problem, *rows)
    set_fields(state=None)(call.forward)
    set_fields(dx=None, dstate0=None)(call.backward)
    left = {"dx", *of_states(cell)}
    results = call.solve(Handle())
    for name in left:
        assert name not in results or (results.pop(name) == 7).all()
    assert_same_bits(results, {name: a for name, a in expected.items() if name not in left})


@pytest.mark.parametrize("form", ["whole", "unequal with resets"])
@by_cell
def test_a_forward_without_a_tape_gives_the_same_bits(cell: str, form: str) -> None:
    problem, rows = FORMS[form](cell, "float64", 2)
    expected = by_python(problem, rows)
    call = Call(problem, *rows)
    pack = Handle(call.layer)
    for packed in (False, True):
        if packed:  # there are no other weights then
            call.forward.pack, call.layer.weights = pack.value, None
            call.y.fill(np.nan)
        capi.check(API.forward(call.layer, call.forward))
        forward = {name: a for name, a in call.results.items() if name in {"y", *_core.cells[cell].states}}
        assert_same_bits(forward, {name: expected[name] for name in forward})


@by_cell
def test_a_pack_holds_the_weights_that_it_was_given_last(cell: str) -> None:
    problem = make_problem(cell, "float32", Shape(12, 3, 7, 6, 2))
    call, tape = Call(problem), Handle()
    pack = Handle(call.layer)
    call.forward.pack = pack.value
    before = {name: a.copy() for name, a in call.solve(tape).items()}
    weights: list[Any] = [w for ws in problem.parameters for w in ws]
    for w in weights:
        w *= 2
    capi.check(API.forward(call.layer, call.forward))
    assert np.array_equal(call.y, before["y"])
    capi.check(API.pack_update(pack.value, call.layer))
    assert_same_bits(call.solve(tape), by_python(problem))
    assert not np.array_equal(call.y, before["y"])
