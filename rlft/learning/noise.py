"""Noise from seeds: the kernel that evolution strategies and MeZO share.

A direction in parameter space is a 64-bit seed. Its noise for one parameter depends on the seed, the
parameter's Hugging Face name, the number of the block and the type of device, on nothing else; so it
is the same on every engine, in scoring and in the update, and a shard can draw its own blocks alone.
Nothing is undone by subtracting: what is perturbed is `cast(master + scale x noise)`, what is restored
`cast(master)`, with a float32 master that only updates change.

Sources: Qiu et al., arXiv 2509.24372 (`shared`, and `iid` of its code); Sarkar et al., arXiv 2511.16652,
equation 6 (rank); Malladi et al., arXiv 2305.17333. Departure: `hashed`, the default, gives tensors of
one shape different noise (`shared` gives them the same) and no two seeds the noise of neighbours (under
`iid` tensor j+1 of seed s is tensor j of seed s+1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

BLOCK = 65_536
"""Elements that one generator draws. torch's CPU generator takes 32 bits of its seed, so of the some
62,000 blocks that a generation of 30 members draws for 135M parameters two may be equal: one block in
2,000 of two members' noise, which no estimate notices."""

_PIECE = 16_384
"""Elements of one arithmetic operation. torch spreads 32,768 or more over OpenMP threads, and each of
our threads would start a pool of those; this also stays in the cache."""

Mode = Literal["hashed", "shared", "iid"]
Tensors = Mapping[str, torch.Tensor]
Anchor = Callable[[str], torch.Tensor]
"""From a parameter's name to its start value, float32."""

_TERM = np.dtype([("seed", "<u8"), ("scale", "<f4")])


@dataclass(frozen=True, slots=True)
class Noise:
    """A direction and how far along it. seed: in `[0, 2**64)`; scale: of standard normal noise."""

    seed: int
    scale: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """How seeds become noise, the same for all who draw.

    mode: `hashed`, or as in the paper `shared` (every tensor from the same seed) or `iid` (seed plus
    the tensor's number), which draw whole tensors in `dtype`; rank: 0, or r for `A B^T / sqrt(r)` in
    the parameters of `matrices` and nothing elsewhere.
    """

    mode: Mode = "hashed"
    dtype: str = "float32"
    rank: int = 0
    matrices: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NoiseStep:
    """An update of the master, small enough to travel: 12 bytes a direction.

    terms: seeds and float32 weights (`pack`); decay: the share (l2) or the size (l1) by which the
    distance to the start weights shrinks afterwards; by_seeds: engines replay it, instead of being
    sent the weights.
    """

    terms: bytes
    drawing: Drawing
    decay: float = 0.0
    norm: Literal["l2", "l1"] = "l2"
    by_seeds: bool = False


def pack(terms: Sequence[Noise]) -> bytes:
    """12 bytes a term; terms of one seed are added up, in order of their first occurrence."""
    total: dict[int, float] = {}
    for term in terms:
        total[term.seed] = total.get(term.seed, 0.0) + term.scale
    return np.array(list(total.items()), _TERM).tobytes()


def unpack(packed: bytes) -> list[Noise]:
    """The terms of `pack`, their weights as float32 has them."""
    return [Noise(int(t["seed"]), float(t["scale"])) for t in np.frombuffer(packed, _TERM)]


# -- drawing --------------------------------------------------------------------------------------


def noise(
    seed: int,
    name: str,
    shape: Sequence[int],
    drawing: Drawing = Drawing(),
    *,
    index: int = 0,
    device: str = "cpu",
) -> torch.Tensor:
    """Standard normal float32 noise of `shape` for the parameter `name`, number `index` of its model."""
    out = torch.empty(tuple(shape), dtype=torch.float32, device=device)
    if drawing.rank:
        if name not in drawing.matrices:
            return out.zero_()
        left, right = factors(seed, name, shape, drawing.rank, device=device)
        return torch.mm(left, right.T, out=out).div_(drawing.rank**0.5)
    flat = out.view(-1)
    for number, part in enumerate(_blocks(flat.numel(), drawing)):
        _draw(flat[part], seed, name, number, drawing, index)
    return out


def factors(
    seed: int, name: str, shape: Sequence[int], rank: int, *, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`A [m, r]` and `B [n, r]`, standard normal float32, of low-rank noise for `name` of `shape`
    `[m, n]`: `E = A B^T / sqrt(r)`."""
    rows, columns = shape
    left = noise(seed, f"{name}:A", (rows, rank), device=device)
    return left, noise(seed, f"{name}:B", (columns, rank), device=device)


def _blocks(size: int, drawing: Drawing) -> Iterator[slice]:
    step = BLOCK if drawing.mode == "hashed" else max(1, size)
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _draw(
    out: torch.Tensor, seed: int, name: str, number: int, drawing: Drawing, index: int
) -> None:
    generator = torch.Generator(out.device)
    if drawing.mode == "hashed":
        generator.manual_seed(_block_seed(seed, name, number, out.device.type))
        out.normal_(generator=generator)
        return
    generator.manual_seed((seed + (index if drawing.mode == "iid" else 0)) % 2**63)
    dtype = getattr(torch, drawing.dtype)
    out.copy_(torch.empty(out.shape, dtype=dtype, device=out.device).normal_(generator=generator))


def _block_seed(seed: int, name: str, number: int, device: str) -> int:
    what = f"{device} {number} {name}".encode()
    digest = hashlib.blake2b(what, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") >> 1


# -- perturbing and updating ----------------------------------------------------------------------


def blend(outs: Tensors, masters: Tensors, terms: Sequence[Noise], drawing: Drawing) -> float:
    """`outs[name] <- cast(masters[name] + sum of scale x noise)` for every name of `masters`.

    One term perturbs, many update (with `outs` the masters themselves), none restores. The sum is
    float32, in the order of `terms`. Returns the Euclidean length of what an update added. Blocks are
    spread over as many threads as torch has; the result does not depend on how many.
    """
    if drawing.rank and terms and not drawing.matrices:
        raise ValueError(
            f"noise of rank {drawing.rank} needs the names of the matrices it applies to"
        )
    jobs = [
        job for i, n in enumerate(masters) for job in _jobs(i, n, outs, masters, terms, drawing)
    ]
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) == 1:
        squares = [job() for job in jobs]
    else:
        with ThreadPoolExecutor(threads) as pool:
            squares = list(pool.map(lambda job: job(), jobs))
    if drawing.rank and terms:
        for name in masters:
            squares.append(_blend_factors(name, outs[name], masters[name], terms, drawing))
    return float(sum(squares)) ** 0.5


def _jobs(
    index: int,
    name: str,
    outs: Tensors,
    masters: Tensors,
    terms: Sequence[Noise],
    drawing: Drawing,
) -> Iterator[Callable[[], float]]:
    """Work on one block each. With a rank there is nothing to draw here, and terms come later."""
    if drawing.rank and terms and name in drawing.matrices:
        return
    own = () if drawing.rank else terms
    master, out = masters[name].view(-1), outs[name].view(-1)
    for number, part in enumerate(_blocks(master.numel(), drawing)):

        def job(number: int = number, part: slice = part) -> float:
            def draw(into: torch.Tensor, seed: int) -> None:
                _draw(into, seed, name, number, drawing, index)

            return _blend_block(out[part], master[part], own, draw)

        yield job


def _blend_block(
    out: torch.Tensor,
    master: torch.Tensor,
    terms: Sequence[Noise],
    draw: Callable[[torch.Tensor, int], None],
) -> float:
    updates = out.data_ptr() == master.data_ptr()
    if not terms:
        if not updates:
            for piece in _pieces(out):
                out[piece].copy_(master[piece])
        return 0.0
    total = torch.empty_like(master)
    scratch = torch.empty_like(master) if len(terms) > 1 else total
    for place, term in enumerate(terms):
        draw(scratch, term.seed)
        for piece in _pieces(out):
            if place == 0:
                torch.mul(scratch[piece], term.scale, out=total[piece])
            else:
                total[piece].add_(scratch[piece], alpha=term.scale)
    square = 0.0
    for piece in _pieces(out):
        if updates:
            square += float(torch.linalg.vector_norm(total[piece])) ** 2
        out[piece].copy_(total[piece].add_(master[piece]))
    return square


def _pieces(tensor: torch.Tensor) -> Iterator[slice]:
    step = _PIECE if tensor.device.type == "cpu" else max(1, tensor.numel())
    for start in range(0, tensor.numel(), step):
        yield slice(start, start + step)


def _blend_factors(
    name: str,
    out: torch.Tensor,
    master: torch.Tensor,
    terms: Sequence[Noise],
    drawing: Drawing,
) -> float:
    """All terms of a matrix in one product, `[A_1 s_1 | A_2 s_2 | ...] [B_1 | B_2 | ...]^T`."""
    if name not in drawing.matrices:
        return 0.0
    device = str(master.device)
    pairs = [factors(t.seed, name, master.shape, drawing.rank, device=device) for t in terms]
    scaled = [left * term.scale for (left, _), term in zip(pairs, terms, strict=True)]
    total = torch.cat(scaled, 1) @ torch.cat([right for _, right in pairs], 1).T
    total.div_(drawing.rank**0.5)
    square = float(torch.linalg.vector_norm(total)) ** 2
    out.copy_(total.add_(master))
    return square


def take_step(masters: Tensors, step: NoiseStep, anchor: Anchor | None) -> float:
    """Moves the masters by `step`; returns how far its terms went (Euclidean).

    The decay follows Anchored Weight Decay (arXiv 2605.30148): with D the distance to the start
    weights, l2: `D <- (1 - decay) D`; l1: `D <- sign(D) max(|D| - decay, 0)`.
    """
    length = blend(masters, masters, unpack(step.terms), step.drawing)
    if step.decay:
        assert anchor is not None
        for name, master in masters.items():
            start = anchor(name).to(master.device)
            gap = master - start
            if step.norm == "l2":
                gap.mul_(1 - step.decay)
            else:
                gap = gap.sign() * (gap.abs() - step.decay).clamp_min_(0)
            master.copy_(start + gap)
    return length


def distance(masters: Tensors, anchor: Anchor) -> float:
    """The Euclidean distance of the masters from the start weights."""
    gaps = [
        float(torch.linalg.vector_norm(master - anchor(name).to(master.device)))
        for name, master in masters.items()
    ]
    return sum(gap**2 for gap in gaps) ** 0.5
