"""A language model as the judge of completions, through any server that speaks OpenAI's chat API.

Whatever is not a verdict is never a number: a server that is down, slow or refuses is an error with its
reason, an answer without a verdict makes the completion invalid. What the policy wrote is quoted to the
judge, and can try to talk it round: read samples with high rewards.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any, Literal, get_args

from rlft.errors import ConfigError, Invalid
from rlft.seeding import Key
from rlft.types import Attempt, Task

Mode = Literal["score", "pairwise"]

SCORE = """You judge answers. Rate the answer below from {low} to {high}, where {high} is best.
{rubric}

[Question]
{question}

[Answer]
{answer}

Think in a few words, then end with one line of the form "Score: N"."""

PAIRWISE = """You judge answers. Say which of the two answers below is better.
{rubric}

[Question]
{question}

[Answer A]
{a}

[Answer B]
{b}

Think in a few words, then end with one line of the form "Verdict: A", "Verdict: B" or "Verdict: tie"."""

_SCORE = re.compile(r"score[^\w-]{0,5}(-?\d+(?:\.\d+)?)(?!\.?\d)", re.IGNORECASE)
_VERDICT = re.compile(r"verdict\W{0,5}(A|B|tie)\b", re.IGNORECASE)
_AGAIN = frozenset({429, 502, 503, 504})
"""Answers of a server that is busy or starting."""


class Judge:
    """A reward from 0 to 1 by the judge `model` at `url` (`http://host:8000/v1`).

    mode: `score` asks for a number from `low` to `high`; `pairwise` compares with the task's reference
    (its target if that is text, else its first demonstration): 1 better, 0 worse, 0.5 a tie. Which of
    the two comes first is drawn from `seed`, the task and the completion; `both_orders` asks twice and
    averages, because judges prefer a place. rubric: what to look at; key_env: the variable with the API
    key, to be named in `rewards.env` too; timeout: seconds for one answer, below `rewards.timeout`;
    tries: when the server is busy; max_tokens, temperature: of the judge; longest: characters of
    question and answer together.

    Self-preference is documented (Panickssery et al. 2024, "LLM Evaluators Recognize and Favor Their Own
    Generations", arXiv 2404.13076): a run warns when judge and policy are the same model.
    """

    def __init__(
        self,
        url: str,
        model: str,
        mode: Mode = "score",
        rubric: str = "",
        low: float = 0.0,
        high: float = 10.0,
        both_orders: bool = False,
        seed: int = 0,
        key_env: str | None = None,
        timeout: float = 8.0,
        tries: int = 3,
        max_tokens: int = 256,
        temperature: float = 0.0,
        longest: int = 20_000,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"url is {url!r}, expected http://HOST:PORT/v1 of an OpenAI-like server"
            )
        if mode not in get_args(Mode):
            raise ConfigError(f"mode is {mode!r}, expected one of {', '.join(get_args(Mode))}")
        if not low < high:
            raise ConfigError(f"low ({low:g}) must be below high ({high:g})")
        if timeout <= 0 or tries < 1 or longest < 1:
            raise ConfigError("timeout must be above 0, tries and longest at least 1")
        self.url, self.model, self.mode = url.rstrip("/"), model, mode
        self.rubric, self.low, self.high = rubric, low, high
        self.both_orders, self.seed, self.key_env = both_orders, seed, key_env
        self.timeout, self.tries, self.longest = timeout, tries, longest
        self.body = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
        self._session: Any = None

    async def __call__(self, trajectory: Attempt, task: Task) -> float:
        """Raises Invalid: no verdict, or a text too long to judge. ConnectionError, TimeoutError: no
        answer. ValueError: the task has no reference to compare with."""
        question = "\n\n".join(m["content"] for m in trajectory.messages[:-1])
        if len(question) + len(trajectory.text) > self.longest:
            raise Invalid(f"longer than the {self.longest} characters that the judge is shown")
        if self.mode == "score":
            return await self._scored(question, trajectory.text, task)
        other = reference(task)
        first = Key(self.seed, ("judge", task.id, trajectory.text)).rng().random() < 0.5
        orders = (True, False) if self.both_orders else (first,)
        asked = [self._compared(question, trajectory.text, other, own, task) for own in orders]
        won = await asyncio.gather(*asked)
        return sum(won) / len(won)

    async def _scored(self, question: str, answer: str, task: Task) -> float:
        spread = {"low": f"{self.low:g}", "high": f"{self.high:g}"}
        filled = _filled(SCORE, rubric=self.rubric, question=question, answer=answer, **spread)
        said = await self.ask(filled)
        found = _SCORE.findall(said)
        if not found:
            raise Invalid(f"the judge gave no score: {_end(said)}")
        score = float(found[-1])
        if not self.low <= score <= self.high:
            raise Invalid(f"the judge's score is outside {self.low:g} to {self.high:g}: {score:g}")
        return (score - self.low) / (self.high - self.low)

    async def _compared(
        self, question: str, own: str, other: str, own_first: bool, task: Task
    ) -> float:
        a, b = (own, other) if own_first else (other, own)
        said = await self.ask(_filled(PAIRWISE, rubric=self.rubric, question=question, a=a, b=b))
        found = _VERDICT.findall(said)
        if not found:
            raise Invalid(f"the judge gave no verdict: {_end(said)}")
        if found[-1].lower() == "tie":
            return 0.5
        return float((found[-1].upper() == "A") == own_first)

    async def ask(self, prompt: str) -> str:
        """What the judge says. Raises ConnectionError or TimeoutError, which say what to look at."""
        import aiohttp

        body = {**self.body, "messages": [{"role": "user", "content": prompt}], "seed": self.seed}
        where = f"the judge {self.model} at {self.url}"
        for attempt in range(1, self.tries + 1):
            try:
                status, said = await self._posted(body)
            except TimeoutError:
                raise TimeoutError(
                    f"{where} did not answer within {self.timeout:g} s (its argument timeout)"
                ) from None
            except aiohttp.ClientConnectionError as error:
                raise ConnectionError(
                    f"{where} cannot be reached ({error}). Is it running? "
                    f"`vllm serve {self.model}` starts one."
                ) from None
            if status == 200:
                return _content(said, where)
            if status not in _AGAIN or attempt == self.tries:
                raise ConnectionError(f"{where} answered {status}: {str(said)[:300]}")
            await asyncio.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable: the last try returns or raises")

    async def _posted(self, body: dict[str, Any]) -> tuple[int, Any]:
        import aiohttp

        if self._session is None:  # made in the event loop, once, and kept: connections are reused
            headers = {}
            if self.key_env is not None:
                headers["Authorization"] = f"Bearer {_key(self.key_env)}"
            limit = aiohttp.ClientTimeout(total=self.timeout)
            self._session = aiohttp.ClientSession(timeout=limit, headers=headers)
        async with self._session.post(f"{self.url}/chat/completions", json=body) as response:
            if response.status != 200 or response.content_type != "application/json":
                return response.status, await response.text()
            return 200, await response.json()


def reference(task: Task) -> str:
    """What a completion is compared with. Raises ValueError: the task has none."""
    if isinstance(task.target, str) and task.target:
        return task.target
    if task.demos:
        return task.demos[0]
    raise ValueError(
        f"task {task.id!r} has no reference to compare with: mode pairwise needs a target of text or a "
        f"demonstration"
    )


def _key(variable: str) -> str:
    if variable not in os.environ:
        raise ConfigError(
            f"key_env is {variable}, which is not set here; name it in rewards.env too"
        )
    return os.environ[variable]


def _filled(template: str, **texts: str) -> str:
    """Each `{name}` of the template replaced once, so that braces in a text stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda found: texts[found[1]], template)


def _content(said: Any, where: str) -> str:
    try:
        content = said["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise ConnectionError(f"{where} answered something else than a message: {str(said)[:300]}")
    return content


def _end(text: str) -> str:
    return repr(text[-60:])


def self_judging(judge: Any, start: str | None) -> str | None:
    """A sentence if `judge` is a `Judge` and its model is the policy's start, else None."""
    if not isinstance(judge, Judge) or start is None:
        return None
    names = [name.rstrip("/").rsplit("/", 1)[-1].casefold() for name in (judge.model, start)]
    if names[0] != names[1]:
        return None
    return (
        f"warning: the judge {judge.model} and the policy are the same model. Language models favour "
        f"what they wrote themselves (arXiv 2404.13076): rewards will be too high; take another judge."
    )
