"""Generated arithmetic word problems with several right ways to solve each, for a small model.

The form is that of GSM8K: the solution's calculations stand in marks, and the answer after `####`:

    Mia buys 3 boxes and 5 bags, each with 4 pens. How many pens is that?

    First <<3+5=8>>8. So <<8*4=32>>32.
    #### 32

The same problem is solved by `<<3*4=12>>12`, `<<5*4=20>>20`, `<<12+20=32>>32`, by the same in another
order, or with operands swapped. A path is the ordered list of its calculations; a problem here has 3 to
20 of them. Each training problem shows one, drawn by the seed, so a model that imitates them can find
the others of a problem by sampling: what rejection sampling lives on.

`demos: facts` is what a base model reads before: true calculations, also with the numbers of a problem, but
no solution. So it can calculate and copy, and has not seen how a problem is solved.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlft.errors import ConfigError
from rlft.paths.marks import all_right
from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.types import Task

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

NAMES = ("Mia", "Ben", "Ada", "Tom", "Eva", "Leo", "Ida", "Max")
THINGS = ("pens", "cards", "shells", "coins", "beads", "nuts", "stamps", "books")
LEADS = ("First", "So", "Then", "That is", "Next", "We get")
MARKER = "####"
PIECE = re.compile(r"<<|>>|####| ?[A-Za-z]+|[\s\S]")
PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
PATIENCE = 10_000


@dataclass(frozen=True)
class Story:
    """A kind of problem. plans: ways to solve it, each a chain of steps `result=left op right` over the
    numbers a, b, c and earlier results; the last step gives the answer. low, high: of a, b, c."""

    text: str
    plans: tuple[str, ...]
    low: tuple[int, int, int]
    high: tuple[int, int, int]


STORIES = (
    Story(
        "{name} buys {a} boxes and {b} bags, each with {c} {thing}. How many {thing} is that?",
        ("s=a+b r=s*c", "x=a*c y=b*c r=x+y", "y=b*c x=a*c r=x+y"),
        (2, 2, 2),
        (9, 9, 6),
    ),
    Story(
        "{name} has {a} red, {b} blue and {c} green {thing}. How many {thing} does {name} have?",
        ("s=a+b r=s+c", "s=b+c r=a+s", "s=a+c r=s+b"),
        (2, 2, 2),
        (19, 19, 19),
    ),
    Story(
        "{name} has {a} {thing}, finds {b} more and gives away {c}. How many {thing} are left?",
        ("s=a+b r=s-c", "s=a-c r=s+b"),
        (12, 2, 2),
        (39, 29, 11),
    ),
    Story(
        "{name} has {a} {thing}. {other} has {b} times as many, and {c} more. How many {thing} do "
        "both have?",
        ("x=a*b y=x+c r=a+y", "x=a*b y=x+a r=y+c", "y=a+c x=a*b r=x+y"),
        (2, 2, 2),
        (9, 5, 19),
    ),
    Story(
        "{name} sells {a} {thing} for {b} coins each, and each costs {name} {c} coins. How many coins "
        "does {name} gain?",
        ("s=b-c r=a*s", "x=a*b y=a*c r=x-y", "y=a*c x=a*b r=x-y"),
        (2, 7, 2),
        (9, 9, 6),
    ),
)


@dataclass(frozen=True)
class WordProblems:
    """Word problems with solutions in GSM8K's form.

    train_size, held_out_size: how many distinct problems each part has; swap: the chance that a
    solution swaps the operands of + or *; demos: `solutions`, or `facts` for a base model; seed.
    """

    train_size: int = 400
    held_out_size: int = 400
    swap: float = 0.2
    demos: Literal["solutions", "facts"] = "solutions"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train_size < 1 or self.held_out_size < 1:
            raise ConfigError(
                f"train_size={self.train_size} and held_out_size={self.held_out_size} must be at least 1"
            )
        if not 0.0 <= self.swap <= 1.0:
            raise ConfigError(f"swap={self.swap} must lie in [0, 1]")

    def train(self) -> Sequence[Task]:
        """The training problems with one solution each, or the base model's texts."""
        if self.demos == "facts":
            rng = Key(self.seed, ("word_problems", "facts")).rng()
            return [fact_task(i, rng) for i in range(self.train_size)]
        return self._problems()[self.held_out_size :]

    def held_out(self) -> Sequence[Task]:
        """The held-out problems, the same whatever `train_size` and `demos` are."""
        return self._problems(self.held_out_size)

    def answer(self, completion: str, task: Task) -> str | None:
        """What a completion answers, to count votes by."""
        return final_number(completion)

    def _problems(self, size: int | None = None) -> list[Task]:
        """Distinct problems in the order drawn: the held-out ones, then those of training."""
        rng = Key(self.seed, ("word_problems", "problems")).rng()
        wanted = self.held_out_size + self.train_size if size is None else size
        tasks: dict[str, Task] = {}
        misses = 0
        while len(tasks) < wanted:
            task = problem_task(f"problem-{len(tasks)}", rng, self.swap)
            misses = misses + 1 if task.prompt in tasks else 0
            if misses > PATIENCE:
                raise ConfigError(
                    f"only {len(tasks)} of {wanted} distinct problems were found: lower train_size or "
                    "held_out_size"
                )
            tasks.setdefault(str(task.prompt), task)
        return list(tasks.values())


def problem_task(name: str, rng: random.Random, swap: float) -> Task:
    """A problem with one solution. target: the answer as text; info: `numbers`, `story` (its place)."""
    story = rng.randrange(len(STORIES))
    numbers = draw(STORIES[story], rng)
    who, other = rng.sample(NAMES, 2)
    words = {"name": who, "other": other, "thing": rng.choice(THINGS)}
    prompt = STORIES[story].text.format(**words, **numbers) + "\n"
    steps = calculations(rng.choice(STORIES[story].plans), numbers)
    steps = [swapped(s) if s[1] in "+*" and rng.random() < swap else s for s in steps]
    demo = solution(steps, rng)
    info = {"numbers": tuple(numbers.values()), "story": story}
    return Task(name, prompt, target=str(steps[-1][3]), demos=(demo,), info=info)


def draw(story: Story, rng: random.Random) -> dict[str, int]:
    """Values of a, b, c."""
    return {
        n: rng.randint(low, high) for n, low, high in zip("abc", story.low, story.high, strict=True)
    }


Calculation = tuple[int, str, int, int]
"""left, operator, right, result."""


def calculations(plan: str, numbers: dict[str, int]) -> list[Calculation]:
    """The steps of a plan with their numbers."""
    known, steps = dict(numbers), []
    for step in plan.split():
        name, left, op, right = step[0], known[step[2]], step[3], known[step[4]]
        known[name] = {"+": left + right, "-": left - right, "*": left * right}[op]
        steps.append((left, op, right, known[name]))
    return steps


def swapped(step: Calculation) -> Calculation:
    left, op, right, result = step
    return right, op, left, result


def solution(steps: Sequence[Calculation], rng: random.Random) -> str:
    """The text of a solution; the words between its calculations are drawn."""
    marks = [f"{rng.choice(LEADS)} <<{a}{op}{b}={r}>>{r}." for a, op, b, r in steps]
    return f"{' '.join(marks)}\n{MARKER} {steps[-1][3]}"


def paths(task: Task) -> set[str]:
    """Every path of a problem that a plan allows, as `rlft.paths.keys.marks` writes it."""
    story = STORIES[task.info["story"]]
    numbers = dict(zip("abc", task.info["numbers"], strict=True))
    found = set()
    for plan in story.plans:
        steps = calculations(plan, numbers)
        ways = [(s, swapped(s)) if s[1] in "+*" else (s,) for s in steps]
        for chosen in itertools.product(*ways):
            found.add("|".join(f"{a}{op}{b}={r}" for a, op, b, r in chosen))
    return found


def fact_task(number: int, rng: random.Random) -> Task:
    """A text of the base model: three calculations as they occur in solutions, unrelated; or a problem
    and two calculations with its numbers that need not lead anywhere, and no answer."""
    if number % 2:
        task = problem_task(f"text-{number}", rng, 0.0)
        known = list(task.info["numbers"])
        steps = []
        for _ in range(2):
            steps.append(rng.choice(list(possible(known))))
            known.append(steps[-1][3])
        text = solution(steps, rng).partition("\n")[0]
        return Task(task.id, task.prompt, demos=(text,))
    facts = []
    for _ in range(3):
        story = rng.choice(STORIES)
        step = rng.choice(calculations(rng.choice(story.plans), draw(story, rng)))
        facts.append(swapped(step) if step[1] in "+*" and rng.random() < 0.5 else step)
    first, _, rest = solution(facts, rng).partition(" ")
    return Task(f"text-{number}", first, demos=(f" {rest}",))


def possible(numbers: Sequence[int]) -> Iterator[Calculation]:
    """The calculations with two of the numbers whose results are of the size that solutions have."""
    for left, right in itertools.permutations(numbers, 2):
        results = {"+": left + right, "-": left - right, "*": left * right}
        yield from ((left, op, right, r) for op, r in results.items() if 0 < r <= 100)


def final_number(completion: str) -> str | None:
    """The whole number after the last `####`, or None."""
    found = re.match(r"\s*(-?[0-9]{1,9})\s*$", completion.rpartition(MARKER)[2])
    return found[1] if found and MARKER in completion else None


def reward(completion: str, task: Task) -> dict[str, float]:
    """`reward`: 1.0 if the final answer is right. `marks`: 1.0 if every calculation mark is."""
    right = final_number(completion) == task.target
    return {"reward": float(right), "marks": float(all_right(completion))}


# -- the model -----------------------------------------------------------------------------------


def vocabulary() -> Iterator[str]:
    """Every token: digits, signs, and each word of the texts with and without a space before it."""
    texts = (*(s.text for s in STORIES), *NAMES, *THINGS, *LEADS)
    words = sorted({w for text in texts for w in re.findall(r"[A-Za-z]+", text)})
    yield from (PAD, BOS, EOS, UNK, "<<", ">>", MARKER, *"0123456789+-*=., ?\n")
    yield from words
    yield from (f" {w}" for w in words)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word (with the space before it) or digit; decoding gives the text back."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(vocabulary())}
    words = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE.pattern), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def build_model(
    seed: int, hidden: int = 128, layers: int = 3
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of under a million random float32 weights, a function of `seed` alone, and its tokenizer.

    The global random state is left as it was.
    """
    tokenizer = build_tokenizer()
    return small_llama(tokenizer, seed, hidden=hidden, layers=layers, width=4 * hidden), tokenizer
