"""What fine-tuning forgets, and what each retention term keeps: two rooms of MiniGrid (envs/two_stage.py).

    python benchmarks/forgetting_rooms.py [--seeds 0 1 2 3 4] [--arms none bc ...] [--out runs/forgetting]

For each seed: demonstrations of FAR alone, a clone of them (configs/forgetting/clone.yaml), and PPO from
the clone on both rooms with nothing, kickstarting, cloning, EWC and L2, and from scratch. Probes restart
each policy in FAR and in CLOSE every 10 steps. Finished parts are not repeated. Prints and writes
`table.md`; every number is over seeds: mean [least, largest].

Level, budget, coefficients and columns were fixed before any method was run. The level was changed twice,
after plain PPO alone (envs/two_stage.py says why), and with the second change the budget was doubled:
after 205,000 steps plain PPO (one seed) left CLOSE in 0.29 of episodes and was still learning.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from many_runs import model_of, one_cluster, run_once, with_files
from spread import spread

from envs.minigrid.demonstrations import demonstrations
from envs.two_stage import TwoStage
from rlft.demonstrations import write
from rlft.record.forgetting import curve
from rlft.record.transfer import area, backward_transfer, forward_transfer

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "forgetting"
ARMS = ("none", "ks", "bc", "ewc", "l2", "scratch")
START = "clone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    args = parser.parse_args()
    with one_cluster():
        for seed in args.seeds:
            train(seed, args.arms, args.out / f"seed_{seed}", args.set)
    text = table(args.seeds, args.arms, args.out)
    (args.out / "table.md").write_text(text + "\n")
    print(text)


def train(seed: int, arms: list[str], folder: Path, changes: list[str]) -> None:
    files = {}
    for name, episodes, first in (("far", 400, seed), ("far_held_out", 50, 1000 + seed)):
        files[name] = (folder / f"{name}.npz").resolve()
        if not files[name].exists():
            recipe = TwoStage(start="far", seed=first)
            write(files[name], demonstrations(recipe, episodes, noise=0.05, seed=first)[0])
    clone = run_once(
        CONFIGS / "clone.yaml", folder / START, [f"seed={seed}", f"algo.path={files['far']}"]
    )
    for arm in arms:
        given = [f"seed={seed}", *changes]
        if arm != "scratch":
            given.append(f"model.path={model_of(clone)}")
        began = time.monotonic()
        config = with_files(CONFIGS / f"{arm}.yaml", folder, "runs/forgetting", files.values())
        run_once(config, folder / arm, given)
        print(f"{arm}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The probes of a run, in order."""
    rows = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    if failed := [r for r in rows if "failed" in r]:
        raise SystemExit(f"{folder}: probes failed: {failed[0]['failed']}")
    return rows


def table(seeds: list[int], arms: list[str], out: Path) -> str:
    lines = [
        "| | FAR success, start | FAR success, least | FAR success, end | backward transfer, FAR | "
        "CLOSE left, end | both rooms, end | area under both rooms | forward transfer | "
        "log-prob of FAR teacher, end |",
        "|" + "---|" * 10,
    ]
    both = {
        (arm, seed): curve(rows_of(out / f"seed_{seed}" / arm), "close/success")
        for arm in arms
        for seed in seeds
    }
    for arm in arms:
        found: dict[str, list[float]] = {}
        for seed in seeds:
            rows = rows_of(out / f"seed_{seed}" / arm)
            far = curve(rows, "far/success")[1]
            numbers = {
                "start": far[0],
                "least": far.min(),
                "end": far[-1],
                "backward": backward_transfer(far[0], far[-1]),
                "close": curve(rows, "close/stage_1")[1][-1],
                "both": both[arm, seed][1][-1],
                "area": area(*both[arm, seed]),
                "forward": np.nan,
                "teacher": rows[-1]["teacher/logp"],
            }
            if "scratch" in arms:
                numbers["forward"] = forward_transfer(
                    area(*both[arm, seed]), area(*both["scratch", seed])
                )
            for name, value in numbers.items():
                found.setdefault(name, []).append(float(value))
        lines.append(f"| {arm} | " + " | ".join(spread(x, 2) for x in found.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
