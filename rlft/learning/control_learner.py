"""The trainable policy of an environment, under DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from rlft.config import Config
from rlft.learning.freeze import begin_anew, names_held, still
from rlft.learning.learner import Trained
from rlft.policy.actor_critic import ActorCritic
from rlft.types import PolicyOut


class ControlLearner(Trained):
    """Policy and critic in one engine; what the critic alone reads may have a learning rate of its own.
    carried: of streams of demonstrations, the state `[H]` that each has arrived at."""

    def __init__(self, cfg: Config, policy: ActorCritic) -> None:
        self._critic = {id(p) for p in policy.value_parameters()}
        self.carried: dict[int, torch.Tensor] = {}
        self._waiting = True  # a run that goes on may have been at its critic alone
        super().__init__(cfg, policy)

    def _groups(self, trained: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        groups = [
            {"params": [p for p in trained if id(p) not in self._critic], "whose": "policy"},
            {"params": [p for p in trained if id(p) in self._critic], "whose": "critic"},
        ]
        return [g for g in groups if g["params"]]

    @property
    def policy(self) -> ActorCritic:
        """The module inside the engine."""
        return self.engine.module

    @property
    def state_size(self) -> int:
        return self.policy.state_size

    def forward(
        self,
        obs: Mapping[str, torch.Tensor],
        state: torch.Tensor | None,
        action: torch.Tensor,
        behaviour: torch.Tensor,
        teacher: torch.Tensor | None = None,
        *,
        real: torch.Tensor | None = None,
        critic_only: bool = False,
        streams: Sequence[int] = (),
    ) -> PolicyOut:
        """What the policy says of `action [B, T, A]` on `obs [B, T, ...]`, each row from `state [B, H]`.
        behaviour: `[B, T, D]`, parameters of the distribution that the actions were drawn from; teacher:
        those of a teacher, if a term asks for one; real: int64 `[N]`, which of the B T steps are wanted,
        None: all; streams: one a row, whose state after T steps is kept in `carried`."""
        params, value, *after = self.engine(
            dict(obs), state, real=real, carry=bool(streams), critic_only=critic_only
        )
        if after:
            self.carried.update(zip(streams, after[0].detach(), strict=True))
        distribution = self.policy.distribution
        return PolicyOut(
            logp=distribution.logp(params, action),
            entropy=distribution.entropy(params),
            value=value,
            behaviour_kl=distribution.kl(behaviour, params),
            top=(distribution.mode(params) == action).all(-1),
            teacher_kl=None if teacher is None else distribution.kl(teacher, params),
        )

    @contextmanager
    def running_numbers(self) -> Iterator[ActorCritic]:
        """The policy, to let observations or returns into what normalises later ones: the same on every
        rank. What `learner.freeze` holds is afterwards as it was."""
        buffers = dict(self.policy.named_buffers())
        held = {name: buffers[name].clone() for name in names_held(buffers, self._frozen)}
        yield self.policy
        for name, before in held.items():
            buffers[name].copy_(before)

    def step(
        self, lr: float, critic_lr: float | None = None, *, critic_only: bool = False
    ) -> tuple[bool, float]:
        """Applies the accumulated gradient; see `Trained.step`. critic_only: the policy's gradient is 0,
        and its weights are not made smaller either."""
        if self._waiting and not critic_only:
            begin_anew(self.engine, "policy")
        self._waiting = critic_only
        for group in self.engine.optimizer.param_groups:
            if group.get("whose") == "policy":
                usual = group.setdefault("usual_decay", group.get("weight_decay", 0.0))
                group["weight_decay"] = 0.0 if critic_only else usual
            own = critic_lr is not None and group.get("whose") == "critic"
            group["lr"] = 0.0 if still(group, self._frozen) else critic_lr if own else lr
        return self._stepped()

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, float32 on the CPU) of every weight and buffer that is saved with a policy (a language
        model's table of angles is not). A collective under ZeRO-3."""
        named = dict(self.policy.named_parameters())
        for name, parameter in named.items():
            with self._gathered([parameter]):
                yield name, parameter.detach().float().cpu()
        saved = self.policy.state_dict().keys()
        for name, buffer in self.policy.named_buffers():
            if name in saved:
                yield name, buffer.detach().float().cpu()
