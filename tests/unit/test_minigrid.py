"""`env: minigrid`: starts, reward, observation, traces, missions, quiet levels, other rooms."""

import builtins

import gymnasium
import minigrid  # noqa: F401
import numpy as np
import pytest
import torch

from envs.minigrid.rooms import clear_directions, reachable
from envs.minigrid.view import quick
from envs.minigrid.words import WORDS, Vocabulary
from rlft import registry
from rlft.errors import ConfigError, DataError
from rlft.policy.networks import CNN
from rlft.policy.observed import parts_of
from rlft.sampling.snapshot import Course, restore, same, take
from rlft.sampling.spaces import check_spaces

RIGHT, FORWARD = 1, 2


def build(**keys):
    return registry.build("env", {"name": "minigrid", **keys})


def in_front_of_the_goal(env, seed=0):
    """Puts the agent one step from the goal, facing it."""
    env.reset(seed=seed)
    level = env.unwrapped
    [(x, y)] = [
        (x, y)
        for x in range(level.width)
        for y in range(level.height)
        if (cell := level.grid.get(x, y)) is not None and cell.type == "goal"
    ]
    for direction, (dx, dy) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
        if level.grid.get(x - dx, y - dy) is None:
            level.agent_pos, level.agent_dir = (x - dx, y - dy), direction
            return


# -- reward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [0, 1, 49, 99])
def test_a_success_after_t_of_h_actions_is_worth_1_less_half_of_t_over_h(turns):
    """P11: the clock of the penalty is the episode's, and its horizon H."""
    env = build().make()
    in_front_of_the_goal(env)
    env.unwrapped.step_count = turns
    _, reward, terminated, truncated, info = env.step(FORWARD)
    assert reward == pytest.approx(1 - 0.5 * (turns + 1) / 100)
    assert (terminated, truncated, info["success"]) == (True, False, True)


def test_an_episode_is_truncated_after_h_actions_and_worth_nothing():
    env = build(max_steps=5).make()
    env.reset(seed=1)
    steps = [env.step(RIGHT) for _ in range(5)]
    assert [s[1] for s in steps] == [0.0] * 5
    assert [s[3] for s in steps] == [False] * 4 + [True]
    assert steps[-1][4]["success"] is False
    assert all("success" not in s[4] for s in steps[:4])


def test_the_level_s_own_reward_can_be_kept():
    env = build(time_penalty=None).make()
    in_front_of_the_goal(env)
    assert env.step(FORWARD)[1] == pytest.approx(1 - 0.9 * 1 / 100)


def test_the_paper_s_reward_is_never_negative():
    env = build(id="MiniGrid-Dynamic-Obstacles-6x6-v0", actions=3).make()
    own = build(id="MiniGrid-Dynamic-Obstacles-6x6-v0", actions=3, time_penalty=None).make()
    least = {}
    for name, one in (("paper", env), ("own", own)):
        rewards = []
        for seed in range(15):
            one.reset(seed=seed)
            for action in np.random.default_rng(seed).integers(0, 3, 40):
                _, reward, terminated, truncated, _ = one.step(action)
                rewards.append(reward)
                if terminated or truncated:
                    break
        least[name] = min(rewards)
    assert least == {"paper": 0.0, "own": -1}


def test_babyai_keeps_the_horizon_that_it_is_given():
    env = build(id="BabyAI-GoToLocal-v0", max_steps=9).make()
    env.reset(seed=0)
    assert env.unwrapped.max_steps == 9
    own = build(id="BabyAI-GoToLocal-v0", max_steps=None).make()
    own.reset(seed=0)
    assert own.unwrapped.max_steps == 64


# -- observation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id", ["MiniGrid-FourRooms-v0", "BabyAI-GoToLocal-v0", "BabyAI-UnlockPickup-v0"]
)
@pytest.mark.parametrize("view", ["flat", "dict"])
def test_observations_are_the_level_s_own_and_lie_in_their_space(id, view):
    env = build(id=id, view=view).make()
    bare = gymnasium.make(id, disable_env_checker=True, max_steps=100).unwrapped
    check_spaces(env.observation_space, env.action_space, id)
    rng = np.random.default_rng(0)
    for seed in range(3):
        seen, raw = env.reset(seed=seed)[0], bare.reset(seed=seed)[0]
        for action in rng.integers(0, 7, 60):
            assert env.observation_space.contains(seen)
            image = seen if view == "flat" else seen["image"]
            assert np.array_equal(image.ravel(), raw["image"].ravel())
            if view == "dict":
                assert seen["direction"] == raw["direction"]
                words = Vocabulary(24).text(seen["mission"])
                assert words == raw["mission"].replace(",", "")
            seen, _, terminated, truncated, _ = env.step(action)
            raw, *_ = bare.step(action)
            if terminated or truncated:
                break


def test_the_traces_are_where_the_agent_is():
    env = build().make()
    _, info = env.reset(seed=4)
    for action in np.random.default_rng(4).integers(0, 3, 200):
        x, y = env.unwrapped.agent_pos
        assert info["position"].tolist() == [x, y]
        assert info["room"].tolist() == [x // 9, y // 9]
        assert info["position"].dtype == np.int32
        _, _, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            break
    assert {room for x in range(1, 18) for room in [env._room[x][5][0]]} == {0, 1}


def test_rooms_of_babyai_are_those_of_the_paper_or_of_the_walls():
    paper = build(id="BabyAI-GoTo-v0").make()
    walls = build(id="BabyAI-GoTo-v0", rooms="walls").make()
    assert [paper._room[x][1][0] for x in (7, 8, 15, 16)] == [0, 1, 1, 2]
    assert [walls._room[x][1][0] for x in (6, 7, 13, 14)] == [0, 1, 1, 2]
    one = build(id="MiniGrid-Empty-8x8-v0").make()
    assert {tuple(one._room[x][y]) for x in range(8) for y in range(8)} == {(0, 0)}


def test_fewer_actions():
    assert build(actions=3).make().action_space.n == 3


LEVELS = (
    "MiniGrid-FourRooms-v0",
    "MiniGrid-KeyCorridorS3R2-v0",
    "MiniGrid-Dynamic-Obstacles-6x6-v0",
    "MiniGrid-ObstructedMaze-1Dlhb-v0",
    "MiniGrid-Playground-v0",
    "BabyAI-BossLevel-v0",
    "BabyAI-UnlockToUnlock-v0",
)


@pytest.mark.parametrize("size, through", [(7, False), (7, True), (3, False)])
def test_the_fast_view_is_minigrid_s_number_for_number(size, through):
    rng = np.random.default_rng(size)
    for id in LEVELS:
        quickly, slowly = (gymnasium.make(id, disable_env_checker=True).unwrapped for _ in range(2))
        assert quick(quickly)
        for level in (quickly, slowly):
            level.see_through_walls, level.agent_view_size = through, size
        seen, expected = quickly.reset(seed=1)[0], slowly.reset(seed=1)[0]
        for _ in range(60):
            assert seen["image"].dtype == expected["image"].dtype
            assert np.array_equal(seen["image"], expected["image"]), id
            assert (seen["direction"], seen["mission"]) == (
                expected["direction"],
                expected["mission"],
            )
            action = int(rng.choice([0, 1, 2, 2, 3, 4, 5, 5]))
            if action >= slowly.action_space.n:
                action = 2
            seen, _, terminated, truncated, _ = quickly.step(action)
            expected, *_ = slowly.step(action)
            if terminated or truncated:
                break


@pytest.mark.parametrize("id", ["MiniGrid-FourRooms-v0", "BabyAI-GoTo-v0"])
def test_a_level_s_walls_are_one_object_that_a_snapshot_comes_back_to(id):
    shared, own = build(id=id).make(), build(id=id, fast_view=False).make()
    observation, info = shared.reset(seed=3)
    own.reset(seed=3)
    assert np.array_equal(shared.unwrapped.grid.encode(), own.unwrapped.grid.encode())

    def walls():
        cells = shared.unwrapped.grid.grid
        return {builtins.id(c) for c in cells if c is not None and c.type == "wall"}

    before = walls()
    assert len(before) == 1
    with pytest.raises(AttributeError, match=r"set env\.fast_view: false"):
        next(c for c in shared.unwrapped.grid.grid if c is not None).color = "red"
    course = Course(3, {}, (), observation, info)
    restore(shared, take(shared, course))
    assert walls() == before
    assert np.array_equal(shared.unwrapped.grid.encode(), own.unwrapped.grid.encode())


def test_a_level_with_an_observation_of_its_own_keeps_it():
    class Own(type(gymnasium.make("MiniGrid-Empty-5x5-v0").unwrapped)):
        def gen_obs(self):
            return {**super().gen_obs(), "direction": 3}

    level = Own(size=5)
    assert not quick(level)
    assert level.reset(seed=0)[0]["direction"] == 3
    assert not quick(gymnasium.make("MiniGrid-Empty-5x5-v0", agent_view_size=9).unwrapped)
    slow = build(fast_view=False).make().unwrapped
    assert type(slow).__module__.startswith("minigrid.")


# -- missions ------------------------------------------------------------------------------------


def test_words_are_numbers_that_never_change():
    assert len(set(WORDS)) == len(WORDS) == 54
    words = Vocabulary(6)
    assert words.ids("Go to the red ball").tolist() == [17, 47, 45, 40, 6, 0]
    assert words.text(words.ids("go to the red ball")) == "go to the red ball"
    assert words.size == 55
    assert Vocabulary(6, ("bench",)).ids("bench").tolist() == [55, 0, 0, 0, 0, 0]


def test_an_unknown_word_and_a_long_mission_say_what_to_do():
    with pytest.raises(DataError, match=r"env\.words=\[bench\]"):
        Vocabulary(6).ids("go to the bench")
    with pytest.raises(DataError, match="mission_length"):
        Vocabulary(3).ids("go to the red ball")


@pytest.mark.parametrize(
    "id", ["BabyAI-BossLevel-v0", "BabyAI-MoveTwoAcrossS5N2-v0", "MiniGrid-LockedRoom-v0"]
)
def test_the_longest_missions_fit(id):
    env = build(id=id, view="dict").make()
    for seed in range(5):
        env.reset(seed=seed)


def test_the_longest_chain_of_instructions_fits():
    place = "the yellow ball in front of you"
    act = f"put {place} next to {place}"
    chain = build(id="BabyAI-BossLevel-v0", view="dict").make()._vocabulary
    assert chain.ids(f"{act} and {act} after you {act} and {act}").all(), "exactly"
    single = build(id="BabyAI-GoTo-v0", view="dict").make()._vocabulary
    assert single.ids(act)[16] and not single.ids(act)[17]


def test_levels_are_drawn_without_a_word(capfd):
    env = build(id="BabyAI-PutNextLocal-v0", view="dict").make()
    for seed in range(30):
        env.reset(seed=seed)
    assert capfd.readouterr().out == ""


# -- starts --------------------------------------------------------------------------------------


def test_fixed_configurations_are_for_training_and_evaluation():
    env = build(configurations=50)
    train, held_out = env.train(), env.held_out()
    assert [t.info["seed"] for t in train] == [t.info["seed"] for t in held_out]
    assert len(train) == 50
    fresh = build()
    assert len(fresh.train()) == 1_000_000
    assert fresh.train()[0].info["seed"] >= 10**6 > fresh.held_out()[-1].info["seed"]


def test_a_start_that_comes_again_is_the_same_and_is_not_drawn_again():
    recipe = build(id="BabyAI-PickupLoc-v0", view="dict", configurations=4, seed=3)
    fresh = build(id="BabyAI-PickupLoc-v0", view="dict")
    env, other, plain = recipe.make(), recipe.make(), fresh.make()
    for _ in range(2):
        for one in (env, other):
            for task in recipe.train():
                start = task.info["seed"]
                assert same(one.reset(seed=start), plain.reset(seed=start))
                for action in np.random.default_rng(start).integers(0, 7, 15):
                    answer = one.step(action)
                    assert same(answer, plain.step(action))
                    if answer[2] or answer[3]:
                        break
                assert same(
                    one.unwrapped.np_random.bit_generator.state,
                    plain.unwrapped.np_random.bit_generator.state,
                )
    assert len(env._starts) == 4
    assert env._starts is other._starts
    assert plain._starts is None


@pytest.mark.parametrize("id", ["MiniGrid-FourRooms-v0", "BabyAI-GoTo-v0"])
def test_a_start_in_another_room_of_the_same_level(id):
    env = build(id=id, configurations=3, held_out_start="other_room", rooms="walls")
    one, other, plain = env.make(), env.make(), env.make()
    for task in env.held_out():
        seed, options = task.info["seed"], task.info["options"]
        seen, info = one.reset(seed=seed, options=options)
        again, same = other.reset(seed=seed, options=options)
        _, before = plain.reset(seed=seed)
        assert np.array_equal(seen, again)
        assert info["position"].tolist() == same["position"].tolist()
        assert info["room"].tolist() != before["room"].tolist()
        level = one.unwrapped
        x, y = level.agent_pos
        assert level.grid.get(x, y) is None
        assert level.agent_dir in clear_directions(level, x, y)
        assert (x, y) in reachable(plain.unwrapped)
        assert level.grid == plain.unwrapped.grid
        assert level.mission == plain.unwrapped.mission
        assert level.step_count == 0
        assert np.array_equal(seen, level.gen_obs()["image"].ravel())


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"id": "MiniGrid-FourRoom-v0"}, "FourRooms"),
        ({"id": "CartPole-v1"}, "name: gym"),
        ({"max_steps": 0}, "max_steps"),
        ({"actions": 8}, "from 1 to 7"),
        ({"time_penalty": 2}, "time_penalty"),
        ({"configurations": 0}, "configurations"),
        ({"view": "image"}, "flat"),
    ],
)
def test_wrong_keys(keys, said):
    with pytest.raises(ConfigError, match=said):
        build(**keys).make()


def test_options_that_no_level_knows_and_a_level_with_one_room():
    with pytest.raises(ConfigError, match="other_room"):
        build().make().reset(seed=0, options={"strat": 1})
    with pytest.raises(ConfigError, match="several rooms"):
        build(id="MiniGrid-Empty-8x8-v0").make().reset(seed=0, options={"start": "other_room"})


def test_a_mission_is_words_to_the_policy_and_their_order_matters():
    env = build(id="BabyAI-PutNextLocal-v0", view="dict").make()
    [part] = [p for p in parts_of(env.observation_space) if p.name == "mission"]
    assert part.kind == "words"
    torch.manual_seed(0)
    policy = CNN(channels=(4,), width=16)(env.observation_space, env.action_space)
    seen = {n: torch.as_tensor(np.asarray(x))[None] for n, x in env.reset(seed=0)[0].items()}
    words = Vocabulary(seen["mission"].shape[1])

    def said(mission):
        ids = torch.as_tensor(words.ids(mission))[None]
        return policy.policy_encoder.pieces["mission"](ids)

    there = said("put the red ball next to the blue box")
    assert not torch.allclose(there, said("put the blue box next to the red ball"))
    padded = policy.policy_encoder.pieces["mission"].word.weight[0]
    assert not padded.any(), "what is not said adds nothing"
    both = torch.cat([there, said("go to the key")])
    stacked = torch.stack(
        [
            torch.as_tensor(words.ids(m))
            for m in ("put the red ball next to the blue box", "go to the key")
        ]
    )
    torch.testing.assert_close(policy.policy_encoder.pieces["mission"](stacked), both)
