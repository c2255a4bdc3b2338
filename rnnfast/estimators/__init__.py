"""Classifiers, regressors and forecasters of sequences, in the style of scikit-learn but without needing it.

Their constructors store the arguments, and `fit` checks them; `get_params`, `set_params`, `clone`, pickling, pipelines
and searches over parameters work. The names of attributes that `fit` learns end with an underscore.
"""

from .forecaster import Forecaster
from .sequences import SequenceClassifier, SequenceRegressor

__all__ = ["Forecaster", "SequenceClassifier", "SequenceRegressor"]
