"""NetHack: what fine-tuning a clone of a bot forgets, and what each retention term keeps.

    python benchmarks/forgetting_nethack.py --data FOLDER [--seeds 0 1] [--arms none ks bc ewc l2]

FOLDER: recorded games as shards (docs/nethack.md). Some are held out; one clone is made of the others,
and from it PPO fine-tunes with nothing, kickstarting, cloning, EWC and L2, each for the same number of
environment steps. Each policy then plays `--games` held-out games, sampled, and so does one that acts at
random. A probe measures the bot's actions in the held-out games all the while. Finished parts are not
repeated, so the study may be stopped and gone on with. Prints the table of docs/results.md and draws the
curves; every number is mean [least, largest] over seeds.

`--keep FOLDER` copies there what the table and the curves are made of, a few kilobytes an arm; with
`--out FOLDER --only-show` they are made of that again.

Coefficients, budget and columns were fixed before any method was run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from many_runs import model_of, one_cluster, run_once, with_files
from spread import spread

from envs.nethack import NetHack
from rlft.policy.actor_critic import new_policy
from rlft.record.forgetting import curve
from rlft.sampling.rollouts import rollouts
from rlft.seeding import Key

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "forgetting_nethack"
ARMS = ("none", "ks", "bc", "ewc", "l2")
HELD_OUT_EVERY = 8
"""Of the games, one in so many is held out."""
COLOURS = dict(zip(ARMS, ("#444444", "#d1495b", "#00798c", "#6a994e", "#edae49"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--games", type=int, default=64, help="that each policy plays at the end")
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting_nethack"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/forgetting_nethack.svg"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    parser.add_argument("--keep", type=Path, help="where to copy what the table is made of")
    parser.add_argument("--only-show", action="store_true", help="of what is in --out; run nothing")
    args = parser.parse_args()
    out = args.out.resolve()
    if not args.only_show:
        run_all(args, out)
    show(args, out)


def run_all(args: argparse.Namespace, out: Path) -> None:
    if args.data is None:
        raise SystemExit(
            "--data: give the folder of the recorded games; docs/nethack.md says which"
        )
    shared(args.data.resolve(), out)
    with one_cluster():
        clone = run_once(CONFIGS / "clone.yaml", out / "clone", [f"algo.path={out / 'learn'}"])
        for seed in args.seeds:
            for arm in args.arms:
                began = time.monotonic()
                given = [f"seed={seed}", f"model.path={model_of(clone)}", *args.set]
                folder = out / f"seed_{seed}"
                folder.mkdir(exist_ok=True)
                files = [out / "learn", out / "held_out"]
                config = with_files(
                    CONFIGS / f"{arm}.yaml", folder, "runs/forgetting_nethack", files
                )
                run_once(config, folder / arm, given)
                print(f"{arm}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    judge(out / "clone", model_of(out / "clone"), args.games, 0)
    judge(out / "random", random_policy(out), args.games, 0)
    for arm in args.arms:
        for seed in args.seeds:
            folder = out / f"seed_{seed}" / arm
            judge(folder, model_of(folder), args.games, seed)


def show(args: argparse.Namespace, out: Path) -> None:
    played = {"the clone": [judged(out / "clone")], "random": [judged(out / "random")]}
    for arm in args.arms:
        played[arm] = [judged(out / f"seed_{seed}" / arm) for seed in args.seeds]
    print(table(played, args.arms, args.seeds, out))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    args.plot.write_text(curves(args.arms, args.seeds, out))
    if args.keep is not None:
        folders = [out / f"seed_{seed}" / arm for arm in args.arms for seed in args.seeds]
        for folder in (out / "clone", out / "random", *folders):
            there = args.keep / folder.relative_to(out)
            there.mkdir(parents=True, exist_ok=True)
            for name in ("judged.json", "course.json", "probes.jsonl"):
                if (folder / name).exists() and there.resolve() != folder:
                    shutil.copyfile(folder / name, there / name)


def shared(data: Path, out: Path) -> None:
    """The games in two folders: what is learnt from, and what is held out."""
    rows = [json.loads(line) for line in (data / "games.jsonl").read_text().splitlines()]
    if len(rows) < 2:
        raise SystemExit(f"{data} has {len(rows)} games, expected 2 at least: one is held out")
    for name, chosen in (
        ("held_out", rows[::HELD_OUT_EVERY]),
        ("learn", [r for i, r in enumerate(rows) if i % HELD_OUT_EVERY]),
    ):
        folder = out / name
        if folder.exists():
            continue
        beside = folder.with_name(f".{name}")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        shutil.copyfile(data / "actions.json", beside / "actions.json")
        (beside / "games.jsonl").write_text("".join(json.dumps(r) + "\n" for r in chosen))
        for file in (file for row in chosen for file in row["files"]):
            (beside / file).parent.mkdir(parents=True, exist_ok=True)
            (beside / file).symlink_to(data / file)
        beside.rename(folder)


def random_policy(out: Path) -> Path:
    """A network whose last layer is 0: every action is as likely."""
    folder = out / "random" / "model"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        env = NetHack().make()
        new_policy({"name": "envs.nethack.network:NetHackNet"}, env, 0, folder)
        env.close()
    return folder


def judge(folder: Path, model: Path, games: int, seed: int) -> None:
    """What it scores, how deep it comes and how long it lives, game by game; kept in `judged.json`."""
    path = folder / "judged.json"
    if path.exists() and len(judged(folder)["score"]) == games:
        return
    began = time.monotonic()
    env = NetHack(max_steps=5000, no_progress=1000)
    tasks = [env.held_out()[i] for i in range(games)]
    whole = [row[0] for row in rollouts(env, model, tasks, 1, Key(seed).child("judge"), envs=16)]
    found = {n: [float(e.facts[n]) for e in whole] for n in ("score", "depth", "turns")}
    path.write_text(json.dumps(found))
    print(f"{folder}: {games} games in {time.monotonic() - began:.0f} s", flush=True)


def judged(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads((folder / "judged.json").read_text())
    return found


def table(
    played: dict[str, list[dict[str, list[float]]]], arms: list[str], seeds: list[int], out: Path
) -> str:
    lines = [
        "| | score | median score | depth | turns | log-prob of the bot's actions, end | agrees, end | "
        "environment steps | hours |",
        "|" + "---|" * 9,
    ]
    for name, found in played.items():
        cells = [
            spread([float(np.mean(f["score"])) for f in found], 0),
            spread([float(np.median(f["score"])) for f in found], 0),
            spread([float(np.mean(f["depth"])) for f in found], 2),
            spread([float(np.mean(f["turns"])) for f in found], 0),
        ]
        if name in arms:
            last = [probes(out, name, s)[-1] for s in seeds]
            courses = [course(out, name, s) for s in seeds]
            cells += [spread([r[f"teacher/{k}"] for r in last], 3) for k in ("logp", "agree")]
            cells.append(f"{np.mean([c['moves'] for c in courses]):,.0f}")
            cells.append(spread([c["hours"] for c in courses], 2))
        elif name == "the clone" and arms:
            first = probes(out, arms[0], seeds[0])[0]
            cells += [f"{first[f'teacher/{k}']:.3f}" for k in ("logp", "agree")] + ["", ""]
        else:
            cells += [""] * 4
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def probes(out: Path, arm: str, seed: int) -> list[dict[str, float]]:
    text = (out / f"seed_{seed}" / arm / "probes.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def course(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """Moves, hours, and how episodes that ended went while training; kept in `course.json`."""
    folder = out / f"seed_{seed}" / arm
    if (folder / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found = {
            "moves": sum(r.get("env/steps", 0) for r in rows),
            "hours": sum(r["time/step_s"] for r in rows) / 3600,
            **{name: smoothed(rows, name) for name in ("episode/score", "episode/depth")},
        }
        (folder / "course.json").write_text(json.dumps(found))
    whole: dict[str, Any] = json.loads((folder / "course.json").read_text())
    return whole


def smoothed(rows: list[dict[str, float]], name: str, over: int = 100) -> list[tuple[float, float]]:
    """The step, and the mean of what episodes that ended in the steps before had."""
    points = []
    for end in range(over, len(rows) + 1, over):
        part = [r[name] for r in rows[end - over : end] if r.get(name) is not None]
        if part:
            points.append((rows[end - 1]["step"], float(np.mean(part))))
    return points


def curves(arms: list[str], seeds: list[int], out: Path) -> str:
    """Score and depth of training episodes, and the probe, against steps; a line a seed."""
    width, height, margin = 330, 260, 46
    panels = (
        ("episode/score", "score of games that ended"),
        ("episode/depth", "deepest level"),
        ("teacher/logp", "log-prob of the bot's actions"),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * width} {height + 24}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for place, (name, title) in enumerate(panels):
        lines = {}
        for arm in arms:
            for seed in seeds:
                if name.startswith("teacher"):
                    xs, ys = curve(probes(out, arm, seed), name)
                    lines[arm, seed] = np.stack([xs, ys], 1)
                else:
                    lines[arm, seed] = np.array(course(out, arm, seed)[name]).reshape(-1, 2)
        whole = np.concatenate([x for x in lines.values() if len(x)] or [np.zeros((1, 2))])
        low, high = whole.min(0), whole.max(0)
        span = np.where(high > low, high - low, 1.0)

        def at(point: np.ndarray, left: float = place * width, low=low, span=span) -> str:  # type: ignore[no-untyped-def]
            x, y = (point - low) / span
            wide, tall = width - margin - 10, height - 2 * margin
            return f"{left + margin + x * wide:.1f},{height - margin - y * tall:.1f}"

        parts.append(f'<text x="{place * width + margin}" y="{margin - 20}">{title}</text>')
        for value, up in ((low[1], 0), (high[1], 1)):
            y = height - margin - up * (height - 2 * margin)
            parts.append(
                f'<text x="{place * width + margin - 4}" y="{y + 4:.0f}" text-anchor="end">{value:.4g}'
                f"</text>"
            )
        parts.append(
            f'<text x="{(place + 1) * width - 10}" y="{height - margin + 16}" text-anchor="end">step '
            f"{high[0]:,.0f}</text>"
        )
        for (arm, _), line in lines.items():
            points = " ".join(at(p) for p in line)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" stroke-width="1.5"/>'
            )
    for i, arm in enumerate(arms):
        parts.append(
            f'<text x="{margin + 70 * i}" y="{height + 12}" fill="{COLOURS[arm]}">{arm}</text>'
        )
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    main()
