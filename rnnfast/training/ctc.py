"""Connectionist temporal classification: the loss of labels whose places in time are not known."""

from collections.abc import Sequence

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, Integers
from .._base.packed import checked_integers
from .._base.scalars import Integer, int64
from .losses import Reduction, is_mean

__all__ = ["ctc_loss"]


def ctc_loss(
    logits: ArrayLike,
    targets: Sequence[Integers] | Array,
    *,
    lengths: Integers | None = None,
    blank: Integer = 0,
    reduction: Reduction = "mean",
) -> tuple[float, Array]:
    """Return the loss of connectionist temporal classification [1]_ and its gradient.

    The softmax of a row of logits gives the probability of each class, or of the blank, at that step. A path, one class
    per step, stands for the labels that remain after merging repeated classes and then removing blanks. The loss of a
    sequence is ``-log`` of the sum of the probabilities of all paths that stand for its targets. The sums are computed
    in float64, whatever the dtype of the logits.

    Parameters
    ----------
    logits : array [T,B,V], float32 or float64
        Unnormalised: the softmax is part of the loss.
    targets : sequence of B sequences of integers
        The labels of each sequence, from 0 to V - 1 except the blank; a sequence may have none.
    lengths : sequence of B integers, optional
        The length of each sequence of logits, from 0 to T. Padding contributes no loss, and its gradient is 0.
    blank : int, optional
        The class that stands for "no label".
    reduction : {"mean", "sum"}, optional
        With ``"mean"``, each sequence's loss is divided by its number of labels (or by 1 if it has none), and the
        results are averaged over the batch, as in torch. With ``"sum"``, the losses are added.

    Returns
    -------
    loss : float
        Infinite if logits of ``-inf`` rule out every path for the targets of a sequence, whose gradient is then 0.
    dlogits : ndarray [T,B,V]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or if a sequence has too few steps for its labels: it needs one for each label, and
        one more between two equal labels. The message names the sequence. (In torch its loss is infinite.)

    References
    ----------
    .. [1] Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification: Labelling Unsegmented
       Sequence Data with Recurrent Neural Networks", ICML 2006.

    Examples
    --------
    With two steps and two classes, three of the four paths stand for the label 1: 11, 10 and 01.

    >>> import numpy as np
    >>> loss, dlogits = ctc_loss(np.zeros((2, 1, 2)), [[1]])
    >>> round(float(np.exp(-loss)), 4), dlogits[:, 0].round(4)
    (0.75, array([[ 0.1667, -0.1667],
           [ 0.1667, -0.1667]]))
    """
    a = _core.asarray(logits, "logits")
    if a.ndim != 3:
        msg = f"logits: expected shape (T, B, V), got {a.shape}"
        raise ValueError(msg)
    T, B = a.shape[:2]
    given: object = targets
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        msg = f"targets: expected a sequence of B sequences of integers, got {type(targets).__name__}"
        raise TypeError(msg)
    if len(targets) != B:
        msg = f"targets: expected {B}, one for each sequence of logits, got {len(targets)}"
        raise ValueError(msg)
    labels = [checked_integers(target, f"targets[{b}]") for b, target in enumerate(targets)]
    steps = np.full(B, T) if lengths is None else checked_integers(lengths, "lengths", B)
    ends = np.cumsum([len(target) for target in labels], dtype=np.int64)
    joined = np.concatenate([*labels, np.zeros(0, np.int64)])
    return _core.ctc_loss(a, steps, joined, ends, int64(blank, "blank"), is_mean(reduction))
