"""A Hugging Face sequence-classification model with one label as a reward, in an actor of its own.

Completions are scored in batches, in the order in which they come. Outcomes, time limits, counters and
restarts are those of every other reward: to the runtime this is an async reward function.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal, get_args

from rlft.errors import ConfigError, Invalid
from rlft.policy.text import Text
from rlft.types import Attempt, Task

Form = Literal["response", "chat", "pair"]

_LINGER_S = 0.01
"""A batch that is not full waits this long for one more. Only the last of a step is not full."""


class RewardModel:
    """The model's score of a completion; also as the part `score`.

    path: folder or hub name; form: how a conversation becomes tokens. `response`: the prompt, the
    completion and the end-of-text token, as `reward_model` trains. `chat`: the model's own chat
    template over the whole conversation, as most published ones expect. `pair`: prompt and completion
    as two texts, for encoders. batch_size: completions in one forward; max_length: tokens, null for
    what the model can take; dtype: of the weights.

    A completion that is too long is invalid, never cut. Raises ConfigError: several labels, no
    tokenizer, or a model that is no classifier.
    """

    own_actor = True

    def __init__(
        self,
        path: str,
        form: Form = "response",
        batch_size: int = 16,
        max_length: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        if form not in get_args(Form):
            raise ConfigError(f"form is {form!r}, expected one of {', '.join(get_args(Form))}")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}, expected at least 1")
        folder = Path(path).expanduser()
        self.path = str(folder.resolve()) if folder.is_dir() else path
        self.form, self.batch_size, self.dtype = form, batch_size, dtype
        self._config = _configuration(self.path)
        self._tokenizer = _tokenizer(self.path, form)
        self._text = Text(self.path) if form == "response" else None
        longest = getattr(self._config, "max_position_embeddings", None)
        self.max_length = min(n for n in (max_length, longest, 2**31) if n is not None)
        self._model: Any = None
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[float]]] = []
        self._runner: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Loads the weights. Raises ConfigError if the folder has none for the head: a language model
        would get a random one."""
        import torch
        from transformers import AutoModelForSequenceClassification

        self._config.pad_token_id = self._tokenizer.pad_token_id  # finds the end of each row by it
        model, report = AutoModelForSequenceClassification.from_pretrained(
            self.path,
            config=self._config,
            dtype=getattr(torch, self.dtype),
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ConfigError(
                f"reward model {self.path}: weights are missing ({', '.join(missing[:3])}), which would be "
                f"random. Train one with the algorithm reward_model."
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(device).eval().requires_grad_(False)

    def memory(self, longest: int) -> dict[str, float]:
        """Bytes by name that the actor holds while it scores a full batch of `longest` tokens each.

        The weights are exact; what passes through is one layer's, without a backward pass: per token
        8 hidden and 3 inner numbers (counted on a Llama).
        """
        import torch
        from transformers import AutoModelForSequenceClassification

        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(self._config)
        config, size = model.config, 4 if self.dtype == "float32" else 2
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        tokens = self.batch_size * min(longest, self.max_length)
        return {
            "reward model": float(size * sum(p.numel() for p in model.parameters())),
            "batch of rewards": float(size * tokens * (8 * config.hidden_size + 3 * inner)),
        }

    async def __call__(self, trajectory: Attempt, task: Task) -> dict[str, float]:
        """Raises Invalid: more tokens than the model can take."""
        inputs = self.encoded(trajectory, task)
        if len(inputs["input_ids"]) > self.max_length:
            raise Invalid(f"longer than the {self.max_length} tokens that the reward model reads")
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, done))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        score = await done
        return {"reward": score, "score": score}

    def encoded(self, trajectory: Attempt, task: Task) -> dict[str, Any]:
        """What the tokenizer makes of the conversation, in this model's form."""
        tokenizer = self._tokenizer
        if self._text is not None:
            prompt = self._text.prompt_ids(task.prompt)
            ids = [*prompt, *self._text.response_ids(trajectory.text)]
            return {"input_ids": ids[:-1] if trajectory.truncated else ids}
        if self.form == "chat":
            said = [dict(m) for m in trajectory.messages]
            return {
                "input_ids": tokenizer.apply_chat_template(said, tokenize=True, return_dict=False)
            }
        asked = "\n".join(m["content"] for m in trajectory.messages[:-1])
        return dict(tokenizer(asked, trajectory.text))

    async def _run(self) -> None:
        """Scores what waits, a batch at a time, on a thread: the event loop stays free to cancel."""
        while self._waiting:
            before = 0
            while before < len(self._waiting) < self.batch_size:
                before = len(self._waiting)
                await asyncio.sleep(_LINGER_S)
            batch = self._waiting[: self.batch_size]
            del self._waiting[: self.batch_size]
            batch = [one for one in batch if not one[1].done()]  # cancelled meanwhile
            if not batch:
                continue
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(None, self.scores, [inputs for inputs, _ in batch])
            await asyncio.wait({work})
            error = work.exception()
            for place, (_, done) in enumerate(batch):
                if done.done():
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(work.result()[place])

    def scores(self, inputs: list[dict[str, Any]]) -> list[float]:
        """The model's score of each, in one forward."""
        import torch

        padded = self._tokenizer.pad(inputs, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return self._model(**padded.to(self._model.device)).logits[:, 0].float().tolist()


def _configuration(path: str) -> Any:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward model {path!r}: not a Hugging Face folder here, and no hub model "
            f"({str(error).splitlines()[0]})"
        ) from None
    named = ", ".join(config.architectures or ["none"])
    if "SequenceClassification" not in named:
        raise ConfigError(
            f"reward model {path}: its architecture is {named}, expected one ForSequenceClassification. "
            f"Train a reward model with the algorithm reward_model, or name another folder."
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"reward model {path}: it has {config.num_labels} labels, expected 1: a reward is one number. "
            f"For a classifier, write a reward function that says which label counts."
        )
    return config


def _tokenizer(path: str, form: Form) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"reward model {path}: no tokenizer ({str(error).splitlines()[0]}). Save the tokenizer that it "
            f"was trained with into the folder: tokenizer.save_pretrained(FOLDER)."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"reward model {path}: its tokenizer has neither a pad nor an eos token")
    if form == "chat" and not tokenizer.chat_template:
        raise ConfigError(
            f"reward model {path}: form: chat needs a chat template, and its tokenizer has none"
        )
    tokenizer.padding_side = "right"
    return tokenizer
