"""How different the episodes of a set are: plug-ins of kind `diversity`, numbers in [0, 1]. Pure.

Each is called as `fn(traces)`: one mapping an episode, from the name of a trace (what the environment
records at each step) to int `[T + 1, d]`, the start first. Where an episode was continued from a
rollout state, the mapping holds `vine_start` too, int `[1]`: the row of that state, so that what came
before can be told apart. See docs/write-a-diversity-function.md.
"""

from rlft.diversity.distinct import distinct_share, rooms, states
from rlft.diversity.measure import (
    VINE_START,
    Diversity,
    Traces,
    diversity_of,
    require_traces,
)
from rlft.diversity.vendi import vendi, vendi_score

__all__ = [
    "VINE_START",
    "Diversity",
    "Traces",
    "distinct_share",
    "diversity_of",
    "require_traces",
    "rooms",
    "states",
    "vendi",
    "vendi_score",
]
