"""Configuration files as trees: YAML, `extends:`, dotted overrides. `config.py` says what they mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rlft.errors import ConfigError, did_you_mean


class Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-6` as text; everybody who writes a learning rate means a number."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


_PLUGINS = ("algo", "env", "build")
"""Sections that may be a plug-in's name alone."""


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of `path` on what it `extends`. Raises ConfigError: missing file, bad YAML, a circle."""
    if not path.is_file():
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"no configuration file {str(path)!r}.{near}")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes in a circle")
    try:
        tree = yaml.load(path.read_text("utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(tree).__name__}")
    base = tree.pop("extends", None)
    if isinstance(tree.get("warm_start"), str):
        tree["warm_start"] = str(path.parent / tree["warm_start"])
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected one file name, got {base!r}")
    return _merged(read_tree(path.parent / base, (*seen, path.resolve())), tree)


def _merged(base: Any, over: Any, key: str | None = None) -> Any:
    """`over` on `base`, the sections at `key` (None: the whole files). A plug-in section that names
    another plug-in replaces, it does not merge."""
    if key in _PLUGINS and isinstance(base, str):
        base = {"name": base}
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if key is not None and "name" in over and over["name"] != base.get("name", over["name"]):
        return over
    return {**base, **{k: _merged(base.get(k), v, k) for k, v in over.items()}}


def set_key(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b=value` in `tree`, in place. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, e.g. algo.group_size=16")
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        below = tree.setdefault(parent, {})
        if isinstance(below, str) and parent in _PLUGINS:
            below = tree[parent] = {"name": below}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override {override!r}: {'.'.join(parents[: depth + 1])} is a "
                f"{type(below).__name__}, not a section"
            )
        tree = below
    try:
        tree[last] = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: not a YAML value: {error}") from None
