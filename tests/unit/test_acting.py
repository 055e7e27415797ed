"""A policy in environments: what it says, what blocks of environments record, and what goes wrong."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlft import registry
from rlft.acting import Stage
from rlft.config import load_config
from rlft.errors import CheckpointError, ConfigError
from rlft.policy.actor_critic import (
    ActorCritic,
    Normaliser,
    as_tensors,
    load_policy,
    new_policy,
)
from rlft.policy.distributions import Categoricals, Gaussian, distribution_of
from rlft.policy.networks import CNN, CNNGRU, MLP
from rlft.policy.observed import parts_of
from rlft.record.acted import acted, error_share
from rlft.sampling.episodes import Block, Start, trace_of
from rlft.sampling.guarded import Alarm
from rlft.sampling.strips import Acted, Judged
from rlft.sampling.vector import (
    Branching,
    Dealer,
    Runner,
    answer,
    choice_of,
    rollout_states,
    to_env,
)
from rlft.seeding import Key
from rlft.types import Episode, Group, RowRef, Task, Trajectory, WeightUpdate

CPU = torch.device("cpu")


class Walk(gymnasium.Env):
    """A walk on a line of `length` places from 0; its end terminates with reward 1. Also: rewards that are
    random, a step that raises, hangs or shows what is not in the space."""

    observation_space = spaces.Box(-1, 20, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length=4, limit=6, fault=None, at=2):
        self.length, self.limit, self.fault, self.at = length, limit, fault, at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.fault == "reset":
            raise RuntimeError("no floor")
        self.place, self.steps = int((options or {}).get("place", 0)), 0
        return self._seen(), {"place": self.place}

    def step(self, action):
        self.steps += 1
        if self.fault == "raises" and self.steps == self.at:
            raise RuntimeError("the floor gave way")
        if self.fault == "hangs" and self.steps == self.at:
            time.sleep(30)
        self.place = max(0, self.place + (1 if action else -1))
        done = self.place >= self.length
        reward = float(done) + 0.01 * float(self.np_random.random())
        seen = self._seen()
        if self.steps == self.at:
            seen = seen + {"outside": 99, "nan": np.nan}.get(self.fault, 0)
            seen = np.append(seen, seen[:1]) if self.fault == "shape" else seen
        return (
            seen.astype(np.float32),
            reward,
            done,
            self.steps >= self.limit,
            {"place": self.place},
        )

    def _seen(self):
        return np.array([self.place, self.steps], np.float32)


def policy_for(env, network=None, seed=0):
    torch.manual_seed(seed)
    policy = (network or MLP((8,)))(env.observation_space, env.action_space)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


def block_of(make, policy, size=3, traces=("place",), **keys):
    one = make()
    return Block(make, size, choice_of(policy, one.action_space, CPU), traces, **keys)


def drive(policy, rolling, answer=answer):
    said = None
    try:
        while True:
            said = answer(policy, rolling.send(said), CPU)
    except StopIteration as end:
        return end.value


@torch.inference_mode()
def at_each_step(policy, seen, device):
    """As `answer`, with the critic asked together with the policy."""
    params, value, _ = policy.act(as_tensors(seen.obs, device), None)
    return Acted(params.numpy(), value.numpy(), None)


def row_by_row(policy, asked, device):
    """As `answer`, of one row at a time: what is said of it does not depend on who is asked with it, which
    by some processors it does in the last bit."""
    count = len(next(iter(asked.obs.values())))
    rows = [
        answer(policy, replace(asked, obs={n: x[i : i + 1] for n, x in asked.obs.items()}), device)
        for i in range(count)
    ]
    if isinstance(asked, Judged):
        return np.concatenate(rows)
    params = np.concatenate([r.params for r in rows])
    return Acted(params, None, None)


def task_of(slot, episode):
    return Task(f"{slot}.{episode}", "", info={"seed": 100 * slot + episode, "options": {}})


def same_strips(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.slot, a.end, a.strip.bootstrap) == (b.slot, b.end, b.strip.bootstrap)
        for field in ("action", "params", "logp", "value", "reward"):
            assert np.array_equal(getattr(a.strip, field), getattr(b.strip, field)), field
        for name in a.strip.obs:
            assert np.array_equal(a.strip.obs[name], b.strip.obs[name])
        if a.episode is not None:
            assert (a.episode.ret, a.episode.length) == (b.episode.ret, b.episode.length)
            for name, trace in a.episode.traces.items():
                assert np.array_equal(trace, b.episode.traces[name])


# -- distributions -------------------------------------------------------------------------------


def test_log_probs_of_all_actions_add_up_to_one():
    distribution, params = Categoricals((3, 2)), torch.randn(5, 5, dtype=torch.float64)
    total = torch.zeros(5, dtype=torch.float64)
    for a in range(3):
        for b in range(2):
            total += distribution.logp(params, torch.tensor([[a, b]]).expand(5, 2)).exp()
    assert torch.allclose(total, torch.ones(5, dtype=torch.float64))


def test_samples_have_the_frequencies_that_log_probs_say():
    distribution = Categoricals((4,))
    params = torch.tensor([[0.5, -1.0, 1.5, 0.0]])
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), 40_000))
    drawn = distribution.sample(params.expand(40_000, 4), noise)[:, 0].long()
    share = drawn.bincount(minlength=4) / 40_000
    assert torch.allclose(share, params[0].softmax(0), atol=0.01)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_entropy_and_kl_are_torchs(kind):
    from torch import distributions as td

    p, q = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    if kind == "categorical":
        ours = Categoricals((4,))
        a, b = td.Categorical(logits=p), td.Categorical(logits=q)
        action = torch.randint(0, 4, (6, 1)).double()
        logp = a.log_prob(action[:, 0])
    else:
        ours = Gaussian(2)
        a, b = (td.Independent(td.Normal(x[:, :2], x[:, 2:].exp()), 1) for x in (p, q))
        action = torch.randn(6, 2, dtype=torch.float64)
        logp = a.log_prob(action)
    assert torch.allclose(ours.entropy(p), a.entropy())
    assert torch.allclose(ours.kl(p, q), td.kl_divergence(a, b))
    assert torch.allclose(ours.logp(p, action), logp)
    assert (ours.kl(p, p).abs() < 1e-12).all()


def test_an_action_space_without_a_distribution_is_refused():
    with pytest.raises(ConfigError, match=r"MultiBinary.*supported are Discrete"):
        distribution_of(spaces.MultiBinary(3))


def test_actions_reach_the_environment_in_its_own_terms():
    assert to_env(spaces.Discrete(3, start=5), np.array([[2.0]], np.float32)).tolist() == [7]
    box = spaces.Box(-1, 1, (2,), np.float32)
    assert to_env(box, np.array([[3.0, -0.5]], np.float32)).tolist() == [[1.0, -0.5]]


IMAGES = {  # shape, highest: divisor, channels, whether they are first
    "MiniGrid's view": ((7, 7, 3), 255, 10, 3, False),
    "its codes as they are": ((7, 7, 3), 10, 10, 3, False),
    "a grid of bits": ((10, 10, 4), 1, 1, 4, False),
    "a large grid": ((40, 40, 3), 10, 10, 3, False),
    "Atari, stacked": ((4, 84, 84), 255, 255, 4, True),
    "pixels": ((64, 64, 3), 255, 255, 3, False),
    "small pixels": ((32, 32, 3), 255, 255, 3, False),
    "one frame": ((1, 84, 84), 255, 255, 1, True),
}


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_read_by_their_channels_and_brought_to_one(image):
    shape, high, divisor, channels, first = IMAGES[image]
    space = spaces.Box(0, high, shape, np.uint8)
    [part] = parts_of(space)
    assert (part.kind, part.divisor, part.channels_first) == ("image", divisor, first)
    policy = CNN(channels=(4, 4, 4), width=8)(space, spaces.Discrete(2))
    first_layer = policy.policy_encoder.pieces["observation"].net[0]
    assert first_layer.in_channels == channels
    x = torch.from_numpy(np.stack([space.sample(), space.sample()]))
    params, _, _ = policy.act({"observation": x}, None)
    assert params.shape == (2, 2)


def test_a_vector_of_bytes_is_brought_to_one():
    [part] = parts_of(spaces.Box(0, 255, (128,), np.uint8))
    assert part.scaled(torch.full((1, 128), 255, dtype=torch.uint8)).max() == 1


def test_entries_of_an_observation_may_be_called_what_they_like():
    names = ["type", "values", "items", "float", "a.b", "a_b", "keys", "image"]
    space = spaces.Dict({n: spaces.Box(-1, 1, (2,), np.float32) for n in names})
    policy = MLP((4,), normalise=True)(space, spaces.Discrete(2))
    obs = {n: torch.ones(1, 2) * i for i, n in enumerate(names)}
    policy.take_in(obs)
    assert policy.act(obs, None)[0].shape == (1, 2)
    means = [x for n, x in policy.policy_encoder.state_dict().items() if n.endswith("mean")]
    assert sorted(float(m[0]) for m in means) == list(range(len(names)))


MEMORIES = {
    "gru": {"shared": True, "memory": 5},
    "lstm": {"shared": True, "memory": 5, "cell": "lstm", "skip": True},
    "critic apart": {"hidden": (6,)},
}


@pytest.mark.parametrize("network", MEMORIES)
@pytest.mark.parametrize("critic_only", [False, True])
def test_steps_after_an_end_change_nothing_and_are_not_encoded(network, critic_only):
    torch.manual_seed(0)
    space = spaces.Box(-9, 9, (3,), np.float32)
    policy = ActorCritic(space, spaces.Discrete(4), width=8, **MEMORIES[network])
    lengths, encoded = torch.tensor([6, 1, 4]), []
    policy.policy_encoder.register_forward_hook(lambda _, given, out: encoded.append(len(out)))
    mask = torch.arange(6) < lengths[:, None]
    obs = {"observation": torch.randn(3, 6, 3)}
    state = torch.randn(3, policy.state_size) if policy.state_size else None

    def said(real):
        policy.zero_grad()
        params, value = policy(obs, state, real=real, critic_only=critic_only)
        loss = (params.square().sum(-1) + value)[mask].sum()
        loss.backward()
        grads = [p.grad for p in policy.parameters()]
        return params, value, [g.clone() if g is not None else torch.zeros(()) for g in grads]

    whole, real = said(None), said(mask.flatten().nonzero()[:, 0])
    assert encoded == [18, 11]
    for a, b in zip(whole[:2], real[:2], strict=True):
        assert torch.allclose(a[mask], b[mask], atol=1e-6)
        assert not b[~mask].any()
    for a, b in zip(whole[2], real[2], strict=True):
        assert torch.allclose(a, b, atol=1e-5)


# -- policies ------------------------------------------------------------------------------------


def minigrid(view):
    from envs.minigrid import MiniGrid

    return MiniGrid(id="BabyAI-GoToLocal-v0" if view == "dict" else "MiniGrid-FourRooms-v0",
                    view=view, configurations=3, max_steps=12)  # fmt: skip


@pytest.mark.parametrize(
    ("network", "view"),
    [(MLP((16, 16)), "flat"), (MLP((16,), shared=True), "dict"), (CNN((4,), 16), "dict"),
     (CNNGRU((4,), 16, 8), "dict")],
)  # fmt: skip
def test_what_a_policy_says_of_a_segment_is_what_it_acted_by(network, view):
    env = minigrid(view)
    policy = policy_for(env.make(), network)
    block = block_of(env.make, policy, traces=env.traces)
    tasks = env.train()
    pieces, _ = drive(policy, block.segments(None, 20, Key(0), lambda s, e: tasks[(s + e) % 3]))
    assert {p.end for p in pieces} >= {"truncated", "cut"}
    for piece in pieces:
        strip = piece.strip
        obs = {name: torch.from_numpy(x)[None] for name, x in strip.obs.items()}
        state = None if strip.state is None else torch.from_numpy(strip.state)[None]
        with torch.no_grad():
            params, value = policy(obs, state)
        logp = policy.distribution.logp(params, torch.from_numpy(strip.action)[None])
        assert np.abs(logp[0].numpy() - strip.logp).max() < 1e-5
        assert np.abs(value[0].numpy() - strip.value).max() < 1e-5
        assert np.abs(params[0].numpy() - strip.params).max() < 1e-5


@pytest.mark.parametrize("distribution", [Categoricals((3, 5)), Gaussian(2), Gaussian(3)])
def test_noise_of_many_steps_is_that_of_each_in_turn(distribution):
    whole = distribution.noise(np.random.default_rng(1), 21)
    rng = np.random.default_rng(1)
    assert np.array_equal(whole, np.concatenate([distribution.noise(rng, 3) for _ in range(7)]))


def test_running_numbers_are_those_of_all_that_was_taken_in():
    seen = np.random.default_rng(0).normal(3, 2, (50, 4))
    normaliser = Normaliser(4)
    for part in np.array_split(seen, 7):
        normaliser.take_in(torch.from_numpy(part).float())
    assert np.allclose(normaliser.mean.numpy(), seen.mean(0), atol=1e-5)
    assert np.allclose(normaliser.var.numpy(), seen.var(0), atol=1e-4)


def test_a_critic_of_its_own_is_told_apart():
    env = Walk()
    apart = MLP((8,))(env.observation_space, env.action_space)
    together = MLP((8,), shared=True)(env.observation_space, env.action_space)
    assert len(apart.value_parameters()) == 4
    assert apart.critic_apart and not together.critic_apart
    assert together.value_parameters() == [*together.value_head.parameters()]
    assert isinstance(apart, ActorCritic)


def test_a_class_that_acts_in_its_own_way_is_asked_in_its_own_way():
    class Masked(ActorCritic):
        def act(self, obs, state):
            params, value, state = super().act(obs, state)
            return params.index_fill(-1, torch.tensor([0]), -1e9), value, state

    policy = Masked(Walk.observation_space, Walk.action_space, hidden=(4,), width=4)
    assert not policy.critic_apart
    [piece], _ = drive(policy, block_of(Walk, policy).episodes([Start(task_of(0, 0), 0)]))
    assert (piece.strip.action == 1).all()


@pytest.mark.parametrize(
    ("seen", "kept"),
    [([3, 4], [[3], [4]]), ([3, [4]], [[3], [4]]), ([(1, 2), np.array([3, 4])], [[1, 2], [3, 4]])],
)
def test_a_trace_may_be_a_number_or_several(seen, kept):
    found = trace_of(seen)
    assert found.dtype == np.int32
    assert found.tolist() == kept


# -- blocks --------------------------------------------------------------------------------------


def test_strips_are_single_episodes_and_add_up():
    policy = policy_for(Walk())
    pieces, left = drive(policy, block_of(Walk, policy).segments(None, 17, Key(3), task_of))
    assert sum(len(p.strip.reward) for p in pieces) == 3 * 17
    for slot in range(3):
        mine = [p for p in pieces if p.slot == slot]
        assert [p.end for p in mine[:-1]].count("cut") == 0
        whole = [p for p in mine if p.episode is not None]
        assert left.episodes[slot] == len(whole)
        for p in whole[1:]:
            assert p.episode.ret == pytest.approx(float(p.strip.reward.sum()), abs=1e-6)
            assert p.episode.traces["place"].shape == (p.episode.length + 1, 1)


@pytest.mark.parametrize("limit", ["cuts", "ends"])
@pytest.mark.parametrize("network", [MLP((8,)), MLP((8,), shared=True)])
def test_only_what_terminated_is_worth_nothing_afterwards(network, limit):
    """And what ran out of steps, where that is part of the task."""
    policy = policy_for(Walk(), network)
    block = block_of(Walk, policy, limit=limit)
    pieces, _ = drive(policy, block.segments(None, 40, Key(1), task_of))
    ends = {p.end for p in pieces}
    assert ends == {"terminated", "truncated", "cut"}
    for p in pieces:
        with torch.no_grad():
            _, value, _ = policy.act(
                {k: torch.from_numpy(x)[None] for k, x in p.strip.after.items()}, None
            )
        nothing = p.end == "terminated" or (p.end == "truncated" and limit == "ends")
        expected = 0.0 if nothing else float(value[0])
        assert p.strip.bootstrap == pytest.approx(expected, abs=1e-5)
        if p.end == "truncated":
            assert p.strip.after["observation"][1] == 6, "the last observation, not that of a reset"


@pytest.mark.parametrize("what", ["segments", "episodes"])
@pytest.mark.parametrize("fault", [None, "raises"])
def test_a_critic_apart_says_the_same_when_it_is_asked_of_all_steps_at_once(what, fault):
    policy = policy_for(Walk())

    def pieces_by(answer):
        block = block_of(lambda: Walk(length=2, fault=fault), policy)
        if what == "segments":
            rolling = block.segments(None, 23, Key(1), task_of)
        else:
            rolling = block.episodes([Start(task_of(i, 0), seed=i) for i in range(7)])
        return drive(policy, rolling, answer)[0]

    once, each = pieces_by(answer), pieces_by(at_each_step)
    assert {p.end for p in once} >= ({"error"} if fault else {"terminated", "truncated"})
    assert len(once) == len(each)
    for a, b in zip(once, each, strict=True):
        assert (a.slot, a.end) == (b.slot, b.end)
        assert np.array_equal(a.strip.action, b.strip.action)
        assert np.allclose(a.strip.value, b.strip.value, atol=1e-5)
        assert a.strip.bootstrap == pytest.approx(b.strip.bootstrap, abs=1e-5)


@pytest.mark.parametrize("how", ["copy", "replay"])
def test_going_on_from_where_a_block_was_left_changes_nothing(how):
    policy = policy_for(Walk())
    steady = block_of(Walk, policy, how=how)
    first, left = drive(policy, steady.segments(None, 9, Key(0), task_of))
    second, _ = drive(policy, steady.segments(left, 9, Key(1), task_of))
    newcomer = block_of(Walk, policy, how=how)
    again, _ = drive(policy, newcomer.segments(left, 9, Key(1), task_of))
    same_strips(second, again)
    backwards, _ = drive(policy, steady.segments(None, 9, Key(0), task_of))
    same_strips(first, backwards)


def test_a_memory_is_carried_and_emptied_at_a_reset():
    env = minigrid("dict")
    policy = policy_for(env.make(), CNNGRU((4,), 16, 8))
    tasks = env.train()
    deal = lambda s, e: tasks[(s + e) % 3]  # noqa: E731
    first = block_of(env.make, policy, traces=()).segments(None, 20, Key(0), deal)
    pieces, left = drive(policy, first)
    firsts = [p for p in pieces if p.end == "truncated"]
    assert all((p.strip.state == 0).all() for p in firsts)
    later, _ = drive(policy, block_of(env.make, policy, traces=()).segments(left, 5, Key(1), deal))
    assert any((p.strip.state != 0).any() for p in later)


def test_whole_episodes_do_not_depend_on_their_neighbours():
    policy = policy_for(Walk())
    starts = [Start(task_of(i, 0), 7 + i) for i in range(8)]
    together, _ = drive(policy, block_of(Walk, policy, size=4).episodes(starts))
    alone = [drive(policy, block_of(Walk, policy, size=4).episodes([s]))[0][0] for s in starts]
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a.strip.action, b.strip.action)
        assert a.episode.ret == b.episode.ret
    assert [p.slot for p in together] == list(range(8))


@pytest.mark.parametrize("how", ["copy", "replay"])
def test_vines_leave_from_the_states_of_their_seed(how):
    policy = policy_for(Walk())
    block = block_of(lambda: Walk(length=9, limit=12), policy, how=how)
    task = task_of(0, 0)
    [root], _ = drive(policy, block.episodes([Start(task, 5)]))
    steps = len(root.strip.reward)
    points = rollout_states(steps, 2)
    assert points == [steps // 3, 2 * steps // 3]
    found, failed = block.points_of(task, root.strip.action, points, root.strip.obs)
    assert failed is None
    starts = [Start(task, 50 + i, found[i // 4]) for i in range(8)]
    vines, _ = drive(policy, block.episodes(starts))
    for i, vine in enumerate(vines):
        at = points[i // 4]
        assert np.array_equal(vine.strip.obs["observation"][0], root.strip.obs["observation"][at])
        assert vine.episode.start == at
        assert vine.episode.length == at + len(vine.strip.reward), "the time limit is the episode's"
        assert vine.episode.ret_before == pytest.approx(float(root.strip.reward[:at].sum()))
        assert vine.episode.ret_after == pytest.approx(float(vine.strip.reward.sum()), abs=1e-6)
        assert np.array_equal(
            vine.episode.traces["place"][: at + 1], root.episode.traces["place"][: at + 1]
        )
    assert len({tuple(v.strip.action.ravel()) for v in vines}) > 1


def test_an_episode_that_failed_is_no_zero_and_the_block_goes_on():
    policy = policy_for(Walk())
    block = block_of(lambda: Walk(fault="raises"), policy)
    pieces, _ = drive(policy, block.segments(None, 7, Key(0), task_of))
    failed = [p for p in pieces if p.end == "error"]
    assert failed
    for p in failed:
        assert len(p.strip.reward) == 1, "the step that failed is not learnt from"
        assert "the floor gave way" in p.episode.error
    starts = [Start(task_of(i, 0), i) for i in range(5)]
    pieces, _ = drive(policy, block.episodes(starts))
    assert [p.end for p in pieces] == ["error"] * 5


def test_a_return_above_what_solves_is_a_success_where_nothing_else_says_so():
    policy = policy_for(Walk())
    block = block_of(Walk, policy, solved_above=1.0)
    near = Task("near", "", info={"seed": 0, "options": {"place": 3}})
    starts = [Start(near if i % 2 else task_of(i, 0), i) for i in range(16)]
    pieces, _ = drive(policy, block.episodes(starts))
    assert {p.episode.success for p in pieces} == {True, False}
    assert all(p.episode.success == (p.end == "terminated") for p in pieces)


def test_a_step_that_hangs_ends_its_episode():
    Alarm.install()
    try:
        policy = policy_for(Walk())
        block = block_of(lambda: Walk(fault="hangs"), policy, size=1, timeout=0.2)
        began = time.monotonic()
        [piece], _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
        assert time.monotonic() - began < 10
        assert piece.end == "error"
        assert "runner.step_timeout" in piece.episode.error
    finally:
        Alarm.uninstall()


@pytest.fixture
def alarm():
    Alarm.install()
    yield
    Alarm.uninstall()


class Slow(Walk):
    """Whose first step hangs where `places` says: at all of them, or where an episode begins there."""

    places: tuple = (0,)

    def step(self, action):
        if self.steps == 0 and self.place in Slow.places:
            time.sleep(30)
        return super().step(action)


def timed_out(pieces):
    return sum("StepTimeout" in p.episode.error for p in pieces)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_where_all_environments_hang_the_rest_is_given_up_and_tried_the_next_time(
    alarm, monkeypatch, size
):
    policy = policy_for(Walk())
    block = block_of(Slow, policy, size=size, timeout=0.1)
    starts = [Start(task_of(i, 0), i) for i in range(40)]
    pieces, _ = drive(policy, block.episodes(starts))
    assert [p.end for p in pieces] == ["error"] * 40
    assert timed_out(pieces) == 3  # and not 40
    given_up = "given up: steps or resets of 3 configurations in a row"
    assert sum(p.episode.error.startswith(given_up) for p in pieces) == 37
    monkeypatch.setattr(Slow, "places", ())
    pieces, _ = drive(policy, block.episodes(starts))
    assert all(p.end != "error" for p in pieces)


@pytest.mark.parametrize("size", [1, 8])
def test_a_configuration_that_hangs_costs_no_other_one_an_episode(alarm, monkeypatch, size):
    monkeypatch.setattr(Slow, "places", (3,))
    policy = policy_for(Walk())
    block = block_of(Slow, policy, size=size, timeout=0.1)
    tasks = [Task("", "", info={"seed": i, "options": {"place": 3 * (i == 2)}}) for i in range(5)]
    pieces, _ = drive(
        policy, block.episodes([Start(t, i) for i, t in enumerate(tasks * 1) for _ in range(8)])
    )
    assert [p.end == "error" for p in pieces] == [i == 2 for i in range(5) for _ in range(8)]
    assert timed_out(pieces) == 3
    assert "given up: 3 episodes of this configuration, with seed 2" in pieces[23].episode.error


def test_a_step_may_take_its_time_whatever_those_beside_it_take(alarm):
    class Leisurely(Walk):
        def step(self, action):
            time.sleep(0.1)
            return super().step(action)

    policy = policy_for(Walk())
    block = block_of(lambda: Leisurely(limit=2), policy, size=8, timeout=0.5)  # 0.8 s a round
    pieces, _ = drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(8)]))
    assert {p.end for p in pieces} == {"truncated"}


def test_an_environment_that_catches_every_exception_is_ended_all_the_same(alarm):
    class Stubborn(Walk):
        def step(self, action):
            for _ in range(30):
                try:
                    time.sleep(1)
                except Exception:
                    continue
            return super().step(action)

    policy = policy_for(Walk())
    block = block_of(Stubborn, policy, size=1, timeout=0.1)
    [piece], _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
    assert "StepTimeout" in piece.episode.error


@pytest.mark.parametrize(
    "fault", ["no info", "array", "facts", "exit", "close", "slow close", "make"]
)
def test_whatever_an_environment_does_wrong_is_an_episode_that_failed(alarm, fault):
    made = []

    class Wrong(Walk):
        def __init__(self):
            super().__init__()
            made.append(self)
            if fault == "make" and len(made) == 3:
                raise RuntimeError("no more of them")

        def step(self, action):
            *rest, info = super().step(action)
            if self is not made[1]:
                return *rest, info
            if fault == "exit":
                raise SystemExit(3)
            if fault in ("close", "slow close", "make"):
                raise RuntimeError("the floor gave way")
            wrong = {"no info": None, "array": {"success": np.ones(2)}, "facts": {"facts": 3}}
            return *rest, wrong[fault] if fault == "no info" else {**info, **wrong[fault]}

        def close(self):
            if fault == "close" and self is made[1]:
                raise OSError("stuck")
            if fault == "slow close" and self is made[1]:
                time.sleep(30)

    policy = policy_for(Walk())
    block = block_of(Wrong, policy, size=1, timeout=0.2)
    pieces, _ = drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(4)]))
    failed = [p.end == "error" for p in pieces]
    assert failed == [True, fault == "make", False, False]


@pytest.mark.parametrize("fault", ["outside", "nan", "shape"])
@pytest.mark.parametrize("at", [2, 6])
def test_an_observation_outside_its_space_is_an_error(fault, at):
    policy = policy_for(Walk())
    block = block_of(lambda: Walk(fault=fault, at=at, length=20, limit=9), policy)
    pieces, _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
    assert "lies outside its space" in pieces[0].episode.error
    assert len(pieces[0].strip.reward) == at - 1
    assert np.isfinite(pieces[0].strip.after["observation"]).all()


@pytest.mark.parametrize("fault", ["outside", "nan", "shape", "raises"])
def test_one_environment_at_fault_costs_its_block_nothing_and_its_last_step_does_not_count(fault):
    policy = policy_for(Walk())

    def played(fault):
        made = iter([None, None, fault])  # the first is asked for its spaces alone
        block = block_of(lambda: Walk(fault=next(made, None), at=4, length=20, limit=9), policy)
        return drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(3)]))[0]

    sound, pieces = played(None), played(fault)
    same_strips([pieces[0], pieces[2]], [sound[0], sound[2]])
    failed = pieces[1].episode
    assert (pieces[1].end, failed.length) == ("error", 3)
    assert failed.ret == pytest.approx(float(sound[1].strip.reward[:3].sum()), abs=1e-6)
    assert np.array_equal(failed.traces["place"], sound[1].episode.traces["place"][:4])


class Told(Walk):
    """A walk whose observation has parts in one buffer for all environments, whose every step says how the
    episode goes, and whose last step shows what it may not."""

    observation_space = spaces.Dict({"seen": Walk.observation_space, "one": spaces.Discrete(2)})
    buffer = np.zeros(2, np.float32)

    def reset(self, **keys):
        seen, info = super().reset(**keys)
        return self._shared(seen), info

    def step(self, action):
        seen, reward, done, truncated, info = super().step(action)
        last = self.fault is not None and self.steps == self.at
        info = {**info, "success": last, "facts": {"steps": float(self.steps)}}
        return self._shared(seen), reward, done or last, truncated, info

    def _shared(self, seen):
        self.buffer[:] = seen
        return {"seen": self.buffer, "one": 1}


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_last_step_that_is_taken_back_leaves_what_was_said_before_it(broken):
    policy = policy_for(Told())
    made = iter([None, *("nan" if i == broken else None for i in range(3))])
    block = block_of(lambda: Told(fault=next(made, None), at=4, length=20, limit=9), policy)
    pieces, _ = drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(3)]))
    assert [p.end for p in pieces] == ["error" if i == broken else "truncated" for i in range(3)]
    assert "lies outside its space" in pieces[broken].episode.error
    assert pieces[broken].episode.success is False
    assert pieces[broken].episode.facts == {"steps": 3.0}
    assert all(np.isfinite(p.strip.obs["seen"]).all() for p in pieces)


def test_a_step_alone_is_taken_back_too():
    policy = policy_for(Walk())
    block = block_of(lambda: Walk(fault="nan", at=3, length=20), policy, size=1)
    found, failed = block.points_of(task_of(0, 0), np.ones((5, 1), np.float32), [2, 4])
    assert found == [] and failed is not None and failed.end == "error" and failed.length == 2


@pytest.mark.parametrize("fault", ["outside", "nan", "raises"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("segments", [True, False])
def test_what_would_have_come_is_judged_by_what_was_seen_before_the_step_that_failed(
    fault, shared, segments
):
    policy = policy_for(Walk(), MLP((8,), shared=shared))
    block = block_of(lambda: Walk(fault=fault, at=4, length=20, limit=9), policy, size=2)
    if segments:
        pieces, _ = drive(policy, block.segments(None, 6, Key(0), task_of))
    else:
        pieces, _ = drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(2)]))
    failed = [p.strip for p in pieces if p.end == "error"]
    assert len(failed) == 2
    for strip in failed:
        assert strip.after["observation"][1] == 3  # three steps were taken
        shown = torch.from_numpy(strip.after["observation"])[None]
        with torch.inference_mode():
            value = policy.act({"observation": shown}, None)[1]
        assert strip.bootstrap == pytest.approx(float(value), abs=1e-6)
        assert len(strip.reward) == 3


def test_a_first_reset_that_fails_is_an_episode_that_failed():
    policy = policy_for(Walk())
    block = block_of(lambda: Walk(fault="reset"), policy)
    pieces, _ = drive(policy, block.episodes([Start(task_of(i, 0), i) for i in range(4)]))
    assert [p.end for p in pieces] == ["error"] * 4
    assert all("no floor" in p.episode.error and len(p.strip.reward) == 0 for p in pieces)


def test_segments_of_what_cannot_be_put_back_go_on_here_and_begin_anew_elsewhere():
    policy = policy_for(Walk())

    def of(how):
        return block_of(lambda: Walk(length=30, limit=12), policy, how=how)

    plain, bare = of("copy"), of("none")
    rests = [None, None]
    for number in range(3):  # in one block nothing differs
        key = Key(1).child(number)
        ours, rests[0] = drive(policy, plain.segments(rests[0], 5, key, task_of))
        theirs, rests[1] = drive(policy, bare.segments(rests[1], 5, key, task_of))
        same_strips(ours, theirs)
    assert rests[1].points is None
    pieces, rest = drive(policy, of("none").segments(rests[1], 5, Key(2), task_of))
    assert not any(p.strip.continues for p in pieces)
    assert rest.episodes == tuple(n + 1 for n in rests[1].episodes)


def test_an_episode_that_cannot_be_put_back_has_failed_and_the_others_go_on():
    class Fickle(Walk):
        other_way = ()

        def reset(self, *, seed=None, options=None):
            seen, info = super().reset(seed=seed, options=options)
            self.skewed = seed in self.other_way
            return seen, info

        def _seen(self):
            return super()._seen() + (self.skewed and self.steps == 5)

        skewed = False

    policy = policy_for(Walk())

    def of():
        return block_of(lambda: Fickle(length=30, limit=12), policy, how="replay")

    before, rest = drive(policy, of().segments(None, 5, Key(1), task_of))
    assert len(before) == 3
    ours, _ = drive(policy, of().segments(rest, 5, Key(2), task_of), row_by_row)
    Fickle.other_way = (100,)  # the episode of environment 1
    theirs, after = drive(policy, of().segments(rest, 5, Key(2), task_of), row_by_row)
    same_strips([p for p in theirs if p.slot != 1], [p for p in ours if p.slot != 1])
    failed, new = [p for p in theirs if p.slot == 1]
    assert (failed.end, len(failed.strip.reward)) == ("error", 0)
    assert "led to another observation" in failed.episode.error
    assert failed.episode.length == 5, "what it had done before is told"
    assert len(new.strip.reward) == 4 and not new.strip.continues
    assert after.episodes == (0, 1, 0)

    # The same of whole episodes, where it is asked for (by a probe); else it is an error of its own.
    starts = [Start(task_of(i, 0), 7, rest.points[i], or_fail=True) for i in range(3)]
    whole, _ = drive(policy, of().episodes(starts))
    assert [p.end == "error" for p in whole] == [False, True, False]
    with pytest.raises(ConfigError, match="led to another observation"):
        drive(policy, of().episodes([replace(starts[1], or_fail=False)]))


def test_an_environment_that_does_not_repeat_itself_has_no_vines():
    class Restless(Walk):
        def reset(self, *, seed=None, options=None):
            self.limit = 3 if getattr(self, "before", False) else 12
            self.before = True
            return super().reset(seed=seed, options=options)

    policy = policy_for(Walk())
    block = block_of(lambda: Restless(length=30), policy, size=1)
    [root], _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
    with pytest.raises(ConfigError, match="rollout_states to 0"):
        block.points_of(task_of(0, 0), root.strip.action, [4, 8])


def test_a_course_that_looks_otherwise_is_refused_though_it_is_as_long():
    class Noisy(Walk):
        noise = iter(range(100))

        def _seen(self):
            return super()._seen() + np.array([0.001 * next(self.noise), 0], np.float32)

    policy = policy_for(Walk())
    block = block_of(lambda: Noisy(length=30, limit=12), policy, size=1)
    [root], _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
    with pytest.raises(ConfigError, match="took another course after 0 of 12 steps"):
        block.points_of(task_of(0, 0), root.strip.action, [4, 8], root.strip.obs)


def test_an_episode_that_fails_when_it_is_taken_again_is_told_and_has_no_vines():
    class Flaky(Walk):
        resets = 0

        def reset(self, *, seed=None, options=None):
            Flaky.resets += 1
            self.fault = "raises" if Flaky.resets > 1 else None
            return super().reset(seed=seed, options=options)

    policy = policy_for(Walk())
    block = block_of(lambda: Flaky(length=30, limit=12, at=3), policy, size=1)
    [root], _ = drive(policy, block.episodes([Start(task_of(0, 0), 0)]))
    points, failed = block.points_of(task_of(0, 0), root.strip.action, [4, 8], root.strip.obs)
    assert points == [] and failed.end == "error" and "the floor gave way" in failed.error


# -- other spaces, and the runner itself -----------------------------------------------------------


class Levers(gymnasium.Env):
    """Takes actions of any space and refuses what lies outside of it; the reward is the action's sum."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), (action, action.dtype)
        self.steps += 1
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, float(np.sum(action)), False, self.steps == 5, {}


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2, 4]),
        spaces.Box(-0.5, 2.0, (3,), np.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize("greedy", [False, True])
def test_actions_of_every_space_arrive_as_the_environment_takes_them(space, greedy):
    policy = policy_for(Levers(space))
    block = block_of(lambda: Levers(space), policy, traces=())
    starts = [Start(task_of(i, 0), i) for i in range(5)]
    pieces, _ = drive(policy, block.episodes(starts, greedy=greedy))
    assert [p.end for p in pieces] == ["truncated"] * 5
    for piece in pieces:
        drawn = piece.strip.action
        given = to_env(space, drawn).reshape(5, -1)
        assert given.sum(1) == pytest.approx(piece.strip.reward, abs=1e-5)
        logp = policy.distribution.logp(
            torch.from_numpy(piece.strip.params), torch.from_numpy(drawn)
        )
        assert logp.numpy() == pytest.approx(piece.strip.logp, abs=1e-5)


@pytest.fixture
def runner(tmp_path):
    """Makes runners of one policy with a memory, in this process."""
    changes = [
        "env.view=dict",
        "runner.envs=4",
        "model.path=null",
        "model.build={name: cnn_gru, width: 8, memory: 8}",
    ]
    config = Path(__file__).parents[2] / "configs" / "rooms" / "polychromic.yaml"
    cfg = load_config(config, [*changes, "env.configurations=5"])
    env = registry.build("env", cfg.env)
    folder = new_policy(cfg.model.build, env.make(), 0, tmp_path / "policy")
    made = []

    def make():
        one = Runner("runner", cfg, folder)
        one.start()
        for parameter in one._policy.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        made.append(one)
        return one

    yield make
    Alarm.uninstall()


def test_a_vine_goes_on_with_what_the_memory_held_at_its_rollout_state(runner):
    one = runner()
    jobs = [(task, Key(i)) for i, task in enumerate(list(one._tasks)[:2])]
    (_, _, told), strips = one.vines(jobs, 2, Branching(2, 3))
    at = 0
    for of_task in told:
        mine = strips[at : at + len(of_task)]
        at += len(of_task)
        vines = [(t, s) for t, s in zip(of_task, mine, strict=True) if t.root >= 0]
        assert len(vines) == 12
        for vine, strip in vines:
            root = mine[vine.root]
            assert strip.state.any()
            obs = as_tensors(root.obs, CPU)
            with torch.inference_mode():
                _, _, state = one._policy(
                    {n: x[None, : vine.point] for n, x in obs.items()},
                    torch.zeros(1, 8),
                    carry=True,
                )
            assert strip.state == pytest.approx(state[0].numpy(), abs=1e-5)
            for name, x in strip.obs.items():
                assert np.array_equal(x[0], root.obs[name][vine.point])
            assert strip.params[0] == pytest.approx(root.params[vine.point], abs=1e-5)


def test_blocks_that_take_turns_with_the_policy_do_the_same(runner):
    dealer = Dealer(Key(3))
    (_, _, told), strips, rests = runner().segments([0, 1, 2], None, 9, Key(1), dealer)
    beside = runner()
    beside._beside = ThreadPoolExecutor(1)
    (_, _, same), theirs, others = beside.segments([0, 1, 2], None, 9, Key(1), dealer)
    assert told == same
    assert [r.episodes for r in rests] == [r.episodes for r in others]
    for a, b in zip(strips, theirs, strict=True):
        for field in ("action", "params", "logp", "value", "reward", "state"):
            assert np.array_equal(getattr(a, field), getattr(b, field)), field


def test_what_a_runner_does_after_a_load_that_failed_halfway_is_not_of_the_version_before(runner):
    class Halfway:
        def deliver(self, engine, update, payload):
            engine.load([("policy_head.weight", torch.zeros(1))])
            raise OSError("the rest was lost")

    one = runner()
    one._transport = Halfway()
    with pytest.raises(OSError, match="the rest was lost"):
        one.load(WeightUpdate(3, 2, "full", ()), None)
    (_, version, _), _, _ = one.segments([0], None, 2, Key(1), Dealer(Key(3)))
    assert version == 3, "so it is learnt from only after 3 was proved, which it is not"


def test_the_share_that_failed_is_of_all_that_were_under_way():
    ended = Episode(0, 1.0, 3, "terminated", None, {}, "")
    failed = Episode(0, 0.0, 2, "error", None, {}, "the floor gave way")
    nothing = Task("t", "")

    def groups(*episodes):
        one = Trajectory("m", "t", "policy", "", 0, 3, (0, 0), False, RowRef("", 0))
        return [Group(nothing, tuple(replace(one, episode=e) for e in episodes))]

    assert error_share(groups(failed, *[None] * 7)) == 1 / 8
    assert error_share(groups(failed, ended)) == 1 / 2
    assert error_share([]) == 0
    assert acted(groups(failed, None, None, ended))["reward/errors"] == 1 / 4


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "model.safetensors").write_bytes(b"nothing"),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / "policy.json").write_text("{"),
        lambda f: (f / "policy.json").write_text("[]"),
    ],
)
def test_a_policy_that_is_damaged_is_named(tmp_path, harm):
    folder = new_policy({"name": "mlp"}, Walk(), 0, tmp_path / "policy")
    load_policy(folder, Walk())
    harm(folder)
    with pytest.raises(ConfigError, match=r"policy' is damaged .*copy or train it again"):
        load_policy(folder, Walk())


def test_environments_of_a_checkpoint_that_were_grouped_otherwise_are_refused():
    cfg = load_config(Path(__file__).parents[2] / "configs/cartpole.yaml", ["runner.blocks=4"])
    stage = Stage(cfg, SimpleNamespace(waits=SimpleNamespace(abandon=None)), Key(0))
    stage.put_back(3, [None] * 4)
    with pytest.raises(CheckpointError, match=r"in 2 parts, this run has 4: .*sampler\.gpus"):
        stage.put_back(3, [None] * 2)
