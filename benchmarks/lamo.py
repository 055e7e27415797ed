"""A language model that learns from episodes offline, against cloning and a transformer from nothing.

    python benchmarks/lamo.py [--seeds 0 1 2] [--lm FOLDER] [--out runs/offline]

MiniGrid Four Rooms with its sparse reward. For each seed: a noisy expert is cloned for a while
(configs/rooms/clone.yaml), and that policy plays `--episodes` episodes, good and bad, which `rlft record`
writes. From those learn a perceptron by cloning, a Decision Transformer with random weights, and one made
from the language model of configs/rejection/base.yaml by LaMo, with and without its language loss
(configs/offline/). Success of the stochastic policies over 50 configurations; of transformers also the
nats a token of text that their language model needs afterwards. Finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from many_runs import model_of, one_cluster, run_once
from spread import spread

from envs.word_problems import WordProblems
from rlft.evaluate import find_subject
from rlft.policy.decision_transformer import language_model
from rlft.recording import record
from rlft.retention.texts import token_lists

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ARMS = {
    "cloning": ("clone", []),
    "Decision Transformer": ("scratch", []),
    "LaMo, no language loss": ("lamo", ["retention=[]"]),
    "LaMo": ("lamo", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--lm", type=Path, help="default: made by configs/rejection/base.yaml")
    parser.add_argument("--out", type=Path, default=Path("runs/offline"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {}
    with one_cluster():
        lm = args.lm or model_of(run_once(CONFIGS / "rejection/base.yaml", args.out / "lm", []))
        train, held_out = texts(args.out)
        print(
            f"language model before: {nats(str(lm), None, held_out):.3f} nats a token", flush=True
        )
        for seed in args.seeds:
            folder = args.out / f"seed_{seed}"
            episodes = recorded(folder, seed, args.episodes)
            for arm, (config, own) in ARMS.items():
                found = learn(arm, config, own, folder, seed, lm.resolve(), episodes, train)
                rows.setdefault(arm, []).append(found | language(folder / slug(arm), held_out))
                print(arm, seed, rows[arm][-1], flush=True)
    print(table(rows))


def slug(arm: str) -> str:
    return arm.lower().replace(",", "").replace(" ", "_")


def texts(out: Path) -> tuple[Path, Path]:
    """Two files of word problems with their solutions: to go on learning, and to measure with."""
    env = WordProblems(train_size=2000, held_out_size=200)
    files = []
    for name, tasks in (("language", env.train()), ("held_out", env.held_out())):
        path = out / f"{name}.jsonl"
        lines = (json.dumps({"text": f"{task.prompt}{task.demos[0]}"}) for task in tasks)
        path.write_text("\n".join(lines) + "\n")
        files.append(path)
    return files[0], files[1]


def recorded(folder: Path, seed: int, episodes: int) -> Path:
    """Episodes of a policy of middling skill."""
    demos, path = folder / "demos.npz", folder / "episodes.npz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if not demos.exists():
        level = ["configurations=50", "actions=3", "--episodes", "590", "--noise", "0.1"]
        command = [sys.executable, "-m", "envs.minigrid.demonstrations", str(demos), *level]
        subprocess.run([*command, "--seed", str(seed)], check=True)
    changes = [f"seed={seed}", f"algo.path={demos.resolve()}", "steps=60"]
    clone = run_once(CONFIGS / "rooms/clone.yaml", folder / "behaviour", changes)
    record(find_subject(clone), path, episodes=episodes, greedy=False, say=print)
    return path


def learn(
    arm: str, config: str, own: list[str], folder: Path, seed: int, lm: Path, episodes: Path, text: Path
) -> dict[str, float]:  # fmt: skip
    given = [f"seed={seed}", f"algo.path={episodes.resolve()}", *own]
    if config != "clone":
        given.append(f"model.build.lm={lm}")
    if config == "lamo" and not own:
        given.append(f"retention=[{{name: language, path: {text.resolve()}}}]")
    run = run_once(CONFIGS / f"offline/{config}.yaml", folder / slug(arm), given)
    result = json.loads((run / "result.json").read_text())
    return {"success": result["eval/reward/success"], "return": result["eval/reward/mean"]}


def language(run: Path, held_out: Path) -> dict[str, float]:
    """Nats a token of the language model inside a policy, if there is one with its weights kept."""
    from safetensors.torch import load_file

    model = model_of(run)
    said = json.loads((model / "policy.json").read_text())["network"]
    if "lm" not in said:
        return {}
    weights = load_file(model / "model.safetensors")
    inside = {n.removeprefix("memory.lm."): t for n, t in weights.items() if ".lm." in n}
    return {"nats": nats(said["lm"], (said, inside), held_out)}


@torch.no_grad()
def nats(folder: str, changed: tuple[dict, dict] | None, held_out: Path) -> float:
    """Mean -logp of the tokens of held-out texts."""
    said = changed[0] if changed else {"pretrained": True}
    lm = language_model(folder, said.get("pretrained", True), said.get("lora"))
    if changed:
        kept = lm.state_dict().keys()
        lm.load_state_dict({n: t for n, t in changed[1].items() if n in kept})
    total = count = 0.0
    for ids in token_lists(held_out, Path(folder), 128):
        row = torch.tensor([ids])
        logp = lm(input_ids=row).logits[0, :-1].log_softmax(-1)
        total -= float(logp.gather(1, row[0, 1:, None]).sum())
        count += len(ids) - 1
    return total / count


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| | success | mean return | nats a token of text |", "|---|---|---|---|"]
    for arm, found in rows.items():
        cells = [spread([f[k] for f in found if k in f]) for k in ("success", "return", "nats")]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
