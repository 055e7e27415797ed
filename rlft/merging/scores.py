"""What a sweep scores a model by: held-out reward, log-likelihood of a text, or a function of one's own."""

from __future__ import annotations

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
    """Mean log-likelihood per token, in nats, of `text` read in blocks of 512 tokens; float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    if len(ids) < 2:
        raise ConfigError(f"the text to score has {len(ids)} tokens; it needs at least 2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, _BLOCK):
            block = torch.tensor([ids[at : at + _BLOCK + 1]])
            logp = torch.log_softmax(model(block[:, :-1]).logits[0], -1)
            total += float(logp.gather(1, block[0, 1:, None]).sum(dtype=torch.float64))
            count += block.shape[1] - 1
    return total / count
