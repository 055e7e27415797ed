"""Where a step of evolution strategies goes when the answer is known: a linear reward.

Ten weights, a population of 100,000, rewards `7 + g . theta`. The expected step is `lr g / |g|`, whatever
the scale, the offset and sigma are. Prints the cosine of step and gradient, and the length of the step
over lr (both 1 in the limit).

    python benchmarks/es_linear.py [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from rlft.credit.evolution import shaped
from rlft.learning.noise import Drawing, Noise, NoiseStep, noise, pack, take_step


def step_of(
    seed: int, *, weights: int = 10, population: int = 100_000, sigma: float = 1e-3, lr: float = 0.5
) -> tuple[float, float]:
    """(cosine of step and gradient, length of the step over lr)."""
    gradient = np.random.default_rng(seed).normal(size=weights)
    seeds = range(seed * population, (seed + 1) * population)
    eps = np.stack([noise(s, "w", (weights,)).numpy() for s in seeds]).astype(np.float64)
    weight_N = shaped(7 + sigma * eps @ gradient, "zscore")
    terms = [
        Noise(s, lr / population * float(w)) for s, w in zip(seeds, weight_N.tolist(), strict=True)
    ]
    held = {"w": torch.zeros(weights)}
    length = take_step(held, NoiseStep(pack(terms), Drawing()), None)
    step = held["w"].numpy()
    cosine = step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient)
    return float(cosine), length / lr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for seed in parser.parse_args().seeds:
        cosine, length = step_of(seed)
        print(f"seed {seed}: cosine {cosine:.6f}, length / lr {length:.4f}")


if __name__ == "__main__":
    main()
