"""Evolution strategies, GRPO and MeZO under one harness, at equal sampled tokens and at equal time.

The task is a small Countdown: four digits, + - *, a target (`equations.py`); its start model, 1.3 million
weights, is trained first by imitation. Every arm begins there, and each run is an ordinary one: the
tables are those of `rlft compare`.

    python benchmarks/es_countdown.py [--seeds 0 1 2] [--out runs/es_countdown] [--set key=value ...]

Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from many_runs import model_of, one_cluster, run_once

from rlft.record.compare import at_equal_cost, compare, markdown, totals, write_page

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ARMS = {"grpo": 60, "es": 40, "mezo": 30}
"""Steps of each arm, for runs of about one length. A step of GRPO samples 256 answers, one of the others
1,024."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("runs/es_countdown"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    args = parser.parse_args()
    with one_cluster():
        warm = run_once(CONFIGS / "equations_sft.yaml", args.out / "warm_start", [])
        shared = ["warm_start=null", f"model.path={model_of(warm)}"]
        runs = [
            run_once(
                CONFIGS / f"equations_{arm}.yaml",
                args.out / f"{arm}_{seed}",
                [
                    *shared,
                    f"steps={ARMS[arm]}",
                    "eval.at_start=true",
                    "eval.every=5",
                    f"seed={seed}",
                    *args.set,
                ],
            )
            for seed in args.seeds
            for arm in args.arms
        ]
    found = compare([str(run) for run in runs])
    for rows in (totals(found), at_equal_cost(found)):
        print(f"\n{markdown(rows)}")
    write_page(found, args.out / "compare.html")
    print(f"\ncurves: {args.out / 'compare.html'}")


if __name__ == "__main__":
    main()
