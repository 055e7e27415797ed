"""Run as `python learner_worker.py RANK WORLD PORT CASES.json OUT.pt`: one learner rank, several cases.

For each case it fits once with plain SGD at learning rate 1 and saves the change of every weight,
which is the gradient, plus the report. A script of its own because a process has one process group.
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rlft.batch import plan
from rlft.config import parse_config
from rlft.credit.decision import GAE
from rlft.learning.critic import Critic
from rlft.learning.fit import FitJob, run_fit
from rlft.learning.learner import Learner
from rlft.learning.retained import retained_writing
from rlft.losses import GSPO, ClippedSurrogate, KLToReference, NegativeLogLikelihood
from rlft.losses.corrected import Corrected
from rlft.losses.critic import ValueLoss
from rlft.losses.pairs import BradleyTerry, ChosenLikelihood, Desirability, PairLoss
from rlft.losses.preference import dpo, ipo
from rlft.policy.lm import load_lm
from rlft.policy.reward_model import load_reward_model
from rlft.policy.value import load_value
from rlft.retention.term import retention_of
from rlft.types import Row, Term

TERMS = {
    "surrogate": lambda: (Term("policy", Corrected(ClippedSurrogate())),),
    "row": lambda: (Term("policy", GSPO()),),
    "nll": lambda: (Term("nll", NegativeLogLikelihood()),),
    "poison": lambda: (Term("poison", Poison()),),
    "dpo": lambda: (Term("pairs", PairLoss(dpo, 0.5)), Term("sft", ChosenLikelihood(), 0.1)),
    "ipo": lambda: (Term("pairs", PairLoss(ipo, 0.5)),),
    "kto": lambda: (Term("kto", Desirability(0.5, undesirable=2.0)),),
    "bradley_terry": lambda: (Term("pairs", BradleyTerry(margin=0.3)),),
    "kl": lambda: (Term("policy", Corrected(ClippedSurrogate())), Term("kl", KLToReference(), 0.1)),
    "critic": lambda: (
        Term("policy", Corrected(ClippedSurrogate())),
        Term("value", ValueLoss(), 0.5, module="critic"),
    ),
}
CREDIT = GAE(gamma=0.9, lam=0.8, kl_coef=0.1)
STEPS = {2: ((0, 0.7),), 5: ((1, -0.4), (3, 0.9))}
"""Rewards beside the last decision of rows 2 and 5, at decisions that they have."""


RETENTION = {"ewc": [{"name": "ewc", "coef": 0.7, "path": "unread.jsonl"}],
             "l2": [{"name": "l2", "coef": 0.3}],
             "kickstarting": [{"name": "kickstarting", "coef": 0.4}],
             "top_k": [{"name": "kickstarting", "coef": 0.4, "top_k": 5}],
             "text": [{"name": "text_replay", "coef": 0.4, "batch": 9}],
             "text teacher": [{"name": "text_replay", "coef": 0.4, "batch": 9, "target": "teacher"}],
             "text top_k": [{"name": "text_replay", "coef": 0.4, "batch": 9, "target": "teacher",
                             "top_k": 5}]}  # fmt: skip
"""What a case keeps: `terms: nll` and one of these. EWC reads `case["fisher"]`, whose anchor is not where
the weights are; the teacher is `case["teacher"]`, texts are in `case["texts"]`."""


def kept(case: dict) -> list[dict]:
    """The retention terms of a case, their paths filled in."""
    [term] = RETENTION[case["keep"]]
    if case["keep"] == "ewc":
        return [{"name": "ewc", "coef": term["coef"], "fisher": case["fisher"]}]
    if term["name"] == "kickstarting" or term.get("target") == "teacher":
        term = {**term, "teacher": case["teacher"]}
    if term["name"] == "text_replay":
        term = {**term, "path": case["texts"], "tokenizer": case["tokenizer"]}
    return [term]


def critic_of(case: dict, cfg) -> Critic | None:
    """A critic whose values are not all 0, if the case has one."""
    if case["terms"] != "critic":
        return None
    model = load_value(case["model"], cfg)
    with torch.no_grad():
        model.head.weight.copy_(torch.linspace(-0.3, 0.4, model.head.weight.numel())[None])
        model.head.bias.fill_(0.1)
    return Critic(cfg, model)


def critic_tensors(critic: Critic | None) -> dict[str, torch.Tensor]:
    """Every trained weight, whole. A collective."""
    if critic is None:
        return {}
    module, found = critic.engine.module, {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            with critic._gathered([parameter]):
                found[name] = parameter.detach().clone()
    return found


class Poison:
    """A loss that is not finite on row 0's decisions, told apart by its advantage of 99."""

    def __call__(self, out, batch):
        return torch.where(batch.adv == 99.0, torch.log(-out.logp.abs() - 1), -out.logp)


def rows_of(seed: int, num: int, vocabulary: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        prompt, response = rng.integers(2, 7), rng.integers(1, 12)
        ids = rng.integers(3, vocabulary, prompt + response).astype(np.int32)
        rows.append(Row(ids, int(prompt), rng.normal(-3, 0.3, response).astype(np.float32)))
    return rows


def main() -> None:
    rank, world, port, cases_file, out_file = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank}
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": world}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as LearnerRank does
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    with open(cases_file) as stream:
        cases = json.load(stream)
    results = [run_case(case, int(rank), int(world)) for case in cases]
    if rank == "0":
        torch.save(results, out_file)


def run_case(case: dict, rank: int, world: int) -> dict:
    tree = {
        "name": "case",
        "steps": 1,
        "tasks_per_step": 1,
        "algo": "grpo",
        "env": "addition",
        "model": {"path": case["model"], "dtype": case["dtype"], "lora": case.get("lora")},
        "learner": {
            "num": world,
            "zero_stage": case["stage"],
            "max_grad_norm": case.get("clip", 0),
            "deepspeed": case.get("deepspeed", {}),
            "freeze": case.get("freeze", []),
            **case.get("learner", {}),
        },
        "retention": kept(case) if "keep" in case else [],
    }
    cfg = parse_config(tree, "case")
    recompute = case.get("gradient_checkpointing", False)
    pairs = case["terms"] in ("dpo", "ipo", "kto", "bradley_terry")
    if case["terms"] == "bradley_terry":
        policy = load_reward_model(case["model"], cfg.model, pad_id=0, seed=0)
    else:
        policy = load_lm(
            case["model"], case["dtype"], lora=cfg.model.lora, gradient_checkpointing=recompute
        )
    learner = Learner(cfg, policy)
    retained = retained_writing(cfg, learner)
    term_list = TERMS[case["terms"]]() + tuple(r.term() for r in retention_of(cfg))
    critic = critic_of(case, cfg)
    before = {name: tensor.clone() for name, tensor in learner.full_tensors()}
    critic_before = critic_tensors(critic)
    rows = rows_of(case["seed"], case["rows"], 64)
    # The two rows of a pair lie far apart: nothing but `unit` brings them together.
    count = len(rows) // (3 if case["terms"] == "kto" else 2)
    unit = [i % count for i in range(len(rows))] if pairs else None
    updates = plan([len(r.ids) for r in rows], world=world, budget=case["budget"], unit=unit)
    adv = np.linspace(-1, 1, len(rows)).astype(np.float32)
    if pairs:
        half = np.arange(1, count + 1, dtype=np.float32)
        adv = np.concatenate([half, -half, np.zeros(len(rows) - 2 * count, np.float32)])
    if case["terms"] == "poison":
        adv[0] = 99.0
    terms = term_list
    job = FitJob(
        updates=updates,
        adv=adv,
        on_policy=np.ones(len(rows), bool),
        terms=terms,
        coef=tuple(float(t.coef) for t in terms),
        aggregate=case["aggregate"],
        max_tokens=12,
        lr=case.get("lr", 1.0),
        temperature=case.get("temperature", 1.0),
        first_epoch=1,
        unit=None if unit is None else np.array(unit),
        credit=CREDIT if critic else None,
        critic_lr=case.get("lr", 1.0),
    )
    reference = None
    if case["terms"] in ("kl", "critic", "dpo", "ipo", "kto"):

        def reference(inputs, temperature):
            return -3.0 - 0.01 * inputs.position

    mine = {i: rows[i] for u in updates for m in u.ranks[rank] for i in m}
    reports, snapshots = [], []
    for number in range(case.get("fits", 1)):
        if cfg.learner.freeze:
            snapshots.append({n: tensor.clone() for n, tensor in learner.full_tensors()})
        job = replace(job, step=number, taken=number)
        reports.append(
            run_fit(
                *(learner, job, rank, mine),
                pad_id=0,
                reference=reference,
                critic=critic,
                steps=STEPS,
                retained=retained,
            )
        )
    after = {name: tensor.clone() for name, tensor in learner.full_tensors()}
    again = None
    if case.get("saves"):
        again = repeated(learner, lambda: run_fit(learner, job, rank, mine, pad_id=0))
    return {
        "again": again,
        "before": before,
        "snapshots": snapshots,
        "after": after,
        "critic_before": critic_before,
        "critic_after": critic_tensors(critic),
        "metrics": [dict(r.metrics) for r in reports],
        "skipped": [r.skipped for r in reports],
        "nonfinite_rows": [r.nonfinite_rows for r in reports],
        "micro_batches": [len(updates[0].ranks[r]) for r in range(world)],
    }


def repeated(learner: Learner, fit) -> list[dict[str, torch.Tensor]]:
    """The weights after a further fit, and after the same one from a saved state. A collective."""
    with tempfile.TemporaryDirectory() as folder:
        shared = [folder]
        torch.distributed.broadcast_object_list(shared)
        learner.save(Path(shared[0]))
        fit()
        first = {name: tensor.clone() for name, tensor in learner.full_tensors()}
        learner.load(Path(shared[0]))
        fit()
        torch.distributed.barrier()
        return [first, {name: tensor.clone() for name, tensor in learner.full_tensors()}]


if __name__ == "__main__":
    main()
