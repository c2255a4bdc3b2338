"""Losses, clipping and optimizers: against central differences, the equations and torch."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerances import TOLERANCE, relative_error

import rnnfast
from rnnfast.training import (
    SGD,
    Adam,
    AdamW,
    CosineSchedule,
    EarlyStopping,
    ExponentialSchedule,
    binary_cross_entropy,
    clip_grad_norm,
    clip_grad_value,
    gaussian_nll,
    huber_loss,
    minibatches,
    quantile_loss,
    softmax_cross_entropy,
    squared_error,
)

Array = Any
SHAPE, V = (4, 3), 5

by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
by_reduction = pytest.mark.parametrize("reduction", ["mean", "sum"])
by_ignored = pytest.mark.parametrize("ignore_index", [None, 2, -100])


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def classes(ignore_index: int | None = None) -> Array:
    """Return targets, every fourth of them ignored."""
    targets = np.random.default_rng(1).integers(0, V, SHAPE)
    if ignore_index is not None:
        targets.flat[::4] = ignore_index
    return targets


def slopes(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Return the gradient of the loss by central differences."""
    d = np.empty_like(at)
    for index in np.ndindex(at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[index] += step
        behind[index] -= step
        d[index] = (loss(ahead) - loss(behind)) / (2 * step)
    return d


# Losses


@by_ignored
@by_reduction
def test_the_gradient_of_cross_entropy_is_its_slope(reduction: Any, ignore_index: int | None) -> None:
    targets = classes(ignore_index)

    def loss(logits: Array) -> float:
        return softmax_cross_entropy(logits, targets, reduction=reduction, ignore_index=ignore_index)[0]

    logits = normal(*SHAPE, V)
    _, dlogits = softmax_cross_entropy(logits, targets, reduction=reduction, ignore_index=ignore_index)
    assert np.allclose(dlogits, slopes(loss, logits), rtol=0, atol=1e-9)


@by_reduction
def test_the_gradient_of_the_squared_error_is_its_slope(reduction: Any) -> None:
    y, target = normal(*SHAPE), normal(*SHAPE, seed=1)
    _, dy = squared_error(y, target, reduction=reduction)
    expected = slopes(lambda a: squared_error(a, target, reduction=reduction)[0], y)
    assert np.allclose(dy, expected, rtol=0, atol=1e-9)


@by_ignored
@by_reduction
@by_dtype
def test_cross_entropy_is_torchs(torch: Any, dtype: str, reduction: Any, ignore_index: int | None) -> None:
    logits, targets = 10 * normal(*SHAPE, V, dtype=dtype), classes(ignore_index)
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction=reduction, ignore_index=ignore_index)
    leaf = torch.from_numpy(logits).requires_grad_()
    options = {"reduction": reduction, "ignore_index": -1 if ignore_index is None else ignore_index}
    expected = torch.nn.functional.cross_entropy(leaf.reshape(-1, V), torch.from_numpy(targets).ravel(), **options)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE[logits.dtype])
    assert dlogits.dtype == dtype
    assert relative_error(dlogits, leaf.grad.numpy()) <= TOLERANCE[logits.dtype]


@by_reduction
@by_dtype
def test_the_squared_error_is_torchs(torch: Any, dtype: str, reduction: Any) -> None:
    y, target = normal(*SHAPE, dtype=dtype), normal(*SHAPE, dtype=dtype, seed=1)
    loss, dy = squared_error(y, target, reduction=reduction)
    leaf = torch.from_numpy(y).requires_grad_()
    expected = torch.nn.functional.mse_loss(leaf, torch.from_numpy(target), reduction=reduction)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE[y.dtype])
    assert dy.dtype == dtype
    assert relative_error(dy, leaf.grad.numpy()) <= TOLERANCE[y.dtype]


@pytest.mark.parametrize("classes", [1, 2, 7, 8, 15, 16, 17, 33, 95, 1000])
@by_dtype
def test_cross_entropy_is_its_equation(dtype: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, targets = 5 * normal(50, classes, dtype=dtype), rng.integers(0, classes, 50)
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction="sum")
    e = np.exp(logits.astype(np.float64))
    p = e / e.sum(axis=1, keepdims=True)
    onehot = np.eye(classes)[targets]
    assert loss == pytest.approx(-np.log(p[onehot > 0]).sum(), rel=TOLERANCE[logits.dtype], abs=1e-12)
    assert np.abs(dlogits - (p - onehot)).max() <= TOLERANCE[logits.dtype]


@by_dtype
def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number(dtype: str) -> None:
    loss, dlogits = softmax_cross_entropy(np.full((1, V), 7, dtype), np.array([1]))
    assert loss == pytest.approx(math.log(V), rel=TOLERANCE[np.dtype(dtype)])
    assert np.allclose(dlogits, [[0.2, -0.8, 0.2, 0.2, 0.2]])


@pytest.mark.parametrize("size", [1e3, 1e30, -1e30])
@by_dtype
def test_cross_entropy_is_stable(dtype: str, size: float) -> None:
    logits = np.array([[size, 0]], dtype)
    loss, dlogits = softmax_cross_entropy(logits, np.array([1]))
    assert loss == pytest.approx(max(size, 0.0), rel=1e-6)
    assert dlogits.tolist() == ([[1, -1]] if size > 0 else [[0, 0]])


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (6,), (2, 3, 4)])
def test_logits_have_any_leading_shape(shape: tuple[int, ...]) -> None:
    logits = normal(*shape, V)
    targets = np.ones(shape, np.int8)
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction="sum")
    rows = [softmax_cross_entropy(row, np.array(1)) for row in logits.reshape(-1, V)]
    assert loss == pytest.approx(sum(loss for loss, _ in rows))
    assert dlogits.shape == logits.shape
    assert np.allclose(dlogits.reshape(-1, V), np.reshape([d for _, d in rows], (-1, V)))


def test_strided_logits_give_the_same_bits() -> None:
    logits, targets = normal(*SHAPE, V), classes()
    loss, dlogits = softmax_cross_entropy(logits, targets)
    strided = np.asfortranarray(logits)
    loss_strided, dlogits_strided = softmax_cross_entropy(strided, np.asfortranarray(targets))
    assert loss_strided == loss
    assert np.array_equal(dlogits_strided, dlogits)


@by_reduction
def test_a_batch_with_nothing_to_learn_has_no_loss_and_no_gradient(reduction: Any) -> None:
    targets = np.full(SHAPE, -1)
    loss, dlogits = softmax_cross_entropy(normal(*SHAPE, V), targets, reduction=reduction, ignore_index=-1)
    assert loss == 0
    assert not dlogits.any()
    loss, dy = squared_error(normal(0, 3), normal(0, 3), reduction=reduction)
    assert loss == 0
    assert dy.shape == (0, 3)


def test_nan_is_not_lost() -> None:
    logits = normal(*SHAPE, V)
    logits[1, 1, 1] = math.nan
    loss, dlogits = softmax_cross_entropy(logits, classes())
    assert math.isnan(loss)
    assert np.isnan(dlogits).any(axis=-1).sum() == 1


def test_a_class_that_cannot_be_has_no_share() -> None:
    loss, dlogits = softmax_cross_entropy(np.array([[-math.inf, 0.0, 0.0]]), np.array([1]))
    assert loss == pytest.approx(math.log(2))
    assert dlogits.tolist() == [[0, -0.5, 0.5]]
    assert softmax_cross_entropy(np.array([[-math.inf, 0.0]]), np.array([0]))[0] == math.inf


def test_ignored_logits_may_be_anything() -> None:
    logits, targets = normal(*SHAPE, V), classes(ignore_index=-100)
    expected = softmax_cross_entropy(logits, targets, ignore_index=-100)
    logits[targets == -100] = math.nan
    loss, dlogits = softmax_cross_entropy(logits, targets, ignore_index=-100)
    assert loss == expected[0]
    assert np.array_equal(dlogits, expected[1])


def test_losses_leave_their_arguments_alone() -> None:
    arguments = normal(*SHAPE, V), classes(), normal(*SHAPE), normal(*SHAPE, seed=1)
    before = [a.copy() for a in arguments]
    for a in arguments:
        a.flags.writeable = False
    softmax_cross_entropy(*arguments[:2], ignore_index=2)
    squared_error(*arguments[2:])
    assert all(map(np.array_equal, arguments, before))


# Clipping


def gradients(dtype: str = "float64", size: float = 1.0) -> dict[str, Array]:
    return {"w": size * normal(3, 4, dtype=dtype), "b": size * normal(4, dtype=dtype, seed=1)}


def norm_of(arrays: dict[str, Array]) -> float:
    return math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in arrays.values()))


@by_dtype
def test_the_norm_is_of_all_gradients_together(dtype: str) -> None:
    grads = gradients(dtype)
    before = {name: g.copy() for name, g in grads.items()}
    norm = clip_grad_norm(grads, 1.5)
    assert norm == pytest.approx(norm_of(before), rel=TOLERANCE[np.dtype(dtype)])
    assert norm_of(grads) == pytest.approx(1.5, rel=2e-6)
    for name, g in grads.items():
        assert relative_error(g / before[name], np.full_like(g, 1.5 / norm)) < 2e-6


@by_dtype
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_by_norm_is_torchs(torch: Any, dtype: str, max_norm: float) -> None:
    grads = gradients(dtype)
    leaves = [torch.nn.Parameter(torch.from_numpy(g.copy())) for g in grads.values()]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    assert clip_grad_norm(grads, max_norm) == pytest.approx(expected.item(), rel=TOLERANCE[np.dtype(dtype)])
    for g, leaf in zip(grads.values(), leaves, strict=True):
        assert relative_error(g, leaf.grad.numpy()) <= TOLERANCE[g.dtype]


def test_the_norm_may_be_larger_than_a_square_can_be() -> None:
    grads = {"w": np.full((3, 4), 2e30, np.float32), "b": np.full(4, 2e30, np.float32)}
    assert clip_grad_norm(grads, 1.0) == pytest.approx(8e30)
    assert grads["w"] == pytest.approx(0.25)


@pytest.mark.parametrize("grads", [gradients(size=1e-3), gradients(size=math.nan), {}], ids=["small", "nan", "none"])
def test_gradients_that_are_not_clipped_keep_their_bits(grads: dict[str, Array]) -> None:
    before = {name: g.copy() for name, g in grads.items()}
    clip_grad_norm(grads, 1.0)
    assert all(np.array_equal(g, before[name], equal_nan=True) for name, g in grads.items())


def test_clipping_by_value_limits_each_element() -> None:
    grads = {"w": np.array([[-3.0, 0.25], [0.5, math.inf]]), "b": np.array([-0.5])}
    clip_grad_value(grads, 0.5)
    assert grads["w"].tolist() == [[-0.5, 0.25], [0.5, 0.5]]
    assert grads["b"].tolist() == [-0.5]


# Other losses: by name the loss of y and a target, and torch's

PINBALL = [0.1, 0.5, 0.9]
LOSSES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "binary": (
        lambda y, t, **o: binary_cross_entropy(y, 1 / (1 + np.exp(-t)), **o),
        lambda f, y, t, **o: f.binary_cross_entropy_with_logits(y, t.sigmoid(), **o),
    ),
    "huber": (huber_loss, lambda f, y, t, **o: f.huber_loss(y, t, **o)),
    "huber, delta": (
        lambda y, t, **o: huber_loss(y, t, delta=0.5, **o),
        lambda f, y, t, **o: f.huber_loss(y, t, delta=0.5, **o),
    ),
    "squared": (squared_error, lambda f, y, t, **o: f.mse_loss(y, t, **o)),
}
by_loss = pytest.mark.parametrize(("ours", "theirs"), LOSSES.values(), ids=LOSSES)


@by_reduction
@by_dtype
@by_loss
def test_losses_are_torchs(torch: Any, ours: Any, theirs: Any, dtype: str, reduction: Any) -> None:
    y, target = 3 * normal(*SHAPE, V, dtype=dtype), normal(*SHAPE, V, dtype=dtype, seed=1)
    loss, dy = ours(y, target, reduction=reduction)
    leaf = torch.from_numpy(y).requires_grad_()
    expected = theirs(torch.nn.functional, leaf, torch.from_numpy(target), reduction=reduction)
    expected.backward()
    assert dy.dtype == dtype
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE[y.dtype])
    assert relative_error(dy, leaf.grad.numpy()) <= TOLERANCE[y.dtype]


@pytest.mark.parametrize("full", [False, True])
@by_reduction
@by_dtype
def test_the_gaussian_likelihood_is_torchs(torch: Any, dtype: str, reduction: Any, full: bool) -> None:
    mean, s, target = (normal(*SHAPE, dtype=dtype, seed=seed) for seed in range(3))
    loss, (dmean, ds) = gaussian_nll(mean, s, target, reduction=reduction, full=full)
    leaves = [torch.from_numpy(a).requires_grad_() for a in (mean, s)]
    expected = torch.nn.functional.gaussian_nll_loss(
        leaves[0], torch.from_numpy(target), leaves[1].exp(), reduction=reduction, full=full
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE[mean.dtype])
    for d, leaf in zip((dmean, ds), leaves, strict=True):
        assert d.dtype == dtype
        assert relative_error(d, leaf.grad.numpy()) <= TOLERANCE[mean.dtype]


@by_reduction
@by_dtype
def test_the_quantile_loss_and_its_gradient_follow_the_equation(dtype: str, reduction: Any) -> None:
    y, target = normal(*SHAPE, 3, dtype=dtype), normal(*SHAPE, dtype=dtype, seed=1)
    y[0, 0, 0] = target[0, 0]
    loss, dy = quantile_loss(y, target, PINBALL, reduction=reduction)
    total, d = 0.0, np.zeros(y.shape)
    for index in np.ndindex(y.shape):
        q, e = PINBALL[index[-1]], float(target[index[:-1]]) - float(y[index])
        total += max(q * e, (q - 1) * e)
        d[index] = 0 if e == 0 else -q if e > 0 else 1 - q
    n = y.size if reduction == "mean" else 1
    assert dy.dtype == dtype
    assert loss == pytest.approx(total / n, rel=TOLERANCE[y.dtype])
    assert np.allclose(dy, d / n, rtol=0, atol=1e-7)


@by_reduction
@by_loss
def test_gradients_of_losses_are_their_slopes(ours: Any, theirs: Any, reduction: Any) -> None:  # noqa: ARG001
    y, target = normal(*SHAPE), normal(*SHAPE, seed=1)
    dy = ours(y, target, reduction=reduction)[1]
    assert np.allclose(dy, slopes(lambda a: ours(a, target, reduction=reduction)[0], y), rtol=0, atol=1e-9)


def test_losses_of_extreme_and_of_no_numbers() -> None:
    loss, d = binary_cross_entropy(np.array([1e4, -1e4]), np.array([True, False]), reduction="sum")
    assert (loss, d.tolist()) == (0.0, [0, 0])
    assert binary_cross_entropy(np.array([-1e4]), np.array([1.0]))[0] == 1e4
    assert huber_loss(np.array([1e300]), np.array([0.0]))[0] == 1e300
    for loss, d in (
        binary_cross_entropy(np.zeros((0, 3)), np.zeros((0, 3))),
        huber_loss(np.zeros(0), np.zeros(0)),
        quantile_loss(np.zeros((0, 2)), np.zeros(0), [0.1, 0.9]),
    ):
        assert (loss, d.size) == (0.0, 0)
    assert gaussian_nll(np.zeros(0), np.zeros(0), np.zeros(0))[0] == 0
    assert huber_loss(np.array(2.0), np.array(0.0))[1].shape == ()


# Schedules, early stopping and minibatches


def test_schedules_are_torchs(torch: Any) -> None:
    pairs: list[tuple[Any, Callable[[Any], Any]]] = [
        (CosineSchedule(0.1, 20, final=0.01), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, 0.01)),
        (ExponentialSchedule(0.1, 0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        (ExponentialSchedule(0.1, 0.5, every=7), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.5)),
    ]
    for ours, theirs in pairs:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
        scheduler = theirs(optimizer)
        for step in range(20):
            assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            scheduler.step()


def test_the_rise_of_a_cosine_is_linear() -> None:
    schedule = CosineSchedule(1.0, 12, warmup=4, final=0.25)
    assert [schedule(n) for n in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule(8) == pytest.approx(0.625)
    assert schedule(12) == schedule(1000) == schedule(10**400) == 0.25


def test_an_exponential_leaves_the_floats_as_a_limit_does() -> None:
    doubles, halves = ExponentialSchedule(1.0, 2.0), ExponentialSchedule(1.0, 0.5)
    assert doubles(1023) == 2.0**1023
    assert doubles(1024) == doubles(5000) == doubles(10**400) == np.inf
    assert halves(5000) == halves(10**400) == 0
    assert ExponentialSchedule(0.1, 1.0)(10**400) == 0.1
    assert ExponentialSchedule(0.0, 2.0)(5000) == 0


def test_early_stopping_goes_on_where_it_was() -> None:
    losses = [3.0, 2.0, math.nan, 1.99, 2.5, 1.0]

    def run(stopping: Any, params: dict[str, Array], losses: list[float]) -> int:
        for checks, loss in enumerate(losses):
            params["w"] += 1
            if stopping.step(loss):
                return checks
        return len(losses)

    whole = {"w": np.zeros(2)}
    stopping = EarlyStopping(whole, 2, min_delta=0.1)
    assert run(stopping, whole, losses) == 4
    first = {"w": np.zeros(2)}
    stopped = EarlyStopping(first, 2, min_delta=0.1)
    assert run(stopped, first, losses[:3]) == 3
    second = {"w": first["w"].copy()}
    resumed = EarlyStopping(second, 2, min_delta=0.1)
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed, second, losses[3:]) == 1
    for each, params in ((stopping, whole), (resumed, second)):
        each.restore()
        assert (each.best, each.since, params["w"].tolist()) == (2.0, 3, [2.0, 2.0])


def test_minibatches_hold_each_sequence_once() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, 3)) for n in rng.integers(0, 30, 101)]
    found: list[int] = []
    for x, lengths, indices in minibatches(sequences, 8, rng=1, fill=math.nan):
        assert x.shape == (lengths.max(initial=0), len(indices), 3)
        assert (np.diff(lengths) <= 0).all()
        for b, index in enumerate(indices):
            assert np.array_equal(x[: lengths[b], b], sequences[index])
            assert np.isnan(x[lengths[b] :, b]).all()
        found.extend(indices)
    assert sorted(found) == list(range(101))
    generator = np.random.default_rng(3)
    epochs = [[batch.indices.tolist() for batch in minibatches(sequences, 8, rng=generator)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == [batch.indices.tolist() for batch in minibatches(sequences, 8, rng=3, batch_first=True)]
    assert list(minibatches([], 8)) == []
    [tokens] = minibatches([[1, 2], [3]], 2, shuffle=False, batch_first=True, fill=-1)
    assert tokens.x.tolist() == [[1, 2], [3, -1]]


# Optimizers

OPTIMIZERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SGD": (SGD, {"lr": 0.1}),
    "SGD with momentum": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adam": (Adam, {"lr": 0.01}),
    "Adam with options": (Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
    "AdamW": (AdamW, {"lr": 0.01}),
    "AdamW with options": (AdamW, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5}),
}
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
DEFAULTS: dict[Any, dict[str, Any]] = {SGD: {"momentum": 0.0}, Adam: ADAM, AdamW: {**ADAM, "weight_decay": 0.01}}
by_optimizer = pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS)
STEPS = 20


def parameters(dtype: str) -> dict[str, Array]:
    return {"w": normal(3, 4, dtype=dtype, seed=2), "b": normal(4, dtype=dtype, seed=3)}


def gradients_of(dtype: str, step: int) -> dict[str, Array]:
    return {"w": normal(3, 4, dtype=dtype, seed=10 + step), "b": normal(4, dtype=dtype, seed=100 + step)}


def equations(params: dict[str, Array], lr: float, **options: Any) -> dict[str, Array]:
    """Return the parameters after STEPS steps of the equations in float64, as they are printed."""
    after = {}
    for name, start in params.items():
        p, m, v = start.astype(np.float64), 0.0, 0.0
        for t in range(1, STEPS + 1):
            g = gradients_of("float64", t)[name].astype(start.dtype).astype(np.float64)
            if "betas" in options:
                b1, b2 = options["betas"]
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                p = p * (1 - lr * options.get("weight_decay", 0.0))
                p = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + options["eps"])
            else:
                v = options["momentum"] * v + g
                p = p - lr * v
        after[name] = p
    return after


@by_dtype
@by_optimizer
def test_steps_follow_the_equations(optimizer: Any, options: dict[str, Any], dtype: str) -> None:
    params = parameters(dtype)
    expected = equations(params, **{**DEFAULTS[optimizer], **options})
    made = optimizer(params, **options)
    for t in range(1, STEPS + 1):
        made.step(gradients_of(dtype, t))
    for name, p in params.items():
        assert p.dtype == dtype
        assert relative_error(p, expected[name]) <= TOLERANCE[p.dtype]


@by_dtype
@by_optimizer
def test_steps_are_torchs(torch: Any, optimizer: Any, options: dict[str, Any], dtype: str) -> None:
    params = parameters(dtype)
    leaves = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in params.items()}
    theirs = getattr(torch.optim, optimizer.__name__)(leaves.values(), **options)
    ours = optimizer(params, **options)
    for t in range(1, STEPS + 1):
        grads = gradients_of(dtype, t)
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(grads[name])
        theirs.step()
        ours.step(grads)
    for name, p in params.items():
        assert relative_error(p, leaves[name].detach().numpy()) <= TOLERANCE[p.dtype]


def rounded(p: Array, g: Array, lr: float, **options: Any) -> Array:
    """Return p after two steps, each operation of the equations rounded to its dtype."""
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t in (1, 2):
        if "betas" in options:
            b1, b2 = options["betas"]
            root = math.sqrt(1 - b2**t)
            m, v = m * b1 + g * (1 - b1), v * b2 + g * g * (1 - b2)
            p = p - p * (lr * options.get("weight_decay", 0.0))
            p = p - m / (np.sqrt(v) + options["eps"] * root) * (lr * root / (1 - b1**t))
        else:
            v = v * options.get("momentum", 0.0) + g
            p = p - v * lr
    return p


@pytest.mark.parametrize("n", [0, 1, 7, 8, 15, 16, 17, 33, 1000])
@by_dtype
@by_optimizer
def test_a_step_rounds_each_operation_once(optimizer: Any, options: dict[str, Any], dtype: str, n: int) -> None:
    p, g = normal(n, dtype=dtype), normal(n, dtype=dtype, seed=1)
    expected = rounded(p, g, **{**DEFAULTS[optimizer], **options})
    made = optimizer({"p": p}, **options)
    made.step({"p": g})
    made.step({"p": g})
    assert np.array_equal(p, expected)


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "transposed": lambda a: np.asfortranarray(a),
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": lambda a: np.frombuffer(bytearray(b" " + a.tobytes()), a.dtype, offset=1).reshape(a.shape),
    "0-d": lambda a: a[1, 2, ...].copy(),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@by_optimizer
def test_parameters_and_gradients_may_lie_anyhow(
    optimizer: Any, options: dict[str, Any], layout: Callable[[Array], Array]
) -> None:
    start, g = normal(3, 4), normal(3, 4, seed=1)
    p, plain = layout(start), layout(start).copy()
    strange, straight = optimizer({"w": p}, **options), optimizer({"w": plain}, **options)
    for _ in range(2):
        strange.step({"w": layout(g)})
        straight.step({"w": layout(g).copy()})
    assert np.array_equal(p, plain)
    assert clip_grad_norm({"w": layout(g)}, 1.0) == clip_grad_norm({"w": layout(g).copy()}, 1.0)


@by_optimizer
def test_a_refused_step_changes_no_parameter(optimizer: Any, options: dict[str, Any]) -> None:
    params = {"a": normal(5), "b": normal(5)}
    before = {name: p.copy() for name, p in params.items()}
    stepper = optimizer(params, **options)
    state = {name: np.copy(a) for name, a in stepper.state_dict().items()}
    params["b"].flags.writeable = False
    with pytest.raises(ValueError, match=r"params\['b'\]: expected a writable array"):
        stepper.step({name: np.ones(5) for name in params})
    assert all(np.array_equal(params[name], before[name]) for name in params)
    assert all(np.array_equal(a, state[name]) for name, a in stepper.state_dict().items())


@by_optimizer
def test_a_parameter_may_be_its_own_gradient(optimizer: Any, options: dict[str, Any]) -> None:
    memory = normal(40)
    for p, g in ((memory[:30], memory[:30]), (memory[:30], memory[5:35])):
        expected = p.copy()
        optimizer({"p": expected}, **options).step({"p": g.copy()})
        optimizer({"p": p}, **options).step({"p": g})
        assert np.array_equal(p, expected)


@by_optimizer
def test_a_run_that_is_resumed_ends_with_the_same_bits(optimizer: Any, options: dict[str, Any]) -> None:
    whole, first = parameters("float32"), parameters("float32")
    straight, stopped = optimizer(whole, **options), optimizer(first, **options)
    for t in range(1, STEPS + 1):
        straight.step(gradients_of("float32", t))
    for t in range(1, 8):
        stopped.step(gradients_of("float32", t))
    second = {name: p.copy() for name, p in first.items()}
    resumed = optimizer(second, **options)
    resumed.load_state_dict(stopped.state_dict())
    for t in range(8, STEPS + 1):
        resumed.step(gradients_of("float32", t))
    assert all(np.array_equal(second[name], whole[name]) for name in whole)


def test_the_learning_rate_can_be_changed_between_steps() -> None:
    params = {"w": np.zeros(1)}
    sgd = SGD(params, lr=1.0)
    sgd.step({"w": np.ones(1)})
    sgd.lr = 0.5
    sgd.step({"w": np.ones(1)})
    assert params["w"] == -1.5


@by_optimizer
def test_the_state_holds_the_learning_rate(optimizer: Any, options: dict[str, Any]) -> None:
    stopped, resumed = (optimizer({"w": np.ones(3)}, **options) for _ in range(2))
    stopped.lr = 0.25
    state = stopped.state_dict()
    assert state["lr"].dtype == np.float64
    resumed.load_state_dict(state)
    assert resumed.lr == 0.25
    stopped.lr = 0.125
    assert state["lr"] == 0.125  # the array itself
    without = {name: a for name, a in state.items() if name != "lr"}
    resumed.load_state_dict(without)
    assert resumed.lr == 0.25  # as it was


@by_optimizer
def test_a_state_that_does_not_fit_changes_nothing(optimizer: Any, options: dict[str, Any]) -> None:
    stepper = optimizer({"w": np.ones(3)}, **options)
    stepper.step({"w": np.ones(3)})
    before = {name: np.copy(a) for name, a in stepper.state_dict().items()}
    with pytest.raises(ValueError, match="lr: expected at least 0"):
        stepper.load_state_dict({name: np.full_like(a, -1) if name == "lr" else 0 * a for name, a in before.items()})
    assert all(np.array_equal(a, before[name]) for name, a in stepper.state_dict().items())


@by_optimizer
def test_a_layer_a_container_and_a_dict_are_trained_alike(optimizer: Any, options: dict[str, Any]) -> None:
    layers = [rnnfast.Linear(4, 3, rng=0) for _ in range(3)]
    grads = {"weight": normal(3, 4, dtype="float32"), "bias": normal(3, dtype="float32")}
    model = rnnfast.Modules(layer=layers[2])
    for params in (layers[0], layers[1].state_dict(), model):
        stepper = optimizer(params, **options)
        for _ in range(2):
            stepper.step(model.join(layer=grads) if params is model else grads)
    for name, p in layers[0].parameters.items():
        assert not np.array_equal(p, rnnfast.Linear(4, 3, rng=0).parameters[name])
        assert all(np.array_equal(p, layer.parameters[name]) for layer in layers)


def test_parameters_may_be_columns_and_halves_of_one_array() -> None:
    a, b = np.zeros((4, 6)), np.zeros(6)
    params = {"left": a[:, :2], "right": a[:, 2:], "even": b[::2], "odd": b[1::2], "none": b[:0]}
    SGD(params, 1.0).step({name: np.full_like(p, -1 - k) for k, (name, p) in enumerate(params.items())})
    assert a.tolist() == [[1, 1, 2, 2, 2, 2]] * 4
    assert b.tolist() == [3, 4] * 3


def test_the_representation_of_an_optimizer_is_its_call() -> None:
    model = rnnfast.Modules(lstm=rnnfast.LSTM(3, 4), readout=rnnfast.Linear(4, 2))
    sgd, adam = SGD(model.readout, 0.1, momentum=0.5), Adam(model, 0.01, betas=(0.8, 0.95))
    assert repr(sgd) == "SGD(<10 parameters in 2 arrays>, lr=0.1, momentum=0.5)"
    assert repr(adam) == "Adam(<154 parameters in 6 arrays>, lr=0.01, betas=(0.8, 0.95))"
    sgd.lr, sgd.momentum = 0.2, 0.0
    assert repr(sgd) == "SGD(<10 parameters in 2 arrays>, lr=0.2)"
    assert repr(Adam({})) == "Adam(<0 parameters in 0 arrays>)"


def test_a_step_that_does_not_fit_changes_nothing() -> None:
    params = parameters("float64")
    before = {name: p.copy() for name, p in params.items()}
    adam = Adam(params)
    with pytest.raises(ValueError, match="grads"):
        adam.step({"w": np.ones((3, 4)), "b": np.ones(5)})
    assert all(np.array_equal(params[name], before[name]) for name in params)
    assert adam.state_dict()["t"] == 0


# Threads


@by_dtype
def test_threads_change_no_bit_of_a_step(dtype: str) -> None:
    n = 1_000_001  # work for 7
    logits, targets = normal(n // V, V, dtype=dtype), np.arange(n // V) % V

    def step() -> list[Array]:
        loss, dlogits = softmax_cross_entropy(logits, targets, ignore_index=2)
        grads = {"w": normal(n, dtype=dtype), "b": normal(3, dtype=dtype)}
        norm = clip_grad_norm(grads, 1.5)
        params = {name: g.copy() for name, g in grads.items()}
        for optimizer in (SGD(params, 0.1), SGD(params, 0.1, momentum=0.5), Adam(params)):
            optimizer.step(grads)
        return [np.array([loss, norm]), dlogits, *params.values()]

    with rnnfast.threads(1):
        expected = step()
    for threads in (2, 3, 7):
        with rnnfast.threads(threads):
            assert all(map(np.array_equal, step(), expected))


# Errors name the argument, what was expected and what came

LOGITS, TARGETS, W = np.zeros((4, 3, V)), np.zeros((4, 3), int), np.zeros((3, 4))
ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "logits list": (lambda: softmax_cross_entropy([["1"]], TARGETS), TypeError, "logits: expected numbers, got a list"),
    "logits int": (lambda: softmax_cross_entropy(TARGETS, TARGETS), TypeError, "logits: expected dtype .*int64"),
    "no logits": (lambda: softmax_cross_entropy(np.array(1.0), TARGETS), ValueError, r"logits: expected shape .*\(\)"),
    "no classes": (lambda: softmax_cross_entropy(np.empty((3, 0)), TARGETS), ValueError, "logits: expected shape"),
    "targets float": (lambda: softmax_cross_entropy(LOGITS, LOGITS), TypeError, "targets: expected integers.*float64"),
    "targets shape": (
        lambda: softmax_cross_entropy(LOGITS, TARGETS[:2]),
        ValueError,
        r"targets: expected shape \(4, 3\), got \(2, 3\)",
    ),
    "target V": (lambda: softmax_cross_entropy(LOGITS, TARGETS + V), ValueError, "targets: expected .*0 to 4.*got 5"),
    "ignore_index": (
        lambda: softmax_cross_entropy(LOGITS, TARGETS, ignore_index=1.5),  # type: ignore[arg-type]
        TypeError,
        "ignore_index: expected an int, got float",
    ),
    "target wraps": (
        lambda: softmax_cross_entropy(LOGITS, np.full(TARGETS.shape, 2**64 - 100, np.uint64), ignore_index=-100),
        ValueError,
        "targets: expected .*got 18446744073709551516",
    ),
    "target -1": (lambda: softmax_cross_entropy(LOGITS, TARGETS - 1), ValueError, "targets: expected .*got -1"),
    "reduction": (
        lambda: softmax_cross_entropy(LOGITS, TARGETS, reduction="none"),  # type: ignore[arg-type]
        ValueError,
        "reduction: expected 'mean' or 'sum', got 'none'",
    ),
    "target shape": (lambda: squared_error(W, W[:1]), ValueError, r"target: expected shape \(3, 4\), got \(1, 4\)"),
    "target dtype": (lambda: squared_error(W, W.astype("float32")), TypeError, "target: expected dtype float64"),
    "max_norm": (lambda: clip_grad_norm({"w": W}, 0), ValueError, "max_norm: expected more than 0, got 0"),
    "max_value": (lambda: clip_grad_value({"w": W}, math.nan), ValueError, "max_value: expected more than 0, got nan"),
    "grads list": (lambda: clip_grad_norm([W], 1), TypeError, "grads: expected a dict"),  # type: ignore[arg-type]
    "grads ints": (lambda: clip_grad_norm({"w": TARGETS}, 1), TypeError, r"grads\['w'\]: expected dtype .*int64"),
    "grads read-only": (
        lambda: clip_grad_norm({"w": np.broadcast_to(W, (2, 3, 4))}, 1),
        ValueError,
        r"grads\['w'\]: expected a writable array",
    ),
    "params": (lambda: SGD({"w": TARGETS}, 1), TypeError, r"params\['w'\]: expected dtype .*int64"),
    "lr": (lambda: SGD({"w": W}, -1), ValueError, "lr: expected at least 0, got -1"),
    "binary targets": (
        lambda: binary_cross_entropy(np.zeros(2), np.array([0.5, 1.5])),
        ValueError,
        "targets: expected probabilities from 0 to 1, got 1.5",
    ),
    "binary shape": (lambda: binary_cross_entropy(W, W[0]), ValueError, "targets: expected shape"),
    "huber delta": (lambda: huber_loss(W, W, delta=0), ValueError, "delta: expected more than 0"),
    "huber dtype": (lambda: huber_loss(W, W.astype("float32")), TypeError, "target: expected dtype float64"),
    "quantiles": (lambda: quantile_loss(np.zeros((3, 2)), np.zeros(3), [0.1]), ValueError, r"quantiles: .*\(2,\)"),
    "quantile 1": (lambda: quantile_loss(np.zeros((3, 1)), np.zeros(3), [1.0]), ValueError, "quantiles: .*got 1.0"),
    "gaussian": (lambda: gaussian_nll(W, W[0], W), ValueError, "log_variance: expected shape"),
    "decay": (lambda: AdamW({"w": W}, weight_decay=-1), ValueError, "weight_decay: expected at least 0"),
    "warmup": (lambda: CosineSchedule(1, 5, warmup=5), ValueError, "warmup: expected less than steps, 5, got 5"),
    "schedule step": (lambda: CosineSchedule(1, 5)(-1), ValueError, "step: expected at least 0"),
    "gamma": (lambda: ExponentialSchedule(1, 0), ValueError, "gamma: expected more than 0"),
    "patience": (lambda: EarlyStopping({"w": W}, -1), ValueError, "patience: expected at least 0"),
    "stopping state": (lambda: EarlyStopping({"w": W}, 1).load_state_dict({}), ValueError, "state_dict: missing keys"),
    "stopping loss": (lambda: EarlyStopping({"w": W}, 1).step("low"), TypeError, "loss: expected a number"),  # type: ignore[arg-type]
    "sequences": (lambda: minibatches(3, 1), TypeError, "sequences: expected a sequence of arrays, got int"),  # type: ignore[arg-type]
    "other features": (
        lambda: minibatches([np.ones((2, 3)), np.ones((2, 4))], 1),
        ValueError,
        r"sequences\[1\]: expected shape \(T, 3\), as the first, got \(2, 4\)",
    ),
    "other dtype": (
        lambda: minibatches([np.ones(2), np.ones(2, "float32")], 1),
        TypeError,
        r"sequences\[1\]: expected dtype float64, as the first, got float32",
    ),
    "0-d sequence": (lambda: minibatches([np.array(1.0)], 1), ValueError, r"sequences\[0\]: expected shape \(T, ...\)"),
    "batch_size": (lambda: minibatches([np.ones(2)], 0), ValueError, "batch_size: expected at least 1"),
    "rng": (lambda: minibatches([np.ones(2)], 1, rng="x"), TypeError, "rng: "),  # type: ignore[arg-type]
    "fill": (lambda: minibatches([np.ones(2, int)], 1, fill=0.5), ValueError, "fill: expected a number of dtype int64"),
    "lr word": (lambda: Adam({"w": W}, "fast"), TypeError, "lr: expected a number, got str"),  # type: ignore[arg-type]
    "momentum": (lambda: SGD({"w": W}, 1, momentum=-1), ValueError, "momentum: expected at least 0"),
    "betas": (lambda: Adam({"w": W}, betas=(0.9, 1.0)), ValueError, r"betas: expected .*\(0.9, 1.0\)"),
    "eps": (lambda: Adam({"w": W}, eps=-1), ValueError, "eps: expected at least 0"),
    "keys": (
        lambda: Adam({"w": W, "b": W.copy(), "c": W.copy()}).step({"b": W, "z": W, "y": W}),
        ValueError,
        r"grads: missing keys: \['c', 'w'\]; unexpected keys: \['y', 'z'\]$",
    ),
    "no dict": (lambda: Adam({"w": W}).step([W]), TypeError, "grads: expected a mapping.*, got list"),  # type: ignore[arg-type]
    "layers": (
        lambda: Adam([rnnfast.Linear(1, 1)]),  # type: ignore[arg-type]
        TypeError,
        "params: expected a layer, rnnfast.Modules or a dict of arrays, got list",
    ),
    "layers by name": (
        lambda: Adam({"readout": rnnfast.Linear(1, 1)}),  # type: ignore[dict-item]
        TypeError,
        r"params\['readout'\]: expected an ndarray, got Linear",
    ),
    "one array twice": (lambda: SGD({"v": W, "w": W}, 1), ValueError, "params: .*, got 'v' and 'w' that share memory"),
    "arrays that overlap": (
        lambda: Adam({"v": W[:2], "w": W[1:].T, "x": W[2:, 0]}),
        ValueError,
        "params: expected arrays of their own, got '[vwx]' and '[vwx]' that share memory",
    ),
    "one gradient twice": (
        lambda: clip_grad_norm({"v": W, "w": W}, 1),
        ValueError,
        "grads: expected arrays of their own, got 'v' and 'w' that share memory",
    ),
    "a lost layer": (
        lambda: SGD({"w": np.zeros((3, 3))}, 1).step({"w": np.zeros((2, 3))}),
        ValueError,
        r"grads\['w'\]: expected shape \(3, 3\), got \(2, 3\); layers with equal names .* joined by rnnfast.Modules",
    ),
    "a joined gradient": (
        lambda: SGD({"a.w": W}, 1).step({"a.w": W.T}),
        ValueError,
        r"grads\['a.w'\]: expected shape \(3, 4\), got \(4, 3\)$",
    ),
    "a masked gradient": (
        lambda: SGD({"w": W}, 1).step({"w": np.ma.masked_array(W, np.ones(W.shape, bool))}),
        ValueError,
        r"grads\['w'\]: expected an array without masked elements, .* leaves out the ends of sequences$",
    ),
    "lr assigned": (lambda: setattr(Adam({"w": W}), "lr", -1), ValueError, "lr: expected at least 0, got -1"),
    "lr nan": (
        lambda: SGD({"w": W}, 1).load_state_dict({"lr": np.array(math.nan)}),
        ValueError,
        "lr: expected at least 0, got nan",
    ),
    "lr shape": (
        lambda: SGD({"w": W}, 1).load_state_dict({"lr": np.ones(1)}),
        ValueError,
        r"lr: expected shape \(\), got \(1,\)",
    ),
    "t": (
        lambda: Adam({"w": W}).load_state_dict({"t": np.array(-1), "m.w": W, "v.w": W}),
        ValueError,
        "t: expected at least 0, got -1",
    ),
    "state list": (
        lambda: Adam({"w": W}).load_state_dict([W]),  # type: ignore[arg-type]
        TypeError,
        "state_dict: expected a mapping of names to arrays, got list",
    ),
    "shape": (
        lambda: Adam({"w": W}).step({"w": W[0]}),
        ValueError,
        r"grads\['w'\]: expected shape \(3, 4\), got \(4,\)",
    ),
    "dtype": (
        lambda: SGD({"w": W}, 1).step({"w": W.astype("float32")}),
        TypeError,
        r"grads\['w'\]: expected dtype float64, got float32",
    ),
    "state keys": (
        lambda: Adam({"w": W}).load_state_dict({}),
        ValueError,
        "state_dict: missing keys: .*'m.w', 't', 'v.w'",
    ),
    "state shape": (
        lambda: Adam({"w": W}).load_state_dict({"t": np.array(1), "m.w": W, "v.w": W.T}),
        ValueError,
        r"v.w: expected shape \(3, 4\), got \(4, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
