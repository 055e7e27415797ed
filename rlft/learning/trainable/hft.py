"""Half fine-tuning (arXiv 2404.18466): in each round half of every block is trained, the rest is frozen.

Of each block two of q, k, v, o; one or two of gate, up, down, alternating between blocks; half of the
norms. Embeddings, head and what lies outside blocks are always trained. Where q and k differ in size
(grouped queries) one of q, o and one of k, v is taken, so that it is half of the weights. The choice is
drawn anew each round from the run's seed and the number of the round. All weights get gradients.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlft.errors import ConfigError
from rlft.learning.trained_part import Seen, Trainable
from rlft.seeding import Key

_BLOCK = re.compile(r"^(.*\.\d+)\.(.+)\.(?:weight|bias)$")
_QUERIES, _KEYS = ("q_proj", "o_proj"), ("k_proj", "v_proj")
_FORWARD = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Hft(Trainable):
    """every: optimizer steps of a round."""

    every: int = 100
    chooses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every is {self.every}; a round lasts at least 1 step")

    def fits(self, lm: Any) -> None:
        shapes = {name: tuple(p.shape) for name, p in lm.named_parameters()}
        blocks = _blocks(shapes)
        if not blocks:
            raise ConfigError(
                f"learner.trainable=hft: the model has no numbered blocks (its weights: "
                f"{', '.join(list(shapes)[:3])}, ...); use patterns or lift"
            )
        for block in blocks:
            _chosen(block, blocks, 0, Key(0))

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def kept(self, name: str, seen: Seen) -> bool:
        found = _BLOCK.match(name)
        if not found:
            return True
        number = seen.step // self.every
        chosen = _chosen(found[1], _blocks(seen.shapes), number, seen.key.child(number, found[1]))
        return found[2] in chosen


def _blocks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, int]]:
    """The modules of each block, and the size of their weights."""
    blocks: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        if found := _BLOCK.match(name):
            size = 1
            for length in shape:
                size *= length
            block = blocks.setdefault(found[1], {})
            block[found[2]] = max(block.get(found[2], 0), size)
    return blocks


def _chosen(block: str, blocks: Mapping[str, Mapping[str, int]], number: int, key: Key) -> set[str]:
    """The modules of `block` that are trained in round `number`."""
    sizes = blocks[block]
    by_role = {m.rsplit(".", 1)[-1]: m for m in sizes}
    missing = [r for r in (*_QUERIES, *_KEYS, *_FORWARD) if r not in by_role]
    if missing:
        raise ConfigError(
            f"learner.trainable=hft: {block} has no {missing[0]} (its modules: {', '.join(sizes)}); half "
            f"fine-tuning knows blocks of q, k, v, o and gate, up, down. Use patterns or lift."
        )
    draw = key.rng()
    if len({sizes[by_role[r]] for r in (*_QUERIES, *_KEYS)}) == 1:
        roles = draw.sample([*_QUERIES, *_KEYS], 2)
    else:
        roles = [draw.choice(_QUERIES), draw.choice(_KEYS)]
    roles += draw.sample(_FORWARD, 1 + (list(blocks).index(block) + number) % 2)
    rest = [m for r, m in by_role.items() if r not in (*_QUERIES, *_KEYS, *_FORWARD)]
    return {by_role[r] for r in roles} | set(draw.sample(rest, len(rest) // 2))
