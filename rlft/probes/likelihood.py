"""How likely a teacher's actions still are, on trajectories of its own that nobody learns from.

Source: arXiv 2402.02868, figure on the log-likelihood of the expert's actions during fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from rlft.config import Config, Positive
from rlft.probes.probe import ForgettingProbe, Subject


@dataclass(frozen=True)
class TeacherLikelihood(ForgettingProbe):
    """path: demonstrations, not those that a run learns from; steps: so many of them at most, whole
    episodes. `logp`: mean log-prob of an action, nats; `agree`: share where it is the likeliest one."""

    writing: ClassVar[bool] = False

    path: str
    steps: Positive = 5000
    called: str = "teacher"

    def check(self, cfg: Config, env: Any) -> None:
        from rlft.cloning import strips_of

        strips_of(self.path, env, self.steps)

    def __call__(self, subject: Subject) -> Mapping[str, float]:
        from rlft.cloning import strips_of
        from rlft.learning.teacher import ActingTeacher
        from rlft.policy.actor_critic import load_policy

        strips, held = strips_of(self.path, subject.env, self.steps), 0
        chosen = []
        for strip in strips:
            if held and held + len(strip.reward) > self.steps:
                break
            chosen.append(strip)
            held += len(strip.reward)
        one = subject.env.make()
        policy = load_policy(subject.model, one)
        one.close()
        distribution = policy.distribution
        device = torch.device(subject.device)
        params = ActingTeacher(policy, device).params(chosen, carry=False).cpu()
        action = torch.from_numpy(np.concatenate([s.action for s in chosen]))
        agree = (distribution.mode(params) == action).all(-1)
        return {
            "logp": float(distribution.logp(params, action).mean()),
            "agree": float(agree.float().mean()),
        }
