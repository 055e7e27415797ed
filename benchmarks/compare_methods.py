"""Every method of configs/family/ on one task, from one warm start, side by side.

    python benchmarks/compare_methods.py [--seeds 0] [--steps 20] [--out runs/family] [--only grpo sft]

Prints what `rlft compare --markdown` prints for all of the runs, and writes its page to OUT/compare.html.
Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from many_runs import model_of, one_cluster, run_once

from rlft.record.compare import at_equal_cost, compare, markdown, totals, write_page

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--only", nargs="*", help="names of configurations; default: all")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    args = parser.parse_args()
    files = sorted((CONFIGS / "family").glob("*.yaml"))
    chosen = [f for f in files if not args.only or f.stem in args.only]
    with one_cluster():
        warm = run_once(CONFIGS / "quickstart_sft.yaml", args.out / "warm_start", [])
        shared = [
            "warm_start=null",
            f"model.path={model_of(warm)}",
            "sampler.engine=transformers",
            f"steps={args.steps}",
            "eval.every=5",
            *args.set,
        ]
        runs = [
            run_once(file, args.out / f"{file.stem}_{seed}", [*shared, f"seed={seed}"])
            for file in chosen
            for seed in args.seeds
        ]
    found = compare([str(run) for run in runs])
    for rows in (totals(found), at_equal_cost(found)):
        print(f"\n{markdown(rows)}")
    write_page(found, args.out / "compare.html")
    print(f"\ncurves: {args.out / 'compare.html'}")


if __name__ == "__main__":
    main()
