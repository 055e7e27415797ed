"""How deep a tensor sits, by its name.

The first number in a name is the layer (`model.layers.3.mlp.up_proj.weight`), counted within the stack
that stands before it. Names without a number: embeddings lie in the first layer; everything else, which
is the output head and the last norm, in the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from rlft.merging.method import Place

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe")


def places(names: Iterable[str]) -> Mapping[str, Place]:
    """The place of each name; the only layer of a stack counts as the last."""
    names = list(names)
    last: dict[str, int] = {}
    for name in names:
        if found := _NUMBERED.match(name):
            stack, layer = found[1], int(found[2])
            last[stack] = max(last.get(stack, 0), layer)
    return {name: Place(name, _depth(name, last)) for name in names}


def _depth(name: str, last: Mapping[str, int]) -> float:
    if found := _NUMBERED.match(name):
        end = last[found[1]]
        return int(found[2]) / end if end else 1.0
    return 0.0 if _EMBEDDING.search(name) else 1.0
