"""CTC: against the sum over all paths, central differences and torch; bits that no thread and no neighbour changes."""

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import pytest
from tolerances import TOLERANCE

import rnnfast
from rnnfast.training import ctc_loss

Array = Any
TORCHS = {"float32": 1e-5, "float64": 1e-10}  # torch's own sums are of the logits' dtype


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def by_enumeration(logits: Array, target: list[int], blank: int) -> float:
    """Return the loss of one sequence [T,V] as the sum over all paths that spell the target."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        if [v for v, _ in itertools.groupby(path) if v != blank] == target:
            total += math.prod(p[t, v] for t, v in enumerate(path))
    return -math.log(total)


def slopes(logits: Array, step: float = 1e-5, **options: Any) -> Array:
    d = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        ahead, behind = logits.copy(), logits.copy()
        ahead[index] += step
        behind[index] -= step
        d[index] = (ctc_loss(ahead, **options)[0] - ctc_loss(behind, **options)[0]) / (2 * step)
    return d


@pytest.mark.parametrize("target", [[], [1], [2, 2], [1, 2, 1], [2, 2, 2], [1, 2, 1, 2, 1, 0]])
@pytest.mark.parametrize("blank", [0, 3])
def test_the_loss_is_that_of_all_paths(target: list[int], blank: int) -> None:
    target = [3 if v == blank else v for v in target] if blank == 0 else target
    logits = 2 * normal(6, 1, 4, seed=len(target))
    expected = by_enumeration(logits[:, 0], target, blank)
    for reduction, labels in (("sum", 1), ("mean", max(len(target), 1))):
        options: Any = {"blank": blank, "reduction": reduction}
        assert ctc_loss(logits, [target], **options)[0] == pytest.approx(expected / labels, rel=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_gradient_is_the_slope(reduction: Any) -> None:
    logits = normal(7, 4, 5)
    options: Any = {
        "targets": [[1, 1, 2], [], [4, 3], [2]],
        "lengths": [7, 3, 5, 1],
        "blank": 0,
        "reduction": reduction,
    }
    d = ctc_loss(logits, **options)[1]
    assert np.allclose(d, slopes(logits, **options), rtol=0, atol=1e-9)
    assert not d[3:, 1].any()
    assert not d[5:, 2].any()


Sizes: TypeAlias = tuple[int, int, int, int]
SHAPES: list[Sizes] = [
    (1, 1, 1, 0),
    (5, 3, 2, 2),
    (30, 4, 17, 9),
    (100, 32, 64, 20),
    (60, 2, 300, 33),
]  # T, B, V, U


def problem(T: int, B: int, V: int, U: int, dtype: str) -> tuple[Array, list[Array], Array]:
    """Return logits, targets with equal labels side by side among them, and lengths that suffice."""
    rng = np.random.default_rng(T)
    targets = [rng.integers(0, max(V - 1, 1), rng.integers(U // 2, U + 1)) for _ in range(B)]
    if U:
        targets[0] = np.repeat(targets[0][: max(U // 2, 1)], 2)[:U]
    needed = [len(t) + int((t[1:] == t[:-1]).sum()) for t in targets]
    targets = [t if n <= T else t[: T // 2] for t, n in zip(targets, needed, strict=True)]
    lengths = np.array([rng.integers(min(n, T), T + 1) for n in needed])
    return 3 * normal(T, B, V, dtype=dtype), targets, lengths


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs(shape: Sizes, dtype: str, reduction: Any) -> None:
    torch = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
    logits, targets, lengths = problem(*shape, dtype)
    V = shape[2]
    loss, d = ctc_loss(logits, targets, lengths=lengths, blank=V - 1, reduction=reduction)
    leaf = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    theirs = torch.nn.functional.ctc_loss(
        leaf.log_softmax(-1),
        torch.from_numpy(np.concatenate([*targets, np.zeros(0, int)])),
        torch.from_numpy(lengths),
        torch.tensor([len(t) for t in targets]),
        blank=V - 1,
        reduction=reduction,
    )
    theirs.backward()
    bound = TORCHS[dtype]
    assert d.dtype == dtype
    assert abs(loss - theirs.item()) <= bound * max(abs(theirs.item()), 1)
    assert np.abs(d - leaf.grad.numpy()).max() <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_it_is_the_oracles(shape: Sizes, dtype: str) -> None:
    logits, targets, lengths = problem(*shape, dtype)
    loss, d = ctc_loss(logits, targets, lengths=lengths, blank=shape[2] - 1)
    expected, d64 = rnnfast.reference.ctc_loss(logits, targets, lengths, shape[2] - 1)
    assert loss == pytest.approx(expected, rel=TOLERANCE[logits.dtype])
    assert np.abs(d - d64).max() <= TOLERANCE[logits.dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_thread_and_no_neighbour_changes_a_bit(dtype: str) -> None:
    logits, targets, lengths = problem(40, 5, 30, 12, dtype)
    loss, d = ctc_loss(logits, targets, lengths=lengths, blank=29, reduction="sum")
    with rnnfast.threads(3):
        loss3, d3 = ctc_loss(logits, targets, lengths=lengths, blank=29, reduction="sum")
    assert loss == loss3
    assert np.array_equal(d, d3)
    apart = 0.0
    for b, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        one, own = ctc_loss(logits[:length, b : b + 1], [target], blank=29, reduction="sum")
        assert np.array_equal(own[:, 0], d[:length, b])
        apart += one
    assert apart == loss


def test_targets_and_logits_may_come_in_many_forms() -> None:
    logits = normal(8, 2, 4)
    expected = ctc_loss(logits, [[1, 2], [3, 1]])
    for targets in (np.array([[1, 2], [3, 1]]), (np.array([1, 2], np.uint8), (3, 1))):
        given: Any = targets
        loss, d = ctc_loss(np.asfortranarray(logits), given, lengths=np.array([8, 8], np.int32))
        assert loss == expected[0]
        assert np.array_equal(d, expected[1])


def test_what_lies_beyond_the_lengths_is_not_read() -> None:
    logits = normal(6, 2, 4)
    expected = ctc_loss(logits, [[1], [2]], lengths=[3, 6])
    logits[3:, 0] = math.nan
    loss, d = ctc_loss(logits, [[1], [2]], lengths=[3, 6])
    assert loss == expected[0]
    assert np.array_equal(d, expected[1])


def test_long_sequences_lose_no_digits() -> None:
    # Of classes alike in all rows, the paths of U labels in T steps are counted by a binomial coefficient.
    T, U, V = 2000, 40, 50
    labels = np.arange(U) % (V - 1) + 1
    expected = T * math.log(V) - math.log(math.comb(T + U, 2 * U))
    for dtype in ("float32", "float64"):
        loss, d = ctc_loss(np.zeros((T, 1, V), dtype), [labels], reduction="sum")
        assert loss == pytest.approx(expected, rel=1e-7 if dtype == "float32" else 1e-13)
        assert np.abs(d.sum(axis=-1)).max() < 1e-5


def test_extreme_logits() -> None:
    logits = np.zeros((3, 2, 3))
    logits[:, 0, 1] = -math.inf  # the label of the first sequence can never come
    loss, d = ctc_loss(logits, [[1], [1]])
    assert loss == math.inf
    assert not d[:, 0].any()
    assert np.isfinite(d).all()
    logits = np.zeros((3, 1, 3))
    logits[1, 0, 1] = math.nan
    loss, d = ctc_loss(logits, [[1]])
    assert math.isnan(loss)
    logits = np.array([[[800.0, 0.0]], [[0.0, 800.0]]])
    loss, d = ctc_loss(logits, [[1]])
    assert loss == pytest.approx(0, abs=1e-12)
    assert ctc_loss(np.zeros((0, 2, 3)), [[], []])[0] == 0
    assert ctc_loss(np.zeros((2, 0, 3)), [])[0] == 0


X = np.zeros((4, 2, 3))
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a row of logits": (lambda: ctc_loss(X[0], [[1], [1]]), ValueError, r"logits: expected shape \(T, B, V\)"),
    "no classes": (lambda: ctc_loss(X[..., :0], [[], []]), ValueError, "logits: expected shape"),
    "integers": (lambda: ctc_loss(X.astype(int), [[1], [1]]), TypeError, "logits: expected dtype"),
    "one target": (lambda: ctc_loss(X, [[1]]), ValueError, "targets: expected 2, one for each .*, got 1"),
    "no sequence": (lambda: ctc_loss(X, 3), TypeError, "targets: expected a sequence of B .*, got int"),  # type: ignore[arg-type]
    "words": (lambda: ctc_loss(X, "ab"), TypeError, "targets: expected a sequence of B .*, got str"),  # type: ignore[arg-type]
    "floats": (lambda: ctc_loss(X, [[1.0], [1]]), TypeError, r"targets\[0\]: expected integers, got float64"),
    "a number": (lambda: ctc_loss(X, [1, 2]), TypeError, r"targets\[0\]: expected an array, got int"),  # type: ignore[list-item]
    "the blank": (
        lambda: ctc_loss(X, [[1], [0]]),
        ValueError,
        r"targets\[1\]: expected classes from 0 to 2 but .*got 0",
    ),
    "V": (lambda: ctc_loss(X, [[1], [3]]), ValueError, r"targets\[1\]: .*got 3"),
    "-1": (lambda: ctc_loss(X, [[-1], [1]]), ValueError, r"targets\[0\]: .*got -1"),
    "too many": (
        lambda: ctc_loss(X, [[1], [1, 1, 2, 1]]),
        ValueError,
        r"targets\[1\]: expected labels for 4 steps at most, got 4 that need 5",
    ),
    "too short": (
        lambda: ctc_loss(X, [[1, 2], [1]], lengths=[1, 4]),
        ValueError,
        r"targets\[0\]: .* 1 steps at most, got 2 that need 2",
    ),
    "lengths": (lambda: ctc_loss(X, [[1], [1]], lengths=[4, 5]), ValueError, "lengths: expected 0 to 4, got 5"),
    "one length": (lambda: ctc_loss(X, [[1], [1]], lengths=[4]), ValueError, r"lengths: expected shape \(2,\)"),
    "blank": (lambda: ctc_loss(X, [[1], [1]], blank=3), ValueError, "blank: expected a class from 0 to 2, got 3"),
    "blank word": (lambda: ctc_loss(X, [[1], [1]], blank="_"), TypeError, "blank: expected an int, got str"),  # type: ignore[arg-type]
    "reduction": (
        lambda: ctc_loss(X, [[1], [1]], reduction="none"),  # type: ignore[arg-type]
        ValueError,
        "reduction: expected 'mean' or 'sum'",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
