"""A generation of evolution strategies against a fair plain loop, on one machine without actors.

30 members x 8 prompts x 32 tokens on SmolLM2-135M, in bfloat16 unless told otherwise (a CPU without
instructions for it multiplies in float32 many times as fast). The plain loop is what one would write:
perturb in place from a seed, `transformers.generate` with a KV cache and all prompts in one batch,
subtract again, and at the end add up the update from the seeds; it uses the same threads. Ours is the
code that samplers and learner run. Also printed: low-rank mode against pure inference of the same
batches, the peak memory of an engine with its master, and what 20 generations of 30 members leave of
the weights (drift).

  rlft fetch smollm2-135m, then:
  python benchmarks/es_generation.py [--members 30] [--dtype float32] [--parts speed,drift]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rlft.learning.noise import Drawing, Noise, NoiseStep, blend, pack, take_step
from rlft.policy.text import Text
from rlft.sampling.low_rank import linear_weights
from rlft.sampling.transformers import TransformersEngine
from rlft.types import Request, Sampling

PROMPTS = (
    "Write one sentence about the sea.",
    "What is 17 plus 25?",
    "Name three colours and say where they are found in nature.",
    "Why is the sky blue? Answer in a few words.",
    "A train leaves at noon and arrives at four. How long does it take?",
    "Translate 'good morning' into French.",
    "Is a penguin a bird?",
    "Give me a recipe for bread that has only four ingredients.",
)
TOKENS = 32
SIGMA, LR = 1e-3, 5e-4


def timed(name: str, work: Callable[[], object]) -> float:
    began, busy = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - began
    busy = time.process_time() - busy
    print(f"{name:44}{seconds:9.1f} s {busy:9.1f} s of all threads", flush=True)
    return seconds


def prompt_ids(model: Path) -> list[tuple[int, ...]]:
    text = Text(model)
    return [tuple(text.prompt_ids(({"role": "user", "content": p},))) for p in PROMPTS]


# -- the plain loop ---------------------------------------------------------------------------------


def plain_generation(lm: torch.nn.Module, prompts: list[tuple[int, ...]], members: int) -> None:
    """Perturb, generate, subtract; then the update, one parameter after the other in float32."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    parameters = list(lm.parameters())

    def shift(seed: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=scale)

    with torch.inference_mode():
        for seed in range(members):
            shift(seed, SIGMA)
            lm.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
            shift(seed, -SIGMA)
        generators = [torch.Generator().manual_seed(seed) for seed in range(members)]
        for p in parameters:
            total = torch.zeros(p.shape, dtype=torch.float32)
            for place, generator in enumerate(generators):
                drawn = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                total.add_(drawn, alpha=LR / members * (place / members - 0.5))
            p.add_(total.to(p.dtype))


# -- ours -------------------------------------------------------------------------------------------


def update(members: list[Noise], drawing: Drawing) -> NoiseStep:
    count = len(members)
    weights = [LR / count * (i / count - 0.5) for i in range(count)]
    terms = [Noise(m.seed, w) for m, w in zip(members, weights, strict=True)]
    return NoiseStep(pack(terms), drawing)


def full_generation(
    engine: TransformersEngine, master: dict[str, torch.Tensor], requests: list[Request], count: int
) -> None:
    members = [Noise(2**40 + i, SIGMA) for i in range(count)]
    sampling = Sampling(max_tokens=TOKENS, greedy=True)
    weights = engine.weights()
    for member in members:
        blend(weights, master, [member], Drawing())
        engine.generate(requests, sampling)
    take_step(master, update(members, Drawing()), None)
    blend(weights, master, [], Drawing())


def low_rank_generation(
    engine: TransformersEngine,
    master: dict[str, torch.Tensor],
    prompts: list[tuple[int, ...]],
    count: int,
    together: int,
    drawing: Drawing,
) -> None:
    members = [Noise(2**41 + i, SIGMA) for i in range(count)]
    sampling = Sampling(max_tokens=TOKENS, greedy=True)
    for start in range(0, count, together):
        part = members[start : start + together]
        requests = [Request(p, 0, m) for m in range(len(part)) for p in prompts]
        engine.generate_members(requests, sampling, part, drawing)
    take_step(master, update(members, drawing), None)
    blend(engine.weights(), master, [], Drawing())


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed(model: Path, count: int, together: int, dtype: str) -> None:
    from transformers import AutoModelForCausalLM

    prompts = prompt_ids(model)
    requests = [Request(p, 0) for p in prompts]
    engine = TransformersEngine(model, dtype=dtype, max_length=512, max_batch=8 * together)
    sampling = Sampling(max_tokens=TOKENS, greedy=True)
    engine.generate(requests, sampling)  # warm
    # Prompts that differ: equal ones would be read once, which those of different members cannot be.
    batch = [Request((*p[:-1], 1000 + i), 0) for i in range(together) for p in prompts]
    alone = timed(
        f"pure inference, {len(batch)} sequences", lambda: engine.generate(batch, sampling)
    )
    inference = peak_gb()
    master = {n: p.detach().float().clone() for n, p in engine.weights().items()}
    size = sum(m.numel() for m in master.values()) * 4 / 2**30
    drawing = Drawing(rank=1, matrices=linear_weights(model))
    ours = timed("full rank", lambda: full_generation(engine, master, requests, count))
    low = timed(
        f"low rank, {together} members in a batch",
        lambda: low_rank_generation(engine, master, prompts, count, together, drawing),
    )
    peak = peak_gb()
    part = [Noise(2**42 + i, SIGMA) for i in range(together)]
    rows = [Request(p, 0, m) for m in range(together) for p in prompts]
    noisy = timed(
        f"the same {len(batch)} sequences with row noise",
        lambda: engine.generate_members(rows, sampling, part, drawing),
    )
    lm = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype)).eval()
    lm.requires_grad_(False)
    plain_generation(lm, prompts[:1], 1)  # warm
    base = timed("plain loop", lambda: plain_generation(lm, prompts, count))
    # `transformers` copies the whole output head once a row at the first token. A loop that knows:
    lm.lm_head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    knowing = timed("plain loop, head not copied", lambda: plain_generation(lm, prompts, count))
    for what, seconds, bar in (("full", ours, "1.3"), ("low", low, "3")):
        print(f"{what} rank ratio: {base / seconds:.2f}   (bar: {bar})")
        print(f"{what} rank against the loop without copies: ratio: {knowing / seconds:.2f}")
    tokens = len(batch) * TOKENS
    print(
        f"row noise: {tokens / noisy:.0f} of {tokens / alone:.0f} tokens/s, "
        f"{alone / noisy:.0%} of pure inference   (bar: 60%)"
    )
    print(
        f"peak memory: {peak:.2f} GB; inference {inference:.2f} GB and a float32 master {size:.2f} GB: "
        f"ratio {peak / (inference + size):.2f}   (bar: 1.3 x inference + master, that is "
        f"{1.3 * inference + size:.2f} GB)"
    )


def drift(model: Path, members: int, generations: int) -> None:
    """Perturbs for every member and steps with learning rate 0; counts the weights that changed."""
    engine = TransformersEngine(model, dtype="bfloat16", max_length=512, max_batch=8)
    weights = engine.weights()
    before = {n: w.clone() for n, w in weights.items()}
    master = {n: w.float() for n, w in weights.items()}
    for generation in range(generations):
        noises = [Noise(generation * members + i, SIGMA) for i in range(members)]
        for noise in noises:
            blend(weights, master, [noise], Drawing())
        take_step(master, NoiseStep(pack([Noise(n.seed, 0.0) for n in noises]), Drawing()), None)
        blend(weights, master, [], Drawing())
    changed = sum(int((weights[n] != before[n]).sum()) for n in weights)
    total = sum(w.numel() for w in weights.values())
    print(
        f"drift, {members} members x {generations} generations, lr 0: {changed} of {total} changed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--members", type=int, default=30)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--parts", default="speed,drift")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.dtype}")
    if "speed" in args.parts:
        speed(args.model, args.members, args.together, args.dtype)
    if "drift" in args.parts:
        drift(args.model, args.members, args.generations)


if __name__ == "__main__":
    main()
