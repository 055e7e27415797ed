"""Snapshots: exact, by copy and by replay, and refused where they cannot be (P9, P11)."""

import pickle
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlft import registry
from rlft.errors import ConfigError
from rlft.sampling.snapshot import Course, Snapshot, probe, restore, same, take

ENVS = {
    "four_rooms": {"name": "minigrid", "id": "MiniGrid-FourRooms-v0"},
    "four_rooms_elsewhere": {"name": "minigrid", "held_out_start": "other_room"},
    "goto": {"name": "minigrid", "id": "BabyAI-GoToLocal-v0", "view": "dict"},
    "pickup": {"name": "minigrid", "id": "BabyAI-PickupLoc-v0", "view": "dict"},
    "boss": {"name": "minigrid", "id": "BabyAI-MiniBossLevel-v0", "view": "dict"},
    "obstacles": {"name": "minigrid", "id": "MiniGrid-Dynamic-Obstacles-6x6-v0"},
    "cart_pole": {"name": "gym", "id": "CartPole-v1", "traces": ["cell"], "cell_size": 0.1},
    "slippery_lake": {"name": "gym", "id": "FrozenLake-v1", "observation": "flat"},
    "stacked": {
        "name": "gym",
        "id": "CartPole-v1",
        "max_steps": 60,
        "wrappers": [
            "RecordEpisodeStatistics",
            {"name": "FrameStackObservation", "stack_size": 3},
            {"name": "StickyAction", "repeat_action_probability": 0.3},
        ],
        "observation": "flat",
    },
}


def plug_in(name):
    return registry.build("env", ENVS[name])


def start(env, task):
    observation, info = env.reset(seed=task.info["seed"], options=task.info["options"] or None)
    return Course(task.info["seed"], task.info["options"], (), observation, info)


def played(env, course, actions):
    """The course after `actions`, which stop before the one that would end the episode."""
    for action in actions:
        observation, _, terminated, truncated, info = env.step(action)
        course = Course(
            course.seed,
            course.options,
            (*course.actions, action),
            observation,
            info,
            terminated or truncated,
        )
        if course.ended:
            break
    return course


def trajectory(env, actions):
    answers = []
    for action in actions:
        answer = env.step(action)
        answers.append(pickle.loads(pickle.dumps(answer)))
        if answer[2] or answer[3]:
            break
    return answers


def equal(one, other):
    """Without the one fact that is about the clock on the wall."""
    strip = [
        [(o, r, te, tr, {k: v for k, v in i.items() if k != "episode"}) for o, r, te, tr, i in t]
        for t in (one, other)
    ]
    return same(*strip)


def state_of(env):
    level = env.unwrapped
    facts = {"rng": level.np_random.bit_generator.state}
    for name in ("agent_pos", "agent_dir", "step_count", "mission", "state", "s"):
        if hasattr(level, name):
            value = getattr(level, name)
            facts[name] = [int(v) for v in value] if name == "agent_pos" else value
    if hasattr(level, "grid"):
        facts["grid"] = level.grid.encode()
        facts["carrying"] = level.carrying and level.carrying.encode()
    return pickle.loads(pickle.dumps(facts))


def midway(env, task, rng, longest=25):
    """A course of random actions that has not ended."""
    for length in (int(rng.integers(longest)), 2, 0):
        actions = [env.action_space.sample() for _ in range(length)]
        course = played(env, start(env, task), actions)
        if not course.ended:
            return course
    raise AssertionError("an episode of no action has ended")


@pytest.mark.parametrize("how", ["copy", "replay"])
@pytest.mark.parametrize("name", ENVS)
def test_a_restored_state_is_exact_and_the_seed_environment_untouched(name, how):
    """P9, with random courses: everything equal, the same actions lead to the same trajectory."""
    recipe = plug_in(name)
    env, vines = recipe.make(), recipe.make()
    tasks, rng = recipe.held_out(), np.random.default_rng(0)
    env.action_space.seed(0)
    for case in range(4):
        course = midway(env, tasks[case], rng)
        snapshot = take(env, course, how)
        before = state_of(env)
        actions = [env.action_space.sample() for _ in range(40)]
        first = None
        for _ in range(3):
            observation, info = restore(vines, pickle.loads(pickle.dumps(snapshot)))
            assert same(observation, course.observation)
            assert same(
                {k: v for k, v in info.items() if k != "episode"},
                {k: v for k, v in course.info.items() if k != "episode"},
            )
            assert same(state_of(vines), before)
            vine = trajectory(vines, actions)
            first = first or vine
            assert equal(vine, first)
        assert same(state_of(env), before), "the seed environment was touched"
        assert equal(trajectory(env, actions), first)


@pytest.mark.parametrize("how", ["copy", "replay"])
def test_the_horizon_goes_on_from_where_it_was(how):
    """P11: H - step_count actions are left, and the penalty counts from the episode's start."""
    recipe = registry.build("env", {"name": "minigrid", "max_steps": 30})
    env, vine = recipe.make(), recipe.make()
    course = played(env, start(env, recipe.held_out()[0]), [1] * 12)
    restore(vine, take(env, course, how))
    left = trajectory(vine, [1] * 40)
    assert len(left) == 18
    assert left[-1][3]

    restore(vine, take(env, course, how))
    level = vine.unwrapped
    level.put_obj(__import__("minigrid").core.world_object.Goal(), *level.front_pos)
    assert vine.step(2)[1] == pytest.approx(1 - 0.5 * 13 / 30)


def test_an_instruction_looks_at_the_level_that_it_was_restored_into():
    recipe = plug_in("goto")
    env, other = recipe.make(), recipe.make()
    course = start(env, recipe.held_out()[0])
    other.reset(seed=99)
    restore(other, take(env, course))
    assert other.unwrapped.instrs.env is other.unwrapped
    assert env.unwrapped.instrs.env is env.unwrapped


def test_a_snapshot_can_be_restored_into_an_environment_that_was_never_reset():
    recipe = plug_in("cart_pole")
    env = recipe.make()
    course = played(env, start(env, recipe.held_out()[0]), [0, 1, 1])
    fresh = recipe.make()
    restore(fresh, take(env, course))
    assert equal(trajectory(fresh, [1] * 5), trajectory(env, [1] * 5))


def test_what_a_snapshot_returns_can_be_changed_without_harm():
    recipe = plug_in("cart_pole")
    env = recipe.make()
    snapshot = take(env, start(env, recipe.held_out()[0]))
    observation, _ = restore(env, snapshot)
    observation[:] = 7
    assert not (restore(env, snapshot)[0] == 7).any()


def test_snapshots_of_a_level_are_small():
    recipe = plug_in("four_rooms")
    env = recipe.make()
    snapshot = take(env, start(env, recipe.held_out()[0]))
    assert len(snapshot.state) < 8000


# -- refusals ------------------------------------------------------------------------------------


class Unruly(gymnasium.Env):
    """An environment whose state is beyond pickling, beyond a seed, or beyond both."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)
    outside = 0

    def __init__(self, lock=False, chance=False, outside=False):
        self.lock = threading.Lock() if lock else None
        self.chance, self.outside_too = chance, outside
        self.at = 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0.0
        Unruly.outside = 0
        return np.array([self.at]), {}

    def step(self, action):
        self.at += float(action) + self.np_random.random()
        self.at += np.random.random() if self.chance else 0
        if self.outside_too:
            Unruly.outside += 1
            self.at += Unruly.outside
        return np.array([self.at]), 0.0, False, False, {}


def begun(env, actions=(1, 0, 1)):
    observation, info = env.reset(seed=0)
    return played(env, Course(0, None, (), observation, info), actions)


def test_an_episode_that_has_ended_has_no_snapshot():
    env = registry.build("env", {"name": "gym", "id": "CartPole-v1", "max_steps": 2}).make()
    course = begun(env, [0, 0])
    assert course.ended
    with pytest.raises(ConfigError, match="has ended after 2 actions"):
        take(env, course)


def test_a_state_that_cannot_be_pickled_names_the_attribute_and_replay():
    env = Unruly(lock=True)
    course = begun(env)
    with pytest.raises(ConfigError, match=r"Unruly\.lock, a lock.*snapshots: replay"):
        take(env, course)
    restore(env, take(env, course, "replay"))


def test_an_environment_that_a_seed_does_not_determine_names_copy():
    env = Unruly(chance=True)
    snapshot = take(env, begun(env), "replay")
    with pytest.raises(ConfigError, match=r"seed does not determine.*snapshots: copy"):
        restore(env, snapshot)


def test_an_environment_that_says_none_names_what_else_there_is():
    env = Unruly()
    with pytest.raises(ConfigError, match=r"`snapshots: none`.*algo\.rollout_states to 0"):
        take(env, begun(env), "none")


def test_an_episode_without_a_seed_is_not_replayed():
    env = Unruly()
    observation, info = env.reset()
    with pytest.raises(ConfigError, match="without a seed"):
        take(env, Course(None, None, (), observation, info), "replay")


def test_another_stack_is_refused():
    env = registry.build("env", ENVS["cart_pole"]).make()
    snapshot = take(env, begun(env))
    with pytest.raises(ConfigError, match="made in the same way"):
        restore(registry.build("env", ENVS["stacked"]).make(), snapshot)


def test_the_probe_finds_a_state_outside_the_object():
    with pytest.raises(ConfigError, match=r"answered differently.*snapshots: replay"):
        probe(Unruly(outside=True), "copy")
    probe(Unruly(outside=True), "replay")
    probe(Unruly(), "copy")


@pytest.mark.parametrize("name", ["four_rooms", "goto", "cart_pole", "slippery_lake"])
@pytest.mark.parametrize("how", ["copy", "replay"])
def test_the_probe_passes_the_environments_that_ship(name, how):
    probe(plug_in(name).make(), how)


def test_equality_is_of_type_shape_and_value():
    assert same({"a": np.array([1.0, np.nan])}, {"a": np.array([1.0, np.nan])})
    assert not same(np.zeros(2, np.float32), np.zeros(2))
    assert not same(np.zeros(2), np.zeros((2, 1)))
    assert not same({"a": 1}, {"b": 1})
    assert same((1, "x"), [1, "x"])
    assert not same("x", "y")
    assert Snapshot("copy", Course(0), ()) == Snapshot("copy", Course(0), ())
