"""Run as `python acting_worker.py RANK WORLD PORT OUT.pt FOLDER`: one learner rank of a policy that acts.

For each stage and retention term it takes two optimizer steps with plain SGD at learning rate `LR`, each on
all strips, and saves the weights before and after.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from rlft.config import parse_config
from rlft.learning.buffer import Buffer
from rlft.learning.control_learner import ControlLearner
from rlft.learning.control_rank import critic_only
from rlft.learning.retained import Retained, anchored
from rlft.learning.strip_fit import fit_strips
from rlft.learning.strip_job import StripJob
from rlft.learning.teacher import ActingTeacher
from rlft.losses import NegativeLogLikelihood
from rlft.policy.actor_critic import ActorCritic
from rlft.retention.cloning import BehaviouralCloning
from rlft.retention.ewc import EWC, L2
from rlft.retention.kickstarting import Kickstarting
from rlft.seeding import Key
from rlft.types import Strip, Term

LR, COEF, BATCH = 0.5, 0.7, 7
STAGES = (0, 1, 2, 3)
TERMS = ("none", "kickstarting", "behavioural_cloning", "ewc", "l2")


def policy(seed: int) -> ActorCritic:
    """Far from uniform, so that a teacher's and a student's distributions differ."""
    torch.manual_seed(seed)
    made = ActorCritic(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), width=8, hidden=(8,))
    with torch.no_grad():
        made.policy_head.weight.normal_(0, 0.7)
    return made


def strip(seed: int, obs: np.ndarray) -> Strip:
    count, rng = len(obs), np.random.default_rng(seed)
    zeros = np.zeros(count, np.float32)
    action = rng.integers(0, 4, (count, 1)).astype(np.float32)
    params = np.zeros((count, 4), np.float32)
    return Strip({"observation": obs}, action, params, zeros, zeros, zeros, 0.0, None, {})


def rollout() -> list[Strip]:
    """Strips of 5 and 4 steps: an odd number, so that ranks have different shares."""
    rng = np.random.default_rng(3)
    return [strip(i, rng.uniform(-1, 1, (n, 3)).astype(np.float32)) for i, n in ((0, 5), (1, 4))]


def kept_states() -> np.ndarray:
    """The two states of the buffer `[2, 3]`."""
    return np.random.default_rng(8).uniform(-1, 1, (2, 3)).astype(np.float32)


def retained(name: str, learner: ControlLearner, folder: Path) -> tuple[Retained, tuple[Term, ...]]:
    found, teacher = Retained(), ActingTeacher(policy(5), torch.device("cpu"))
    if name == "none":
        return found, ()
    if name == "kickstarting":
        found.teacher, term = teacher, Kickstarting(coef=COEF)
    elif name == "behavioural_cloning":
        term = BehaviouralCloning("unread", coef=COEF, batch=BATCH)
        found.buffers[name] = Buffer(term, [strip(4, kept_states())], teacher, Key(0))
    else:
        canary = {"observation": kept_states()}
        alone = critic_only(policy(1), canary)
        term = L2(coef=COEF) if name == "l2" else EWC(COEF, fisher=str(folder / "f.safetensors"))
        named = ((n, p) for n, p in learner.policy.named_parameters() if n not in alone)
        found.anchors[name] = anchored(learner, term, named)
    return found, (term.term(),)


def run_case(stage: int, name: str, rank: int, world: int, folder: Path) -> dict:
    tree = {
        "name": "case",
        "steps": 1,
        "tasks_per_step": 1,
        "algo": "control_ppo",
        "env": {"name": "gym", "id": "CartPole-v1"},
        "model": {"build": "mlp", "dtype": "float32"},
        "learner": {
            "num": world,
            "zero_stage": stage,
            "max_grad_norm": 0,
            "deepspeed": {"optimizer": {"type": "SGD", "params": {"lr": LR}}},
        },
    }
    module = policy(1)
    module.load_state_dict(load_file(folder / "start.safetensors"))
    learner = ControlLearner(parse_config(tree, "case"), module)
    kept, terms = retained(name, learner, folder)
    before = {n: t.clone() for n, t in learner.full_tensors()}
    strips = rollout()
    job = StripJob(
        number=np.zeros(len(strips), np.float32), on_policy=np.ones(len(strips), bool),
        terms=(Term("nll", NegativeLogLikelihood()), *terms), coef=(1.0, *(COEF for _ in terms)),
        credit=None, epochs=2, minibatches=1, key=Key(0), lr=LR, critic_lr=None, token_budget=3,
    )  # fmt: skip
    report = fit_strips(learner, job, rank, strips, retained=kept)
    after = {n: t.clone() for n, t in learner.full_tensors()}
    return {"before": before, "after": after, "metrics": dict(report.metrics)}


def main() -> None:
    rank, world, port, out, folder = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank}
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": world}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # as LearnerRank does
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    found = {
        (stage, name): run_case(stage, name, int(rank), int(world), Path(folder))
        for stage in STAGES
        for name in TERMS
    }
    if rank == "0":
        torch.save(found, out)


if __name__ == "__main__":
    main()
