"""BabyAI in words: a language model reads what the agent sees and writes what it does, a turn a step.

Observations and actions are in the manner of BabyAI-Text (arXiv 2302.02662): `You see a red ball 2 steps
left and 1 step forward`, `turn left`. The episode, its mission and its reward are those of
`envs/minigrid`: `1 - 0.5 t / H` for a success after t of at most H steps.

Departures: each observation ends with `Action:`, since a small model without a chat template cannot tell
otherwise where it ends; walls are named where they end the agent's three straight lines of sight, as
there, but nothing that is hidden; what is no action is answered, and is a step of none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.addition import BOS, EOS, PAD, UNK
from envs.minigrid import MiniGrid
from envs.minigrid.words import WORDS
from rlft.errors import ConfigError
from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.tasks import Lazy
from rlft.types import Task

if TYPE_CHECKING:
    import numpy as np
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ACTIONS = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
"""MiniGrid's actions 0 to 5, in words."""

STATES = ("open", "closed", "locked")
"""Of doors, by MiniGrid's numbers."""

UNKNOWN = "Unknown action"


def described(image: np.ndarray, carrying: Any) -> Iterator[str]:
    """Sentences about a view uint8 `[7, 7, 3]`, the nearest thing first. The agent stands in the middle
    of the last row and looks at the first; carrying: the object that it holds, or None."""
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    middle, last = image.shape[0] // 2, image.shape[1] - 1
    found = []
    for x, y in sorted(
        ((x, y) for x in range(image.shape[0]) for y in range(image.shape[1])),
        key=lambda at: (abs(at[0] - middle) + last - at[1], at),
    ):
        kind, color, state = (int(n) for n in image[x, y])
        name = IDX_TO_OBJECT[kind]
        if name in ("unseen", "empty", "wall", "floor", "agent") or (x, y) == (middle, last):
            continue
        if name == "door":
            name = f"{STATES[state]} {IDX_TO_COLOR[color]} door"
        elif name not in ("goal", "lava"):
            name = f"{IDX_TO_COLOR[color]} {name}"
        found.append(f"You see a {name} {_where(x - middle, last - y)}")
    lines = (
        [(0, ahead) for ahead in range(1, last + 1)],
        [(-side, 0) for side in range(1, middle + 1)],
        [(side, 0) for side in range(1, middle + 1)],
    )
    for line in lines:
        walls = (
            (side, ahead)
            for side, ahead in line
            if IDX_TO_OBJECT[int(image[middle + side, last - ahead, 0])] == "wall"
        )
        if first := next(walls, None):
            found.append(f"You see a wall {_where(*first)}")
    if carrying is not None:
        found.append(f"You carry a {carrying.color} {carrying.type}")
    yield from found


def _where(side: int, ahead: int) -> str:
    """`2 steps left and 1 step forward`; side: cells to the right."""
    parts = [(abs(side), "left" if side < 0 else "right"), (ahead, "forward")]
    return " and ".join(f"{n} step{'s' * (n > 1)} {way}" for n, way in parts if n)


class Walking:
    """One episode in a level that was just reset."""

    def __init__(self, level: Any) -> None:
        self._level = level

    def reply(self, text: str) -> tuple[str, float, bool, dict[str, float]]:
        """(what is seen, reward, whether the episode is over, `success` and `unread` actions)."""
        words = text.strip()
        if words not in ACTIONS:
            image = self._level.unwrapped.gen_obs()["image"]
            return f"{UNKNOWN}\n{_said(self._level, image)}", 0.0, False, _parts(False, 1.0)
        seen, reward, ended, cut, info = self._level.step(ACTIONS.index(words))
        over, won = bool(ended or cut), bool(info.get("success", False))
        said = "" if over else _said(self._level, seen["image"])
        return said, float(reward), over, _parts(won, 0.0)

    def close(self) -> None:
        self._level.close()


def _parts(success: bool, unread: float) -> dict[str, float]:
    return {"success": float(success), "unread": unread}


def _said(level: Any, image: np.ndarray) -> str:
    return "\n".join([*described(image, level.unwrapped.carrying), "Action:"])


@dataclass(frozen=True)
class Levels(Lazy[int]):
    """Episodes by the seeds of their levels, made when they are asked for."""

    env: BabyAIText
    codes: Sequence[int]
    shown: bool

    def task(self, code: int) -> Task:
        return _task(self.env, code, self.shown)


@dataclass(frozen=True)
class BabyAIText:
    """id: a level of MiniGrid or BabyAI; max_steps: H, null for the level's own; time_penalty: what a
    success at the last step loses; demonstrations: show training tasks with what BabyAI's bot (of other
    levels a shortest path) does; train_size, held_out_size: how many levels each part has; seed: picks
    them. Set `turns.max` to `max_steps` or more."""

    id: str = "BabyAI-GoToObj-v0"
    max_steps: int | None = 16
    time_penalty: float | None = 0.5
    demonstrations: bool = False
    train_size: int = 100_000
    held_out_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train_size", "held_out_size"):
            if not 1 <= getattr(self, name) <= 10**8:
                raise ConfigError(f"{name}={getattr(self, name)} must be from 1 to {10**8}")

    def train(self) -> Sequence[Task]:
        """Levels to train on: none that is held out."""
        return Levels(self, range(2**30, 2**30 + self.train_size), self.demonstrations)

    def held_out(self) -> Sequence[Task]:
        """Levels to evaluate on; the same whatever `train_size` is."""
        return Levels(self, range(self.held_out_size), False)

    def dialogue(self, task: Task, seed: int) -> Walking:
        """An episode; nothing in it is left to chance."""
        return Walking(self.level(task.info["level"])[0])

    def level(self, number: int) -> tuple[Any, np.ndarray]:
        """(level `number`, its view uint8 `[7, 7, 3]`), just reset. Raises ConfigError: no such `id`."""
        recipe = MiniGrid(
            id=self.id, max_steps=self.max_steps, time_penalty=self.time_penalty, view="dict"
        )
        level = recipe.make()
        seen, _ = level.reset(seed=Key(self.seed, ("babyai_text", number)).seed(31))
        return level, seen["image"]


@functools.lru_cache(maxsize=20_000)
def _task(env: BabyAIText, number: int, shown: bool) -> Task:
    level, image = env.level(number)
    prompt = f"Goal: {level.unwrapped.mission}\n{_said(level, image)}"
    dialogues = (_demonstrated(level),) if shown else ()
    level.close()
    name = f"{env.id} {number}"
    return Task(name, prompt, info={"level": number}, dialogues=tuple(filter(None, dialogues)))


def _demonstrated(level: Any) -> tuple[str, ...]:
    """What an expert writes and reads in a level that was just reset; nothing if it does not succeed."""
    from envs.minigrid.experts import expert_of

    expert, walking = expert_of(level.unwrapped), Walking(level)
    turns: list[str] = []
    action, over = expert.action(None), False
    while action is not None and action < len(ACTIONS) and not over:
        answer, _, over, parts = walking.reply(ACTIONS[action])
        turns += [ACTIONS[action], answer]
        if over:
            return tuple(turns[:-1]) if parts["success"] else ()
        action = expert.action(action)
    return ()


VOCABULARY = tuple(
    dict.fromkeys(
        [
            *("Goal:", "Action:", "You", "see", "carry", "a", "Unknown", "action"),
            *(word for words in ACTIONS for word in words.split()),
            *("step", "steps", "left", "right", "forward", "and", "wall", "door", "goal", "lava"),
            *STATES,
            *map(str, range(1, 10)),
            *WORDS,
        ]
    )
)


def build_model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of 0.55 million random float32 weights, a function of `seed` alone, and its tokenizer: one
    token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((PAD, BOS, EOS, UNK, *VOCABULARY))}
    words = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    return small_llama(tokenizer, seed, hidden=128, layers=2, width=512), tokenizer
