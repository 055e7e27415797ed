"""Optimizers of chosen weights and of matrices against plain ones, without DeepSpeed."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlft.learning.chosen import ChosenAdamW
from rlft.learning.clipping import clip_by_parameter
from rlft.learning.optimizers.muon import Muon
from rlft.learning.pieces import Flat, Piece
from rlft.learning.shards import Intercept
from rlft.learning.trained_part import Trainable
from rlft.seeding import Key

SETTINGS = SimpleNamespace(betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
KEYS = vars(SETTINGS)


def whole(name, p):
    shape = tuple(p.shape)
    return Flat(p, {name: shape}, (Piece(name, 0, p.numel(), 0),), False, torch.device("cpu"))


class Masks(Trainable):
    """Keeps what it is told, by the number of steps taken."""

    chooses = True

    def __init__(self, by_step):
        self.by_step = by_step

    def due(self, step):
        return step in self.by_step

    def kept(self, name, seen):
        return self.by_step[seen.step]


def chosen(p, masks):
    optimizer = ChosenAdamW([p], Masks(masks), Key(0), **KEYS)
    optimizer.layout = {id(p): whole("w", p)}
    return optimizer


def steps(optimizer, p, grads, lr=0.01):
    for grad in grads:
        p.grad = grad.clone()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()


def test_with_everything_chosen_it_is_adamw():
    torch.manual_seed(0)
    start, grads = torch.randn(4, 6), torch.randn(5, 4, 6)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    steps(chosen(mine, {0: True}), mine, grads)
    steps(torch.optim.AdamW([theirs], lr=0.01, **KEYS), theirs, grads)
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_an_element_is_stepped_as_if_it_were_alone_and_keeps_its_moments():
    """Against AdamW on each element by itself, over the steps in which it was chosen. One that leaves
    and comes back begins anew."""
    torch.manual_seed(0)
    start, grads = torch.randn(10), torch.randn(6, 10)
    masks = {0: torch.arange(10) < 4, 2: torch.arange(10) < 7, 4: torch.arange(10) >= 2}
    p = torch.nn.Parameter(start.clone())
    optimizer = chosen(p, masks)
    steps(optimizer, p, grads)
    for i in range(10):
        alone, step = start[i].clone()[None], 0
        for t in range(6):
            mask = masks[t - t % 2]
            if t % 2 == 0 and not (mask[i] and t and masks[t - 2][i]):
                step, plain = 0, torch.nn.Parameter(alone.clone())
                inner = torch.optim.AdamW([plain], lr=0.01, **KEYS)
            if mask[i]:
                steps(inner, plain, grads[t, i][None, None])
                step += 1
                alone = plain.detach().clone()
        assert torch.allclose(p[i], alone[0], atol=1e-6), i
    assert optimizer.state[p]["exp_avg"].numel() == 8


def newton_schulz(matrix, steps=5):
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):  # by singular values: x -> ax + bx^3 + cx^5 for each of them
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        x = (u * (3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5)) @ vh
    return x


@pytest.mark.parametrize("shape", [(6, 6), (4, 10), (10, 4)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_its_formula(shape, nesterov):
    torch.manual_seed(0)
    p, bias = torch.nn.Parameter(torch.randn(shape)), torch.nn.Parameter(torch.randn(3))
    start, other = p.detach().clone().double().numpy(), torch.nn.Parameter(bias.detach().clone())
    grads, small = torch.randn(3, *shape), torch.randn(3, 3)
    named = {"layers.0.up.weight": p, "layers.0.up.bias": bias}
    optimizer = Muon(nesterov=nesterov).made(named, SETTINGS)
    optimizer.layout = {id(p): whole("layers.0.up.weight", p)}
    plain = torch.optim.AdamW([other], lr=0.02, **KEYS)
    moving = np.zeros(shape)
    for grad, g in zip(grads, small, strict=True):
        p.grad, bias.grad, other.grad = grad.clone(), g.clone(), g.clone()
        for group in optimizer.param_groups:
            group["lr"] = 0.02
        optimizer.step()
        plain.step()
        moving = 0.95 * moving + grad.double().numpy()
        update = grad.double().numpy() + 0.95 * moving if nesterov else moving
        step = 0.2 * np.sqrt(max(shape)) * newton_schulz(update)
        start = start * (1 - 0.02 * 0.1) - 0.02 * step
    assert np.allclose(p.detach().numpy(), start, atol=1e-4)
    assert torch.allclose(bias, other, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 32])
def test_the_state_of_muon_survives_a_round_trip(bits):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 8))
    grads = torch.randn(4, 8, 8)

    def made(parameter):
        optimizer = Muon(bits=bits).made({"layers.0.up.weight": parameter}, SETTINGS)
        optimizer.layout = {id(parameter): whole("layers.0.up.weight", parameter)}
        return optimizer

    optimizer = made(p)
    steps(optimizer, p, grads[:2])
    other = torch.nn.Parameter(p.detach().clone())
    again = made(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, p, grads[2:])
    steps(again, other, grads[2:])
    assert torch.equal(p, other)
    if bits == 8:
        assert again.state[other]["q"].dtype == torch.int8


def test_each_component_is_clipped_to_its_own_norm_and_small_ones_are_left():
    flat = torch.nn.Parameter(torch.zeros(7))
    pieces = (Piece("a", 0, 3, 0), Piece("b", 0, 4, 3))
    layout = {id(flat): Flat(flat, {"a": (3,), "b": (4,)}, pieces, False, torch.device("cpu"))}
    optimizer = torch.optim.SGD([flat], lr=1.0)
    intercept = Intercept(SimpleNamespace(basic_optimizer=optimizer))
    pull = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 50.0])
    intercept.before.append(
        lambda stepped: flat.grad.add_(pull)
    )  # as an anchor's, that came before
    clip_by_parameter(intercept, optimizer, layout, 1.0)
    flat.grad = torch.tensor([3.0, 0.0, 4.0, 0.1, 0.2, 0.2, 0.4])
    optimizer.step()
    assert torch.allclose(-flat - pull, torch.tensor([0.6, 0.0, 0.8, 0.1, 0.2, 0.2, 0.4]))
    # clipped as one, both would have shrunk by the same factor
    assert torch.norm(torch.tensor([3.0, 4.0, 0.5])) > 5
