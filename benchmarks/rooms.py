"""REINFORCE, PPO and polychromic PPO from one cloned start, at equal environment steps.

    python benchmarks/rooms.py [--level four_rooms|goto|pickup] [--seeds 0 1 2] [--arms PPO ...]

MiniGrid Four Rooms, or a level of BabyAI; 50 fixed configurations. For each seed: demonstrations of a
noisy expert (of BabyAI: its bot, in other levels than those 50), a clone of them, and each arm from it
until its budget of environment steps is spent. Then `rollouts` episodes of each configuration by the
stochastic policy, and a fifth as many with the start moved to another room. Finished parts are not
repeated. Prints the table of docs/results.md, and draws pass@k.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from many_runs import model_of, one_cluster, run_once

from envs.minigrid import MiniGrid
from rlft.record.episodes import evaluation, pass_gap, visited_share
from rlft.sampling.rollouts import rollouts
from rlft.seeding import Key

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ARMS = {
    "REINFORCE": ("reinforce.yaml", []),
    "PPO": ("ppo.yaml", []),
    "Poly-PPO": ("polychromic.yaml", []),
    "Poly-PPO + UCB": ("polychromic_ucb.yaml", []),
}
START = "the clone"


@dataclass(frozen=True)
class Level:
    """configs: folder of its configurations; env: what they say of `env`; demos: how they are made, env
    and this; changes: of every run's configuration; rooms: that it has."""

    configs: str
    env: dict[str, Any]
    demos: tuple[str, ...]
    rooms: int
    changes: tuple[str, ...] = ()


def babyai(name: str) -> Level:
    env = {"id": f"BabyAI-{name}-v0", "view": "dict", "actions": 6}
    return Level("babyai", env, ("--episodes", "1500"), 9, (f"env.id={env['id']}",))


LEVELS = {
    "four_rooms": Level(
        "rooms", {"actions": 3}, ("configurations=50", "--episodes", "590"), rooms=4
    ),
    "goto": babyai("GoTo"),
    "pickup": babyai("Pickup"),
}
KS = (1, 2, 4, 8, 16, 32, 64, 100)
COLOURS = ("#999999", "#6a994e", "#444444", "#d1495b", "#00798c")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--level", choices=LEVELS, default="four_rooms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, help="default: runs/LEVEL")
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    parser.add_argument("--plot", type=Path, help="default: docs/images/LEVEL_passk.svg")
    args = parser.parse_args()
    level = LEVELS[args.level]
    out = args.out or Path("runs") / args.level
    plot = args.plot or Path("docs/images") / f"{args.level}_passk.svg"
    with one_cluster():
        for seed in args.seeds:
            train(level, seed, args.arms, out, args.set)
    for seed in args.seeds:
        for arm in (START, *args.arms):
            judge(level, out / f"seed_{seed}" / slug(arm), args.rollouts, seed)
    print(table(args.seeds, args.arms, out))
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(curves(args.seeds, (START, *args.arms), out))


def slug(arm: str) -> str:
    return arm.lower().replace(" + ", "_").replace(" ", "_").replace("-", "_")


def train(level: Level, seed: int, arms: list[str], out: Path, changes: list[str]) -> None:
    folder = out / f"seed_{seed}"
    demos = folder / "demos.npz"
    if not demos.exists():
        demos.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                *(sys.executable, "-m", "envs.minigrid.demonstrations", str(demos)),
                *(f"{key}={value}" for key, value in level.env.items()),
                *(*level.demos, "--noise", "0.1", "--seed", str(seed)),
            ],
            check=True,
        )
    clone = run_once(
        CONFIGS / level.configs / "clone.yaml",
        folder / slug(START),
        [f"seed={seed}", f"algo.path={demos.resolve()}", *level.changes],
    )
    for arm in arms:
        config, own = ARMS[arm]
        given = [f"seed={seed}", f"model.path={model_of(clone)}", *own, *level.changes, *changes]
        began = time.monotonic()
        run_once(CONFIGS / level.configs / config, folder / slug(arm), given)
        print(f"{arm}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def judge(level: Level, folder: Path, num: int, seed: int) -> None:
    """Writes `judged.npz`: returns and successes `[configurations, rollouts]`, and those elsewhere."""
    path = folder / "judged.npz"
    if path.exists() and np.load(path)["return_here"].shape[1] == num:
        return
    began, found = time.monotonic(), {}
    for name, start, n in (("here", "same", num), ("elsewhere", "other_room", max(1, num // 5))):
        env = MiniGrid(configurations=50, held_out_start=start, **level.env)
        tasks = [env.held_out()[i] for i in range(50)]
        episodes = rollouts(
            env, model_of(folder), tasks, n, Key(seed).child("judge", name), envs=100
        )
        found[f"return_{name}"] = np.array([[e.ret for e in row] for row in episodes])
        found[f"success_{name}"] = np.array([[bool(e.success) for e in row] for row in episodes])
        rooms = [
            level.rooms * visited_share([e.traces for e in row], "room", level.rooms)
            for row in episodes
        ]
        found[f"rooms_{name}"] = np.array(rooms)
    np.savez(path, **found)
    print(f"{folder}: judged in {time.monotonic() - began:.0f} s", flush=True)


def table(seeds: list[int], arms: list[str], out: Path) -> str:
    lines = [
        "| | mean return | success % | pass@8 | pass@32 | pass@100 | most below the clone in pass@k | "
        "rooms seen | moved start, success % | environment steps |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    before = wins(seeds, START, out)
    for arm in (START, *arms):
        held = [np.load(out / f"seed_{s}" / slug(arm) / "judged.npz") for s in seeds]
        found = evaluation(
            np.stack([h["return_here"] for h in held]),
            np.stack([h["success_here"] for h in held]),
            ks=KS,
        )
        ks = dict(zip(KS, zip(found.pass_at.value, found.pass_at.low, found.pass_at.high, strict=True),
                      strict=True))  # fmt: skip
        moved = 100 * np.array([h["success_elsewhere"].mean() for h in held])
        rooms = np.mean([h["rooms_here"].mean() for h in held])
        steps = [spent(out / f"seed_{s}" / slug(arm)) for s in seeds]
        lines.append(
            f"| {arm} | {interval(found.ret, 1, 3)} | {interval(found.success, 100, 1)} | "
            + " | ".join(f"{m:.3f} [{lo:.3f}, {hi:.3f}]" for m, lo, hi in (ks[8], ks[32], ks[100]))
            + f" | {below(wins(seeds, arm, out), before)} | {rooms:.2f}"
            + f" | {moved.mean():.1f} [{moved.min():.1f}, {moved.max():.1f}] | "
            f"{np.mean(steps):,.0f} |"
        )
    return "\n".join(lines)


def wins(seeds: list[int], arm: str, out: Path) -> np.ndarray:
    """Successes `[seeds, configurations, rollouts]`."""
    held = [np.load(out / f"seed_{s}" / slug(arm) / "judged.npz") for s in seeds]
    return np.stack([h["success_here"] for h in held])


def below(after: np.ndarray, before: np.ndarray) -> str:
    """The k at which pass@k is furthest below the clone's, by the paired difference's upper end."""
    every = tuple(range(1, after.shape[-1] + 1))
    gap = pass_gap(after, before, every)
    worst = int(np.argmin(gap.high))
    value, low, high = (np.atleast_1d(getattr(gap, k))[worst] for k in ("value", "low", "high"))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] at k = {every[worst]}"


def interval(x: object, scale: float, digits: int) -> str:
    low, mean, high = (scale * float(getattr(x, k)) for k in ("low", "value", "high"))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def spent(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line).get("env/steps", 0.0) for line in lines)


def curves(seeds: list[int], arms: tuple[str, ...], out: Path) -> str:
    """pass@k against k, with the interval of each point."""
    width, height, margin = 640, 380, 52

    def x(k: int) -> float:
        return margin + np.log(k) / np.log(KS[-1]) * (width - 2 * margin - 90)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    found = {}
    for arm in arms:
        held = [np.load(out / f"seed_{s}" / slug(arm) / "judged.npz") for s in seeds]
        found[arm] = evaluation(
            np.stack([h["return_here"] for h in held]),
            np.stack([h["success_here"] for h in held]),
            ks=KS,
        ).pass_at
    floor = np.floor(10 * min(float(np.min(f.low)) for f in found.values())) / 10

    def y(p: float) -> float:
        return height - margin - (p - floor) / (1 - floor) * (height - 2 * margin)

    for tick in np.linspace(floor, 1, 6):
        parts.append(
            f'<line x1="{margin}" x2="{width - margin - 90}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
            f'stroke="#e5e5e5"/><text x="{margin - 8}" y="{y(tick) + 4:.1f}" '
            f'text-anchor="end">{tick:.2f}</text>'
        )
    for k in KS:
        parts.append(
            f'<text x="{x(k):.1f}" y="{height - margin + 18}" text-anchor="middle">{k}</text>'
        )
    ends = sorted(arms, key=lambda a: -float(found[a].value[-1]))
    for arm, colour in zip(arms, COLOURS, strict=False):
        f = found[arm]
        band = [f"{x(k):.1f},{y(v):.1f}" for k, v in zip(KS, f.high, strict=True)]
        band += [f"{x(k):.1f},{y(v):.1f}" for k, v in zip(KS[::-1], f.low[::-1], strict=True)]
        line = " ".join(f"{x(k):.1f},{y(v):.1f}" for k, v in zip(KS, f.value, strict=True))
        place = height / 2 + 18 * ends.index(arm)
        parts.append(
            f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.12"/>'
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{width - margin - 84}" y="{place}" fill="{colour}">{arm}</text>'
        )
    parts.append(
        f'<text x="{width / 2 - 45}" y="{height - 12}" text-anchor="middle">k (log scale)</text>'
        f'<text x="{margin - 8}" y="{margin - 18}">pass@k</text></svg>'
    )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
