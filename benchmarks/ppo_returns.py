"""What PPO reaches here and in Stable-Baselines3, at equal steps and hyper-parameters, from equal starts.

    pip install --no-deps -r locks/benchmark.txt
    python benchmarks/ppo_returns.py [--seeds 0 1 2 3 4] [--configs cartpole empty_room]

The environment, the network and the numbers are those of configs/NAME.yaml, without value clipping, which
Stable-Baselines3 leaves out by default. Both policies are evaluated greedily on the same 50 held-out
starts. Finished runs are not repeated. Prints a table: mean [least, largest] over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from many_runs import one_cluster, run_once
from spread import spread

from rlft import registry
from rlft.config import Config, load_config
from rlft.schedule import value_at

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SAME = ("algo.value_clip=null", "eval.every=0", "save.every=0")
STARTS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--configs", nargs="+", default=["cartpole", "empty_room"])
    parser.add_argument("--out", type=Path, default=Path("runs/ppo_returns"))
    parser.add_argument("--peer", nargs=2, metavar=("CONFIG", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(peer(load_config(CONFIGS / f"{args.peer[0]}.yaml"), int(args.peer[1]))))
        return
    print("| | environment steps | rlft | Stable-Baselines3 |\n|---|---|---|---|")
    with one_cluster():
        for name in args.configs:
            ours = [run(name, seed, args.out / f"{name}_{seed}") for seed in args.seeds]
            theirs = [
                kept(name, seed, args.out / f"{name}_{seed}_peer.json") for seed in args.seeds
            ]
            cells = [spread([r for _, r in found]) for found in (ours, theirs)]
            assert {steps for steps, _ in ours} == {steps for steps, _ in theirs}
            print(f"| {name} | {ours[0][0]:,.0f} | {' | '.join(cells)} |", flush=True)


def run(name: str, seed: int, folder: Path) -> tuple[int, float]:
    """(environment steps, mean held-out return) of ours."""
    run_once(CONFIGS / f"{name}.yaml", folder, [f"seed={seed}", *SAME])
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    last = json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])
    return int(sum(row["env/steps"] for row in rows)), last["eval/reward/mean"]


def kept(name: str, seed: int, file: Path) -> tuple[int, float]:
    """The same of the peer, in a process of its own with one thread, as our learner has."""
    if not file.exists():
        done = subprocess.run(
            [sys.executable, __file__, "--peer", name, str(seed)],
            check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        file.write_text(done.stdout.splitlines()[-1])
    steps, found = json.loads(file.read_text())
    return int(steps), found


def peer(cfg: Config, seed: int) -> tuple[int, float]:
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    env = registry.build("env", cfg.env)
    algo = registry.build("algo", cfg.algo)
    envs, hidden = cfg.runner.blocks * cfg.runner.envs, list(cfg.model.build["hidden"])
    total = cfg.steps * algo.steps * envs
    vector = DummyVecEnv([env.make] * envs)
    model = PPO(
        "MlpPolicy", vector, seed=seed, device="cpu", n_steps=algo.steps, n_epochs=algo.epochs,
        batch_size=algo.steps * envs // algo.minibatches, gamma=algo.gamma, gae_lambda=algo.lam,
        clip_range=algo.clip, ent_coef=float(algo.entropy_coef),
        vf_coef=float(algo.value_coef) / 2,  # its squared error is not halved
        learning_rate=lambda left: value_at(cfg.learner.lr, max(0, round((1 - left) * cfg.steps) - 1)),
        max_grad_norm=cfg.learner.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": hidden, "vf": hidden}, "activation_fn": torch.nn.Tanh,
            "optimizer_kwargs": {"eps": cfg.learner.eps},
        },
    )  # fmt: skip
    model.learn(total)
    one, returns = env.make(), []
    for task in env.held_out()[:STARTS]:
        obs, _ = one.reset(seed=task.info["seed"])
        over, total_reward = False, 0.0
        while not over:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = one.step(int(action))
            total_reward += float(reward)
            over = terminated or truncated
        returns.append(total_reward)
    return total, fmean(returns)


if __name__ == "__main__":
    main()
