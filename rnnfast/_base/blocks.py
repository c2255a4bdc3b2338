"""Matrices in blocks: what each one holds, and files that have only those that are not all zeros.

The rows of a matrix are those of gates, H each. Blocks lie within a gate, [rows,columns] each but at its lower and its
right edge, where they are what is left.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import Array

SPARSE = "rnnfast.sparse"  # the entry of a file's metadata that describes its matrices in blocks
KEPT = ".kept"  # how the name of a matrix goes on in that of its bitmap
HEIGHT = 16  # of blocks in files; they have one column


def sums_of_blocks(a: Array, block: tuple[int, int]) -> Array:
    """Return the sum of each block of an array [gates,H,columns]."""
    rows, columns = (np.arange(0, n, min(size, n)) for n, size in zip(a.shape[1:], block, strict=True))
    sums: Array = np.add.reduceat(np.add.reduceat(a, rows, axis=1), columns, axis=2)
    return sums


def spread(blocks: Array, block: tuple[int, int], H: int, columns: int) -> Array:
    """Return an array [gates·H,columns] in which every element has the value of its block."""
    high = np.repeat(blocks, min(block[0], H), axis=1)[:, :H]
    return np.repeat(high, min(block[1], columns), axis=2)[:, :, :columns].reshape(-1, columns)


def packed(tensors: Mapping[str, Array], heights: Mapping[str, int]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return tensors in which matrices are their blocks that are not all zeros, and the metadata that describe them.

    Parameters
    ----------
    tensors : mapping of ndarrays
    heights : mapping of ints
        H of those of them that are matrices. One that would be no smaller stays as it is.
    """
    made, shapes = dict(tensors), {}
    for name, H in heights.items():
        w = np.ascontiguousarray(tensors[name])
        used = (w.view(f"u{w.itemsize}") != 0).reshape(-1, H, w.shape[1])  # by bits, as -0.0 is no zero to leave out
        kept = sums_of_blocks(used.astype(np.uint8), (HEIGHT, 1)) > 0
        values, bitmap = w[spread(kept, (HEIGHT, 1), H, w.shape[1])], np.packbits(kept)
        if values.nbytes + bitmap.nbytes < w.nbytes:
            made |= {name: values, name + KEPT: bitmap}
            shapes[name] = [*w.shape, H]
    return made, {SPARSE: json.dumps(shapes)} if shapes else {}


def unpacked(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> dict[str, Array]:
    """Return the tensors of a file with whole matrices.

    A matrix has at most 128 numbers for each byte of its bitmap, whatever the file says.

    Raises
    ------
    TypeError, ValueError
        If the blocks do not fit. The message names the tensor.
    """
    made = dict(tensors)
    for name, sizes in json.loads(metadata.get(SPARSE, "{}")).items():
        if name not in made or name + KEPT not in made:
            msg = f"{name}: expected the numbers of blocks and the bitmap {name + KEPT!r}, got {sorted(made)}"
            raise ValueError(msg)
        made[name] = _whole(name, made[name], made.pop(name + KEPT), sizes)
    return made


def _whole(name: str, values: Array, bitmap: Array, sizes: Any) -> Array:
    """Return a matrix of the blocks that its bitmap says are there."""
    if not (isinstance(sizes, list) and len(sizes) == 3 and all(type(n) is int and n > 0 for n in sizes)):
        msg = f"{name}: expected rows, columns and rows of a gate, three integers of at least 1, got {sizes!r}"
        raise ValueError(msg)
    rows, columns, H = sizes
    if rows % H:
        msg = f"{name}: expected rows of whole gates of {H}, got {rows}"
        raise ValueError(msg)
    shape = rows // H, -(-H // HEIGHT), columns
    blocks = shape[0] * shape[1] * shape[2]
    if bitmap.dtype != np.uint8 or bitmap.shape != (-(-blocks // 8),):
        msg = f"{name + KEPT}: expected {blocks} bits in {-(-blocks // 8)} bytes, got {bitmap.dtype} {bitmap.shape}"
        raise ValueError(msg)
    bits = np.unpackbits(bitmap)
    if bits[blocks:].any():
        msg = f"{name + KEPT}: expected zeros behind the bits of {blocks} blocks, got others"
        raise ValueError(msg)
    used = spread(bits[:blocks].reshape(shape) > 0, (HEIGHT, 1), H, columns)
    if values.shape != (np.count_nonzero(used),):
        msg = f"{name}: expected the {np.count_nonzero(used)} numbers of the blocks in its bitmap, got {values.shape}"
        raise ValueError(msg)
    whole = np.zeros((rows, columns), values.dtype)
    whole[used] = values
    return whole
