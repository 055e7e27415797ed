"""Several runs in one process and on one private cluster: saves each of them the start of Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray

from rlft.cluster.session import name_accelerator, start_private
from rlft.config import load_config
from rlft.train import train
from rlft.yaml_tree import read_tree


@contextmanager
def one_cluster() -> Iterator[None]:
    """A private cluster that the runs inside join."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    start_private(log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def run_once(config: Path, folder: Path, overrides: Sequence[str]) -> Path:
    """Runs it in `folder`, unless it was finished there before; returns the folder."""
    if not (folder / "result.json").exists():
        cfg = load_config(config, overrides)
        name_accelerator(cfg)
        train(cfg, folder.resolve(), again=folder.exists())
    return folder


def model_of(folder: Path) -> Path:
    """The model of a run's newest checkpoint."""
    return max(folder.glob("checkpoints/step_*/model")).resolve()


def with_files(config: Path, folder: Path, given: str, files: Iterable[Path]) -> Path:
    """The configuration, written to `folder`, with `given`/NAME replaced by the file of that name: paths
    inside lists cannot be overridden."""
    tree = json.dumps(read_tree(config))
    for file in files:
        tree = tree.replace(json.dumps(f"{given}/{file.name}"), json.dumps(str(file.resolve())))
    there = folder / f"{config.stem}.yaml"
    there.write_text(tree)  # JSON is YAML
    return there
