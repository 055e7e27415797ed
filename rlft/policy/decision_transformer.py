"""Decision Transformers, made from a language model or from nothing (LaMo, arXiv 2310.20587).

LaMo: a causal language model keeps its weights and is adapted by LoRA, what it reads is embedded by small
perceptrons in place of linear maps, and so is what it says. Source: the paper's method and its published
code's README. Departures: any Hugging Face causal model whose body takes `inputs_embeds`, in place of
GPT-2; actions are categorical, so the loss of an action is cross-entropy throughout; no embedding of the
timestep is added (the model's own positions say where in the window a step is); a step's tokens are the
action before, the return still wanted and the state, so that what is read after the state has seen all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from gymnasium import spaces
from pydantic import Field
from torch import nn

from rlft.config import Lora
from rlft.errors import ConfigError
from rlft.policy.actor_critic import ActorCritic, Encoder
from rlft.policy.context import Context
from rlft.policy.observed import parts_of

Size = Annotated[int, Field(gt=0)]
_ADDED = ("to_go", "before")


@dataclass(frozen=True)
class DecisionTransformer:
    """lm: folder of the causal language model; pretrained: its weights, else its shape alone (a Decision
    Transformer from nothing); lora: rank of what adapts it, null: all of it is trained; steps: of an
    episode that it sees; channels: of the convolutions that read images, none: images flat; hidden: of the
    perceptrons that embed a step and read out what to do, 0: linear maps.

    Reads `env: conditioned`.
    """

    lm: str
    pretrained: bool = True
    lora: Size | None = None
    steps: Size = 10
    channels: tuple[Size, ...] = ()
    hidden: Annotated[int, Field(ge=0)] = 128

    def __call__(self, observations: spaces.Space, actions: spaces.Space) -> ActorCritic:
        if not isinstance(observations, spaces.Dict) or not set(_ADDED) <= set(observations.spaces):
            raise ConfigError(
                f"network DecisionTransformer reads the observations of `env: conditioned` "
                f"({', '.join(_ADDED)} among them), got {observations!r:.100}"
            )
        lm = language_model(self.lm, self.pretrained, self.lora)
        width = int(lm.config.hidden_size)
        return ActorCritic(
            observations,
            actions,
            shared=True,
            encoder=lambda: _Tokens(observations, width, self.hidden, self.channels),
            context=lambda: Context(lm, width, self.steps, self.hidden),
        )


def language_model(folder: str, pretrained: bool, lora: int | None) -> Any:
    """A causal language model in float32. Raises ConfigError: there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlft.policy.lm import adapted

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"lm {folder!r} is no folder with a config.json of a causal language model"
        )
    if pretrained:
        lm = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
    else:
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(path))).float()
    if not hasattr(lm, "model") or not hasattr(lm.config, "hidden_size"):
        raise ConfigError(
            f"lm {folder!r} is a {type(lm).__name__}, whose body is not `model`; take a model like Llama, "
            f"Qwen or SmolLM"
        )
    if lm.config.get_text_config().tie_word_embeddings:
        # The body reads no tokens in a trajectory and may move; one tensor under two names is saved once.
        head = lm.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.detach().clone())
        lm.config.get_text_config().tie_word_embeddings = False
    if lora is None:
        return lm
    inner = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return adapted(lm, Lora(rank=lora, alpha=2.0 * lora, target_modules=inner), 0, "CAUSAL_LM")


class _Tokens(nn.Module):
    """The three tokens of a step `[N, 3 width]`: the action before, the return still wanted, the rest."""

    def __init__(
        self, observations: spaces.Dict, width: int, hidden: int, channels: tuple[int, ...]
    ) -> None:
        super().__init__()
        rest = spaces.Dict({n: s for n, s in observations.spaces.items() if n not in _ADDED})
        before = observations["before"]
        assert isinstance(before, spaces.Discrete)
        self.actions = int(before.n)
        self.before = _perceptron(self.actions, hidden, width)
        self.to_go = _perceptron(1, hidden, width)
        layers = (hidden,) if hidden else ()
        self.seen = Encoder(parts_of(rest), 0, layers, channels, "gelu", False)
        self.last = nn.Linear(self.seen.width, width)
        self.width = 3 * width

    def forward(self, obs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        before = nn.functional.one_hot(obs["before"].long().view(-1), self.actions).float()
        tokens = (
            self.before(before),
            self.to_go(obs["to_go"].view(-1, 1).float()),
            self.last(self.seen(obs)),
        )
        return torch.cat(tokens, -1)

    def take_in(self, obs: Mapping[str, torch.Tensor]) -> None:
        """Nothing is normalised by running numbers."""


def _perceptron(inputs: int, hidden: int, width: int) -> nn.Module:
    if not hidden:
        return nn.Linear(inputs, width)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))
