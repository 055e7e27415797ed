"""Which files that a configuration names would not be there when the job runs in its copy of the tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlft.check.shipping import shipment
from rlft.config import Config
from rlft.errors import ConfigError


def must_travel(config: Path, root: Path) -> None:
    """Raises ConfigError unless the configuration itself is among what is sent."""
    if config.is_absolute() or not shipment(root).holds(config.resolve()):
        raise ConfigError(
            f"{config}: the job reads it from a copy of this folder ({root}), so it must lie below, "
            f"be named by a relative path, and not be ignored by git"
        )


def absolute_where_left_behind(cfg: Config, root: Path, head_is_here: bool) -> dict[str, str]:
    """`key -> absolute path` for what `cfg` names by a relative path, is here, and is not sent.

    Such a path works if the head is this machine. Raises ConfigError for another head, and for one
    that no override reaches: in a list, or a warm start.
    """
    shipped = shipment(root)
    moved = {}
    for key, path in _local_paths(cfg.model_dump(mode="json", by_alias=True), ""):
        if shipped.holds(path.resolve()):
            continue
        if not head_is_here or "[" in key or key == "warm_start":
            raise ConfigError(
                f"{key} names {str(path)!r}, which is here but is not sent along (git ignores it, or it "
                f"lies outside {root}). Put it where the cluster's nodes can read it and give its "
                f"absolute path there: {key}=/shared/{path.name}"
            )
        moved[key] = str(path.resolve())
    return moved


def _local_paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """Relative paths in a tree of values that exist here, and the warm start's."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _local_paths(below, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _local_paths(below, f"{key}[{index}]")
    elif isinstance(value, str) and key not in ("name", "run_root"):
        file, colon, _ = value.rpartition(":")
        path = Path(file if colon and file.endswith(".py") else value)
        looks = key.endswith("path") or "/" in value or path.suffix in (".py", ".yaml", ".jsonl")
        if key == "warm_start" or (looks and not path.is_absolute() and _exists(path)):
            yield key, path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt template is no path
        return False
