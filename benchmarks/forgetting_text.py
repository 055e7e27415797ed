"""What GRPO makes a language model forget, and what keeps it: task reward against forgetting.

    python benchmarks/forgetting_text.py [--seeds 0 1 2] [--arms none kl ...] [--out runs/forgetting_text]

A small model learns additions and reversals by imitation (benchmarks/two_skills.py); GRPO on additions
alone follows, with nothing, a KL penalty, EWC, replay of reversals, LoRA, half fine-tuning and LIFT
(configs/forgetting_text/), and WiSE-FT mixes the start with what came of the first. Every model is scored
the same way: greedy accuracy on 256 held-out tasks of each skill, and KL(start || model) on held-out
reversals, in nats a token. Finished parts are not repeated. Prints and writes `table.md`; draws the means.

Coefficients are defaults or round numbers, set before the arm was run, and are the same for every seed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from many_runs import model_of, one_cluster, run_once, with_files
from spread import spread
from two_skills import TwoSkills, texts

from rlft.config import load_config
from rlft.merging.merge import merge, recipe
from rlft.merging.pareto import front, picture
from rlft.merging.scores import held_out
from rlft.probes.probe import Subject
from rlft.probes.text import TextForgetting
from rlft.seeding import Key

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "forgetting_text"
GIVEN = "runs/forgetting_text"
ARMS = ("none", "kl", "ewc", "replay", "lora", "hft", "lift")
MIXES = (0.25, 0.5, 0.75)
SCORES = ("addition", "reversal", "kl")


@dataclass(frozen=True)
class Point:
    target: float
    retention: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting_text"))
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/forgetting_text.svg")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every arm")
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with one_cluster():
        for seed in args.seeds:
            folder = args.out / f"seed_{seed}"
            for name, scores in study(seed, args.arms, folder, args.set).items():
                found.setdefault(name, []).append(scores)
    text = table(found)
    (args.out / "table.md").write_text(text + "\n")
    print(text)
    points = {
        name: Point(*(fmean(s[key] for s in scores) for key in ("addition", "reversal")))
        for name, scores in found.items()
    }
    args.plot.write_text(picture(list(points.values()), list(points)))
    best = front(list(points.values()))
    print("\nnot dominated in the means:", ", ".join(n for n, p in points.items() if p in best))


def study(seed: int, arms: list[str], out: Path, changes: list[str]) -> dict[str, dict[str, float]]:
    """The scores of every model of a seed, by name."""
    start = model_of(run_once(CONFIGS / "start.yaml", out / "start", [f"seed={seed}"]))
    tasks = TwoSkills()
    files = {
        "replay.jsonl": tasks.reversals(shown=True),
        "held_out.jsonl": tasks.reversals(shown=False),
    }
    for name, kept in files.items():
        rows = [json.dumps({"text": text}) for text in texts(kept, 2000)]
        (out / name).write_text("\n".join(rows) + "\n")
    models = {"the start": start}
    config_of = {
        name: with_files(CONFIGS / f"{name}.yaml", out, GIVEN, [out / n for n in files])
        for name in (*ARMS, "reversals")
    }
    for arm in arms:
        given = [f"seed={seed}", f"model.path={start}", *changes]
        models[arm] = model_of(run_once(config_of[arm], out / arm, given))
    if "none" in arms:
        for alpha in MIXES:
            models[f"WiSE-FT {alpha:g}"] = mixed(alpha, start, models["none"], out)
    return {name: scored(model, start, out, config_of) for name, model in models.items()}


def mixed(alpha: float, start: Path, tuned: Path, out: Path) -> Path:
    there = out / f"wise_ft_{alpha:g}"
    if not there.exists():
        merge(
            recipe({"name": "wise_ft", "alpha": alpha}, [str(tuned)], base=str(start)), there, None
        )
    return there.resolve()


def scored(model: Path, start: Path, out: Path, config_of: dict[str, Path]) -> dict[str, float]:
    """Both accuracies and the divergence, measured once and kept beside the model."""
    kept = out / "scores" / f"{'_'.join(model.relative_to(out.resolve()).parts)}.json"
    if not kept.exists():
        probe = TextForgetting(path=str(out / "held_out.jsonl"), texts=256)
        cfg = load_config(config_of["none"])
        scores = {
            "addition": held_out(config_of["none"], model, 0, print),
            "reversal": held_out(config_of["reversals"], model, 0, print),
            "kl": probe(Subject(cfg, model, start, None, Key(0)))["kl"],
        }
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(scores))
    return json.loads(kept.read_text())


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Mean [least, largest] over the seeds."""
    lines = [
        "| | additions right | reversals right | KL(start \\|\\| model) on reversals |",
        "|---|---|---|---|",
    ]
    for name, scores in found.items():
        cells = [spread([s[key] for s in scores]) for key in SCORES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
