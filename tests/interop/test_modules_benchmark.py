"""`benchmarks.modules` and `benchmarks.steps` time calls that do the same, and print a row for each."""

from typing import Any

import numpy as np
import pytest
from agreement import assert_agree, torch

from benchmarks import modules, steps, timing

SIZES = (3, 2, 5, 4)


@pytest.mark.parametrize("kind", [name + suffix for name in modules.LAYERS for suffix in ("", "Cell")])
def test_the_calls_of_a_row_give_the_same_gradients(kind: str) -> None:
    layer, twins = modules.same_layers(kind, SIZES)
    given = modules.arrays(kind, SIZES)
    results: list[Any] = [call() for call in modules.training_calls(layer, twins, given)]
    ours, *others = (dict(enumerate(map(torch.as_tensor, arrays))) for arrays in results)
    for other in others:
        assert_agree(ours, other)
    empty: Any = modules.empty_call(twins[0], given)()
    assert [gradient.shape for gradient in empty] == [gradient.shape for gradient in others[0].values()]


@pytest.mark.parametrize("kind", [name + suffix for name in modules.LAYERS for suffix in ("", "Cell")])
def test_the_forwards_of_a_row_give_the_same(kind: str) -> None:
    layer, twins = modules.same_layers(kind, SIZES)
    calls = modules.inference_calls(layer, twins, modules.arrays(kind, SIZES).x)
    ours, *others = ([torch.as_tensor(part) for part in flattened(call())] for call in calls)
    for other in others:
        assert_agree(dict(enumerate(ours)), dict(enumerate(other)))


def flattened(results: Any) -> list[Any]:
    return [a for part in results for a in flattened(part)] if isinstance(results, tuple) else [results]


def test_the_models_of_a_row_have_the_same_losses_and_outputs() -> None:
    T, B, E, H = SIZES
    tokens, twins = torch.randint(modules.V, (T + 1, B)), modules.twins(modules.CharLM(E, H))
    assert_agree(*({"logits": modules.inference(model, tokens)()} for model in twins))
    steps = [modules.training_step(model, tokens) for model in twins]
    losses = np.array([[step() for step in steps] for _ in range(5)])
    assert np.allclose(losses[:, 0], losses[:, 1], rtol=1e-4)
    assert losses[-1, 0] < losses[0, 0]


def test_every_call_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(timing, "SAMPLE", 0.0)
    monkeypatch.setattr(timing, "TURNS", 1)
    threads = torch.get_num_threads()
    modules.main(["--calls", "1,1,2,3", "2,2,3,4", "--shapes", "3,2,2,4", "--compiled", "--model", "3,2,4,5"])
    torch.set_num_threads(threads)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    calls = [(name, sizes) for name in modules.LAYERS for sizes in ("1,1,2,3", "2,2,3,4")]
    calls += [(f"{name}Cell", "1,1,2,3") for name in modules.LAYERS]
    pairs = [(f"nn.{name}", "3,2,2,4") for name in modules.LAYERS]
    pairs += [("GRU model, training step", "3,2,4,5"), ("GRU model, forward", "3,1,4,5")]
    found = [tuple(row[:2]) for row in rows if not row[1].startswith("T,")]
    assert found == calls + calls + pairs
    assert all(float(number) > 0 for row in rows if row[0].startswith(("nn.", "GRU model")) for number in row[2:])


def test_every_step_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(steps, "SAMPLE", 0.0)
    monkeypatch.setattr(steps, "TURNS", 1)
    threads = torch.get_num_threads()
    for more in ([], ["--training"]):
        steps.main(["--T", "2", "--B", "1", "3", "--H", "2", *more])
    torch.set_num_threads(threads)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = [tuple(row[:4]) for row in rows if row[0] in steps.KINDS]
    lengths = {kind: "1" if kind.endswith("Cell") else "2" for kind in steps.KINDS}
    assert found == [(kind, lengths[kind], B, "2") for kind in steps.KINDS for B in ("1", "3")] * 2
