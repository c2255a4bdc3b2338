"""Classifiers, regressors and forecasters of sequences, with the manners of scikit-learn, which they do not need.

Their constructors keep what they are given and check it in `fit`; `get_params`, `set_params`, `clone`, pickles,
pipelines and searches over parameters work. What `fit` learns has names that end with an underscore.

Examples
--------
>>> import numpy as np
>>> from rnnfast.estimators import SequenceClassifier
>>> rng = np.random.default_rng(0)
>>> X = [rng.standard_normal((n, 2)) for n in rng.integers(5, 20, 120)]
>>> y = np.array(["down", "up"])[[int(x[:, 0].sum() > 0) for x in X]]
>>> classifier = SequenceClassifier("gru", hidden_size=16, epochs=30, lr=0.01, rng=0).fit(X[:100], y[:100])
>>> classifier.score(X[100:], y[100:]) >= 0.9
True
"""

from .forecaster import Forecaster
from .sequences import SequenceClassifier, SequenceRegressor

__all__ = ["Forecaster", "SequenceClassifier", "SequenceRegressor"]
