"""What a learner rank holds of the retention terms of a run, and what it adds to an update for them.

Terms over decisions of the batch are summed with the algorithm's own (`objective`); here the teacher is
asked for them. Terms over a buffer add a backward pass of their own before each step, and those over
weights a gradient at it (`Anchored`).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlft.batch import Inputs
from rlft.config import Config
from rlft.errors import ConfigError
from rlft.learning.anchored import Anchored
from rlft.learning.buffer import Buffer
from rlft.learning.language_buffer import LanguageBuffer
from rlft.learning.objective import Sums
from rlft.learning.shards import shards_of
from rlft.learning.teacher import ActingTeacher
from rlft.learning.text_buffer import TextBuffer
from rlft.learning.writing_teacher import WritingTeacher
from rlft.policy.distil import Taught
from rlft.retention.language import Language
from rlft.retention.term import retention_of
from rlft.schedule import Decay, at_update
from rlft.seeding import Key
from rlft.types import Strip, Term

_CARRIED = "teacher_state.pkl"


class Retained:
    """teacher: of a term over rollouts; buffers, anchors: by the name of their term."""

    def __init__(self) -> None:
        self.teacher: Any = None
        self.buffers: dict[str, Any] = {}
        self.anchors: dict[str, Anchored] = {}

    def add(
        self,
        learner: Any,
        terms: Sequence[tuple[Term, float]],
        taken: int,
        rank: int,
        sums: Sums,
    ) -> None:
        """Before a step, after the backward passes of its batch: what the terms over buffers and weights
        add. terms: with their coefficients; taken: optimizer steps before. A collective."""
        for term, coef in terms:
            if term.module == "buffer":
                value = self.buffers[term.name].backward(learner, coef, taken, rank)
            elif term.module == "weights":
                self.anchors[term.name].coef = coef
                value = self.anchors[term.name].value()
            else:
                continue
            sums.add(f"loss/{term.name}", value, 0.0, per="grad_norm")

    def save(self, folder: Path) -> None:
        """Adds to a checkpoint the states that a teacher carries between strips, if it does."""
        carried = getattr(self.teacher, "carried", None)
        if carried:
            (folder / _CARRIED).write_bytes(pickle.dumps(carried))

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote."""
        if self.teacher is not None and (folder / _CARRIED).is_file():
            self.teacher.carried = pickle.loads((folder / _CARRIED).read_bytes())

    def taught(self, inputs: Inputs) -> Taught | None:
        """What a teacher that writes says of a micro-batch, if there is one."""
        if self.teacher is None:
            return None
        return self.teacher.taught(inputs.ids, inputs.position, inputs.mask, inputs.packing)

    def teacher_params(self, strips: Sequence[Strip]) -> torch.Tensor | None:
        """The teacher's distributions on every step `[N, D]`, if there is one."""
        return None if self.teacher is None else self.teacher.params(strips)


def coefs(job: Any, taken: int) -> tuple[float, ...]:
    """Each term's coefficient for the next optimizer step, after `taken` of the run."""
    return tuple(at_update(coef, taken) for coef in job.coef)


def told(
    terms: Sequence[Term], last: Sequence[float], given: Sequence[Any]
) -> list[tuple[str, float]]:
    """(term, coefficient) of those that are not 1, or that change from one optimizer step to the next."""
    rows = zip(terms, last, given, strict=True)
    return [(t.name, coef) for t, coef, rule in rows if coef != 1.0 or isinstance(rule, Decay)]


def retained_acting(
    cfg: Config, learner: Any, env: Any, one: Any, critic_only: frozenset[str]
) -> Retained:
    """Of a policy that acts. env: the plug-in; one: an environment of it; critic_only: names of weights
    that the policy's distribution does not depend on."""
    from rlft.cloning import RECORDED, strips_of
    from rlft.policy.actor_critic import load_policy

    found = Retained()
    key = Key(cfg.seed).child("retention")
    for term in retention_of(cfg):
        said: Any = term
        name, module = term.term().name, term.term().module
        if module == "weights":
            named = ((n, p) for n, p in learner.policy.named_parameters() if n not in critic_only)
            found.anchors[name] = anchored(learner, said, named)
            continue
        if isinstance(said, Language):
            budget = cfg.learner.token_budget
            found.buffers[name] = LanguageBuffer(
                said, key.child(name), longest=said.longest, budget=budget
            )
            continue
        teacher = None
        if (
            getattr(said, "teacher", None) is not None
            and getattr(said, "target", "teacher") == "teacher"
        ):
            policy = load_policy(said.teacher, one)
            teacher = ActingTeacher(policy, learner.device, cfg.learner.token_budget)
        if module == "buffer":
            strips = strips_of(said.path, env, said.size or RECORDED)
            found.buffers[name] = Buffer(
                said, strips, teacher, key.child(name), cfg.learner.token_budget
            )
        elif "teacher" in term.term().needs:
            found.teacher = teacher
    return found


def retained_writing(cfg: Config, learner: Any) -> Retained:
    """Of a language model."""
    found = Retained()
    for term in retention_of(cfg):
        said: Any = term
        name, module = term.term().name, term.term().module
        if module == "weights":
            named = learner.policy.causal_lm().named_parameters()
            found.anchors[name] = anchored(learner, said, named)
        elif module == "buffer":
            key = Key(cfg.seed).child("retention", name)
            teacher = (
                WritingTeacher(said, cfg, learner)
                if getattr(said, "target", "text") == "teacher"
                else None
            )
            found.buffers[name] = TextBuffer(
                said,
                key,
                longest=cfg.model.max_length,
                budget=cfg.learner.token_budget,
                teacher=teacher,
            )
        elif "teacher" in term.term().needs:
            found.teacher = WritingTeacher(said, cfg, learner)
    return found


def anchored(learner: Any, term: Any, named: Any) -> Anchored:
    """A penalty on these weights, from the file of the term or, without one, near what they are now."""
    from rlft.retention.fisher import read_fisher

    held = None if term.fisher is None else read_fisher(term.fisher)
    trained = [(name, p) for name, p in named if p.requires_grad]
    if held is not None and not any(name in held.fisher for name, _ in trained):
        raise ConfigError(
            f"retention: {term.called}: none of the trained weights ({trained[0][0]} and others) is in "
            f"{term.fisher}: there is nothing that it could hold; use l2"
        )
    return Anchored(
        shards_of(learner.engine, trained),
        learner.intercept,
        anchor=None if held is None else held.anchor,
        fisher=None if held is None else held.fisher,
        world=learner.world,
        replicated=learner.cfg.learner.zero_stage == 0,
    )
