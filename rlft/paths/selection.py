"""Which right answers of a question are kept: one a key, the farthest from the others. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlft.errors import DataError
from rlft.paths.rows import Kept, Question
from rlft.types import Task

Check = Callable[[str, Task], bool]
Key = Callable[[str], str]
Distance = Callable[[str, str], float]


def added(kept: Sequence[Kept], new: Kept, distance: Distance | None) -> tuple[Kept, ...]:
    """`kept` with a right answer more: it joins if its key is new, else it takes the place of the one
    with its key if it is farther from the others, summed. Greedy, in order, as in the paper's code."""
    place = next((i for i, k in enumerate(kept) if k.key == new.key), None)
    if place is None:
        return (*kept, new)
    if distance is None:
        return tuple(kept)
    old = kept[place]
    others = [k.text for k in kept if k.text != old.text]

    def far(text: str) -> float:
        return sum(distance(text, other) for other in others)

    if far(new.text) <= far(old.text):
        return tuple(kept)
    return (*kept[:place], new, *kept[place + 1 :])


def merge(questions: dict[str, Question], new: Question, distance: Distance | None) -> None:
    """Adds what was found for a question to what is known of it. Raises DataError: its id stands for
    another question there."""
    known = questions.get(new.id)
    if known is None:
        questions[new.id] = new
        return
    if known.prompt != new.prompt:
        raise DataError(
            f"question {new.id!r} has two prompts, {str(known.prompt)[:60]!r} and "
            f"{str(new.prompt)[:60]!r}: combine rows of one environment only"
        )
    kept = known.kept
    for one in new.kept:
        kept = added(kept, one, distance)
    questions[new.id] = replace(known, gold=known.gold or new.gold, kept=kept)
