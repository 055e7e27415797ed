"""Five ways to learn an interval, on a bandit of 20 x 20 arms: GRPO, naive mixing, and TempSamp-R1's three.

    python benchmarks/interval_bandit.py [--seeds 20] [--samples 12000] [--out docs/images]

An arm is an interval (start, end) on a grid of 20 x 20; its reward is the IoU with one hidden interval,
0 if it ends before it starts. The policy is a softmax over 400 logits that start at 0, updated by
plain gradient ascent on the mean of advantage x log-prob: what one update per group does in GRPO.
GRPO draws four arms a step; the others draw three and are given the hidden one. Every strategy spends
as many draws. Advantages are the library's own (`rlft.credit`). Writes a table and interval_bandit.svg.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from rlft.credit import group_relative
from rlft.credit.shaping import Scored, anchor, downscale, joint, shape

SIDE, GROUP, ENOUGH = 20, 4, 0.7
STRATEGIES = {
    "GRPO": None,
    "naive mixing": joint,
    "downscale": downscale(),
    "anchor": anchor(),
    "shape": shape(),
}
COLOURS = ("#444444", "#d1495b", "#edae49", "#00798c", "#66a182")
WIDTH, HEIGHT, MARGIN = 640, 360, 48


def ious(seeds: int) -> torch.Tensor:
    """IoU `[S, 400]` of every arm with each seed's hidden interval, at least 3 cells long."""
    start_A = torch.arange(SIDE).repeat_interleave(SIDE).double()
    end_A = torch.arange(SIDE).repeat(SIDE).double()
    rows = []
    for seed in range(seeds):
        gen = torch.Generator().manual_seed(seed)
        length = int(torch.randint(3, 11, (), generator=gen))
        start = int(torch.randint(0, SIDE - length, (), generator=gen))
        low, high = float(start), float(start + length)
        overlap = torch.minimum(end_A, torch.tensor(high)) - torch.maximum(
            start_A, torch.tensor(low)
        )
        hull = torch.maximum(end_A, torch.tensor(high)) - torch.minimum(start_A, torch.tensor(low))
        value = torch.where(end_A > start_A, overlap.clamp(min=0) / hull.clamp(min=1), 0.0)
        rows.append(value)
    return torch.stack(rows)


def learn(name: str, iou_SA: torch.Tensor, samples: int, lr: float, points: int) -> torch.Tensor:
    """P(IoU >= 0.7) `[points, S]` at evenly spaced numbers of draws, from 0 to `samples`."""
    seeds = len(iou_SA)
    stabilise = STRATEGIES[name]
    drawn = GROUP if stabilise is None else GROUP - 1
    steps = samples // drawn
    gen = torch.Generator().manual_seed(1)
    logits_SA = torch.zeros_like(iou_SA)
    truth_S1 = iou_SA.argmax(1, keepdim=True)
    group_B = torch.arange(seeds).repeat_interleave(GROUP)
    sampled_B = torch.tensor(([True] * drawn + [False] * (GROUP - drawn)) * seeds)
    due = {round(i * steps / (points - 1)) for i in range(points)}
    curve = []
    for step in range(steps + 1):
        p_SA = logits_SA.softmax(1)
        if step in due:
            curve.append((p_SA * (iou_SA >= ENOUGH)).sum(1))
        arm_SG = torch.multinomial(p_SA, drawn, replacement=True, generator=gen)
        if drawn < GROUP:
            arm_SG = torch.cat([arm_SG, truth_S1], dim=1)
        reward_B = iou_SA.gather(1, arm_SG).flatten()
        if stabilise is None:
            adv_B = group_relative(reward_B, group_B)
        else:
            rows = Scored(reward_B, torch.zeros_like(reward_B), group_B, sampled_B)
            adv_B = stabilise(rows, group_relative)
        adv_SG = adv_B.double().reshape(seeds, GROUP) / GROUP
        step_SA = torch.zeros_like(logits_SA).scatter_add_(1, arm_SG, adv_SG)
        logits_SA += lr * (step_SA - adv_SG.sum(1, keepdim=True) * p_SA)
    return torch.stack(curve)


def table(curves: dict[str, torch.Tensor], samples: int) -> str:
    """Markdown: mean over seeds, standard error, range, and draws until half the mass is right."""
    lines = [
        "| strategy | P(IoU >= 0.7) at the end | standard error | least to largest seed | "
        "draws to 0.5 (median) | seeds that got there |",
        "|---|---|---|---|---|---|",
    ]
    for name, curve in curves.items():
        last = curve[-1].tolist()
        error = statistics.stdev(last) / len(last) ** 0.5
        first = [(c >= 0.5).nonzero().flatten()[:1].tolist() for c in curve.T]
        reached = [f[0] * samples / (len(curve) - 1) for f in first if f]
        median = f"{statistics.median(reached):,.0f}" if reached else "never"
        lines.append(
            f"| {name} | {statistics.fmean(last):.3f} | {error:.3f} | {min(last):.3f} to {max(last):.3f} "
            f"| {median} | {len(reached)} of {len(last)} |"
        )
    return "\n".join(lines)


def plot(curves: dict[str, torch.Tensor], samples: int) -> str:
    """An SVG of the mean over seeds against draws, with a band of one standard error."""

    def xy(index: int, count: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * index / (count - 1)
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        left, y = xy(0, 2, tick).split(",")
        right = xy(1, 2, tick).split(",")[0]
        parts.append(f'<path d="M{left},{y}H{right}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{float(left) - 6}" y="{float(y) + 4}" text-anchor="end">{tick}</text>'
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = MARGIN + (WIDTH - 2 * MARGIN) * share
        parts.append(
            f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{samples * share:,.0f}</text>'
        )
    for place, ((name, curve), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        mean, error = curve.mean(1), curve.std(1) / curve.shape[1] ** 0.5
        count = len(mean)
        up = [
            xy(i, count, min(1, float(m + e)))
            for i, (m, e) in enumerate(zip(mean, error, strict=True))
        ]
        low = [
            xy(i, count, max(0, float(m - e)))
            for i, (m, e) in enumerate(zip(mean, error, strict=True))
        ]
        line = " ".join(xy(i, count, float(m)) for i, m in enumerate(mean))
        parts.append(
            f'<polygon points="{" ".join([*up, *low[::-1]])}" fill="{colour}" opacity=".18"/>'
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = MARGIN + 14 + 18 * place
        parts.append(
            f'<rect x="{WIDTH - 160}" y="{y - 9}" width="12" height="12" fill="{colour}"/>'
        )
        parts.append(f'<text x="{WIDTH - 142}" y="{y + 1}">{name}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">arms drawn</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 14}">probability of IoU of at least 0.7</text></svg>\n'
    )
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    iou_SA = ious(args.seeds)
    curves = {n: learn(n, iou_SA, args.samples, args.lr, points=101) for n in STRATEGIES}
    print(f"{args.seeds} seeds, {args.samples:,} arms drawn by each, learning rate {args.lr}\n")
    print(table(curves, args.samples))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "interval_bandit.svg").write_text(plot(curves, args.samples))


if __name__ == "__main__":
    main()
