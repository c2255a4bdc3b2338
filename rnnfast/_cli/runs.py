"""``train``: a run of the language model, from its options to its file."""

import errno
import math
import shlex
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from .._base.files import check_readable, check_writable
from .._base.precision import Precision, set_precision
from ..lm import Checkpoint, Training, UsageError, allocating, default_text
from ..lm_options import Options
from .signals import Signals
from .streams import Stderr, reason, say

PROGRAM = "rnnfast" if Path(sys.argv[0]).stem == "rnnfast" else "python -m rnnfast"  # as it was called
OUT = Path("charlm.safetensors")
STDIN = "-"
KEPT = "cell", "hidden", "layers", "embed", "batch", "seq_len", "density", "seed"  # what a resumed run cannot change


def train(
    *,
    out: Path | None = None,
    resume: Path | None = None,
    force: bool = False,
    epochs: int = 0,
    save_every: int = 0,
    quiet: bool = False,
    precision: Precision = "full",
    **given: Any,
) -> int:
    """Train a character language model, save it and print its bits per character."""
    checkpoint = None if resume is None else Checkpoint.read(resume)
    try:
        options = Options(**given) if checkpoint is None else _resumed(checkpoint, given)
    except ValueError as error:  # of options that do not go together
        raise UsageError("--" + str(error).replace("_", "-", 1)) from error
    if options.dropout and options.layers == 1:
        msg = "--dropout acts between layers: it needs --layers of at least 2"
        raise UsageError(msg)
    out = out or resume or OUT
    check_out(out, resume, force, f", --resume {out} continues it")
    training = _training(options)
    if checkpoint is not None:
        training.resume(checkpoint)
    if epochs:
        training.options = replace(training.options, steps=epochs * training.steps_per_epoch)
    total = training.options.steps
    if training.steps >= total:
        msg = f"{resume} has already run {training.steps} of {total} steps; set a larger total with --steps or --epochs"
        raise UsageError(msg)

    with _chosen(precision), Signals() as signals:
        try:
            _run(training, signals, quiet, save_every, out)
        except KeyboardInterrupt:
            say(f"stopped within step {training.steps + 1} without saving")
            return signals.status
        try:
            if training.steps == total:
                signals.patience = 0  # the evaluation can be left at any time
                print(f"held-out: {training.held_out_bits():.3f} bits per character", flush=True)
        except KeyboardInterrupt:
            pass
        finally:  # whether or not standard output took that line
            signals.patience = math.inf
            training.save(out)
        file = shlex.quote(str(out))
        if training.steps < total:
            say(f"saved after {training.steps} of {total} steps; to go on: {PROGRAM} train --resume {file}")
        elif signals.status:
            say(f"saved; to sample: {PROGRAM} sample {file}")
    if not signals.status and not quiet:
        print("".join(training.model.sample(rng=options.seed)))
        print(f"saved; for more: {PROGRAM} sample {file}")
    return signals.status


def _chosen(precision: Precision) -> set_precision:
    try:
        return set_precision(precision)
    except RuntimeError as error:
        msg = f"--{error}"
        raise UsageError(msg) from error


def _run(training: Training, signals: "Signals", quiet: bool, save_every: int, out: Path) -> None:
    """Train to the end, or to the first signal."""
    from tqdm import tqdm

    options = training.options
    tokens = options.batch * options.seq_len
    losses = deque[float](maxlen=50)
    bar = tqdm(
        total=options.steps * tokens,
        initial=training.steps * tokens,
        unit=" tokens",
        unit_scale=True,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left, {rate_fmt}{postfix}",
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr is not None and sys.stderr.isatty() else 5.0,
        disable=quiet or sys.stderr is None,
        file=Stderr(),
    )
    with bar, np.errstate(over="ignore", invalid="ignore"):
        while training.steps < options.steps and not signals.status:
            losses.append(training.step())
            if not math.isfinite(losses[-1]):
                msg = f"step {training.steps} had a loss of {losses[-1]}, which is not saved; lower --lr or --clip"
                raise UsageError(msg)
            loss = fmean(losses)
            says = f"loss {loss:.3f}, {loss / math.log(2):.3f} bits/char"
            bar.set_postfix_str(says, refresh=False)
            bar.update(tokens)
            if save_every and training.steps % save_every == 0 and training.steps < options.steps:
                signals.patience = math.inf
                try:
                    training.save(out)
                except OSError as error:  # there may be space again when the next save is due
                    tqdm.write(f"step {training.steps} was not saved: {out}: {reason(error)}", file=Stderr())
                signals.patience = 1


def _resumed(checkpoint: Checkpoint, given: dict[str, Any]) -> Options:
    """Return the options of the saved run, changed by what is given now."""
    for name in KEPT:
        saved = getattr(checkpoint.options, name)
        if given.get(name, saved) != saved:
            option = name.replace("_", "-")
            msg = f"{checkpoint.path} has --{option} {saved}; a resumed run cannot change it to {given[name]}"
            raise UsageError(msg)
    if "text" not in given:
        _check_text(checkpoint)
    return replace(checkpoint.options, **given)


def _check_text(checkpoint: Checkpoint) -> None:
    """Refuse to read anything but a regular file because a checkpoint names it."""
    text = checkpoint.options.text
    if text == STDIN:
        msg = f"the run of {checkpoint.path} read its text from standard input; pass the text with --text"
        raise UsageError(msg)
    try:
        if text is not None:
            check_readable(text)
    except (OSError, ValueError) as error:
        msg = f"the run of {checkpoint.path} had its text in {text}: {reason(error)}; pass the text with --text"
        raise UsageError(msg) from error


def _training(options: Options) -> Training:
    """Read the text and make the run."""
    try:
        text = default_text() if options.text is None else _read(options.text)
    except OSError as error:
        msg = f"--text {options.text}: {reason(error)}; it has to be a text file in UTF-8"
        raise UsageError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"--text {options.text}: not UTF-8 at byte {error.start}; convert it, for instance with iconv"
        raise UsageError(msg) from error
    if options.text not in (None, STDIN):
        options = replace(options, text=str(Path(options.text).absolute()))  # to be resumed in any folder
    with allocating():
        return Training(text, options)


def _read(text: str) -> str:
    """Return what a file or standard input holds, without a byte order mark, its lines ended as in Python."""
    if text != STDIN:
        data = Path(text).read_bytes()
    elif sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    else:
        data = sys.stdin.buffer.read()
    return data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def check_out(out: Path, resumed: Path | None, force: bool, otherwise: str = "") -> None:
    """Refuse to make what cannot be saved, and to overwrite what is not meant to be."""
    try:
        check_writable(out)
        if not out.exists() or (resumed is not None and out.samefile(resumed)):
            return
        Checkpoint.read(out)
    except UsageError as error:
        msg = f"--out {out}: this file exists and is not a model, so it is not overwritten; choose another name"
        raise UsageError(msg) from error
    except OSError as error:
        msg = f"--out {out}: {reason(error)}; choose a place where a file can be written"
        raise UsageError(msg) from error
    if not force:
        msg = f"--out {out}: this file is an existing model; --force overwrites it{otherwise}"
        raise UsageError(msg)
