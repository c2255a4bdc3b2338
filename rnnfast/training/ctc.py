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

    Each row of logits is the softmax of a class or of the blank. A sequence of them *spells* what remains when equal
    classes that follow one another are merged and blanks then left out; the loss of a sequence is ``-log`` of the sum,
    over all that spell its targets, of their probabilities. The sums run in float64, whatever the dtype of the logits.

    Parameters
    ----------
    logits : array [T,B,V], float32 or float64
        Not normalised: the softmax is part of the loss.
    targets : sequence of B sequences of integers
        The labels of each sequence, from 0 to V - 1 but for the blank; there may be none.
    lengths : sequence of B integers, optional
        The real steps of each sequence of logits, from 0 to T. What lies beyond has no loss, and the gradient 0.
    blank : int, optional
        The class that stands for none.
    reduction : {"mean", "sum"}, optional
        ``"mean"``: that over the batch of each sequence's loss divided by the number of its labels, or by 1 where it
        has none, as torch has it. ``"sum"``: the losses as they are.

    Returns
    -------
    loss : float
        Infinite where logits of ``-inf`` leave nothing that spells the targets. Such a sequence has the gradient 0.
    dlogits : ndarray [T,B,V]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the labels need more steps than the sequence has: as many as they are, and one
        more between two that are equal. The message says which sequence that is. (In torch its loss is infinite.)

    References
    ----------
    .. [1] Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification: Labelling Unsegmented
       Sequence Data with Recurrent Neural Networks", ICML 2006.

    Examples
    --------
    Of two steps and two classes, three out of four pairs spell the label 1: 11, 10 and 01.

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
