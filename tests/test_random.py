"""The generator of masks."""

import numpy as np

from rnnfast import _core
from rnnfast._base.arrays import Array


def philox(counter: Array, key: int) -> Array:
    """Return the words of Philox4x32-10 [N,4] at counters [N,4], by Salmon et al., 2011."""
    c = counter.astype(np.uint64).T.copy()
    low, k = np.uint64(2**32 - 1), [key & (2**32 - 1), key >> 32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.array([(b >> 32) ^ c[1] ^ np.uint64(k[0]), b & low, (a >> 32) ^ c[3] ^ np.uint64(k[1]), a & low])
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c.T.astype(np.uint32)


KNOWN = [  # counter, key, words: of the known answers that come with Random123
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def test_bits_are_those_of_philox() -> None:
    for counter, halves, known in KNOWN:
        assert philox(np.array([counter]), halves[0] | halves[1] << 32)[0].tolist() == known
    for units in (1, 4, 7, 8, 31, 32, 33, 63, 64, 65, 100, 200):
        key, place, t, b = 0x0123456789ABCDEF, 11, [0, 5, 2], [7, 0, 1]
        bits = _core.random_bits(key, place, 0.25, np.array(t), np.array(b), units)
        for row in range(3):
            k = np.arange(-(-units // 4))
            words = philox(np.stack([k, *(np.full_like(k, n) for n in (t[row], b[row], place))], axis=1), key)
            expected = np.packbits(words.ravel()[:units] >= 2**30, bitorder="little")
            assert np.array_equal(bits[row], expected)
