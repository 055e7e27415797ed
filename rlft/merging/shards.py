"""Safetensors files, read and written one tensor at a time.

The libraries' writers take a dictionary of all tensors of a file, and their readers map the file whole;
both hold a shard. The format is eight bytes with the length of a JSON header, the header, then the data,
so a tensor can be read by seeking and written as soon as it is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlft.errors import ConfigError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # as the library has it; more is not a header


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file. dtype: as the file names it; start: offset of its first byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own."""
        raw = torch.empty(self.size, dtype=torch.uint8)
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            if self.size and stream.readinto(raw.numpy().data) != self.size:
                raise ConfigError(f"{self.path} is shorter than its header says; it is truncated")
        return raw.view(DTYPES[self.dtype]).view(self.shape)


def stored(folder: Path) -> dict[str, Stored]:
    """The tensors of a Hugging Face folder by name, from the headers of its files.

    Raises ConfigError: no safetensors file, or one that is not whole.
    """
    paths = _files(folder)
    return {name: tensor for path in paths for name, tensor in _header(path).items()}


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        for name in named:
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: its index names {name}, which is not there")
        return [folder / name for name in named]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise ConfigError(
        f"{folder} holds no model.safetensors and no index of shards; save the model again with "
        f"`save_pretrained`, which writes safetensors"
    )


def _header(path: Path) -> dict[str, Stored]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if length < _LONGEST_HEADER else b""
    try:
        entries: dict[str, Any] = json.loads(raw)
        entries.pop("__metadata__", None)
        found = {
            name: Stored(
                path,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not a safetensors file, or is truncated") from None
    end = max((t.start + t.size for t in found.values()), default=0)
    if end > path.stat().st_size:
        raise ConfigError(
            f"{path} is truncated: {path.stat().st_size} bytes, its header describes {end}"
        )
    return found


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def in_order(planned: Sequence[Planned]) -> list[Planned]:
    """Wide dtypes first, so that every tensor lies at a multiple of its own width."""
    return sorted(planned, key=lambda p: -p.dtype.itemsize)


def write(
    folder: Path, planned: Sequence[Planned], tensors: Iterator[torch.Tensor], shard_bytes: int
) -> None:
    """Writes `tensors`, which come in the order of `planned`, into files of at most `shard_bytes`
    (a larger tensor gets its own), with an index if there are several."""
    shards: list[list[Planned]] = [[]]
    for plan in planned:
        if shards[-1] and sum(p.size for p in shards[-1]) + plan.size > shard_bytes:
            shards.append([])
        shards[-1].append(plan)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = "model.safetensors" if len(shards) == 1 else name
        _write_file(folder / name, shard, tensors)
        where |= {p.name: name for p in shard}
    if len(shards) > 1:
        total = sum(p.size for p in planned)
        index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_file(path: Path, shard: Sequence[Planned], tensors: Iterator[torch.Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for plan in shard:
        offsets = [at, at + plan.size]
        header[plan.name] = {
            "dtype": _CODES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": offsets,
        }
        at += plan.size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for plan in shard:
            tensor = next(tensors).to(plan.dtype).contiguous()
            assert tuple(tensor.shape) == plan.shape, plan.name
            stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next is read
