"""A digit to be guessed within three guesses; after each: higher (`+`) or lower (`-`)."""

from dataclasses import dataclass

from rlft.seeding import Key
from rlft.types import Task


class Guessing:
    """One episode: three guesses at a digit."""

    def __init__(self, digit: int) -> None:
        self.digit, self.left = digit, 3

    def reply(self, text: str) -> tuple[str, float, bool, dict[str, float]]:
        self.left -= 1
        if text == str(self.digit):
            return "", 1.0, True, {"found": 1.0}
        hint = "+" if text.isdigit() and int(text) < self.digit else "-"
        return hint, 0.0, self.left == 0, {"found": 0.0}


@dataclass(frozen=True)
class Guess:
    """size: training episodes; seed: draws their digits."""

    size: int = 1000
    seed: int = 0

    def train(self) -> list[Task]:
        return [self._task("train", i) for i in range(self.size)]

    def held_out(self) -> list[Task]:
        return [self._task("held out", i) for i in range(100)]

    def dialogue(self, task: Task, seed: int) -> Guessing:
        return Guessing(int(task.target))

    def _task(self, part: str, index: int) -> Task:
        digit = Key(self.seed, ("guess", part, index)).rng().randrange(10)
        return Task(id=f"{part} {index}", prompt="=", target=str(digit))
