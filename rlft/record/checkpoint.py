"""Checkpoints: written beside, checked, renamed. A folder that exists is a whole checkpoint.

checkpoints/best -> step_000004    if `save.best` names a metric
checkpoints/step_000006/
    state.json       step, version, score, identity, the hash of every other file, and its own
    algo.pkl         the algorithm's own state
    learner_state/   DeepSpeed: weights, optimizer, random state of every rank
    model/           a Hugging Face folder
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rlft.config import Config
from rlft.errors import ActorDied, CheckpointError, DeadlineExceeded
from rlft.record.allowance import Allowance
from rlft.record.metrics import JsonLines

_FORMAT = 2
_WRITING, _REMOVING = ".writing_", ".removing_"
_NAME = re.compile(r"step_(\d{6,})")


def write_checkpoint(
    root: Path,
    step: int,
    state: dict[str, Any],
    algo_state: Any,
    write: Callable[[Path], None],
    keep: int,
    best_is: str = "highest",
) -> Path:
    """Writes `root/step_N` atomically; `write(folder)` adds the large parts.

    When anything fails (a full disk, say) the half-written folder is removed, earlier checkpoints
    stay as they were, and CheckpointError says why. Then the oldest beyond `keep` go, but never the
    best one by `state["score"]` (`{metric, value}`, or empty), to which the link `best` leads.
    """
    final = root / f"step_{step:06d}"
    beside = root / f"{_WRITING}{final.name}"
    try:
        sweep(root)
        beside.mkdir(parents=True)
        write(beside)
        (beside / "algo.pkl").write_bytes(pickle.dumps(algo_state))
        files = {
            str(p.relative_to(beside)): _hash(p) for p in sorted(beside.rglob("*")) if p.is_file()
        }
        whole = {"format": _FORMAT, "step": step, **state, "files": files}
        (beside / "state.json").write_text(json.dumps({**whole, "hash": _hash_of(whole)}, indent=1))
        _sync(beside)
        if final.exists():
            shutil.rmtree(final)
        beside.rename(final)
        _sync_entries(root)
    except (ActorDied, DeadlineExceeded):
        shutil.rmtree(beside, ignore_errors=True)
        raise  # the writer was lost, not the place to write to
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        newest = newest_checkpoint(root)
        raise CheckpointError(
            f"step {step}: the checkpoint could not be written to {final}: "
            f"{str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}. "
            f"{f'The previous one, {newest}, is intact' if newest else 'There is no earlier one'}; "
            f"free some space and continue with --resume."
        ) from error
    best = _best(root, state.get("score", {}).get("metric"), best_is)
    if best is not None:
        _point_to(root / "best", best)
    for old in all_checkpoints(root)[:-keep]:
        # Renamed first: a folder with a checkpoint's name is whole, at any moment.
        if old != best:
            shutil.rmtree(old.rename(root / f"{_REMOVING}{old.name}"))
    return final


def sweep(root: Path) -> None:
    """Removes what a process that was killed while writing or removing a checkpoint left half done."""
    if root.is_dir():
        for half in root.iterdir():
            if half.name.startswith((_WRITING, _REMOVING)):
                shutil.rmtree(half, ignore_errors=True)


def newest_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint below `root`, or None."""
    found = all_checkpoints(root)
    return found[-1] if found else None


def _best(root: Path, metric: str | None, best_is: str) -> Path | None:
    """The checkpoint with the best value of `metric`, the newest of equals. Where `metric` is None,
    as after a step without an evaluation: the one that was the best so far."""
    link = root / "best"
    if metric is None:
        return root / link.readlink() if link.is_dir() else None
    scored = []
    for folder in all_checkpoints(root):
        score = json.loads((folder / "state.json").read_text()).get("score", {})
        if score.get("metric") == metric:
            scored.append((score["value"] if best_is == "highest" else -score["value"], folder))
    return max(scored)[1] if scored else None


def _point_to(link: Path, folder: Path) -> None:
    beside = link.with_name(".best")
    beside.unlink(missing_ok=True)
    beside.symlink_to(folder.name)
    beside.replace(link)


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Any]:
    """Returns (state, algorithm state) after checking every file against its hash.

    Raises CheckpointError: not a checkpoint, another format, or a file that is missing or changed.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        files = dict(state["files"])
        step = state["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is not an rlft checkpoint: its state.json is missing or unreadable ({error})"
        ) from None
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder} has format {state.get('format')}, this version reads {_FORMAT}"
        )
    if state.pop("hash", None) != _hash_of(state):
        raise _corrupted(folder, step, folder / "state.json", "has changed")
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or _hash(path) != digest:
            raise _corrupted(folder, step, path, "has changed" if path.is_file() else "is missing")
    return state, pickle.loads((folder / "algo.pkl").read_bytes())


@dataclass(frozen=True, slots=True)
class Position:
    """A checked checkpoint to continue from: where it is, its state, and the algorithm's."""

    folder: Path
    state: dict[str, Any]
    algo_state: Any


def resumable(root: Path, cfg: Config) -> Position:
    """The newest checkpoint below `root` from which `cfg` continues.

    Raises CheckpointError: none there, corrupted, of another run, or nothing left to do.
    """
    newest = newest_checkpoint(root)
    if newest is None:
        what = "run without --resume"
        if (root.parent / "metrics.jsonl").exists():
            what = (
                "this run was stopped before it saved one (save.every); begin again in another folder, or "
                "remove this one first"
            )
        raise CheckpointError(f"nothing to resume: no checkpoint in {root}; {what}")
    state, algo_state = read_checkpoint(newest)
    refuse_foreign(newest, state["identity"], identity(cfg))
    # A run that was killed between its last checkpoint and its result has that result to write.
    if (root.parent / "result.json").exists():
        rows = JsonLines(root.parent / "metrics.jsonl").rows()
        spent = Allowance(cfg.budget, (r for r in rows if r["step"] <= state["step"])).spent
        if spent or state["step"] >= cfg.steps:
            what = f"budget.{spent}" if spent else "steps="
            raise CheckpointError(
                f"nothing to do: {newest} is at step {state['step']} of {cfg.steps}"
                f"{f', its budget of {spent} spent' if spent else ''}; raise {what} to train further."
            )
    return Position(newest, state, algo_state)


def identity(cfg: Config) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes it."""
    algo = cfg.algo if isinstance(cfg.algo, str) else cfg.algo.get("name")
    env = cfg.env if isinstance(cfg.env, str) else cfg.env.get("name")
    model = cfg.model.model_dump(mode="json", include={"build", "dtype", "lora"})
    # What a saved optimizer depends on, and how the places of environments are saved: block by block. The
    # usual is left out, as earlier versions did.
    depends = (
        ("learner.trainable", cfg.learner.trainable, "full"),
        ("learner.optimizer", cfg.learner.optimizer, "adamw"),
        ("runner.blocks", cfg.runner.blocks, 1),
        ("runner.envs", cfg.runner.envs, 8),
    )
    unusual = {key: value for key, value, usual in depends if value != usual}
    return {
        **unusual,
        "name": cfg.name,
        "algo": algo,
        "env": env,
        "seed": cfg.seed,
        "model": model,
        # After a warm start the path is its result, and known only then.
        "model.path": Path(cfg.model.path).name if cfg.model.path and not cfg.warm_start else None,
        "learner.num": cfg.learner.num,
        "learner.zero_stage": cfg.learner.zero_stage,
        "tasks_per_step": cfg.tasks_per_step,
    }


def refuse_foreign(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differ = [
        f"{k}: {theirs.get(k)!r} there, {ours.get(k)!r} here"
        for k in dict.fromkeys([*ours, *theirs])
        if theirs.get(k) != ours.get(k)
    ]
    if differ:
        raise CheckpointError(
            f"{folder} belongs to another run ({'; '.join(differ)}). Resume it with its own "
            f"configuration ({folder.parents[1] / 'config.yaml'}), or start a new run."
        )


def _corrupted(folder: Path, step: Any, path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint of step {step} is corrupted: {path} {what}. Remove {folder} to continue "
        f"from the checkpoint before it."
    )


def all_checkpoints(root: Path) -> list[Path]:
    """The whole checkpoints below `root`, the oldest first."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _hash_of(state: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(state, sort_keys=True).encode())


def _sync_entries(folder: Path) -> None:
    """Makes a rename inside `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
