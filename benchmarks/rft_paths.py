"""Rejection sampling on word problems: does accuracy follow the number of distinct paths?

    python benchmarks/rft_paths.py [--seeds 0 1 2] [--out runs/rejection]

One base model (configs/rejection/base.yaml). For each seed it is fine-tuned on one solution a problem
(sft.yaml). As it was after 50 steps, that model answers every training problem 100 times (rft.yaml). The
base is then trained again on the gold rows and what is kept of the first 1, 10 and 100 answers. A control
has rows without new paths: `same path` keeps right answers that take the gold row's path in other words,
as many a problem as k=100 keeps, where there are so many. Each set is trained on twice: for as many steps
as the SFT model, and (`equal passes`) as many times through its rows as that model went through its own.
Every right text of the 100 answers is written once (`key: text`); the selections are made from that file
by the library's own functions, so that the arms share their samples.
Finished runs are not repeated. Prints the table of docs/results.md and draws docs/images/rft_paths.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from many_runs import model_of, one_cluster, run_once

from rlft.paths.distances import edit
from rlft.paths.keys import marks, text
from rlft.paths.rows import Question, read_questions, write_questions
from rlft.paths.selection import added

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "rejection"
SAMPLER = 50
"""Steps of supervised fine-tuning after which the model samples."""

STEPS = 150
"""Of `sft.yaml`."""

KS = (1, 10, 100)
SETS = (*(f"RFT k={k}" for k in KS), "same path")
PASSES = ", equal passes"
ARMS = ("SFT", *SETS, *(arm + PASSES for arm in SETS))
COLOURS = {
    "SFT": "#5b6770",
    **dict(zip(SETS, ("#8a6d00", "#d9730d", "#1f6feb", "#a3378f"), strict=True)),
}
WIDTH, HEIGHT, MARGIN = 780, 380, 56
RIGHT = 210
"""Right of the points, for their names: anywhere else these would cover some."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/rejection"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/rft_paths.svg"))
    parser.add_argument(
        "--set", nargs="*", default=[], help="overrides for every run but the base's"
    )
    args = parser.parse_args()
    began = time.monotonic()
    with one_cluster():
        base = model_of(run_once(CONFIGS / "base.yaml", args.out / "base", []))
        found = []
        for seed in args.seeds:
            found.append(one(seed, base, args))
            print(f"\n{len(found)} seeds, {time.monotonic() - began:.0f} s\n")
            print(table(found), flush=True)
            args.plot.parent.mkdir(parents=True, exist_ok=True)
            args.plot.write_text(plot(found))


def one(seed: int, base: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What each arm came to: held-out accuracy, rows, and kept paths a problem."""
    out, own = args.out / str(seed), [f"seed={seed}", *args.set]
    start = [*own, f"model.path={base}"]
    sft = run_once(CONFIGS / "sft.yaml", out / "sft", [*start, "eval.at_start=true"])
    early = (sft / f"checkpoints/step_{SAMPLER:06d}/model").resolve()
    sampling = [*own, f"model.path={early}", "algo.key=text", "algo.distance=null"]
    sampled = read_questions(
        run_once(CONFIGS / "rft.yaml", out / "samples", sampling) / "rows.jsonl", text
    )
    result = json.loads((sft / "result.json").read_text())
    results = {
        "base": {"accuracy": result["before/eval/reward/mean"], "rows": 0, "paths": 0},
        "SFT": {"accuracy": result["eval/reward/mean"], "rows": len(sampled), "paths": 0},
    }
    results["SFT"]["steps"] = STEPS
    chosen = {f"RFT k={k}": [kept_of(q, k) for q in sampled] for k in KS}
    most = {q.id: len(q.kept) for q in chosen[f"RFT k={KS[-1]}"]}
    chosen["same path"] = [same_path(q, most[q.id]) for q in sampled]
    for arm, questions in chosen.items():
        file = out / f"{arm.replace(' ', '_')}.jsonl"
        rows = write_questions(file, {q.id: q for q in questions})
        paths = statistics.fmean(len({marks(k.text) for k in q.kept}) for q in questions)
        new = statistics.fmean(
            len({marks(k.text) for k in q.kept} - {marks(g) for g in q.gold}) for q in questions
        )
        for more, steps in (("", STEPS), (PASSES, round(STEPS * rows / len(sampled)))):
            schedule = [f"steps={steps}", f"learner.lr.steps={steps - 10}"]
            folder = out / (file.stem + more.replace(", ", "_").replace(" ", "_"))
            trained = run_once(
                CONFIGS / "sft.yaml", folder, [*start, f"algo.rows={file.resolve()}", *schedule]
            )
            accuracy = json.loads((trained / "result.json").read_text())["eval/reward/mean"]
            numbers = {"accuracy": accuracy, "rows": rows, "paths": paths, "new": new}
            results[arm + more] = {**numbers, "steps": steps}
    return results


def kept_of(question: Question, k: int) -> Question:
    """What rejection sampling keeps of the first `k` answers."""
    kept = ()
    for one in question.kept:
        if int(one.source["sample"].rpartition(".")[2]) < k:
            again = type(one)(one.text, marks(one.text), one.source)
            kept = added(kept, again, edit)
    return Question(question.id, question.prompt, question.gold, kept)


def same_path(question: Question, most: int) -> Question:
    """Right answers that take the gold row's path, in other words, `most` at most."""
    [gold] = question.gold
    kept = [k for k in question.kept if marks(k.text) == marks(gold) and k.text != gold]
    return Question(question.id, question.prompt, question.gold, tuple(kept[:most]))


def table(found: list[dict[str, dict[str, float]]]) -> str:
    """A row an arm: mean over seeds, and the range."""
    lines = [
        "| trained on | rows | steps | kept paths a problem | not the gold row's | held-out accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for arm in ("base", *ARMS):
        cells = [
            f"{statistics.fmean(r[arm]['rows'] for r in found):,.0f}",
            f"{statistics.fmean(r[arm].get('steps', 0) for r in found):,.0f}",
            spread([r[arm]["paths"] for r in found], 2),
            spread([r[arm].get("new", 0) for r in found], 2),
            spread([r[arm]["accuracy"] for r in found], 3),
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    low, high, mean = min(values), max(values), statistics.fmean(values)
    if low == high:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plot(found: list[dict[str, dict[str, float]]]) -> str:
    """An SVG: held-out accuracy against new paths a problem, a point a seed and arm."""
    points = [(arm, r[arm].get("new", 0.0), r[arm]["accuracy"]) for arm in ARMS for r in found]
    most_x = max(x for _, x, _ in points) * 1.1 or 1.0
    low, high = min(y for *_, y in points) - 0.03, max(y for *_, y in points) + 0.03

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + (WIDTH - MARGIN - RIGHT) * x / most_x,
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (y - low) / (high - low),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        _, y = at(0, value)
        parts.append(f'<path d="M{MARGIN},{y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        x, _ = at(most_x * i / 4, low)
        label = f"{most_x * i / 4:.1f}"
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{label}</text>'
        )
    for place, arm in enumerate(ARMS):
        colour = COLOURS[arm.removesuffix(PASSES)]
        inside = "#fff" if arm.endswith(PASSES) else colour
        ring = f'r="5" fill="{inside}" stroke="{colour}" stroke-width="2"'
        for _, x, y in (p for p in points if p[0] == arm):
            px, py = at(x, y)
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" {ring} opacity=".8"/>')
        y = MARGIN + 14 + 20 * place
        parts.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{y - 4}" {ring}/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 36}" y="{y}">{arm}</text>')
    middle = (MARGIN + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">kept paths a problem that are '
        f'not the gold row\'s</text><text x="{MARGIN}" y="{MARGIN - 16}">held-out accuracy</text></svg>\n'
    )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
