"""Models as people write them train as before after `accelerate`, and after `restore`; see model.py."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from agreement import TOLERANCE, assert_agree, torch
from model import PAD, Classifier, Counter, Forecaster, Tagger, Translator

import rnnfast.torch

nn, F = torch.nn, torch.nn.functional

V, B, T, TAGS = 30, 7, 13, 6
STEPS = 6
DTYPES = (torch.float32, torch.float64)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Task(NamedTuple):
    build: Callable[[], Any]
    batch: Callable[[Any], tuple[Any, ...]]  # the arguments of a call, for a dtype
    loss: Callable[[Any, tuple[Any, ...]], Any]  # of the output


def tokens(*shape: int) -> Any:
    return torch.randint(2, V, shape)


def ragged(_: Any) -> tuple[Any, Any]:
    lengths = torch.randint(1, T + 1, (B,))
    lengths[2], lengths[4] = T, 1  # neither sorted nor all alike
    return torch.where(torch.arange(T)[:, None] < lengths, tokens(T, B), PAD), lengths


def half_padded(_: Any) -> tuple[Any, Any]:
    source = tokens(T, B)
    source[T // 2 :, ::2] = PAD
    return source, tokens(T - 3, B)


def series(dtype: Any) -> Any:
    return torch.randn(T, B, 3, dtype=dtype)


TASKS = {
    "classifier": Task(
        lambda: Classifier(V, 4),
        lambda _: (tokens(B, T),),
        lambda y, inputs: F.cross_entropy(y, inputs[0].sum(dim=1) % 4),
    ),
    "translator": Task(
        lambda: Translator(V),
        half_padded,
        lambda y, inputs: F.cross_entropy(y.flatten(0, 1), inputs[1].flatten()),
    ),
    "tagger": Task(lambda: Tagger(V, TAGS), ragged, lambda y, inputs: Tagger.loss(y, inputs[0] % TAGS)),
    "forecaster": Task(
        lambda: Forecaster(3), lambda dtype: (series(dtype), 4), lambda y, inputs: F.mse_loss(y, inputs[0][:4])
    ),
    "forecaster, relu": Task(
        lambda: Forecaster(3, nonlinearity="relu"),
        lambda dtype: (series(dtype), 4),
        lambda y, inputs: F.mse_loss(y, inputs[0][:4]),
    ),
    "counter": Task(
        lambda: Counter(3),
        lambda dtype: (series(dtype), torch.rand(T, B) < 0.2),
        lambda y, inputs: F.mse_loss(y[..., 0], inputs[0].sum(dim=-1)),
    ),
}
by_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def twins(task: Task, dtype: Any) -> tuple[Any, Any]:
    """Return a model with torch's modules and its copy."""
    torch.manual_seed(0)
    theirs = task.build().to(dtype)
    return theirs, copy.deepcopy(theirs)


def step(task: Task, trained: Any, seed: int) -> dict[str, Any]:
    """Return output, loss and all gradients of a batch; equal seeds give equal batches and equal dropout."""
    torch.manual_seed(seed)
    dtype = next(trained.parameters()).dtype
    inputs = task.batch(dtype)
    output = trained(*inputs)
    loss = task.loss(output, inputs)
    trained.zero_grad()
    loss.backward()
    grads = {f"d({name})": p.grad for name, p in trained.named_parameters()}
    return {"output": output.detach(), "loss": loss.detach()} | grads


def modules_of(trained: Any) -> dict[str, type]:
    """Return the types of the recurrent modules, by name."""
    return {name: type(m) for name, m in trained.named_modules() if isinstance(m, RECURRENT)}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@by_dtype
@by_task
def test_outputs_and_gradients_are_as_before(task: Task, dtype: Any, training: bool) -> None:
    theirs, ours = (m.train(training) for m in twins(task, dtype))
    assert rnnfast.torch.accelerate(ours) is ours
    assert_agree(step(task, ours, 1), step(task, theirs, 1))


@by_dtype
@by_task
def test_training_goes_on_as_before(task: Task, dtype: Any) -> None:
    theirs, ours = twins(task, dtype)
    # An optimizer that was made before goes on: the parameters are the same objects.
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.2, momentum=0.9) for m in (theirs, ours)]
    rnnfast.torch.accelerate(ours)
    losses = []
    for k in range(STEPS):
        expected = step(task, theirs, k)
        actual = step(task, ours, k)
        assert actual["loss"] == pytest.approx(expected["loss"].item(), rel=10 * TOLERANCE[dtype])
        for m, optimizer in zip((theirs, ours), optimizers, strict=True):
            nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            optimizer.step()
        losses.append(expected["loss"])
    assert not torch.stack(losses).isnan().any()
    assert losses[0] != losses[-1]
    assert_agree(ours.state_dict(), theirs.state_dict())


@by_dtype
@by_task
def test_every_recurrent_module_is_replaced_and_restored(task: Task, dtype: Any) -> None:
    theirs, ours = twins(task, dtype)
    before = step(task, ours, 1)
    parameters = dict(ours.named_parameters())
    rnnfast.torch.accelerate(ours)
    replaced = modules_of(ours)
    assert replaced == {n: getattr(rnnfast.torch, kind.__name__) for n, kind in modules_of(theirs).items()}
    assert not set(replaced.values()) & set(RECURRENT)
    for m in (ours, rnnfast.torch.restore(ours)):
        assert m is ours
        assert list(m.state_dict()) == list(theirs.state_dict())
        assert {n: id(p) for n, p in m.named_parameters()} == {n: id(p) for n, p in parameters.items()}
        assert [n for n, _ in m.named_modules()] == [n for n, _ in theirs.named_modules()]
    assert modules_of(ours) == modules_of(theirs)
    after = step(task, ours, 1)
    assert all(torch.equal(after[name], t) for name, t in before.items())


def test_a_translator_writes_the_same_by_itself() -> None:
    theirs, ours = (m.eval() for m in twins(TASKS["translator"], torch.float64))
    source, _ = half_padded(torch.float64)
    with torch.inference_mode():
        assert_agree({"logits": rnnfast.torch.accelerate(ours)(source)}, {"logits": theirs(source)})


@by_task
def test_a_checkpoint_goes_between_models_before_and_after(task: Task) -> None:
    theirs, ours = twins(task, torch.float64)
    for p in rnnfast.torch.accelerate(ours).parameters():
        nn.init.uniform_(p, -0.1, 0.1)
    theirs.load_state_dict(ours.state_dict())
    other = rnnfast.torch.accelerate(task.build().to(torch.float64))
    other.load_state_dict(theirs.state_dict())
    expected = step(task, theirs, 2)
    assert_agree(step(task, ours, 2), expected)
    assert_agree(step(task, other, 2), expected)
