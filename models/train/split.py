"""Which problems are held out: decided by the operands alone.

The key names the kind and its operands, never the phrasing, and commutative
operands are sorted, so no rewording and no swap moves a problem across.
"""

import zlib

HELDOUT_PERCENT = 12


def key_of(kind, *operands, commutes=False):
    parts = sorted(map(str, operands)) if commutes else list(map(str, operands))
    return kind + ":" + ",".join(parts)


def is_heldout(key):
    return zlib.crc32(key.encode()) % 100 < HELDOUT_PERCENT
