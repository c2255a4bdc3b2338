"""Classifiers, regressors and forecasters of sequences, with the manners of scikit-learn, which they do not need.

Their constructors keep what they are given and check it in `fit`; `get_params`, `set_params`, `clone`, pickles,
pipelines and searches over parameters work. What `fit` learns has names that end with an underscore.
"""

from .forecaster import Forecaster
from .sequences import SequenceClassifier, SequenceRegressor

__all__ = ["Forecaster", "SequenceClassifier", "SequenceRegressor"]
