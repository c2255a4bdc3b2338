"""The cases by which torch tests torch.nn's recurrent modules, as its wheel ships them, with rnnfast's in their place.

They are `module_inputs_func` and `module_error_inputs_func` of `torch.testing._internal.common_modules`: constructor
arguments, inputs, the errors to come. Packed sequences, which are there for RNN and GRU, serve LSTM too. What each case
has to hold is what torch's own tests of modules ask: values and gradients, here those of torch.nn; derivatives that
finite differences confirm, first and second; and that the module is copied, saved, shown and built like any other.
"""

import copy
import functools
import io
import os
import pickle
from typing import Any, NamedTuple

import hypothesis
import pytest
from agreement import PackedSequence, assert_agree, mapped, results, tensors, torch

import rnnfast.torch

common: Any = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="torch's tests need expecttest (pip install expecttest)"
)
# That module chooses a profile of hypothesis for the whole process.
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
INFOS = {info.module_cls.__name__: info for info in common.module_db if info.name.removeprefix("nn.") in NAMES}
DTYPES = (torch.float32, torch.float64)


class Case(NamedTuple):
    name: str  # of the class, here and in torch.nn
    number: int

    def __str__(self) -> str:
        return f"{self.name}-{self.number}"


@functools.cache
def module_inputs(name: str, dtype: Any, training: bool = True) -> list[Any]:
    """Return torch's cases of a class, with packed sequences."""
    own = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    torch.manual_seed(0)
    arguments: Any = {"device": "cpu", "dtype": dtype, "requires_grad": True, "training": training}
    samples = list(INFOS[name].module_inputs_func(INFOS[name], **arguments, **own))
    if name == "LSTM":
        packed = [s.forward_input for s in module_inputs("GRU", dtype, training) if is_packed(s)]
        builds = [s.constructor_input for s in samples]
        samples += [common.ModuleInput(c, f) for c, f in zip(builds, packed, strict=False)]
    return samples


def error_inputs(name: str, dtype: Any) -> list[Any]:
    """Return torch's cases of errors of a class."""
    arguments: Any = {"device": "cpu", "dtype": dtype, "requires_grad": False, "training": False}
    return list(INFOS[name].module_error_inputs_func(INFOS[name], **arguments))


def is_packed(sample: Any) -> bool:
    return any(isinstance(a, PackedSequence) for a in sample.forward_input.args)


SAMPLES = {Case(name, k): s for name in NAMES for k, s in enumerate(module_inputs(name, torch.float64))}
ERRORS = [Case(name, k) for name in NAMES for k in range(len(error_inputs(name, torch.float64)))]
by_case = pytest.mark.parametrize("case", SAMPLES, ids=str)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Made(NamedTuple):
    ours: Any
    theirs: Any  # torch.nn's, with the same parameters
    inputs: tuple[Any, ...]
    sample: Any


def make(case: Case, dtype: Any, training: bool = True) -> Made:
    """Return the modules and the input of a case."""
    sample = module_inputs(case.name, dtype, training)[case.number]
    arguments = sample.constructor_input
    assert not sample.forward_input.kwargs
    torch.manual_seed(1)
    theirs, ours = (
        getattr(home, case.name)(*arguments.args, **arguments.kwargs, device="cpu", dtype=dtype).train(training)
        for home in (torch.nn, rnnfast.torch)
    )
    ours.load_state_dict(theirs.state_dict())
    return Made(ours, theirs, sample.forward_input.args, sample)


def test_every_class_has_cases_among_them_packed_and_projected_ones() -> None:
    assert {case.name for case in SAMPLES} == {case.name for case in ERRORS} == INFOS.keys() == set(NAMES)
    assert all(any(is_packed(s) for case, s in SAMPLES.items() if case.name == name) for name in NAMES[:3])
    assert any(s.constructor_input.kwargs.get("proj_size") for s in SAMPLES.values())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@by_dtype
@by_case
def test_values_and_gradients_are_torchs(case: Case, dtype: Any, training: bool) -> None:
    # Torch's in float64: its own float32 has been 9e-6 off where the sums of a weight's gradient cancel.
    made = make(case, dtype, training)
    expected = results(made.theirs.double(), mapped(lambda t: t.double(), made.inputs))
    assert_agree(results(made.ours, made.inputs), {name: t.to(dtype) for name, t in expected.items()})


@by_dtype
@pytest.mark.parametrize("case", [case for case, s in SAMPLES.items() if not is_packed(s)], ids=str)
def test_without_a_batch_values_are_those_of_a_batch_of_one(case: Case, dtype: Any) -> None:
    made = make(case, dtype)
    sides = made.ours(*made.inputs), made.sample.reference_fn(made.ours, *made.inputs)
    assert_agree(*(dict(enumerate(tensors(side))) for side in sides))


def spread(t: Any) -> Any:
    """Return the same numbers, every second one in memory."""
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def reversed_axes(t: Any) -> Any:
    """Return the same numbers, in memory in the order of the transposed tensor."""
    axes = tuple(reversed(range(t.ndim)))
    return t.permute(axes).contiguous().permute(axes)


@by_dtype
@by_case
def test_other_strides_give_the_same_bits(case: Case, dtype: Any) -> None:
    made = make(case, dtype)
    expected = results(made.ours, made.inputs)
    for layout in (spread, reversed_axes):
        actual = results(made.ours, made.inputs, layout)
        assert [name for name, t in expected.items() if not torch.equal(t, actual[name])] == []


def function_of(made: Made) -> tuple[Any, tuple[Any, ...]]:
    """Return a module as a function of its input's tensors and its parameters, and these."""
    inputs = mapped(lambda t: t.detach().clone().requires_grad_(), made.inputs)
    leaves, parameters = tensors(inputs), dict(made.ours.named_parameters())

    def function(*given: Any) -> tuple[Any, ...]:
        values = iter(given)
        arguments = mapped(lambda _: next(values), inputs)
        named = dict(zip(parameters, values, strict=True))
        return tuple(tensors(torch.func.functional_call(made.ours, named, arguments)))

    return function, (*leaves, *parameters.values())


@by_case
def test_finite_differences_confirm_the_gradients(case: Case) -> None:
    made = make(case, torch.float64)
    # Packed inputs are larger: there along one direction, else for every number.
    assert torch.autograd.gradcheck(*function_of(made), fast_mode=is_packed(made.sample))


@by_case
def test_finite_differences_confirm_the_second_derivatives(case: Case) -> None:
    assert torch.autograd.gradgradcheck(*function_of(make(case, torch.float64)), fast_mode=True)


@by_dtype
@by_case
def test_no_graph_is_kept_where_none_is_wanted(case: Case, dtype: Any) -> None:
    made = make(case, dtype)
    expected = tensors(made.ours(*made.inputs))
    assert all(t.requires_grad for t in expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = tensors(made.ours(*made.inputs))
        assert not any(t.requires_grad for t in outputs)
        assert all(map(torch.equal, outputs, expected))


@by_dtype
@by_case
def test_copies_give_the_same_bits(case: Case, dtype: Any) -> None:
    made = make(case, dtype)
    expected = tensors(made.ours(*made.inputs))
    saved = io.BytesIO()
    torch.save(made.ours.state_dict(), saved)
    saved.seek(0)
    loaded = make(case, dtype).ours
    for parameter in loaded.parameters():
        torch.nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(saved))
    for twin in (copy.deepcopy(made.ours), pickle.loads(pickle.dumps(made.ours)), loaded):
        assert type(twin) is type(made.ours)
        assert repr(twin) == repr(made.ours)
        assert twin.state_dict().keys() == made.ours.state_dict().keys()
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in made.ours.parameters()}
        assert all(map(torch.equal, tensors(twin(*made.inputs)), expected))


@by_case
def test_a_module_shows_itself_and_names_its_parameters_as_torchs_does(case: Case) -> None:
    made = make(case, torch.float32)
    assert repr(made.ours) == repr(made.theirs)
    shapes = [[(name, p.shape, p.dtype) for name, p in m.state_dict().items()] for m in (made.ours, made.theirs)]
    assert shapes[0] == shapes[1]


@by_case
def test_device_and_dtype_are_taken_and_changed(case: Case) -> None:
    arguments = SAMPLES[case].constructor_input
    build = functools.partial(getattr(rnnfast.torch, case.name), *arguments.args, **arguments.kwargs)
    for dtype in DTYPES:
        for module in (build(device="cpu", dtype=dtype), build().to(dtype), build(device="meta", dtype=dtype)):
            assert {p.dtype for p in module.parameters()} == {dtype}
        assert {p.device.type for p in module.parameters()} == {"meta"}
    made = make(case, torch.float64)
    halves = mapped(torch.Tensor.float, made.inputs)
    assert_agree(*(dict(enumerate(tensors(m.float()(*halves)))) for m in (made.ours, made.theirs)))


@by_dtype
@pytest.mark.parametrize("case", ERRORS, ids=str)
def test_errors_are_torchs(case: Case, dtype: Any) -> None:
    error = error_inputs(case.name, dtype)[case.number]
    build, call = error.module_error_input.constructor_input, error.module_error_input.forward_input
    constructor = functools.partial(getattr(rnnfast.torch, case.name), *build.args, **build.kwargs)
    if error.error_on == common.ModuleErrorEnum.CONSTRUCTION_ERROR:
        failing = constructor
    else:
        options = {} if "dtype" in build.kwargs else {"dtype": dtype}
        failing = functools.partial(constructor(**options), *call.args, **call.kwargs)
    with pytest.raises(error.error_type, match=error.error_regex):
        failing()
