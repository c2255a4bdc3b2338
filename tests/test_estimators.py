"""Estimators: what they learn, scikit-learn's manners, and forecasts beside simpler ones."""

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import rnnfast
from rnnfast.estimators import Forecaster, SequenceClassifier, SequenceRegressor

Array = Any
QUICK: dict[str, Any] = {"hidden_size": 16, "epochs": 25, "lr": 0.02, "rng": 0}


def ragged(n: int, seed: int = 0, features: int = 2) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((t, features)) for t in rng.integers(4, 12, n)]


X = ragged(160)
SIGNS = np.array(["down", "up"])[[int(x[:, 0].sum() > 0) for x in X]]
ENDS = np.array([5 + 3 * (x[-1, 0] - x[0, 1]) for x in X])


@pytest.fixture
def sklearn() -> Any:
    return pytest.importorskip("sklearn", reason='scikit-learn is not installed (pip install ".[examples]")')


# What they learn


@pytest.mark.parametrize(
    "options",
    [{"cell": "lstm"}, {"cell": "gru", "loss": "binary", "bidirectional": True}, {"cell": "rnn", "num_layers": 2}],
    ids=lambda options: options["cell"],
)
def test_a_classifier_learns(options: dict[str, Any]) -> None:
    classifier = SequenceClassifier(**QUICK | options).fit(X[:120], SIGNS[:120])
    assert classifier.classes_.tolist() == ["down", "up"]
    assert classifier.score(X[120:], SIGNS[120:]) >= 0.85
    p = classifier.predict_proba(X[120:])
    assert p.shape == (40, 2)
    assert np.allclose(p.sum(axis=1), 1)
    assert np.array_equal(classifier.predict(X[120:]), classifier.classes_[p.argmax(axis=1)])


def test_sequences_come_in_many_forms() -> None:
    rng = np.random.default_rng(1)
    even = rng.standard_normal((60, 7, 2))
    y = (even[:, :, 0].sum(axis=1) > 0).astype(int)
    classifier = SequenceClassifier("gru", **QUICK)
    found = classifier.fit(even, y).predict_proba(even)
    assert np.array_equal(classifier.fit([*even], y).predict_proba(even), found)
    single = SequenceClassifier("gru", **QUICK).fit(even[:, :, 0], y)
    assert np.array_equal(single.predict([*even[:, :, 0]]), single.predict(even[:, :, :1]))
    assert single.n_features_in_ == 1


def test_tokens_are_embedded() -> None:
    rng = np.random.default_rng(2)
    sentences = [rng.integers(0, 9, n) for n in rng.integers(1, 12, 200)]
    y = np.array([int(3 in s) for s in sentences])
    classifier = SequenceClassifier("gru", embedding_dim=8, **QUICK).fit(sentences[:150], y[:150])
    assert classifier.score(sentences[150:], y[150:]) >= 0.9
    table = classifier.model_.embedding.weight
    assert table.shape == (10, 8)
    assert not table[-1].any()
    unknown = classifier.predict_proba([np.array([50]), np.array([9])])  # tokens that fit has not seen
    assert np.array_equal(unknown[0], unknown[1])


@pytest.mark.parametrize("loss", ["squared", "huber", "quantile", "gaussian"])
def test_a_regressor_learns(loss: str) -> None:
    regressor = SequenceRegressor("gru", loss=loss, **QUICK | {"epochs": 60}).fit(X[:130], ENDS[:130])
    assert regressor.score(X[130:], ENDS[130:]) > 0.6
    if loss in ("quantile", "gaussian"):
        quantiles = regressor.predict_quantiles(X)
        assert quantiles.shape == (160, 3)
        assert (np.diff(quantiles, axis=1) >= 0).all()
        inside = (quantiles[:, 0] <= ENDS) & (quantiles[:, 2] >= ENDS)
        assert 0.5 < inside.mean() <= 1
    if loss == "gaussian":
        assert regressor.predict_quantiles(X[:2], [0.5]).shape == (2, 1)
        assert np.allclose(regressor.predict_quantiles(X[:2], [0.5])[:, 0], regressor.predict(X[:2]))


@pytest.mark.parametrize("loss", ["squared", "quantile", "gaussian"])
def test_a_regressor_tells_several_numbers(loss: str) -> None:
    y = np.stack([ENDS, 100 * np.array([x[0, 0] for x in X])], axis=1)
    regressor = SequenceRegressor("gru", loss=loss, **QUICK).fit(X, y)
    assert regressor.predict(X[:5]).shape == (5, 2)
    assert regressor.score(X, y) > 0.3
    if loss != "squared":
        assert regressor.predict_quantiles(X[:5]).shape == (5, 2, 3)


def test_the_best_epoch_is_kept() -> None:
    regressor = SequenceRegressor("gru", **QUICK | {"patience": 3, "epochs": 200, "lr": 0.05}).fit(X, ENDS)
    told = regressor.history_["validation_loss"]
    assert regressor.n_iter_ == len(told) < 200
    assert np.argmin(told) == len(told) - 5
    whole = SequenceRegressor("gru", **QUICK | {"patience": None}).fit(X, ENDS)
    assert whole.n_iter_ == 25
    assert whole.history_["validation_loss"] == []


def test_parts_are_learned_one_after_the_other() -> None:
    classifier = SequenceClassifier("gru", hidden_size=16, lr=0.01, rng=0)
    for _ in range(25):
        classifier.partial_fit(X[:80], SIGNS[:80], classes=["down", "up", "none"])
        classifier.partial_fit(X[80:120], SIGNS[80:120])
    assert classifier.score(X[120:], SIGNS[120:]) >= 0.8
    assert classifier.classes_.tolist() == ["down", "none", "up"]
    twin = pickle.loads(pickle.dumps(classifier))
    for each in (classifier, twin):
        each.partial_fit(X, SIGNS)
    assert np.array_equal(twin.predict_proba(X), classifier.predict_proba(X))
    assert SequenceRegressor("gru", rng=0).partial_fit(X, ENDS).predict(X).shape == (160,)


def test_fits_with_one_seed_are_alike_whatever_the_threads() -> None:
    first = SequenceClassifier(num_layers=2, dropout=0.2, **QUICK | {"epochs": 3}).fit(X, SIGNS)
    with rnnfast.threads(3):
        second = SequenceClassifier(num_layers=2, dropout=0.2, **QUICK | {"epochs": 3}).fit(X, SIGNS)
    assert np.array_equal(first.predict_proba(X), second.predict_proba(X))
    assert np.array_equal(first.fit(X, SIGNS).predict_proba(X), second.predict_proba(X))


def test_a_progress_bar_has_the_losses(capsys: Any) -> None:
    SequenceRegressor(verbose=True, **QUICK | {"epochs": 2}).fit(X, ENDS)
    told = capsys.readouterr()
    assert "2/2" in told.err
    assert "validation_loss=" in told.err
    assert not told.out


# scikit-learn's manners

# What scikit-learn checks of rows of features, or of its own words, and why sequences are not like that
NOT_OF_SEQUENCES = {
    "check_n_features_in": "a row is a sequence of any length",
    "check_n_features_in_after_fitting": "a row is a sequence of any length",
    "check_estimators_partial_fit_n_features": "a row is a sequence of any length",
    "check_classifiers_train": "a row is a sequence of any length",
    "check_estimators_empty_data_messages": "the error is another one",
    "check_supervised_y_2d": "y of shape (N, 1) is as good, without a warning",
    "check_regressors_train": "a few epochs are too few",
}


@pytest.mark.usefixtures("sklearn")
@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(kind: Any) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    estimator = kind("gru", **QUICK | {"hidden_size": 8, "epochs": 20})
    expected = {**NOT_OF_SEQUENCES, "check_array_api_input": "it needs a setting of SciPy's"}
    done = check_estimator(estimator, expected_failed_checks=expected, on_fail=None, on_skip=None)
    failed = {check["check_name"] for check in done if check["status"] == "failed"}
    assert not failed
    assert sum(check["status"] == "passed" for check in done) >= 40


@pytest.mark.usefixtures("sklearn")
def test_searches_and_clones() -> None:
    from sklearn.base import clone, is_classifier, is_regressor
    from sklearn.model_selection import GridSearchCV, cross_val_score

    classifier = SequenceClassifier("gru", **QUICK | {"epochs": 15})
    search = GridSearchCV(classifier, {"hidden_size": [2, 16], "cell": ["gru", "rnn"]}, cv=2).fit(X[:80], SIGNS[:80])
    assert search.best_score_ > 0.7
    assert search.predict(X[80:82]).shape == (2,)
    regressor = SequenceRegressor("gru", **QUICK | {"epochs": 2})
    assert cross_val_score(regressor, X, ENDS, cv=2).shape == (2,)
    twin = clone(classifier.set_params(lr=0.5))
    assert twin.get_params() == classifier.get_params()
    assert not hasattr(twin, "model_")
    assert is_classifier(classifier)
    assert is_regressor(regressor)
    assert clone(Forecaster(season=3)).season == 3


def test_parameters_and_representations() -> None:
    assert repr(SequenceClassifier("gru", lr=0.1)) == "SequenceClassifier(cell='gru', lr=0.1)"
    assert repr(Forecaster(horizon=3)) == "Forecaster(horizon=3)"
    assert "quantiles=array([0.2, 0.5])" in repr(SequenceRegressor(quantiles=np.array([0.2, 0.5])))  # type: ignore[arg-type]
    regressor = SequenceRegressor(loss="huber")
    assert regressor.get_params()["loss"] == "huber"
    with pytest.raises(ValueError, match="Invalid parameter 'colour' for estimator SequenceRegressor"):
        regressor.set_params(lr=1.0, colour="red")
    assert regressor.lr == 3e-3


def test_scikit_learn_is_not_needed() -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import numpy as np
from rnnfast.estimators import Forecaster, SequenceClassifier
x = np.random.default_rng(0).standard_normal((20, 4, 1))
SequenceClassifier(epochs=1).fit(x, x[:, 0, 0] > 0).predict(x)
try:
    Forecaster().predict(3)
except (ValueError, AttributeError) as error:
    print(type(error).__name__)
assert not any(name.startswith("sklearn.") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "NotFittedError\n"


# Forecasts


def wave(T: int = 150) -> Array:
    t = np.arange(T)
    return 10 * np.sin(2 * np.pi * t / 12) + t / 10 + np.random.default_rng(0).standard_normal(T)


def test_a_forecaster_scales_and_finds_the_season() -> None:
    series = wave()
    forecaster = Forecaster(horizon=6, rng=0, epochs=60).fit(series)
    assert forecaster.season_ == 12
    assert forecaster.predict().shape == (6,)
    quantiles = forecaster.predict_quantiles(20)  # goes on from its own medians
    assert quantiles.shape == (20, 3)
    assert (np.diff(quantiles, axis=1) >= 0).all()
    assert np.array_equal(forecaster.predict(20), quantiles[:, 1])
    other = Forecaster(horizon=6, rng=0, epochs=60).fit(1024 * series - 4096)
    assert np.allclose(other.predict(6), 1024 * forecaster.predict(6) - 4096, rtol=1e-3)
    assert np.array_equal(forecaster.predict(6, series=series), forecaster.predict(6))
    assert np.array_equal(pickle.loads(pickle.dumps(forecaster)).predict(6), forecaster.predict(6))
    noise = np.random.default_rng(0).standard_normal(100)
    assert Forecaster(epochs=2, rng=0).fit(noise).season_ == 1
    assert Forecaster(epochs=2, season=1, patience=None).fit(noise).predict_quantiles(1).shape == (1, 3)


def rmse(errors: Array) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def seasonal(y: Array, K: int, season: int, mean: bool) -> Array:
    """Return the last values of the same season, or the means of all of them."""
    before = [y[len(y) + k - season * (1 + k // season) :: -season] for k in range(K)]
    return np.array([past.mean() if mean else past[0] for past in before])


@pytest.mark.parametrize(("name", "season", "K", "left"), [("sunspots", 11, 10, 59), ("co2", 12, 12, 120)])
def test_forecasts_are_better_than_seasonal_ones(name: str, season: int, K: int, left: int) -> None:
    datasets = pytest.importorskip("statsmodels.datasets", reason="statsmodels is not installed")
    data = getattr(datasets, name).load().data
    if name == "co2":
        data = data["co2"].resample("MS").mean().interpolate()
    y = np.asarray(data)[:, -1] if data.ndim == 2 else np.asarray(data)
    split = len(y) - left
    forecaster = Forecaster(horizon=K, rng=0).fit(y[:split])
    assert forecaster.season_ == season
    ours, means, lasts = [], [], []
    for origin in range(split, len(y) - K + 1, 3):
        known, truth = y[:origin], y[origin : origin + K]
        ours.append(truth - forecaster.predict(K, known))
        means.append(truth - seasonal(known, K, season, mean=True))
        lasts.append(truth - seasonal(known, K, season, mean=False))
    assert rmse(np.array(ours)) < 0.8 * rmse(np.array(means))
    assert rmse(np.array(ours)) < 0.95 * rmse(np.array(lasts))
    assert forecaster.score(y[split - 60 :]) > 0


# What is refused

FIT: Any = SequenceClassifier(**QUICK | {"epochs": 1}).fit
REGRESS: Any = SequenceRegressor(**QUICK | {"epochs": 1}).fit
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (lambda: FIT(3, [1]), ValueError, "X: expected a list of arrays or an array, got int"),
    "none": (lambda: FIT([], []), ValueError, "X: expected at least one sequence"),
    "no steps": (lambda: FIT([X[0], X[1][:0]], [0, 1]), ValueError, r"X\[1\]: expected shape \(T, I\)"),
    "other features": (lambda: FIT([X[0], X[1][:, :1]], [0, 1]), ValueError, r"X\[1\]: expected 2 features.*got 1"),
    "NaN": (lambda: FIT([X[0], 0 * X[1] + np.nan], [0, 1]), ValueError, r"X\[1\]: expected finite numbers"),
    "words": (lambda: FIT(["abc", "d"], [0, 1]), ValueError, r"X\[0\]: expected shape"),
    "negative tokens": (lambda: FIT([[0, -1], [1]], [0, 1]), ValueError, "X: expected tokens from 0 to 2.*, got -1"),
    "large tokens": (
        lambda: FIT([[8 * 10**12, 1], [2]], [0, 1]),
        ValueError,
        "X: expected tokens whose table, 8000000000002 x 32, fits the memory, got 8000000000000 as the largest",
    ),
    "larger tokens": (lambda: FIT([[2**63 - 1], [2]], [0, 1]), ValueError, "X: expected tokens whose table"),
    "largest tokens": (
        lambda: FIT([np.array([2**63]), [2]], [0, 1]),
        ValueError,
        "X: expected tokens from 0 to 2.*, got",
    ),
    "no classes": (
        lambda: SequenceClassifier().partial_fit(X, SIGNS),
        ValueError,
        "classes: expected all that there will be, in the first call of partial_fit, got None",
    ),
    "other classes": (
        lambda: FIT(X, SIGNS).partial_fit(X, SIGNS, "ab"),
        ValueError,
        "classes: expected None, or those",
    ),
    "classes of numbers": (lambda: SequenceRegressor().partial_fit(X, ENDS, [1]), ValueError, "classes: expected None"),
    "fewer y": (lambda: FIT(X, SIGNS[:-1]), ValueError, "y: expected a target for each of 160 sequences"),
    "one class": (lambda: FIT(X, 0 * ENDS), ValueError, "y: expected at least two classes, got 1 class"),
    "continuous": (lambda: FIT(X, ENDS), ValueError, "y: expected classes, got other numbers"),
    "three classes": (
        lambda: SequenceClassifier(loss="binary").fit(X[:3], [0, 1, 2]),
        ValueError,
        "y: expected two classes for the loss 'binary', got 3",
    ),
    "NaN in y": (lambda: REGRESS(X, ENDS * np.nan), ValueError, "y: expected finite numbers"),
    "words in y": (lambda: REGRESS(X, SIGNS), ValueError, "y: expected real numbers"),
    "cell": (lambda: SequenceClassifier("tree").fit(X, SIGNS), ValueError, "cell: expected 'lstm' or"),
    "loss": (lambda: SequenceRegressor(loss="log").fit(X, ENDS), ValueError, "loss: expected 'squared' or"),
    "epochs": (lambda: SequenceClassifier(epochs=0).fit(X, SIGNS), ValueError, "epochs: expected at least 1"),
    "warmup": (lambda: SequenceClassifier(warmup=1.0).fit(X, SIGNS), ValueError, "warmup: expected a share"),
    "fraction": (lambda: SequenceClassifier(validation_fraction=1).fit(X, SIGNS), ValueError, "validation_fraction: "),
    "lr": (lambda: SequenceClassifier(lr=-1).fit(X, SIGNS), ValueError, "lr: expected at least 0"),
    "clip": (lambda: SequenceClassifier(clip=0).fit(X, SIGNS), ValueError, "clip: expected more than 0"),
    "rng": (lambda: SequenceClassifier(rng="x").fit(X, SIGNS), TypeError, "rng: "),
    "verbose": (lambda: SequenceClassifier(verbose=1).fit(X, SIGNS), TypeError, "verbose: expected a bool"),  # type: ignore[arg-type]
    "tokens to features": (lambda: FIT(X, SIGNS).predict([[1, 2]]), ValueError, "X: expected features, as in fit"),
    "features": (
        lambda: FIT(X, SIGNS).predict([np.ones((2, 3))]),
        ValueError,
        "X: expected 2 features, as in fit, got 3",
    ),
    "unknown class": (lambda: FIT(X, SIGNS).partial_fit(X[:1], ["left"]), ValueError, "y: expected classes of"),
    "quantiles": (lambda: REGRESS(X, ENDS).predict_quantiles(X), ValueError, "quantiles: expected the loss 'gaussian'"),
    "not fitted": (lambda: SequenceRegressor().predict(X), ValueError, "is not fitted yet"),
    "short series": (lambda: Forecaster().fit(wave(30)), ValueError, r"series: expected shape \(T,\).*got \(30,\)"),
    "rows": (lambda: Forecaster().fit(np.ones((99, 2))), ValueError, r"series: expected shape \(T,\)"),
    "NaN in a series": (lambda: Forecaster().fit(wave() * np.nan), ValueError, "series: expected finite numbers"),
    "no median": (
        lambda: Forecaster(quantiles=(0.1, 0.9)).fit(wave()),
        ValueError,
        "quantiles: expected rising",
    ),
    "horizon": (lambda: Forecaster(horizon=0).fit(wave()), ValueError, "horizon: expected at least 1"),
    "season": (lambda: Forecaster(season=0).fit(wave()), ValueError, "season: expected at least 1"),
    "long season": (lambda: Forecaster(season=90).fit(wave()), ValueError, "series: expected shape .* 204 steps"),
    "steps": (lambda: Forecaster(epochs=1).fit(wave()).predict(0), ValueError, "horizon: expected at least 1"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
