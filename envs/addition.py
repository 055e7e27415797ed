"""Addition of two numbers, for a small model that learned two habits: a hasty and a careful one.

The prompt is `347+285=`. Every answer adds the columns from the ones upward and then reads off the
result. Its first letter says which of two habits follows, as pupils have them:

- hasty (60% of the demonstrations): `h12,12,05=522`. Every carry is forgotten, so the result is
  right only if there was nothing to carry: in 30% of the problems of three digits.
- careful (the other 40%): `c12,13,06=632`. Every column includes the carry of the one before, and
  the result is always right.

A model that imitates these demonstrations answers greedily in the hasty way, because most of them
do, and more imitation keeps it there. A reward for right results tells it which of its two habits
pays, and it changes over to the careful one.

What this shows, and what it does not: the model is tiny, starts from random weights and was shown
the careful way, which it mostly masters by imitation; reward chooses between habits, it does not
teach addition. The two habits were put into the data on purpose, so that imitation has a ceiling
which a reward lifts within minutes on a CPU.
Reinforcement learning sees prompts and rewards, never the demonstrations; held-out problems appear
in neither phase.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlft.errors import ConfigError
from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.tasks import Lazy
from rlft.types import Task

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "0123456789+=,hc"
HASTY, CAREFUL = "h", "c"
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"


def worked(a: int, b: int, *, with_carry: bool) -> str:
    """The response of one habit: `c12,13,06=632` or, without carries, `h12,12,05=522`.

    a, b: numbers with the same count of digits. The result is the highest column sum followed by
    the last digit of each of the others.
    """
    sums: list[int] = []
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        carry = sums[-1] // 10 if with_carry and sums else 0
        sums.append(int(x) + int(y) + carry)
    *lower, highest = sums
    result = str(highest) + "".join(str(s % 10) for s in reversed(lower))
    return f"{CAREFUL if with_carry else HASTY}{','.join(f'{s:02d}' for s in sums)}={result}"


@dataclass(frozen=True)
class AdditionTasks(Lazy[int]):
    """The problems with these codes, made when asked for. `careful_share=None`: no demos.

    A code is the pair of numbers `a, b` as one: `(a - low) * span + (b - low)`.
    """

    codes: tuple[int, ...]
    digits: int
    key: Key
    careful_share: float | None = None

    def task(self, code: int) -> Task:
        """The problem with this code; its habit depends on the seed and the code alone."""
        low, span = 10 ** (self.digits - 1), 9 * 10 ** (self.digits - 1)
        a, b = low + code // span, low + code % span
        demos: tuple[str, ...] = ()
        if self.careful_share is not None:
            with_carry = self.key.child(code).seed(bits=32) < self.careful_share * 2**32
            demos = (worked(a, b, with_carry=with_carry),)
        return Task(id=f"{a}+{b}", prompt=f"{a}+{b}=", target=str(a + b), demos=demos)


@dataclass(frozen=True)
class Addition:
    """Sums of two numbers of `digits` digits each.

    train_size, held_out_size: how many distinct problems each part has; careful_share: the share of
    training problems whose demonstration is careful; seed: picks the problems and their habits.
    """

    digits: int = 3
    train_size: int = 100_000
    held_out_size: int = 512
    careful_share: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.digits < 1 or self.train_size < 1 or self.held_out_size < 1:
            raise ConfigError(
                f"digits={self.digits}, train_size={self.train_size} and "
                f"held_out_size={self.held_out_size} must be at least 1"
            )
        if not 0.0 <= self.careful_share <= 1.0:
            raise ConfigError(f"careful_share={self.careful_share} must lie in [0, 1]")
        if self.train_size + self.held_out_size > self.num_problems:
            raise ConfigError(
                f"train_size + held_out_size is {self.train_size + self.held_out_size}, but there "
                f"are {self.num_problems} problems of {self.digits} digits: lower one or add digits"
            )

    @property
    def num_problems(self) -> int:
        """How many ordered pairs of numbers with this many digits there are."""
        return (9 * 10 ** (self.digits - 1)) ** 2

    def train(self) -> Sequence[Task]:
        """The training problems, one demonstration each."""
        codes = self._codes()[self.held_out_size :]
        return AdditionTasks(codes, self.digits, self._key("habit"), self.careful_share)

    def held_out(self) -> Sequence[Task]:
        """The held-out problems, without demonstrations; the same whatever `train_size` is."""
        return AdditionTasks(self._codes()[: self.held_out_size], self.digits, self._key("habit"))

    def answer(self, completion: str, task: Task) -> str:
        """What a completion answers, to count votes by."""
        return completion.rpartition("=")[2]

    def _key(self, name: str) -> Key:
        return Key(self.seed, ("addition", name))

    def _codes(self) -> tuple[int, ...]:
        """Distinct codes in the order drawn: the held-out ones, then those of training."""
        rng = self._key("problems").rng()
        drawn: dict[int, None] = {}
        while len(drawn) < self.held_out_size + self.train_size:
            drawn[rng.randrange(self.num_problems)] = None
        return tuple(drawn)


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward`: 1.0 if the result is exactly right. `careful`: 1.0 if that habit was chosen.

    The result is what follows the last `=`, or the whole completion if there is none. The columns
    are not judged; `careful` is for information only. Special tokens are removed beforehand.
    """
    result = completion.rpartition("=")[2]
    return {
        "reward": float(result == task.target),
        "careful": float(completion.startswith(CAREFUL)),
    }


def step_reward(completion: str, task: Task) -> dict[str, Any]:
    """`reward` with `steps`: 1.0 for each column that is right, carries included, and for the result.

    A step is a column with the sign after it; what follows the last `=` is one, too.
    """
    a, b = task.prompt.rstrip("=").split("+")
    right = re.split("[,=]", worked(int(a), int(b), with_carry=True)[1:])
    said = re.split("(?<=[,=])", completion)
    ends = itertools.accumulate(len(piece) for piece in said)
    found = [p.rstrip(",=").lstrip(HASTY + CAREFUL) for p in said]
    steps = [
        (end, float(place < len(right) and text == right[place]))
        for place, (end, text) in enumerate(zip(ends, found, strict=True))
        if end
    ]
    return {**reward(completion, task), "steps": steps}


def build_tokenizer(characters: str = CHARACTERS, max_length: int = 64) -> PreTrainedTokenizerFast:
    """One token per character; decoding adds no spaces; nothing is added when encoding."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((PAD, BOS, EOS, UNK, *characters))}
    by_character = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    by_character.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    by_character.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=by_character,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def build_model(seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of 0.5 million random float32 weights, a function of `seed` alone, and its tokenizer.

    The global random state is left as it was.
    """
    tokenizer = build_tokenizer()
    return small_llama(tokenizer, seed, hidden=128, layers=2, width=512), tokenizer
