"""Preferences whose rule is known: a reward model, DPO and IPO on pairs, and GRPO on the learned reward.

    python benchmarks/preferences.py [--seeds 0 1 2] [--out runs/preferences]

The task is benchmarks/letters.py. For each seed: pairs of answers of the untrained start, labelled by the
rule; a reward model from them; DPO and IPO from them; GRPO against the reward model, with and without a
penalty for leaving the start. The rule sees every answer, and nothing learns from it but through the
labels. Runs that are finished are not repeated. Prints tables, and writes docs/images/preferences.svg.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.letters import LONGEST, Letters, build_model, rule  # noqa: E402
from rlft.types import Task  # noqa: E402

PAIRS, HELD_OUT = 3840, 256
LATE = 10
"""Steps at the end of a run whose mean is its result."""

LETTERS = "benchmarks/letters.py"


def base(seed: int, **changes: Any) -> dict[str, Any]:
    """What all runs share."""
    tree = {
        **{"seed": seed, "steps": 120, "tasks_per_step": 64},
        "env": {"name": "preferences", "chat": False, "held_out_size": HELD_OUT},
        "model": {"build": f"{LETTERS}:build_model", "dtype": "float32", "max_length": 32},
        "sampler": {"num": 0, "max_tokens": LONGEST},
        "learner": {"lr": 1e-3},
        "save": {"every": 0},
    }
    return {**tree, **changes}


def grpo(seed: int, model: Path, kl: float) -> dict[str, Any]:
    """GRPO against the reward model; the rule weighs nothing and is only logged."""
    fns = [
        {"fn": "reward_model", "args": {"path": str(model), "batch_size": 64}},
        {"fn": f"{LETTERS}:rule", "weight": 0},
    ]
    return base(
        seed,
        steps=100,
        tasks_per_step=16,
        algo={"name": "grpo", "group_size": 8, "kl_coef": kl},
        env={"name": f"{LETTERS}:Letters", "seed": seed},
        sampler={"engine": "transformers", "max_tokens": LONGEST},
        rewards={"fns": fns, "concurrency": 128},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    args = parser.parse_args()
    results = [one(seed, args.out / f"seed_{seed}") for seed in args.seeds]
    tables(results)
    picture = plot([r["curves"] for r in results])
    (ROOT / "docs/images/preferences.svg").write_text(picture)


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Every run of a seed, and what is measured of it."""
    folder.mkdir(parents=True, exist_ok=True)
    start = sampled(*build_model(seed), [t for t in Letters(seed=seed).held_out()], seed)
    pairs = labelled(seed, folder / "pairs.jsonl")
    env = {"name": "preferences", "chat": False, "held_out_size": HELD_OUT, "path": str(pairs)}
    reward = run(folder, "reward_model", base(seed, env=env, algo={"name": "reward_model"}))
    found: dict[str, Any] = {"accuracy": reward[-1]["held_out/pairs/accuracy"], "start": start}
    for name, algo in (("DPO", {"beta": 0.1}), ("IPO", {"loss": "ipo", "beta": 0.05})):
        keys = {"name": "dpo", "held_out_every": 40, **algo}
        rows = run(folder, name.lower(), base(seed, env=env, algo=keys))
        answers = sampled(
            *loaded(model_of(folder / name.lower())), Letters(seed=seed).held_out(), seed
        )
        found[name] = {"answers": answers, "accuracy": rows[-1]["held_out/pairs/accuracy"]}
    found["curves"] = {}
    for name, kl in (("no penalty", 0.0), ("KL penalty 0.3", 0.3)):
        tree = grpo(seed, model_of(folder / "reward_model"), kl)
        rows = run(folder, f"grpo_{kl:g}", tree)
        keys = ("reward/reward_model/score", "reward/rule/true", "reward/rule/repeats")
        found["curves"][name] = [[row[key] for row in rows] for key in keys]
    return found


def run(folder: Path, name: str, tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of a run, which is made unless it is there; an unfinished one is begun again."""
    there = folder / name
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"name": name, **tree}, sort_keys=False))
    if not (there / "result.json").exists():
        shutil.rmtree(there, ignore_errors=True)
        command = [sys.executable, "-m", "rlft", "run", str(config), "--dir", str(there)]
        subprocess.run(command, check=True, cwd=ROOT)
    return [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]


def model_of(folder: Path) -> Path:
    return max(folder.glob("checkpoints/step_*/model")).resolve()


def loaded(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def sampled(model: Any, tokenizer: Any, tasks: Any, seed: int, each: int = 1) -> list[list[str]]:
    """`each` answers to each task at temperature 1."""
    import torch

    torch.manual_seed(seed)
    ids = tokenizer([t.prompt for t in tasks], return_tensors="pt").input_ids  # all of one length
    out = model.eval().generate(
        ids, do_sample=True, max_new_tokens=LONGEST, num_return_sequences=each, top_k=0
    )
    said = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return [said[i : i + each] for i in range(0, len(said), each)]


def labelled(seed: int, path: Path) -> Path:
    """Pairs of the start's answers to training prompts, the better by the rule first; ties left out."""
    tasks = Letters(seed=seed).train()[: int(1.4 * (PAIRS + HELD_OUT))]
    both = sampled(*build_model(seed), tasks, 1000 + seed, each=2)
    rows = []
    for task, texts in zip(tasks, both, strict=True):
        worse, better = sorted(texts, key=lambda text: truth(text, task))
        if truth(better, task) > truth(worse, task):
            rows.append({"prompt": task.prompt, "chosen": better, "rejected": worse})
    rows = rows[: PAIRS + HELD_OUT]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def truth(text: str, task: Task) -> float:
    return rule(text, task)["reward"]


def win_rate(answers: list[list[str]], start: list[list[str]], seed: int) -> float:
    """The share of held-out prompts on which the rule prefers the answer; ties count half."""
    tasks = Letters(seed=seed).held_out()
    pairs = zip(tasks, answers, start, strict=True)
    gaps = [truth(a[0], t) - truth(b[0], t) for t, a, b in pairs]
    return statistics.fmean(1.0 if g > 0 else 0.5 if g == 0 else 0.0 for g in gaps)


def tables(results: list[dict[str, Any]]) -> None:
    seeds = range(len(results))
    accuracy = spread([r["accuracy"] for r in results])
    print(f"\n{len(results)} seeds; mean [least, largest]\n")
    print(f"the reward model's accuracy on {HELD_OUT} held-out pairs: {accuracy}\n")
    print("| method | accuracy on held-out pairs | win rate over the start, by the rule |")
    print("|---|---|---|")
    for name in ("DPO", "IPO"):
        held = spread([r[name]["accuracy"] for r in results])
        won = [win_rate(results[s][name]["answers"], results[s]["start"], s) for s in seeds]
        print(f"| {name} | {held} | {spread(won)} |")
    print(
        "\n| GRPO on the learned reward | learned: first, last | true: first, best, last | repeats, last |"
    )
    print("|---|---|---|---|")
    for name in results[0]["curves"]:
        cells = []
        for place in range(3):
            smooth = [means(r["curves"][name][place]) for r in results]
            cells.append(
                [
                    spread([pick(c) for c in smooth])
                    for pick in (lambda c: c[0], max, lambda c: c[-1])
                ]
            )
        learned, true, repeats = cells
        print(f"| {name} | {learned[0]}, {learned[2]} | {', '.join(true)} | {repeats[2]} |")


def means(curve: list[float]) -> list[float]:
    """Means over windows of `LATE` steps."""
    return [statistics.fmean(curve[i : i + LATE]) for i in range(0, len(curve), LATE)]


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


COLOURS = ("#d1495b", "#00798c")
PANEL, HEIGHT, MARGIN = 400, 320, 44


def plot(curves: list[dict[str, list[list[float]]]]) -> str:
    """An SVG: learned and true reward over steps, each seed a thin line and their mean a thick one."""
    names = list(curves[0])
    binned = {n: [[means(one[n][i]) for one in curves] for i in (0, 1)] for n in names}
    every = [y for both in binned.values() for lines in both for line in lines for y in line]
    low, high = min(0.0, *every), max(every)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PANEL * len(names)} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    for panel, name in enumerate(names):
        left = panel * PANEL + MARGIN
        parts.append(f'<text x="{left}" y="24">GRPO on the reward model, {name}</text>')
        for tick in range(int(low), int(high) + 1):
            if low <= tick <= high:
                y = _y(tick, low, high)
                across = f"M{left},{y:.1f}h{PANEL - 2 * MARGIN}"
                parts.append(f'<path d="{across}" stroke="{"#ddd" if tick else "#888"}"/>')
                parts.append(
                    f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
                )
        count = len(binned[name][0][0])
        for bin_ in range(count // 3 - 1, count, count // 3):
            x = left + (PANEL - 2 * MARGIN) * bin_ / (count - 1)
            below = HEIGHT - MARGIN + 30
            parts.append(
                f'<text x="{x:.0f}" y="{below}" text-anchor="middle">step {LATE * (bin_ + 1)}</text>'
            )
        for place, label in ((0, "learned reward"), (1, "true reward")):
            lines = binned[name][place]
            middle = [statistics.fmean(at) for at in zip(*lines, strict=True)]
            for line, width in [*((one, 1) for one in lines), (middle, 3)]:
                steps = [left + (PANEL - 2 * MARGIN) * i / (count - 1) for i in range(count)]
                points = " ".join(
                    f"{x:.1f},{_y(v, low, high):.1f}" for x, v in zip(steps, line, strict=True)
                )
                parts.append(
                    f'<polyline points="{points}" fill="none" stroke="{COLOURS[place]}" '
                    f'stroke-width="{width}" opacity="{1 if width > 1 else 0.45}"/>'
                )
            parts.append(
                f'<text x="{left + 8}" y="{44 + 16 * place}" fill="{COLOURS[place]}">{label}</text>'
            )
    return "\n".join([*parts, "</svg>\n"])


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 3 * MARGIN) * (value - low) / (high - low)


if __name__ == "__main__":
    main()
