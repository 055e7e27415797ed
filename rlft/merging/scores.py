"""What a sweep scores a model by: held-out reward, log-likelihood of a text, or a function of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rlft import registry
from rlft.errors import ConfigError

Score = Callable[[Path], float]
"""From a model's folder to a number of which more is better."""

_BLOCK = 512
"""Tokens of a text that are read as one sequence."""


def scorer(what: str, samples: int, say: Callable[[str], None]) -> Score:
    """The score that `what` names: a YAML file (mean held-out reward or return, as `rlft eval` finds it),
    a .txt file (mean log-likelihood per token, in nats), or `file.py:attr` of `(folder) -> float`.

    samples: answers to each task, 0: one, the likeliest. Raises ConfigError or PluginError.
    """
    if ":" in what:
        return registry.resolve("score", what)
    path = Path(what)
    if not path.is_file():
        raise ConfigError(
            f"{what}: no such file; expected a YAML file, a .txt file or file.py:attr"
        )
    if path.suffix == ".txt":
        text = path.read_text("utf-8")
        return lambda folder: log_likelihood(folder, text)
    from rlft.config import load_config

    load_config(path)
    return lambda folder: held_out(path, folder, samples, say)


def held_out(config: Path, folder: Path, samples: int, say: Callable[[str], None]) -> float:
    """Mean reward (of a policy that acts: return) of the model in `folder` on held-out tasks."""
    from rlft import evaluate, evaluate_acting
    from rlft.config import load_config

    cfg = load_config(config)
    cfg = cfg.model_copy(update={"warm_start": None})
    subject = evaluate.Subject(cfg, folder.resolve(), str(folder))
    number, greedy = max(1, samples), samples == 0
    if evaluate_acting.acts(cfg):
        found, _ = evaluate_acting.evaluate_acting(
            subject, samples=number, ks=[1], threshold=1.0, greedy=greedy, say=say
        )
        return float(found.ret.value)
    result, _ = evaluate.evaluate(
        subject, samples=number, ks=[1], threshold=1.0, greedy=greedy, say=say
    )
    return result.mean


def log_likelihood(folder: Path, text: str) -> float:
    """Mean log-likelihood per token, in nats, of `text` in float32. Parts between blank lines are read on
    their own, in blocks of 512 tokens; the first token of a part is given."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = [p for p in re.split(r"\n\s*\n", text.strip()) if p]
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    blocks = [i[at : at + _BLOCK + 1] for i in ids for at in range(0, len(i) - 1, _BLOCK)]
    if not blocks:
        raise ConfigError("the text to score has no part of at least 2 tokens")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for block in blocks:
            row = torch.tensor([block])
            logp = torch.log_softmax(model(row[:, :-1]).logits[0], -1)
            total += float(logp.gather(1, row[0, 1:, None]).sum(dtype=torch.float64))
            count += len(block) - 1
    return total / count
