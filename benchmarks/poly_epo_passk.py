"""GRPO against Poly-EPO at equal samples from one start: pass@k to k = 64, and how many strategies.

    python benchmarks/poly_epo_passk.py [--seeds 0 1 2] [--out runs/poly_epo_passk] [--plot FILE.svg]

The task is `benchmarks/equations.py`: four digits to be combined into a number, with several right
strategies. For each seed: the start of configs/equations_sft.yaml once, then each arm from its model,
then `rlft eval` with 128 answers to each of 128 held-out tasks. What is finished is not repeated.
Prints a table (mean and range over seeds) and writes the curves.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import equations
import yaml
from spread import spread

from rlft.record.estimators import pass_at_k

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ARMS = {
    "GRPO": ("equations_grpo.yaml", []),
    "Poly-EPO": ("equations_poly_epo.yaml", []),
    "GRPO, 40 steps": ("equations_grpo.yaml", ["steps=40"]),
    "pass@4 (PKPO)": ("equations_grpo.yaml", ["algo.advantage={name: pass_at_k, k: 4}"]),
}
START = "the start"
KS = (1, 2, 4, 8, 16, 32, 64)
SAMPLES = 128
COLOURS = ("#999999", "#444444", "#d1495b", "#00798c")
WIDTH, HEIGHT, MARGIN = 640, 380, 52


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["GRPO", "Poly-EPO"])
    parser.add_argument("--out", type=Path, default=Path("runs/poly_epo_passk"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/poly_epo_passk.svg"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    args = parser.parse_args()
    found: dict[str, list[dict]] = {name: [] for name in (START, *args.arms)}
    for seed in args.seeds:
        start = args.out / f"start_{seed}"
        run(CONFIGS / "equations_sft.yaml", start, [f"seed={seed}"])
        model = max(start.glob("checkpoints/step_*/model"))
        own = ["warm_start=null", f"model.path={model}", f"seed={seed}"]
        first = CONFIGS / "equations_grpo.yaml"
        found[START].append(measured(first, own, args.out / f"eval_start_{seed}.json"))
        for arm in args.arms:
            config, overrides = ARMS[arm]
            slug = re.sub("[^a-z0-9]+", "-", arm.lower()).strip("-")
            folder = args.out / f"{slug}_{seed}"
            run(CONFIGS / config, folder, [*own, *overrides, *args.set])
            scores = measured(folder, [], args.out / f"eval_{folder.name}.json")
            found[arm].append({**scores, **trained(folder)})
    print(table(found, len(args.seeds)))
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    args.plot.write_text(plot(found))


def run(config: Path, folder: Path, overrides: list[str]) -> None:
    if not (folder / "result.json").exists():
        rlft("run", str(config), "--dir", str(folder), *overrides)


def rlft(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "rlft", *words], check=True)


def measured(target: Path, overrides: list[str], out: Path) -> dict[str, float]:
    """pass@k, and how many strategies are among the right answers: from `rlft eval`'s file."""
    if not out.exists():
        rlft("eval", str(target), "--samples", str(SAMPLES), "--out", str(out), *overrides)
    tasks = json.loads(out.read_text())["by_task"]
    scores = {}
    for k in KS:
        right = [sum(r == 1.0 for r in task["rewards"]) for task in tasks]
        scores[f"pass@{k}"] = statistics.fmean(pass_at_k(SAMPLES, c, k) for c in right)
    per_task = [strategies(task) for task in tasks]
    scores["right strategies"] = statistics.fmean(found for found, _ in per_task)
    scores["of"] = statistics.fmean(there for _, there in per_task)
    right = [
        {c for c, r in zip(t["completions"], t["rewards"], strict=True) if r == 1.0} for t in tasks
    ]
    scores["right answers"] = statistics.fmean(len(answers) for answers in right)
    scores["distinct answers"] = statistics.fmean(len(set(t["completions"])) for t in tasks)
    return scores


def strategies(task: dict) -> tuple[int, int]:
    """How many right strategies were found among a task's answers, and how many there are."""
    pairs = zip(task["completions"], task["rewards"], strict=True)
    found = {equations.strategy(text) for text, reward in pairs if reward == 1.0}
    digits, target = task["task"].split("=")
    return len(found), len(equations.problems()[digits, int(target)])


def trained(folder: Path) -> dict[str, float]:
    """What the run spent, and its entropy in the last ten steps."""
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "sampled": cfg["steps"] * cfg["tasks_per_step"] * cfg["algo"]["group_size"],
        "entropy": statistics.fmean(row["entropy"] for row in rows[-10:]),
        "seconds": sum(row["time/step_s"] for row in rows),
    }


def table(found: dict[str, list[dict]], seeds: int) -> str:
    """Markdown: mean over seeds [least, largest]."""
    shown = [f"pass@{k}" for k in KS]
    more = ["right strategies", "right answers", "distinct answers", "entropy"]
    lines = [f"{seeds} seeds; {SAMPLES} answers to each held-out task", ""]
    for columns in (shown, more):
        lines.append(f"| | {' | '.join(columns)} |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, results in found.items():
            cells = [spread([r[c] for r in results if c in r]) for c in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    there = found[START][0]["of"]
    lines.append(f"a task has {there:.2f} right strategies on average")
    for name, results in found.items():
        if "sampled" in results[0]:
            spent = statistics.fmean(r["seconds"] for r in results)
            lines.append(
                f"{name}: {results[0]['sampled']:,} answers sampled, {spent:.0f} s of steps"
            )
    return "\n".join(lines)


def plot(found: dict[str, list[dict]]) -> str:
    """An SVG of pass@k against k on a logarithmic axis: the mean of the seeds, and their range."""

    def xy(k: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * math.log2(k) / math.log2(KS[-1])
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        left, y = xy(1, tick).split(",")
        parts.append(f'<path d="M{left},{y}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{float(left) - 6}" y="{float(y) + 4}" text-anchor="end">{tick}</text>'
        )
    for k in KS:
        x = xy(k, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{k}</text>')
    for place, ((name, results), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        curves = {k: [r[f"pass@{k}"] for r in results] for k in KS}
        band = [xy(k, max(v)) for k, v in curves.items()]
        band += [xy(k, min(v)) for k, v in reversed(curves.items())]
        line = " ".join(xy(k, statistics.fmean(v)) for k, v in curves.items())
        parts.append(f'<polygon points="{" ".join(band)}" fill="{colour}" opacity=".18"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = HEIGHT - MARGIN - 14 - 18 * place
        parts.append(
            f'<rect x="{WIDTH - 190}" y="{y - 9}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(f'<text x="{WIDTH - 172}" y="{y + 1}">{name}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">k</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 16}">pass@k on held-out tasks</text></svg>\n'
    )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
