"""What a learner of policies that act owes retention: two ranks at every ZeRO stage take the steps that
plain torch takes, the pull of each term included."""

import socket
import subprocess
import sys
from pathlib import Path

import acting_worker
import pytest
import torch
from acting_worker import BATCH, COEF, LR, STAGES, TERMS, kept_states, policy, rollout
from safetensors.torch import save_file

from rlft.retention.fisher import Fisher, write_fisher


def noise(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A start, and a Fisher of what its actor reads whose anchor is somewhere else."""
    folder = tmp_path_factory.mktemp("acting")
    start = {n: t.detach().clone() for n, t in policy(1).named_parameters()}
    save_file(start, folder / "start.safetensors")
    actor = {n: t for n, t in start.items() if n.startswith("policy")}
    fisher = {n: x**2 for n, x in noise(actor, 1).items()}
    anchor = {n: actor[n] + 0.2 * x for n, x in noise(actor, 2).items()}
    write_fisher(folder / "f.safetensors", Fisher(fisher, anchor, {}))
    return folder, fisher, anchor


@pytest.fixture(scope="module")
def results(files):
    folder, *_ = files
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, str(Path(acting_worker.__file__))]
    ranks = [
        subprocess.Popen(
            [*command, str(r), "2", port, str(folder / "out.pt"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(2)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(o[-3000:] for o in outputs)
    return torch.load(folder / "out.pt", weights_only=False)


def said(module, obs):
    return module(torch.from_numpy(obs)[None], None)[0][0].log_softmax(-1)


def objective(module, teacher, name, first):
    """(the mean -logp of the actions, the mean KL to the teacher). first: how many of the buffer's draw are
    its first state."""
    strips = rollout()
    rows = [{"observation": torch.from_numpy(s.obs["observation"])[None]} for s in strips]
    logp = torch.cat([module(r, None)[0][0].log_softmax(-1) for r in rows])
    action = torch.cat([torch.from_numpy(s.action) for s in strips]).long()
    value = -logp.gather(1, action).mean()
    if name not in ("kickstarting", "behavioural_cloning"):
        return value, torch.zeros(())
    if name == "behavioural_cloning":
        rows = [{"observation": torch.from_numpy(kept_states())[None]}]
        logp = module(rows[0], None)[0][0].log_softmax(-1)
    with torch.no_grad():
        wanted = torch.cat([teacher(r, None)[0][0].log_softmax(-1) for r in rows])
    kl = (wanted.exp() * (wanted - logp)).sum(-1)
    share = torch.full((len(kl),), 1 / len(kl))
    if name == "behavioural_cloning":
        share = torch.tensor([first / BATCH, 1 - first / BATCH])
    return value, (kl * share).sum()


def two_steps(files, name, draws):
    """The weights after two steps of plain gradient descent, and the mean of the term, from formulas."""
    _, fisher, anchor = files
    module, teacher = policy(1), policy(5)
    start = {n: p.detach().clone() for n, p in module.named_parameters()}
    values = []
    for first in draws:
        module.zero_grad()
        value, term = objective(module, teacher, name, first)
        (value + COEF * term).backward()
        with torch.no_grad():
            here = dict(module.named_parameters())
            if name == "ewc":
                term = sum((fisher[n] * (here[n] - anchor[n]) ** 2).sum() for n in fisher)
            if name == "l2":
                term = sum(((here[n] - start[n]) ** 2).sum() for n in fisher)
        values.append(float(term.detach()))
        with torch.no_grad():
            for n, p in module.named_parameters():
                grad = torch.zeros_like(p) if p.grad is None else p.grad
                if name == "ewc" and n in fisher:
                    grad = grad + 2 * COEF * fisher[n] * (p - anchor[n])
                if name == "l2" and n in fisher:
                    grad = grad + 2 * COEF * (p - start[n])
                p.sub_(LR * grad)
    return {n: p.detach() for n, p in module.named_parameters()}, sum(values) / 2


def error(result, expected):
    way = sum(float((expected[n] - result["before"][n]).square().sum()) for n in expected) ** 0.5
    off = sum(float((expected[n] - result["after"][n]).square().sum()) for n in expected) ** 0.5
    return off / way


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", TERMS)
def test_two_steps_are_those_of_plain_gradient_descent(results, files, stage, name):
    result = results[stage, name]
    draws = [(0, 0)]
    if name == "behavioural_cloning":  # what was drawn is the buffer's affair: some draw must fit
        draws = [(a, b) for a in range(BATCH + 1) for b in range(BATCH + 1)]
    made = [two_steps(files, name, draw) for draw in draws]
    errors, values = zip(
        *sorted((error(result, after), value) for after, value in made), strict=True
    )
    assert errors[0] < 1e-4
    if len(errors) > 1:
        assert errors[1] > 1e-3, "another draw would have fitted too"
    if name != "none":
        assert error(result, two_steps(files, "none", (0, 0))[0]) > 0.01, "the term did nothing"
        assert result["metrics"][f"loss/{name}"] == pytest.approx(values[0], rel=1e-4)
