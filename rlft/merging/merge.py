"""A merge: checked from headers, then one tensor after the other, then renamed into place."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from rlft import registry
from rlft.errors import ConfigError
from rlft.merging import shards
from rlft.merging.layers import places
from rlft.merging.method import Method, Versions
from rlft.merging.sources import (
    Source,
    every_checkpoint,
    is_weight,
    newest,
    refuse_unlike,
    source,
)
from rlft.record.hf_folder import copy_settings

SHARD_BYTES = 5_000_000_000
"""As large as a file gets, which is what the hub's libraries write."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A merge that was found possible. spec: the method's name and settings; sources: by the method's
    `takes`, then the models; settings_of: whose config, tokenizer and dtypes the result has."""

    spec: Mapping[str, Any]
    method: Method
    sources: tuple[Source, ...]
    settings_of: Source


def recipe(spec: Mapping[str, Any], models: Sequence[str], **roles: str | None) -> Recipe:
    """Resolves and checks everything; writes nothing. roles: `base` and `onto`.

    Raises ConfigError: an unknown method or setting, a role too few or too many, a wrong number of
    models, or models that differ.
    """
    method: Method = registry.build("merge", spec)
    name = spec["name"]
    for key, value in vars(method).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"merge {name}: {key}={value}, expected a finite number")
    for role, path in roles.items():
        if (path is not None) != (role in method.takes):
            wanted = "needs" if role in method.takes else "takes no"
            raise ConfigError(f"merge {name} {wanted} --{role} (got {path})")
    given = [source(str(roles[role]), f"--{role}") for role in method.takes]
    many = method.models[1] is None
    found = every_checkpoint if method.whole_runs else newest
    tuned = [one for model in models for one in found(model)]
    least, most = method.models
    if len(tuned) < least or (not many and len(tuned) > (most or 0)):
        wanted = f"{least}" if most == least else f"at least {least}"
        raise ConfigError(f"merge {name} needs {wanted} model(s), got {len(tuned)}")
    sources = (*given, *tuned)
    refuse_unlike(sources)
    # A new base brings its own tokenizer; else the tuned model's, which may have got a chat template.
    settings_of = given[method.takes.index("onto")] if "onto" in method.takes else tuned[0]
    return Recipe(spec, method, sources, settings_of)


def merge(
    made: Recipe, out: Path, dtype: str | None = None, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes the merged model as the Hugging Face folder `out`, with its provenance in merge.json.

    dtype: of all weights; None: each as in `settings_of`. Arithmetic is float32. Memory: the versions
    of one tensor that the method holds at a time. Raises ConfigError if `out` exists, or a weight is
    beyond what `dtype` can hold.
    """
    refuse_existing(out)
    first = made.settings_of
    planned = shards.in_order([_planned(n, t, dtype) for n, t in first.tensors.items()])
    digests = [xxhash.xxh3_64() for _ in made.sources]
    beside = out.with_name(f".writing_{out.name}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        shards.write(beside, planned, _tensors(made, planned, digests), shard_bytes)
        copy_settings(first.folder, beside)
        if dtype is not None:
            _say_dtype(beside / "config.json", dtype)
        (beside / "merge.json").write_text(json.dumps(_provenance(made, digests), indent=1) + "\n")
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return beside.rename(out)


def refuse_existing(out: Path) -> None:
    if out.exists():
        raise ConfigError(f"--out {out} exists; name a new folder, or remove it first")


def _planned(name: str, tensor: shards.Stored, dtype: str | None) -> shards.Planned:
    own = shards.DTYPES[tensor.dtype]
    kept = own if dtype is None or not is_weight(tensor) else getattr(torch, dtype)
    return shards.Planned(name, kept, tensor.shape)


def _tensors(
    made: Recipe, planned: Sequence[shards.Planned], digests: Sequence[xxhash.xxh3_64]
) -> Iterator[torch.Tensor]:
    where = places(made.settings_of.tensors)
    for plan in planned:
        if not is_weight(made.settings_of.tensors[plan.name]):
            yield made.settings_of.tensors[plan.name].read()
            continue
        held = [s.tensors[plan.name] for s in made.sources]
        seen: set[int] = set()
        of = Versions([_reader(h, i, digests, seen) for i, h in enumerate(held)])
        with torch.no_grad():
            # Without a name: while the next one is read, nothing here may hold this one.
            yield _fitting(made.method.mixed(of, where[plan.name]), plan)


def _fitting(mixed: torch.Tensor, plan: shards.Planned) -> torch.Tensor:
    """The tensor. Raises ConfigError: finite weights that the dtype to be written cannot hold."""
    if plan.dtype != torch.float16:  # the others reach as far as float32
        return mixed
    most = torch.finfo(plan.dtype).max
    least, largest = mixed.aminmax()  # costs no memory, as counting does
    if -most <= float(least) and float(largest) <= most:
        return mixed
    beyond = int((mixed.isfinite() & (mixed.abs() > most)).sum())
    if beyond:
        raise ConfigError(
            f"{plan.name}: {beyond} of its weights are beyond {most:g}, the largest float16; merge with "
            f"--dtype bfloat16 or float32"
        )
    return mixed


def _reader(
    held: shards.Stored, index: int, digests: Sequence[xxhash.xxh3_64], seen: set[int]
) -> Any:
    """Reads a tensor, and hashes it the first time."""

    def read() -> torch.Tensor:
        tensor = held.read()
        if index not in seen:
            seen.add(index)
            digests[index].update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor

    return read


def _say_dtype(config: Path, dtype: str) -> None:
    if not config.is_file():
        return
    said = json.loads(config.read_text())
    key = "torch_dtype" if "torch_dtype" in said and "dtype" not in said else "dtype"
    config.write_text(json.dumps({**said, key: dtype}, indent=2) + "\n")


def _provenance(made: Recipe, digests: Sequence[xxhash.xxh3_64]) -> dict[str, Any]:
    """Which models, by path and by a hash of their weights as they were read, and how."""
    import rlft

    method = made.method
    settings: dict[str, Any] = dict(vars(method))
    count = len(method.takes)
    roles = [*method.takes, *["model"] * (len(made.sources) - count)]
    return {
        "method": made.spec["name"],
        "settings": settings,
        "models": [
            {"role": role, "folder": str(s.folder), "weights": digest.hexdigest()}
            for role, s, digest in zip(roles, made.sources, digests, strict=True)
        ],
        "config_and_tokenizer_of": str(made.settings_of.folder),
        "arithmetic": "float32",
        "rlft": rlft.__version__,
    }
