"""Two processes that share a batch, under DistributedDataParallel over gloo, give the gradients of one that has it all.

They meet over a file and talk over the loopback interface.
"""

import itertools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agreement import assert_agree, torch
from model import PAD, Classifier, Tagger, Translator

import rnnfast.torch

dist: Any = pytest.importorskip("torch.distributed")
if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

RANKS, B, T, V, TAGS = 2, 6, 11, 20, 5
SECONDS = 120  # until a test gives up on its processes
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build(name: str, dtype: str) -> Any:
    """Return a model, the same in each process."""
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "classifier": lambda: Classifier(V, TAGS).eval(),  # no dropout: one process would draw other masks
        "translator": lambda: Translator(V),
        "tagger": lambda: Tagger(V, TAGS),
    }
    return rnnfast.torch.accelerate(models[name]().to(DTYPES[dtype]))


MODELS = ("classifier", "translator", "tagger")


def loss_of(trained: Any, name: str, part: slice) -> Any:
    """Return the loss of some of the sequences of a batch, by the number of these."""
    draw = torch.Generator().manual_seed(1)
    tokens, others = torch.randint(2, V, (2, T, B), generator=draw)
    lengths = torch.randint(1, T + 1, (B,), generator=draw)
    lengths[[1, 4]] = T  # both halves are ragged
    ragged = torch.where(torch.arange(T)[:, None] < lengths, tokens, PAD)
    if name == "classifier":
        return torch.nn.functional.cross_entropy(trained(tokens.T[part]), others[0, part] % TAGS)
    if name == "translator":
        logits = trained(ragged[:, part], others[:, part])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), others[:, part].flatten())
    return Tagger.loss(trained(ragged[:, part], lengths[part]), (ragged % TAGS)[:, part])


def gradients(trained: Any, name: str, part: slice) -> dict[str, Any]:
    """Return the gradients by the names of the parameters."""
    loss_of(trained, name, part).backward()
    return {name.removeprefix("module."): p.grad for name, p in trained.named_parameters()}


def gradients_of_share(part: slice) -> dict[str, dict[str, Any]]:
    """Return what the models' gradients are after the processes have exchanged theirs."""
    found = {}
    for name, dtype, view in itertools.product(MODELS, DTYPES, (False, True)):  # the last: as views of what is sent
        shared = torch.nn.parallel.DistributedDataParallel(build(name, dtype), gradient_as_bucket_view=view)
        found[f"{name} {dtype} {view}"] = gradients(shared, name, part)
    return found


def work(rank: int, folder: str) -> None:
    """Be one of the processes: leave the gradients of each model in a file."""
    os.environ |= LOOPBACK
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    torch.save(gradients_of_share(slice(rank * B // RANKS, (rank + 1) * B // RANKS)), f"{folder}/{rank}")
    dist.destroy_process_group()  # with the models gone: one that outlives its group can wait for it forever


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """Return what each of the processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    until = time.monotonic() + SECONDS
    context = torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS, join=False)
    try:
        while not context.join(5):  # an error of a process is raised here
            assert time.monotonic() < until, f"the processes take over {SECONDS} seconds"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


@pytest.mark.parametrize("view", [False, True], ids=["copies", "views"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_gradients_of_one(name: str, dtype: str, view: bool, found: Any) -> None:
    expected = gradients(build(name, dtype), name, slice(None))
    first, second = (of_rank[f"{name} {dtype} {view}"] for of_rank in found)
    assert_agree(first, expected)
    assert all(torch.equal(second[parameter], grad) for parameter, grad in first.items())


def test_parameters_may_be_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharding = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(sharding, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh, found = torch.distributed.device_mesh.init_device_mesh("cpu", (1,)), []
        for accelerated in (False, True):
            torch.manual_seed(0)
            model: Any = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(4, 5, 2), "out": torch.nn.GRU(5, 3)})
            if accelerated:
                rnnfast.torch.accelerate(model)
            for layer in model.values():
                sharding.fully_shard(layer, mesh=mesh)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(3):
                y, _ = model["out"](model["lstm"](torch.linspace(-1, 1, 56).reshape(7, 2, 4) + step)[0])
                y.square().sum().backward()
                optimizer.step()
            found.append({name: p.full_tensor().detach() for name, p in model.named_parameters()})
        assert_agree(*found)
    finally:
        del model, optimizer, y
        dist.destroy_process_group()


def test_the_example_has_the_same_result_in_two_processes_and_in_one() -> None:
    environment = {**os.environ, **LOOPBACK, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bits = []
    for launcher in ([], torchrun):
        command = [sys.executable, *launcher, str(EXAMPLE), "--steps", "8"]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as running:
            try:
                output, errors = running.communicate(timeout=SECONDS)
            finally:
                running.terminate()  # which torchrun hands on to its processes
        assert running.returncode == 0, errors
        [(processes, threads, printed)] = re.findall(
            r"\n(\d+) x (\d+) threads: .*\n([\d.]+) bits per character", output
        )
        assert int(processes) == (RANKS if launcher else 1)
        assert int(threads) == max(1, cores // int(processes))
        bits.append(float(printed))
    assert bits[0] == pytest.approx(bits[1], abs=2e-3)
    assert bits[0] < 6
