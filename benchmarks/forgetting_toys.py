"""Two toys in which fine-tuning forgets: a two-state MDP and AppleRetrieval (arXiv 2402.02868, appendix A).

    python benchmarks/forgetting_toys.py [--seeds 20]

AppleRetrieval is a walk on a line: phase 1 goes right from 0 to `distance`, phase 2 comes back. The policy,
`P(right) = sigmoid(w o + b)`, sees `-c` in phase 1 and `+c` in phase 2. It starts from weights that were
trained in phase 2 alone, so it is good on what comes late and bad on what comes first; REINFORCE then
learns phase 1, and what phase 2 needs is overwritten before it is ever reached. Retention is that of the
framework: the KL of its distributions, `pull`, and its REINFORCE loss.

Learning rate, discount and clamping of the position are ours; the paper gives none. FAR = P(left | phase
2), CLOSE = P(right | phase 1). FAR is learnt again by the end, so its minimum on the way is what counts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import torch

from rlft.losses import Reinforce
from rlft.losses.anchor import pull
from rlft.losses.teacher import KLToTeacher
from rlft.policy.distributions import Categoricals
from rlft.types import Batch, PolicyOut

CHOICE = Categoricals((2,))
"""0: left, 1: right."""


@dataclass(frozen=True)
class Apple:
    """distance: M; c: of the observation; k: how sure the start weights `w = -c k`, `b = -k` are; method:
    none, bc, ks, ewc or l2, with its coefficient."""

    method: str = "none"
    coef: float = 0.0
    distance: int = 30
    c: float = 0.3
    k: float = 3.0
    lr: float = 0.5
    gamma: float = 0.9
    steps: int = 100
    episodes: int = 400


@dataclass(frozen=True)
class Course:
    """Of each seed `[S]`: least FAR, CLOSE at the end, and the share of the last 100 episodes that came
    back with the apple."""

    far_min: np.ndarray
    close_end: np.ndarray
    success: np.ndarray


def course(cfg: Apple, seeds: int) -> Course:
    """All seeds side by side: row `s` of each array belongs to seed `s`, and no two meet."""
    rng = np.random.default_rng(0)
    start = torch.tensor([-cfg.c * cfg.k, -cfg.k]).expand(seeds, 2)
    theta = start.clone()
    fisher = fisher_of(cfg, start)
    far = np.empty((cfg.episodes, seeds))
    won = np.empty((cfg.episodes, seeds), bool)
    for episode in range(cfg.episodes):
        theta.requires_grad_()
        right = torch.sigmoid(said(theta, torch.tensor([-cfg.c, cfg.c]))).detach().numpy()
        walked = walk(cfg, right, rng)
        won[episode], far[episode] = walked[-1], 1 - right[:, 1]
        loss = objective(cfg, theta, start, *walked[:-1])
        [grad] = torch.autograd.grad(loss.sum(), theta)
        theta = theta.detach()
        if cfg.method in ("ewc", "l2"):
            grad = grad + pull(theta, start, fisher if cfg.method == "ewc" else None, cfg.coef)
        theta = theta - cfg.lr * grad
    right = torch.sigmoid(said(theta, torch.tensor([-cfg.c, cfg.c]))).numpy()
    return Course(far.min(0), right[:, 0], won[-100:].mean(0))


def said(theta: torch.Tensor, obs: torch.Tensor) -> torch.Tensor:
    """Logits of right `[S, T]` for weights `[S, 2]` and observations `[T]` or `[S, T]`."""
    return theta[:, :1] * obs + theta[:, 1:]


def params(logit: torch.Tensor) -> torch.Tensor:
    """Parameters `[..., 2]` of the choice between left and right."""
    return torch.stack([torch.zeros_like(logit), logit], -1)


def walk(cfg: Apple, right: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """One episode of each seed by chances of right `[S, 2]`: phase, action, reward and mask `[S, T]`, and
    whether the apple was brought back `[S]`."""
    told = np.zeros((4, len(right), cfg.steps), np.float32)
    won = np.zeros(len(right), bool)
    for row, (chances, drawn) in enumerate(
        zip(right.tolist(), rng.random((len(right), cfg.steps)).tolist(), strict=True)
    ):
        place, phase, steps = 0, 0, []
        for u in drawn:
            goes_right = u < chances[phase]
            steps.append((phase, goes_right, 1 if goes_right == (phase == 0) else -1, 1))
            place = min(place + (1 if goes_right else -1), cfg.distance)
            if phase == 0:
                place = max(place, 0)
                phase = int(place == cfg.distance)
            elif place <= 0:
                won[row] = True
                break
        told[:, row, : len(steps)] = np.array(steps, np.float32).T
    longest = int(told[3].sum(1).max())
    return (*told[:, :, :longest], won)


def objective(
    cfg: Apple,
    theta: torch.Tensor,
    start: torch.Tensor,
    phase: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    mask: np.ndarray,
) -> torch.Tensor:
    """Loss `[S]`: REINFORCE averaged over the episode's steps, and what is kept."""
    obs = torch.from_numpy(np.where(phase == 0, -cfg.c, cfg.c)).float()
    ret = discounted(reward, cfg.gamma) * mask
    steps = torch.from_numpy(mask > 0)
    ours, theirs = params(said(theta, obs)), params(said(start, obs))
    logp = CHOICE.logp(ours, torch.from_numpy(action).float()[..., None])
    batch = batch_of(steps, torch.from_numpy(ret).float())
    out = PolicyOut(logp, torch.zeros_like(logp), teacher_kl=CHOICE.kl(theirs, ours))
    count = steps.sum(1).clamp(min=1)
    loss = Reinforce()(out, batch).sum(1) / count
    if cfg.method == "ks":
        loss = loss + cfg.coef * KLToTeacher()(out, batch).sum(1) / count
    if cfg.method == "bc":  # the buffer: states of phase 2, which are all alike
        known = torch.full((1, 1), cfg.c)
        kl = CHOICE.kl(params(said(start, known)), params(said(theta, known)))
        kept = batch_of(torch.ones_like(kl, dtype=torch.bool), torch.zeros_like(kl))
        blank = torch.zeros_like(kl)
        loss = loss + cfg.coef * KLToTeacher()(PolicyOut(blank, blank, teacher_kl=kl), kept).sum(1)
    return loss


def discounted(reward: np.ndarray, gamma: float) -> np.ndarray:
    """What comes of each step `[S, T]`; after an episode's end rewards are 0."""
    ahead = np.arange(reward.shape[1])
    weights = np.where(ahead[:, None] >= ahead, gamma ** np.maximum(ahead[:, None] - ahead, 0), 0.0)
    return reward @ weights


def batch_of(mask: torch.Tensor, adv: torch.Tensor) -> Batch:
    """What these losses read: mask and advantage."""
    blank = torch.zeros_like(adv)
    return Batch(mask, mask.float(), adv, blank, blank, mask.any(1))


def fisher_of(cfg: Apple, start: torch.Tensor) -> torch.Tensor:
    """The exact Fisher of both weights in phase 2: `p (1 - p) (c^2, 1)`."""
    p = torch.sigmoid(said(start, torch.tensor([cfg.c])))
    return p * (1 - p) * torch.tensor([cfg.c**2, 1.0])


# -- two states ----------------------------------------------------------------------------------


def two_states(theta: float, *, gap: str = "coverage", gamma: float = 0.9) -> float:
    """The value `v0` of the start state of the MDP of appendix A.1 under parameter theta in [0, 1].

    coverage: `r0 = 0, r1 = -1, f = 1 - theta / (1 - 1/2)` below 1/2 and `2 theta - 1` above (the paper's
    epsilon is 1); cloning: `f = 2 |theta - 1/2|`, `r0 = 0.9913, r1 = 0.9769`. The rewards are not in the
    paper's text: those of coverage follow from its printed optima, those of cloning were fitted to them.
    """
    if gap == "coverage":
        r0, r1, f = 0.0, -1.0, (1 - 2 * theta if theta <= 0.5 else 2 * theta - 1)
    else:
        r0, r1, f = 0.9913, 0.9769, 2 * abs(theta - 0.5)
    inner = theta + r0 * (1 - theta) * (1 - gamma * f) + gamma * theta * r1 * (1 - f)
    return inner / ((1 - gamma) * (1 - gamma * f + gamma * theta))


def climbed(start: float, lr: float = 1e-5, most: int = 20_000, **keys: object) -> float:
    """Where gradient ascent on `two_states` from `start` stops: within 1e-6 of standing still."""
    theta = start
    for _ in range(most):
        slope = (two_states(theta + 1e-6, **keys) - two_states(theta - 1e-6, **keys)) / 2e-6  # type: ignore[arg-type]
        theta = min(1.0, max(0.0, theta + lr * slope))
        if abs(slope) * lr < 1e-9:
            break
    return theta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    print("| method | FAR min | CLOSE end | success, last 100 episodes |\n|---|---|---|---|")
    arms = [("none", 0.0), ("bc", 5.0)]
    arms += [("ks", c) for c in (0.2, 1.0, 5.0)] + [("ewc", c) for c in (0.2, 0.5, 1.0, 2.0, 5.0)]
    arms += [("l2", c) for c in (0.01, 0.03, 0.1)]
    rows = [(f"{m} {x:g}" if x else m, Apple(m, x)) for m, x in arms]
    rows += [(f"none, M = {m}", Apple(distance=m)) for m in (5, 10, 20, 40)]
    rows += [("none, c = 1", Apple(c=1.0))]
    for name, cfg in rows:
        found = course(cfg, args.seeds)
        far = found.far_min
        print(
            f"| {name} | {far.mean():.3f} [{far.min():.3f}, {far.max():.3f}] | "
            f"{found.close_end.mean():.3f} | {found.success.mean():.2f} |",
            flush=True,
        )
    at = climbed(1e-3, most=200_000)
    print(f"\ntwo states, coverage gap: from 0.001 to {at:.5f}, value {two_states(at):.3f}; "
          f"at 1 it is {two_states(1.0):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
