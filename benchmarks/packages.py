"""Models of packages before and after `rnnfast.torch.accelerate`: the same results, and how much faster.

python -m benchmarks.packages [--models NAME ...]

Each model is made with random weights by its package's own code: openunmix, demucs, asteroid's DPRNN, speechbrain,
stanza, DeepFilterNet's GRU groups, fastai's AWD-LSTM, darts. What is not installed is named and left out. Forward is
without gradients; training is forward and backward of all outputs, without an optimizer. Results and gradients of
both are compared first. sb3-contrib has a benchmark of its own, benchmarks.recurrent_ppo.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import rnnfast.torch
from benchmarks.machine import describe
from benchmarks.timing import Call, in_turns

Model = tuple[Any, Callable[[Any], Any]]  # and a call of it


def openunmix() -> Model:
    model = import_module("openunmix.model").OpenUnmix(nb_bins=513, nb_channels=1, hidden_size=256)
    x = torch.rand(4, 1, 513, 64)
    return model, lambda model: model(x)


def demucs() -> Model:
    model = import_module("demucs.demucs").BLSTM(128, layers=2, max_steps=200, skip=True)
    x = torch.randn(4, 128, 300)
    return model, lambda model: model(x)


def asteroid() -> Model:
    model = import_module("asteroid.masknn.recurrent").DPRNN(64, 2, bn_chan=32, hid_size=64, chunk_size=50, n_repeats=2)
    x = torch.randn(2, 64, 400)
    return model, lambda model: model(x)


def speechbrain() -> Model:
    model = import_module("speechbrain.nnet.RNN").LSTM(128, input_size=80, num_layers=2, bidirectional=True)
    x = torch.randn(8, 100, 80)
    return model, lambda model: model(x, lengths=torch.linspace(1, 0.5, 8))


def stanza() -> Model:
    model = import_module("stanza.models.common.packed_lstm").PackedLSTM(
        100, 200, 2, batch_first=True, bidirectional=True, pad=True
    )
    x, lengths = torch.randn(16, 40, 100), torch.arange(40, 24, -1)
    return model, lambda model: model(x, lengths)


def stanza_highway() -> Model:
    model = import_module("stanza.models.common.hlstm").HighwayLSTM(
        100, 100, 2, batch_first=True, bidirectional=True, pad=True, highway_func=torch.tanh
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(16, 30, 100), torch.arange(30, 14, -1), True)
    return model, lambda model: model(packed, None)


def deepfilternet() -> Model:
    # df asks torchaudio for a class that it no longer has, to annotate a function that reads files.
    dropped: Any = ModuleType("torchaudio.backend.common")
    dropped.AudioMetaData = object
    sys.modules.setdefault(dropped.__name__, dropped)
    model = import_module("df.modules").GroupedGRU(128, 256, num_layers=3, groups=4)
    x = torch.randn(4, 100, 128)
    return model, lambda model: model(x, None)


def fastai() -> Model:
    model = import_module("fastai.text.models.awdlstm").AWD_LSTM(
        1000, 100, 288, 3, hidden_p=0, input_p=0, embed_p=0, weight_p=0
    )
    tokens = torch.randint(2, 1000, (16, 70))

    def call(model: Any) -> Any:
        model.reset()
        return model(tokens)

    return model, call


def darts() -> Model:
    module = import_module("darts.models.forecasting.block_rnn_model")
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    model = module.BlockRNNModel(
        48, 12, model="LSTM", hidden_dim=40, n_rnn_layers=2, n_epochs=1, pl_trainer_kwargs=quiet, random_state=0
    )
    linear = import_module("darts.utils.timeseries_generation").linear_timeseries
    model.fit(linear(length=100).astype("float32"))  # makes the network
    given = import_module("darts.utils.data.torch_datasets.utils").PLModuleInput(torch.randn(32, 48, 1))
    return model.model, lambda model: model(given)


MODELS: dict[str, Callable[[], Model]] = {
    make.__name__: make
    for make in (openunmix, demucs, asteroid, speechbrain, stanza, stanza_highway, deepfilternet, fastai, darts)
}


def seeded(make: Callable[[], Model]) -> Model:
    """Return a model with the weights that it always has."""
    torch.manual_seed(0)
    return make()


def tensors_of(result: Any) -> list[Tensor]:
    """Return the tensors of floats in nested results."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    if is_dataclass(result):
        result = [getattr(result, field.name) for field in fields(result)]
    parts = result.values() if isinstance(result, dict) else result if isinstance(result, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def forward(model: Any, call: Callable[[Any], Any]) -> Call:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(call(model))

    return run


def training(model: Any, call: Callable[[Any], Any]) -> Call:
    def run() -> list[Tensor]:
        model.zero_grad()
        outputs = [out for out in tensors_of(call(model)) if out.requires_grad]
        sum(out.square().mean() for out in outputs).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    return run


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest difference by the largest element of its tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs if b.numel())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine['processor']}, {machine['isa']}, torch {torch.__version__}, {machine['date']}\n")
    print("| model | modules | work | before, ms | after, ms | times as fast | difference |")
    print("|---|--:|---|--:|--:|--:|--:|")
    missing = []
    for name in options.models:
        try:
            (model, call), (twin, _) = (seeded(MODELS[name]) for _ in range(2))
        except (ImportError, OSError) as error:
            missing.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        for each in (model, twin):
            each.eval()  # without dropout, so that both compute the same
        rnnfast.torch.accelerate(twin)
        count = sum(not entry.why for entry in rnnfast.torch.report(twin))
        for work, make in (("forward", forward), ("training", training)):
            calls = [make(each, call) for each in (model, twin)]
            theirs, ours = ([t.clone() for t in run()] for run in calls)  # type: ignore[attr-defined]
            before, after = (1e3 * t for t in in_turns(calls))
            row = name, str(count), work, f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}"
            print("|", " | ".join(row), f"| {difference(ours, theirs):.0e} |", flush=True)
    for line in missing:
        print(f"\nnot compared: {line}")


if __name__ == "__main__":
    main()
