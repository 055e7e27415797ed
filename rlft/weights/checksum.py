"""A content hash of tensors that CPU and GPU compute alike, without a copy to the host.

Not run on a GPU yet; on a CPU its properties are tested.
"""

from __future__ import annotations

import torch
import xxhash

from rlft.types import TensorSpec

_CHUNK_WORDS = 1 << 24
_GOLDEN, _MIX_1, _MIX_2 = (
    c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
"""SplitMix64's constants (Steele, Lea and Flood 2014) as signed integers: torch has no uint64."""


def checksum(tensor: torch.Tensor, *, chunk_words: int = _CHUNK_WORDS) -> torch.Tensor:
    """A scalar int64 on the tensor's device: the sum modulo 2^64 of `mix(word + position * golden)`.

    A word is 8 bytes of content, the last one padded with zeros; `mix` is SplitMix64's finaliser, a
    bijection. So one changed word always changes the sum, and exchanged or shifted words do but for a
    chance of about 2^-64. Integer sums do not depend on their order: every device and every
    `chunk_words` gives the same answer.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, flat.numel(), 8 * chunk_words):
        words = _words(flat[start : start + 8 * chunk_words])
        first = start // 8 + 1
        position = torch.arange(first, first + words.numel(), device=tensor.device)
        total += _mixed(position.mul_(_GOLDEN).add_(words)).sum()
    return total


def _words(part: torch.Tensor) -> torch.Tensor:
    """Bytes as int64. Views of a packed buffer may start at any byte, and are copied if they do."""
    missing = -part.numel() % 8
    if missing:
        part = torch.cat([part, part.new_zeros(missing)])
    elif part.storage_offset() % 8 or part.data_ptr() % 8:
        part = part.clone()
    return part.view(torch.int64)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser, in place. `>>` repeats the sign bit, so what it brings in is masked."""
    x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(_MIX_1)
    x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(_MIX_2)
    return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))


class Ledger:
    """Hashes tensors where they lie; the results are read once, so a stream is never interrupted."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, tuple[int, ...], str]] = []
        self._sums: list[torch.Tensor] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._rows.append((name, tuple(tensor.shape), dtype_name(tensor)))
        self._sums.append(checksum(tensor))

    def specs(self) -> list[TensorSpec]:
        """What was added, in order. The caller has synchronised the streams that it was added on."""
        sums = torch.stack(self._sums).tolist() if self._sums else []
        return [
            TensorSpec(name, shape, dtype, _digest(shape, dtype, total))
            for (name, shape, dtype), total in zip(self._rows, sums, strict=True)
        ]


def gpu_fingerprint(name: str, tensor: torch.Tensor) -> TensorSpec:
    """Name, shape, dtype and 64-bit `checksum` of one tensor on any device.

    Shape and dtype are part of the hash. It is not comparable with `rlft.weights.fingerprint`.
    """
    ledger = Ledger()
    ledger.add(name, tensor)
    return ledger.specs()[0]


def _digest(shape: tuple[int, ...], dtype: str, total: int) -> str:
    described = xxhash.xxh3_64_intdigest(f"{dtype} {list(shape)}".encode())
    return f"{(total + described) % 2**64:016x}"


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# -- descriptions --------------------------------------------------------------------------------
