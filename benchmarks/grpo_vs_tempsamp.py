"""GRPO against TempSamp-R1 on ActivityNet Captions text, from one start, at equal sampled completions.

    python benchmarks/grpo_vs_tempsamp.py --data DIR [--seeds 0 1 2] [--out runs/grpo_vs_tempsamp]

DIR holds `train.json.gz` and `val_1_part1.json.gz`. For each seed: the warm start of
configs/grounding_form.yaml once, then each arm from its model. Runs that are finished are not repeated.
Prints R1@0.5 and mIoU on held-out queries before and after, mean and spread over seeds; and two floors
that need no learning: the whole clip as answer, and the best single share of the clip.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from spread import spread

from envs.grounding import Grounding
from envs.grounding.answers import best_iou
from envs.grounding.metrics import mean_iou, recall_at

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ARMS = {
    "GRPO": ("grounding_grpo.yaml", []),
    "naive mixing": ("tempsamp.yaml", ["algo.stabiliser=joint"]),
    "TempSamp-R1 (shape)": ("tempsamp.yaml", []),
    "TempSamp-R1 (anchor)": ("tempsamp.yaml", ["algo.stabiliser=anchor"]),
}
SHOWN = ("reward/r1@0.5", "reward/iou")
LAST = 20
"""Steps at the end over which the IoU of sampled answers is averaged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["GRPO", "TempSamp-R1 (shape)"])
    parser.add_argument("--out", type=Path, default=Path("runs/grpo_vs_tempsamp"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    args = parser.parse_args()
    rows = {arm: [one(arm, seed, args) for seed in args.seeds] for arm in args.arms}
    print(f"\n{len(args.seeds)} seeds; mean and range; held-out queries, greedy answers\n")
    print("| answers by | R1@0.5 | mIoU | mIoU of training samples | sampled completions |")
    print("|---|---|---|---|---|")
    for name, (recall, overlap) in floors(args.data).items():
        print(f"| {name} | {recall:.3f} | {overlap:.3f} | | 0 |")
    first = rows[args.arms[0]]
    print(f"| the start | {cells(first, 'before/eval/')} | | 0 |")
    for arm, results in rows.items():
        late = cells(results, "late/eval/", SHOWN[1:])
        print(f"| {arm} | {cells(results, 'eval/')} | {late} | {results[0]['sampled']:,} |")


def one(arm: str, seed: int, args: argparse.Namespace) -> dict:
    """The result of one arm and seed, run unless it is there."""
    files = [
        f"env.path={args.data / 'train.json.gz'}",
        f"env.held_out_path={args.data / 'val_1_part1.json.gz'}",
    ]
    start = args.out / f"start_{seed}"
    build = f"model.build.path={args.data / 'train.json.gz'}"
    run(CONFIGS / "grounding_form.yaml", start, [*files, build, f"seed={seed}"])
    model = max(start.glob("checkpoints/step_*/model"))
    config, overrides = ARMS[arm]
    folder = args.out / f"{re.sub('[^A-Za-z0-9]+', '_', arm).strip('_')}_{seed}"
    own = [*files, "warm_start=null", f"model.path={model}", f"seed={seed}", *overrides, *args.set]
    run(CONFIGS / config, folder, own)
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    drawn = cfg["algo"]["group_size"] - cfg["algo"].get("references", 0)
    sampled = cfg["steps"] * cfg["tasks_per_step"] * drawn
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    late = statistics.fmean(row["reward/iou"] for row in lines[-LAST:])
    result = json.loads((folder / "result.json").read_text())
    return {**result, "sampled": sampled, "late/eval/reward/iou": late}


def run(config: Path, folder: Path, overrides: list[str]) -> None:
    if (folder / "result.json").exists():
        return
    command = [sys.executable, "-m", "rlft", "run", str(config), "--dir", str(folder), *overrides]
    subprocess.run(command, check=True)


def cells(results: list[dict], prefix: str, names: tuple[str, ...] = SHOWN) -> str:
    """Cells of a table: mean over seeds, and the range."""
    return " | ".join(spread([r[prefix + name] for r in results]) for name in names)


def floors(data: Path) -> dict[str, tuple[float, float]]:
    """R1@0.5 and mIoU of answers that do not read the query; the share is fitted on training rows."""
    paths = (str(data / "train.json.gz"), str(data / "val_1_part1.json.gz"))
    env = Grounding(*paths, limit=3000)
    train, held = env.train(), env.held_out()[:1000]

    def scores(tasks, low, high):
        return [
            best_iou((low * d, high * d), t.target["windows"])
            for t in tasks
            for d in [t.info["duration"]]
        ]

    grid = [i / 10 for i in range(11)]
    shares = [(a, b) for a in grid for b in grid if a < b]
    best = max(shares, key=lambda s: mean_iou(scores(train, *s)))
    whole = (0.0, 1.0)
    named = {"the whole clip" + ", also the best single share" * (best == whole): whole}
    if best != whole:
        named[f"the clip's {best[0]:g} to {best[1]:g}, the best single share"] = best
    return {
        name: (recall_at(ious, 0.5), mean_iou(ious))
        for name, share in named.items()
        for ious in [scores(held, *share)]
    }


if __name__ == "__main__":
    main()
