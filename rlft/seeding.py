"""One root seed, split by name.

A `Key` is a path of names under a root seed. Its number depends on the path alone, so whoever
needs randomness derives it from what the work *is* (ticket 7, task 3, member 2), never from how many
draws somebody else made before. That is what makes runs repeatable and resumable.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """A named stream of randomness: the root seed and the names below it."""

    root: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Key:
        """The stream below this one under `names`."""
        return Key(self.root, (*self.path, *names))

    def seed(self, bits: int = 63) -> int:
        """A number in `[0, 2**bits)`: BLAKE2b of root and path. `bits` is at most 64."""
        digest = hashlib.blake2b(repr((self.root, self.path)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> (64 - bits)

    def rng(self) -> random.Random:
        """A standard-library generator seeded by this key."""
        return random.Random(self.seed())
