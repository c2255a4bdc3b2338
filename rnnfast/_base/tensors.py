"""Tensors in safetensors files. NumPy has no bfloat16: the bits of such numbers are uint16 here, and BF16 in files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import Array
from .files import Name, check_readable, write

BFLOAT16, BITS = "BF16", np.dtype(np.uint16)
TYPES: dict[str, Any] = {
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
    "I64": np.int64,
    "U8": np.uint8,
    "BOOL": np.bool,
    BFLOAT16: BITS,
}


def write_tensors(path: Name, tensors: Mapping[str, Array], metadata: dict[str, str]) -> None:
    """Write a file whole or not at all; raise OSError if it cannot be written."""
    from safetensors.numpy import save

    data = save({name: np.require(a, requirements="C") for name, a in tensors.items()}, metadata)
    write(path, _as_bfloat16(data, [name for name, a in tensors.items() if a.dtype == BITS]))


def read_tensors(path: Name) -> tuple[dict[str, str], dict[str, Array]]:
    """Return the metadata and the tensors of a file.

    Raises OSError if it cannot be read or is no regular file; SafetensorError, KeyError or ValueError if it is no
    safetensors file, or has tensors of other types.
    """
    import safetensors

    check_readable(path)
    data = Path(path).read_bytes()
    found: Any = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    tensors = {name: np.frombuffer(t["data"], TYPES[t["dtype"]]).reshape(t["shape"]) for name, t in found}
    return _header(data)[0].get("__metadata__", {}), tensors


def _as_bfloat16(data: bytes, names: list[str]) -> bytes:
    """Return the content of a file with another type of some tensors in its header."""
    if not names:
        return data
    header, start = _header(data)
    for name in names:
        header[name]["dtype"] = BFLOAT16
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[start:]


def _header(data: bytes) -> tuple[dict[str, dict[str, str]], int]:
    """Return what a valid file says of its tensors, and where they start."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), start
