"""The network of NetHack: sizes, memory, what it reads, and how it is trained window by window."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.nethack import NetHack
from envs.nethack.demonstrations import Shards, keys_of
from envs.nethack.game import spaces_of
from envs.nethack.network import NetHackNet, features
from rlft import registry
from rlft.config import load_config
from rlft.errors import ConfigError
from rlft.policy.actor_critic import as_tensors
from rlft.sampling.episodes import Block
from rlft.sampling.vector import canary_answer, canary_of, choice_of
from rlft.seeding import Key

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
OBS, ACT = spaces_of(121), spaces.Discrete(121)
TINY = NetHackNet(channels=(4,), screen=8, around=8, message=8, statistics=8, action=4, memory=8)


def count(policy):
    return sum(p.numel() for p in policy.parameters())


def made(net=TINY, seed=0):
    torch.manual_seed(seed)
    return net(OBS, ACT).eval()


@pytest.fixture(scope="module")
def screens():
    """Observations `[1, 96, ...]` of a real game."""
    demo = Shards(ROOT / "tests/data/nethack", keys_of(NetHack())).read(0, 100, 196)
    return {name: torch.from_numpy(x)[None] for name, x in demo.observations.items()}


def test_the_default_has_half_a_million_parameters():
    assert count(NetHackNet()(OBS, ACT)) == pytest.approx(0.5e6, rel=0.05)


def test_the_paper_s_has_33_million_and_an_lstm_of_1738():
    build = load_config(str(ROOT / "configs/nethack_appo.yaml")).model.build
    net = registry.build("network", build)
    with torch.device("meta"):
        policy = net(OBS, ACT)
    assert count(policy) == pytest.approx(33e6, rel=0.01)
    assert policy.memory.width == 1738 and policy.state_size == 2 * 1738


def test_what_it_says_of_a_segment_is_what_it_acted_by():
    """From replayed states, through resets of the memory, to 1e-5."""
    recipe = NetHack(max_steps=9)
    env, policy = recipe.make(), made()
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    policy.returns.merge(10, torch.tensor([3.0]).double(), torch.tensor([4.0]).double())
    block = Block(recipe.make, 3, choice_of(policy, env.action_space, CPU), how="replay")
    tasks = recipe.train()

    @torch.inference_mode()
    def drive(rolling):
        answer = None
        try:
            while True:
                seen = rolling.send(answer)
                said = policy.act(as_tensors(seen.obs, CPU), torch.from_numpy(seen.state))
                from rlft.sampling.strips import Acted

                answer = Acted(*(x.numpy() for x in said))
        except StopIteration as end:
            return end.value

    _, rest = drive(block.segments(None, 12, Key(0), lambda s, e: tasks[s + e]))
    again = Block(recipe.make, 3, choice_of(policy, env.action_space, CPU), how="replay")
    pieces, _ = drive(again.segments(rest, 12, Key(1), lambda s, e: tasks[s + e]))
    straight, _ = drive(block.segments(rest, 12, Key(1), lambda s, e: tasks[s + e]))
    assert {p.end for p in pieces} == {"truncated", "cut"}
    for piece, other in zip(pieces, straight, strict=True):
        strip = piece.strip
        assert np.array_equal(strip.params, other.strip.params), "restored by replay"
        obs = {name: torch.from_numpy(x)[None] for name, x in strip.obs.items()}
        with torch.no_grad():
            params, value = policy(obs, torch.from_numpy(strip.state)[None])
        assert np.abs(params[0].numpy() - strip.params).max() < 1e-5
        assert np.abs(value[0].numpy() - strip.value).max() < 1e-4  # of size 10
    assert not np.array_equal(pieces[0].strip.state, pieces[-1].strip.state)
    fresh = [p.strip for p in pieces if not p.strip.state.any()]
    assert fresh, "a memory begins an episode empty"


@torch.no_grad()
def test_windows_with_the_state_carried_are_the_whole(screens):
    policy = made()
    params, _value = policy(screens, torch.zeros(1, policy.state_size))
    state = torch.zeros(1, policy.state_size)
    found = []
    for first in range(0, 96, 32):
        window = {name: x[:, first : first + 32] for name, x in screens.items()}
        said, _, state = policy(window, state, carry=True)
        found.append(said)
    assert torch.allclose(torch.cat(found, 1), params, atol=1e-5)


@torch.no_grad()
def test_every_part_of_an_observation_matters(screens):
    policy = made()
    one = {name: x[0, :1] for name, x in screens.items()}
    before, _, _ = policy.act(one, torch.zeros(1, policy.state_size))
    x, y = (int(n) for n in one["blstats"][0, :2])
    for name, at, value in (
        ("tty_chars", (0, 0, 5), 65),
        ("tty_chars", (0, 20, 3), 65),
        ("tty_colors", (0, y + 1, x), 11),
        ("tty_cursor", (0, 0), 3),
        ("blstats", (0, 10), 1),
        ("prev_action", (0,), 3),
    ):
        changed = {n: t.clone() for n, t in one.items()}
        changed[name][at] = value
        after, _, _ = policy.act(changed, torch.zeros(1, policy.state_size))
        assert not torch.equal(after, before), (name, at)


@torch.no_grad()
def test_the_surroundings_are_those_of_the_hero():
    encoder = made().policy_encoder
    glyph = torch.arange(24 * 80).reshape(1, 24, 80).int()
    stats = torch.zeros(1, 27, dtype=torch.int32)
    stats[0, :2] = torch.tensor([30, 10])  # x, y of the map, one line below the message
    del encoder.glyph
    encoder.glyph = lambda at: at[..., None]
    seen = encoder._surroundings(glyph, stats).view(9, 9)
    assert torch.equal(seen, glyph[0, 7:16, 26:35].long())
    stats[0, :2] = torch.tensor([0, 0])
    corner = encoder._surroundings(glyph, stats).view(9, 9)
    assert corner[0, 0] == 0 and corner[4, 4] == glyph[0, 1, 0]


def test_statistics_are_of_size_one_and_finite_whatever_they_are():
    stats = torch.zeros(2, 27, dtype=torch.int32)
    stats[0] = torch.iinfo(torch.int32).max
    stats[1] = torch.iinfo(torch.int32).min
    seen = features(stats, torch.zeros(2, 2, dtype=torch.uint8))
    assert seen.isfinite().all() and seen.abs().max() < 6
    policy = made()
    assert np.isfinite(canary_answer(policy, canary_of(OBS), CPU)).all()


def test_with_critic_only_nothing_but_the_value_head_learns(screens):
    policy = made().train()
    params, value = policy(screens, torch.zeros(1, policy.state_size), critic_only=True)
    (value.sum() + params.sum() * 0 if params.requires_grad else value.sum()).backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert moved == {"value_head.weight", "value_head.bias"}


@torch.no_grad()
def test_values_are_returns_whatever_they_are_normalised_by(screens):
    policy = made()
    _, plain = policy(screens, torch.zeros(1, policy.state_size))
    policy.returns.merge(1000, torch.tensor([50.0]).double(), torch.tensor([16.0]).double())
    _, value = policy(screens, torch.zeros(1, policy.state_size))
    mean, deviation = policy.value_scale
    assert torch.allclose(value, mean + deviation * plain)
    assert deviation == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    "net, said",
    [
        (NetHackNet(patch=(5, 4)), "must divide 24 rows"),
        (NetHackNet(crop=8), "must be odd"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(net, said):
    with pytest.raises(ConfigError, match=said):
        net(OBS, ACT)


def test_other_observations_are_refused():
    with pytest.raises(ConfigError, match="reads the observations of `env: nethack`"):
        NetHackNet()(spaces.Box(0, 1, (3,)), ACT)
