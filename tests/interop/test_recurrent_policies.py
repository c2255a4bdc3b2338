"""sb3-contrib's recurrent policies train as before after `accelerate`, and after `restore`."""

import copy
import pickle
from typing import Any

import pytest
from scripts import run_script

torch: Any = pytest.importorskip("torch", reason='torch is not installed (pip install ".[torch]")')
pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed")

import rnnfast.torch  # noqa: E402
from benchmarks.recurrent_ppo import learner  # noqa: E402
from rnnfast.torch._policies import process_sequence  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
B, T, I, H = 3, 6, 4, 5


def policy_of(units: int = 16, **options: Any) -> Any:
    return learner(2, 8, units, False, policy_kwargs={"lstm_hidden_size": units, **options}).policy


def trained(accelerate: bool, frames: int) -> list[list[float]]:
    """Return the losses of each iteration: of the policy, of the values, and the whole."""
    model = learner(4, 128, 16, accelerate, batch_size=128, n_epochs=2, learning_rate=1e-3)
    losses = []
    train = model.train

    def noted() -> None:
        train()
        values = model.logger.name_to_value
        losses.append([values[f"train/{name}"] for name in ("policy_gradient_loss", "value_loss", "loss")])

    model.train = noted
    model.learn(frames)
    assert ("_process_sequence" in vars(model.policy)) == accelerate
    return losses


def test_training_has_the_same_losses() -> None:
    before, after = (torch.tensor(trained(accelerate, 2048)) for accelerate in (False, True))
    assert before.shape == (4, 3)
    assert (before[:, 1] > 0.1).all()
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("starts", ["none", "first", "any", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_call_is_the_loop_of_the_policy(starts: str, dtype: Any) -> None:
    theirs = torch.nn.LSTM(I, H, num_layers=2).to(dtype)
    lstm = rnnfast.torch.accelerate(copy.deepcopy(theirs))
    loop = type(policy_of())._process_sequence
    torch.manual_seed(0)
    begins = torch.zeros(B, T, dtype=dtype)
    if starts == "first":
        begins[:2, 0] = 1
    elif starts == "any":
        begins[0, 2] = begins[1, 0] = begins[1, 4] = 1
    elif starts == "all":
        begins[:] = 1
    given = [torch.randn(*shape, dtype=dtype) for shape in ((B * T, I), (2, B, H), (2, B, H))]
    results = []
    for process, module in ((loop, theirs), (process_sequence, lstm), (process_sequence, theirs)):
        features, *states = (t.clone().requires_grad_() for t in given)
        y, last = process(features, tuple(states), begins.flatten(), module)
        assert y.shape == (B * T, H)
        gradients = torch.autograd.grad(
            y.square().sum() + sum(part.sin().sum() for part in last), [features, *states, *module.parameters()]
        )
        results.append([y, *last, *gradients])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_policies_are_recognised_and_restored() -> None:
    policy = policy_of(net_arch=[8])
    observations = torch.randn(2, 2)
    state = None
    expected = policy.predict(observations.numpy(), state, deterministic=True)
    rnnfast.torch.accelerate(torch.nn.ModuleDict({"policy": policy}))
    assert vars(policy)["_process_sequence"] is process_sequence
    assert {entry.why for entry in rnnfast.torch.report(policy)} == {""}
    after = policy.predict(observations.numpy(), state, deterministic=True)
    assert (after[0] == expected[0]).all()
    torch.testing.assert_close(after[1], expected[1])
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert vars(other)["_process_sequence"] is process_sequence
    rnnfast.torch.restore(policy)
    assert "_process_sequence" not in vars(policy)
    assert type(policy.lstm_actor) is torch.nn.LSTM


def test_policies_with_a_loop_of_their_own_keep_it() -> None:
    policy = policy_of()
    kind: Any = type(policy)

    class Own(kind):  # type: ignore[misc]
        @staticmethod
        def _process_sequence(*args: Any) -> Any:
            return kind._process_sequence(*args)

    policy.__class__ = Own
    assert "_process_sequence" not in vars(rnnfast.torch.accelerate(policy))


def test_nothing_is_imported_for_a_model_without_policies() -> None:
    run_script(
        "import sys, torch, rnnfast.torch; rnnfast.torch.accelerate(torch.nn.GRU(2, 3));"
        "assert not {'sb3_contrib', 'stable_baselines3', 'gymnasium'} & {*sys.modules}"
    )
