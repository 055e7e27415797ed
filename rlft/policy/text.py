"""The only place where text becomes tokens, and once: sampled tokens are never re-tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError, DataError
from rlft.types import Prompt, Task

_MARK = "~what the assistant said~"
"""Stands for a turn where the chat template is asked what comes after one."""

_CLOSING = 4
"""Tokens at the beginning of which a template's end of a turn lies."""


class Text:
    """A tokenizer with the model's stop tokens. `further_stops`: vocabulary entries."""

    def __init__(self, folder: str | Path, further_stops: Sequence[str] = ()) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        stops = {self._tokenizer.eos_token_id}
        try:
            eos = GenerationConfig.from_pretrained(str(folder)).eos_token_id
            stops.update(eos if isinstance(eos, list) else [eos])
        except OSError:
            pass  # a folder without generation_config.json stops at the tokenizer's eos
        for entry in further_stops:
            token = self._tokenizer.convert_tokens_to_ids(entry)
            if token is None or token == self._tokenizer.unk_token_id:
                raise ConfigError(f"sampler.stop: {entry!r} is not one entry of the vocabulary")
            stops.add(token)
        self.stop_ids: tuple[int, ...] = tuple(sorted(s for s in stops if s is not None))
        if not self.stop_ids:
            raise ConfigError(f"{folder}: neither tokenizer nor generation config has an eos token")
        self.eos_id: int = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Tokens of raw text, or of chat messages through the model's template with the assistant's
        turn opened."""
        if isinstance(prompt, str):
            return self._tokenizer(prompt).input_ids
        if not self._tokenizer.chat_template:
            raise DataError(
                "the prompt is chat messages, but the model's tokenizer has no chat template; "
                "give raw text (a string), or choose an instruct model."
            )
        return self._tokenizer.apply_chat_template(
            [dict(m) for m in prompt], add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def response_ids(self, text: str) -> list[int]:
        """Tokens of a reference response, closed by the end-of-text token."""
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.eos_id]

    def reply_ids(self, said: str, role: str | None, after: int) -> list[int]:
        """Tokens of what an environment answers, up to where the policy's next turn begins.

        role: of the message, for a model that chats: the template's text from the end of the policy's
        turn to the opening of its next; None: `said` as raw text. after: the last token before it. What
        was there is not rendered again: a template may change it.
        """
        if role is None:
            return self._tokenizer(said, add_special_tokens=False).input_ids
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _MARK},
            {"role": role, "content": said},
        ]
        whole = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        _, found, tail = whole.partition(_MARK)
        if not found:
            raise DataError(
                "the model's chat template does not show what the assistant said before, so turns cannot "
                "be put together; use raw text as prompt, or a model with another template."
            )
        ids = self._tokenizer(tail, add_special_tokens=False).input_ids
        if after in self.stop_ids and after in ids[:_CLOSING]:
            return ids[ids.index(after) + 1 :]  # the policy closed its turn itself
        return ids

    def dialogue_ids(self, turns: Sequence[str], role: str | None) -> tuple[list[int], list[bool]]:
        """Tokens of a demonstration of several turns, the policy's first, and which are the policy's.
        Each of its turns is closed by the end-of-text token."""
        ids: list[int] = []
        mask: list[bool] = []
        for index, said in enumerate(turns):
            own = index % 2 == 0
            new = self.response_ids(said) if own else self.reply_ids(said, role, ids[-1])
            ids += new
            mask += [own] * len(new)
        return ids, mask

    def decode(self, ids: Iterable[int]) -> str:
        """Text of sampled tokens, without special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_at(self, ids: Sequence[int], end: int) -> int:
        """The index of the token with which the first `end` characters of `decode(ids)` are complete;
        of the very last token (an end-of-text token, say) where `end` is the whole text."""
        if end >= len(self.decode(ids)):
            return len(ids) - 1
        low, high = 0, len(ids) - 1
        while low < high:  # a longer prefix never decodes to fewer characters
            middle = (low + high) // 2
            if len(self.decode(ids[: middle + 1])) >= end:
                high = middle
            else:
                low = middle + 1
        return low

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Text of each token by itself, special tokens included, to look at: part of a character
        shows as U+FFFD."""
        return [self._tokenizer.decode([int(i)]) for i in ids]

    def fitting_prompt(self, task: Task, max_tokens: int, max_length: int) -> list[int]:
        """The prompt's tokens; DataError if they leave no room for `max_tokens` in `max_length`."""
        ids = self.prompt_ids(task.prompt)
        if not ids:
            raise DataError(f"task {task.id!r}: the prompt is empty")
        if len(ids) + max_tokens > max_length:
            raise DataError(
                f"task {task.id!r}: its prompt has {len(ids)} tokens; with sampler.max_tokens="
                f"{max_tokens} that is more than model.max_length={max_length}. Shorten or drop the "
                f"row, lower sampler.max_tokens, or raise model.max_length."
            )
        return ids
