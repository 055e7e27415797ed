"""Environments that answer back, for tests: one that counts, and ones that fail."""

import time
from dataclasses import dataclass
from pathlib import Path

from rlft import Invalid
from rlft.types import Task


class Counting:
    """Answers each turn with how many there were; over at a turn of more than `most` characters or after
    `turns` turns. The reward of a turn is its share of even digits."""

    def __init__(self, task, seed, turns=3):
        self.seed, self.turns, self.said = seed, turns, []

    def reply(self, text):
        self.said.append(text)
        even = sum(c in "02468" for c in text) / 10
        count = len(self.said)
        over = count == self.turns
        return f"{count}+{self.seed % 10}=", even, over, {"heard": float(count)}


@dataclass(frozen=True)
class Echo:
    """Episodes of `turns` turns. broken: what happens in the second turn of every fourth task."""

    turns: int = 3
    broken: str = ""
    folder: str = ""
    size: int = 200

    def train(self):
        return [Task(f"t{i}", f"{i % 10}+{i % 7}=", target="") for i in range(self.size)]

    def held_out(self):
        return [Task(f"h{i}", f"{i % 10}-{i % 7}=", target="") for i in range(8)]

    def dialogue(self, task, seed):
        one = Counting(task, seed, self.turns)
        if not self.broken or int(task.id[1:]) % 4:
            return one
        if self.broken == "never opens":
            raise FileNotFoundError("no such room")
        return Broken(one, self.broken, self.folder)


class Broken:
    """As `Counting`, but its second turn raises, hangs, or says that the episode is invalid."""

    def __init__(self, one, how, folder):
        self.one, self.how, self.folder = one, how, folder

    def reply(self, text):
        if len(self.one.said) == 1:
            if self.how == "hangs":
                time.sleep(60)
            if self.how == "raises":
                raise ZeroDivisionError("planned")
            if self.how == "invalid":
                raise Invalid("planned")
            if self.how == "lies":
                return "?", float("nan"), False
            if self.how == "mumbles":
                return None
        return self.one.reply(text)

    def close(self):
        if self.folder:
            (Path(self.folder) / f"closed{len(list(Path(self.folder).iterdir()))}").touch()
