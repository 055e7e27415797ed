"""How forgetting grows with trained parameters and steps: a sweep of LoRA ranks, and a law fitted to it.

    python benchmarks/forgetting_scaling.py [--ranks 1 2 4 8 16] [--steps 200] [--out runs/scaling]

A model of addition (configs/quickstart_sft.yaml) is fine-tuned on new demonstrations by adapters of each
rank; a probe measures the cross-entropy to its own former predictions on texts of the old kind every few
steps. The law is that of rlft/record/scaling.py. Finished runs are not repeated. Writes `sweep.jsonl`, and
prints the fit. A model this small says that it works, not what the constants of a language model are.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from many_runs import model_of, one_cluster, run_once

from envs.addition import Addition
from rlft.config import load_config
from rlft.policy.lm import load_lm
from rlft.record.metrics import JsonLines
from rlft.record.scaling import fit_scaling

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--start-steps", type=int, default=600, help="of the start model")
    parser.add_argument("--every", type=int, default=20, help="steps between probes")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with one_cluster():
        start = run_once(
            ROOT / "configs/quickstart_sft.yaml",
            args.out / "start",
            [f"steps={args.start_steps}", "eval.at_end=false", "sampler.num=0"],
        )
        texts = (args.out / "texts.jsonl").resolve()
        write_texts(texts)
        rows = []
        for rank in args.ranks:
            rows += sweep(rank, model_of(start), texts, args)
    (args.out / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    p, n, y = (np.array([row[k] for row in rows]) for k in ("parameters", "steps", "loss"))
    found = fit_scaling(p, n, y)
    law = found.law
    print("| parameters | " + " | ".join(f"{x:,} steps" for x in sorted(set(n))) + " |")
    print("|---|" + "---|" * len(set(n)))
    for x in sorted(set(p)):
        print(f"| {x:,} | " + " | ".join(f"{v:.3f}" for v in y[p == x]) + " |")
    print(
        f"\ns {law.s:.3f}, a {law.a:.3g}, b {law.b:.3g}, alpha {law.alpha:.3f}, beta {law.beta:.3f}, rho "
        f"{law.rho:.3f}; rms {found.rms:.4f} nats a token, share of the variance {found.explained:.3f}"
    )


def write_texts(path: Path) -> None:
    """Held-out problems with their demonstrations, as the start model knows them."""
    env = Addition(held_out_size=128)
    held_out: Any = env.held_out()  # which come without
    tasks = replace(held_out, careful_share=env.careful_share)
    rows = [{"text": f"{t.prompt}{t.demos[0]}"} for t in (tasks[i] for i in range(len(tasks)))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sweep(rank: int, start: Path, texts: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """One run; a row for each probe after step 0. The new demonstrations always carry (the old ones did
    in 40% of cases) and have four digits."""
    given = [
        f"model.path={start}",
        "model.build=null",
        f"model.lora={{rank: {rank}, alpha: {2 * rank}}}",
        f"steps={args.steps}",
        f"learner.lr={args.lr}",
        "sampler.num=0",
        "eval.at_end=false",
        "env.digits=4",
        "env.careful_share=1.0",
        f"probes={{every: {args.every}, fns: [{{name: text_forgetting, path: {texts}, texts: 128}}]}}",
    ]
    config = ROOT / "configs/quickstart_sft.yaml"
    folder = run_once(config, args.out / f"rank_{rank}", given)
    cfg = load_config(config, given)
    policy = load_lm(start, "float32", lora=cfg.model.lora)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    return [
        {"parameters": trained, "steps": row["step"], "loss": row["text/soft_ce"]}
        for row in JsonLines(folder / "probes.jsonl").rows()
        if row["step"]
    ]


if __name__ == "__main__":
    main()
