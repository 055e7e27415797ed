"""Mission text as numbers: 0 pads, and each word of the missions of MiniGrid and BabyAI has its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rlft.errors import DataError

_WORD = re.compile(r"[a-z]+")

WORDS = (
    *("a", "after", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end", "fetch"),
    *(
        "find",
        "from",
        "front",
        "get",
        "go",
        "goal",
        "green",
        "grey",
        "hallway",
        "in",
        "key",
        "lava",
    ),
    *("left", "matching", "maze", "must", "near", "next", "object", "of", "on", "open", "opening"),
    *("pick", "purple", "put", "reach", "red", "right", "room", "rooms", "square", "the", "then"),
    *("to", "traverse", "unlock", "up", "use", "yellow", "you", "your"),
)
"""Word `i` is number `i + 1`. Only ever add at the end: policies are trained on these numbers."""


class Vocabulary:
    """From mission text to int32 `[length]`. words: further ones, after `WORDS`."""

    def __init__(self, length: int, words: Sequence[str] = ()) -> None:
        self.length = length
        self._ids = {word: i for i, word in enumerate((*WORDS, *words), start=1)}
        self._seen: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """How many numbers there are, 0 with them."""
        return len(self._ids) + 1

    def ids(self, mission: str) -> np.ndarray:
        """Read-only int32 `[length]`, padded with 0; punctuation is left out.

        Raises DataError: an unknown word, or more words than `length`.
        """
        found = self._seen.get(mission)
        if found is None:
            found = self._seen[mission] = self._encoded(mission)
        return found

    def text(self, ids: np.ndarray) -> str:
        """The words of `ids`."""
        words = ("", *self._ids)
        return " ".join(words[i] for i in ids if i)

    def _encoded(self, mission: str) -> np.ndarray:
        words = _WORD.findall(mission.lower())
        unknown = sorted(set(words) - self._ids.keys())
        if unknown:
            raise DataError(
                f"mission {mission!r} has words without a number: {', '.join(unknown)}. Add them: "
                f"env.words=[{', '.join(unknown)}]"
            )
        if len(words) > self.length:
            raise DataError(
                f"mission {mission!r} has {len(words)} words, expected at most {self.length}; raise "
                f"env.mission_length"
            )
        encoded = np.zeros(self.length, dtype=np.int32)
        encoded[: len(words)] = [self._ids[word] for word in words]
        encoded.flags.writeable = False
        return encoded
