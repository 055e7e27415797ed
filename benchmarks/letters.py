"""A task whose true reward is known: write the wanted letter often, but never twice in a row.

The prompt is a letter and three digits, `c417=`; the answer is up to 16 letters of eight. The rule: one
point for each wanted letter, less three for each that stands right after another. The start is an untrained
model, so its answers are random letters, in which the second clause seldom applies: a reward model that
learns from pairs of such answers sees much of the first clause and little of the second.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rlft.policy.small import small_llama
from rlft.seeding import Key
from rlft.types import Task

LETTERS = "abcdefgh"
CHARACTERS = LETTERS + "0123456789="
PAD, EOS = "<pad>", "<eos>"
LONGEST = 16


def rule(completion: str, task: Task) -> dict[str, float]:
    """The true reward, also as the part `true`; `repeats`: wanted letters right after another one."""
    wanted = task.prompt[0]
    repeats = sum(a == b == wanted for a, b in itertools.pairwise(completion))
    true = float(completion.count(wanted) - 3 * repeats)
    return {"reward": true, "true": true, "repeats": float(repeats)}


@dataclass(frozen=True)
class Letters:
    """Prompts in an order drawn by `seed`; the last `held_out_size` are not trained on."""

    held_out_size: int = 256
    seed: int = 0

    def _prompts(self) -> list[str]:
        prompts = [f"{letter}{number:03d}=" for letter in LETTERS for number in range(1000)]
        Key(self.seed, ("letters",)).rng().shuffle(prompts)
        return prompts

    def train(self) -> Sequence[Task]:
        return [Task(p, p) for p in self._prompts()[: -self.held_out_size]]

    def held_out(self) -> Sequence[Task]:
        return [Task(p, p) for p in self._prompts()[-self.held_out_size :]]


def build_model(seed: int):
    """A Llama of 0.13 million random weights and a tokenizer with one token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((PAD, EOS, *CHARACTERS))}
    characters = Tokenizer(models.WordLevel(vocab, unk_token=PAD))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters, pad_token=PAD, eos_token=EOS, model_max_length=32
    )
    return small_llama(tokenizer, seed, hidden=64, layers=2, width=256), tokenizer
