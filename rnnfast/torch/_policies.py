"""The recurrent policies of sb3-contrib, whose loop over the steps of episodes becomes one call."""

import sys
from typing import Any

from torch import Tensor

from ._modules import LSTM


def is_policy(module: Any) -> bool:
    """Return whether a module is such a policy, with sb3-contrib's own loop. Nothing is imported."""
    policies = sys.modules.get("sb3_contrib.common.recurrent.policies")
    known = getattr(policies, "RecurrentActorCriticPolicy", None)
    return known is not None and isinstance(module, known) and type(module)._process_sequence is known._process_sequence


def accelerate_policy(policy: Any) -> None:
    """Have a policy call its LSTM once for all steps."""
    vars(policy)["_process_sequence"] = process_sequence


def restore_policy(policy: Any) -> None:
    """Undo `accelerate_policy`."""
    if vars(policy).get("_process_sequence") is process_sequence:
        del vars(policy)["_process_sequence"]


def process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over sequences [B,T] in which episodes start, as sb3-contrib's policies do.

    Parameters
    ----------
    features : Tensor [B·T,I]
    lstm_states : (h, c), tensors [L,B,H]
        Before a step that starts an episode, the state is zero.
    episode_starts : Tensor [B·T]
        0 and 1.
    lstm : torch.nn.LSTM

    Returns
    -------
    y : Tensor [B·T,H]
    lstm_states : (h, c)
    """
    B = lstm_states[0].shape[1]
    x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
    starts = episode_starts.reshape(B, -1).transpose(0, 1)
    later = bool(starts[1:].any())
    if later and not isinstance(lstm, LSTM):  # which has been restored alone, or moved to another device
        theirs = sys.modules["sb3_contrib.common.recurrent.policies"].RecurrentActorCriticPolicy
        results: tuple[Tensor, tuple[Tensor, Tensor]] = theirs._process_sequence(
            features, lstm_states, episode_starts, lstm
        )
        return results
    if later:
        y, last = lstm(x, lstm_states, resets=starts)
    else:  # as in all batches of sb3-contrib, where a sequence is at most an episode
        kept = (1 - starts[0])[:, None]
        h, c = lstm_states
        y, last = lstm(x, (kept * h, kept * c))
    return y.transpose(0, 1).flatten(0, 1), last
