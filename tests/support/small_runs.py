"""Small real runs for tests: the quickstart's untrained model with a reward that varies."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlft.config import parse_config
from rlft.train import train


def tree(model: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of a six-step GRPO run on `model`; dotted keys change it."""
    base: dict[str, Any] = {
        "name": "small",
        "steps": 6,
        "tasks_per_step": 4,
        "algo": {"name": "grpo", "group_size": 4, "epochs": 2, "minibatches": 2, "kl_coef": 0.01},
        "env": {"name": "addition", "train_size": 200, "held_out_size": 20},
        "model": {"path": str(model), "dtype": "float32", "max_length": 64},
        "sampler": {"engine": "transformers", "max_tokens": 12},
        "learner": {"lr": 1e-3, "token_budget": 128},
        "rewards": {"fns": [{"fn": "plain_rewards:vowels"}]},
        "cluster": {"cpus": 1},  # one thread an actor: models are tiny, and other tests run beside
        "deadlines": {"start": 120, "rollout": 60, "learn": 60, "publish": 60, "reward": 60},
    }
    for key, value in changes.items():
        section = base
        *parents, last = key.split("__")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return base


def run(folder: Path, model: Path, *, resume: bool = False, **changes: Any) -> dict[str, float]:
    """Runs it in `folder`, in the test's cluster."""
    return train(parse_config(tree(model, **changes), "small"), folder, resume=resume)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run without its clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def replayed(bundle: Path) -> str:
    """What `rlft replay` prints of a step whose numbers must all be the recorded ones, bit for bit.

    In a process of its own, as a user replays: vLLM, where earlier tests ran it in this one, changes how
    many threads a sum is split over.
    """
    command = [sys.executable, "-m", "rlft", "replay", str(bundle)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=paths)
    alike = re.search(r"all [1-9]\d* numbers are the same, bit for bit", done.stdout)
    assert alike, done.stdout + done.stderr
    return done.stdout


def weights(folder: Path, step: int) -> dict[str, Any]:
    """The tensors of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(folder / f"checkpoints/step_{step:06d}/model/model.safetensors")
