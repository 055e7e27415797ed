"""`env: gym`: any environment of Gymnasium, and what is refused."""

import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from rlft import registry
from rlft.errors import ConfigError, PluginError
from rlft.sampling.spaces import check_action_space, check_observation_space, check_spaces


def gym(**keys):
    return registry.build("env", {"name": "gym", **keys})


class Odd(gymnasium.Env):
    """An environment of any spaces, for the checks."""

    def __init__(self, observation_space, action_space=None, start=0):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(2) if action_space is None else action_space
        self.observation = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.got = action
        return self.observation_space.sample(), 0.0, False, False, {}


def not_an_env():
    return 3


def odd(**keys):
    return Odd(spaces.Box(-1, 1, (3,)), spaces.Box(-2, 2, (1,)), **keys)


HERE = f"{__file__}:"


def test_an_environment_of_the_registry_is_made_with_its_limit():
    env = gym(id="CartPole-v1", max_steps=7).make()
    env.reset(seed=0)
    ends = [env.step(i % 2)[2:4] for i in range(7)]
    assert ends == [(False, False)] * 6 + [(False, True)]


def test_a_recipe_can_be_pickled_and_makes_equal_environments():
    recipe = gym(id="CartPole-v1", kwargs={"sutton_barto_reward": True})
    one, other = recipe.make(), pickle.loads(pickle.dumps(recipe)).make()
    assert np.array_equal(one.reset(seed=5)[0], other.reset(seed=5)[0])
    assert one.unwrapped._sutton_barto_reward


def test_starts_are_lazy_and_the_held_out_ones_apart():
    for seed in range(20):
        env = gym(id="CartPole-v1", seed=seed, held_out_size=500_000)
        train, held_out = env.train(), env.held_out()
        assert len(train) == 1_000_000
        assert train[0].info["seed"] > held_out[-1].info["seed"]
        assert train[-1].info["seed"] < 2**31
    assert train[3].info == {"seed": train[0].info["seed"] + 3, "options": {}}
    assert [t.id for t in train[:2]] == [train[0].id, train[1].id]
    with pytest.raises(IndexError):
        train[len(train)]


def test_wrappers_by_name_with_arguments_and_of_ones_own():
    env = gym(
        id="CartPole-v1",
        wrappers=[
            {"name": "FrameStackObservation", "stack_size": 4},
            "gymnasium.wrappers:FlattenObservation",
        ],
    ).make()
    assert env.observation_space.shape == (16,)
    assert env.reset(seed=0)[0].shape == (16,)


def test_observations_are_flattened_where_asked():
    env = gym(id="FrozenLake-v1", observation="flat").make()
    assert env.observation_space.shape == (16,)
    assert env.reset(seed=0)[0].sum() == 1


def test_a_class_of_ones_own_is_made_without_registration():
    env = gym(id=f"{HERE}odd", max_steps=3).make()
    env.reset(seed=0)
    assert [env.step(np.array([5.0], np.float32))[3] for _ in range(3)] == [False, False, True]
    assert env.unwrapped.got == [2.0], "a Box action is clipped to its bounds"
    assert env.action_space.high == np.inf
    plain = gym(id=f"{HERE}odd", clip_actions=False).make()
    assert plain.action_space.high == 2


def test_whole_numbers_and_cells_are_recorded_as_states():
    lake = gym(id="FrozenLake-v1", kwargs={"is_slippery": False}, traces=["cell"]).make()
    assert lake.reset(seed=0)[1]["cell"].tolist() == [0]
    assert lake.step(1)[4]["cell"].tolist() == [4]
    pole = gym(id="CartPole-v1", traces=["cell"], cell_size=0.5).make()
    observation, info = pole.reset(seed=0)
    assert info["cell"].tolist() == np.floor(observation / 0.5).astype(int).tolist()
    assert "cell" not in gym(id="CartPole-v1").make().reset(seed=0)[1]


def without_its_map():
    return {}["level1"]


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"id": "CartPol-v1"}, "CartPole"),
        ({"id": "CartPole-v1", "kwargs": {"gravity": 3}}, "gravity"),
        ({"id": "CartPole-v1", "wrappers": ["FrameStackObservatio"]}, "Did you mean"),
        ({"id": "CartPole-v1", "wrappers": [{"name": "FrameStackObservation"}]}, "stack_size"),
        (
            {"id": "CartPole-v1", "wrappers": ["NormalizeReward"]},
            "normalise_returns.*algo.reward_clip",
        ),
        (
            {"id": "CartPole-v1", "wrappers": ["NormalizeObservation", "FlattenObservation"]},
            "NormalizeObservation keeps running numbers.*normalise: true",
        ),
        ({"id": "Blackjack-v1"}, "observation: flat"),
        ({"id": f"{HERE}not_an_env"}, "expected a gymnasium.Env"),
        ({"id": f"{HERE}without_its_map"}, r"KeyError: 'level1'.*test_gym_env\.py, line"),
        ({"id": "my_envs.py"}, r"expected file\.py:Class"),
        ({"id": "CartPole-v1", "max_steps": 0}, "at least 1"),
        ({"id": "CartPole-v1", "traces": ["cell"], "cell_size": 0}, "above 0"),
        ({"id": "CartPole-v1", "cell_size": 1}, "needs `traces"),
        ({"id": "CartPole-v1", "traces": ["cell"]}, "needs cell_size"),
        ({"id": "CartPole-v1", "observation": "plain"}, "as_is"),
        ({"id": "CartPole-v1", "train_size": 0}, "train_size"),
        ({"id": "CartPole-v1", "held_out_size": 0}, "held_out_size"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_way_out(keys, said):
    with pytest.raises(ConfigError, match=said):
        gym(**keys).make()


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(PluginError, match=r"nowhere\.py"):
        gym(id="nowhere.py:Env").make()


def test_a_tuple_is_playable_when_flat():
    assert gym(id="Blackjack-v1", observation="flat").make().reset(seed=0)[0].ndim == 1


BOX = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    "space, said",
    [
        (spaces.Text(5), "text into numbers"),
        (spaces.Tuple([BOX]), "observation: flat"),
        (spaces.Dict({"a": BOX, "b": spaces.Dict({"c": BOX})}), "observation 'b'"),
        (spaces.Dict({"a": spaces.Text(3)}), "observation 'a'"),
        (spaces.Sequence(BOX), "array of it"),
        (spaces.Box(-1, 1, ()), "1 to 3 axes"),
        (spaces.Box(-1, 1, (1, 2, 3, 4)), "1 to 3 axes"),
        (spaces.Discrete(3, start=1), "counts from"),
        (spaces.Dict({}), "empty Dict"),
    ],
)
def test_observation_spaces_that_are_refused(space, said):
    with pytest.raises(ConfigError, match=said):
        check_observation_space(space, "env x")


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiBinary(3),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(0, 9, (2,), np.uint8),
        spaces.MultiDiscrete([[2, 2], [2, 2]]),
        spaces.Discrete(3, start=-1),
    ],
)
def test_action_spaces_that_are_refused(space):
    with pytest.raises(ConfigError, match=r"expected .*wrapper"):
        check_action_space(space, "env x")


def test_spaces_that_fit():
    image = spaces.Box(0, 255, (7, 7, 3), np.uint8)
    observations = [
        *(BOX, image, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)),
        spaces.Dict({"image": image, "direction": spaces.Discrete(4)}),
    ]
    for space in observations:
        for actions in (spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2,))):
            check_spaces(space, actions, "env x")
