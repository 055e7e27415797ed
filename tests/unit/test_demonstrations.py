"""Demonstrations: written, read and refused; the experts against a slow search."""

import json
import sys
import types

import numpy as np
import pytest
from gymnasium import spaces

from envs.minigrid import MiniGrid
from envs.minigrid.demonstrations import demonstrate, demonstrations, main
from envs.minigrid.experts import ShortestPath
from envs.minigrid.words import Vocabulary
from rlft.demonstrations import Demonstration, read, write
from rlft.errors import ConfigError, DataError

BOX, TWO = spaces.Box(0, 9, (3,), np.uint8), spaces.Discrete(2)
PAIR = spaces.Dict({"image": BOX, "direction": spaces.Discrete(4)})


def flat(length, seed=None, **fields):
    rng = np.random.default_rng(length)
    seen = rng.integers(0, 10, (length, 3)).astype(np.uint8)
    return Demonstration(
        seen, rng.integers(0, 2, length), rng.random(length, np.float32), seed, **fields
    )


def equal(one, other):
    assert (one.seed, one.terminated) == (other.seed, other.terminated)
    assert np.array_equal(one.actions, other.actions)
    assert np.array_equal(one.rewards, other.rewards)
    a, b = one.observations, other.observations
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    else:
        assert np.array_equal(a, b) and a.dtype == b.dtype


# -- files ---------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    made = [flat(4, 7), flat(1, terminated=False), flat(9, 2**31 - 1)]
    write(tmp_path / "in/demos.npz", made)
    for one, other in zip(made, read(tmp_path / "in/demos.npz", BOX, TWO), strict=True):
        equal(one, other)


def test_observations_of_several_entries(tmp_path):
    made = [
        Demonstration(
            {"image": flat(n).observations, "direction": np.arange(n) % 4},
            flat(n).actions,
            flat(n).rewards,
        )
        for n in (3, 5)
    ]
    write(tmp_path / "d.npz", made)
    for one, other in zip(made, read(tmp_path / "d.npz", PAIR, TWO), strict=True):
        equal(one, other)


def test_lines_of_json(tmp_path):
    path = tmp_path / "d.jsonl"
    whole = {
        "observations": {"image": [[1, 2, 3], [4, 5, 6]], "direction": [0, 3]},
        "actions": [0, 1],
        "rewards": [0, 0.5],
        "seed": 3,
        "terminated": False,
    }
    short = {"observations": {"image": [[1, 2, 3]], "direction": [0]}, "actions": [1]}
    path.write_text(json.dumps(whole) + "\n\n" + json.dumps(short) + "\n")
    one, other = read(path, PAIR, TWO)
    assert one.observations["image"].dtype == np.uint8
    assert (one.seed, one.terminated, one.rewards.tolist()) == (3, False, [0, 0.5])
    assert (other.seed, other.terminated, other.rewards.tolist()) == (None, True, [0])


def test_actions_of_every_kind(tmp_path):
    for space in (spaces.MultiDiscrete([2, 5]), spaces.Box(-1, 1, (2,), np.float32)):
        actions = np.array([[0, 1], [1, 0]])
        write(tmp_path / "a.npz", [Demonstration(flat(2).observations, actions, np.zeros(2))])
        [found] = read(tmp_path / "a.npz", BOX, space)
        assert found.actions.dtype == space.dtype
        assert found.actions.tolist() == actions.tolist()


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no episode"),
        ("\n \n", "has no episode"),
        ("{", "line 1 is not JSON"),
        ("[1]", "is a list"),
        ('{"actions": [1]}', "has no 'observations'"),
        ('{"observations": [[1,2,3]]}', "has no 'actions'"),
        ('{"observations": [], "actions": []}', "at least one"),
        ('{"observations": [[1,2,3]], "actions": [2]}', "from 2 to 2, outside"),
        ('{"observations": [[1,2,3]], "actions": [0.5]}', "fractions"),
        ('{"observations": [[1,2,10]], "actions": [0]}', "outside"),
        ('{"observations": [[1,2]], "actions": [0]}', r"expected numbers of shape \[T, 3\]"),
        ('{"observations": [[1,2],[1]], "actions": [0,1]}', "no array"),
        ('{"observations": [["a","b","c"]], "actions": [0]}', "expected numbers"),
        ('{"observations": [[1,2,3]], "actions": [0,1]}', "one observation before each action"),
        (
            '{"observations": [[1,2,3]], "actions": [0], "rewards": [1,2]}',
            "1 observations|2 rewards",
        ),
        ('{"observations": {"image": [[1,2,3]]}, "actions": [0]}', "expected numbers"),
        (
            '{"observations": [[1,2,3]], "actions": [0], "rewards": [NaN]}',
            "expected one finite number a step",
        ),
        (
            '{"observations": [[1,2,3]], "actions": [0], "rewards": ["much"]}',
            "expected one number a step",
        ),
        (
            '{"observations": [[1,2,3]], "actions": [0], "rewards": 1}',
            "expected one finite number a step",
        ),
        (
            '{"observations": [[1,2,3]], "actions": [0], "seed": "seven"}',
            "seed is 'seven', expected a whole number",
        ),
        ('{"observations": [[1,2,Infinity]], "actions": [0]}', "hold inf, expected finite"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, said):
    path = tmp_path / "d.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read(path, BOX, TWO)


def test_the_entries_must_be_the_environment_s(tmp_path):
    write(tmp_path / "d.npz", [flat(2)])
    with pytest.raises(DataError, match="other keys of the environment"):
        read(tmp_path / "d.npz", PAIR, TWO)
    with pytest.raises(DataError, match="shape"):
        read(tmp_path / "d.npz", spaces.Box(0, 9, (7, 7, 3)), TWO)


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "d.npz"
    with pytest.raises(DataError, match="not a file"):
        read(path, BOX, TWO)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="damaged or no"):
        read(path, BOX, TWO)
    write(path, [flat(50)])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match="damaged or no"):
        read(path, BOX, TWO)
    np.savez(path, actions=np.zeros(3))
    with pytest.raises(DataError, match=r"no array lengths"):
        read(path, BOX, TWO)
    np.savez(
        path,
        lengths=[3],
        seeds=[1],
        terminated=[True],
        actions=np.zeros(2, int),
        rewards=np.zeros(3),
        observation=np.zeros((3, 3)),
    )
    with pytest.raises(DataError, match="actions has 2 rows, the episodes have 3 steps"):
        read(path, BOX, TWO)
    with pytest.raises(DataError, match=r"\.npz or \.jsonl"):
        read(tmp_path / "d.csv", BOX, TWO)


def test_no_file_of_pickles_is_opened(tmp_path):
    np.savez(tmp_path / "d.npz", lengths=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "d.npz", BOX, TWO)


def test_nothing_is_not_written(tmp_path):
    with pytest.raises(DataError, match="no demonstration"):
        write(tmp_path / "d.npz", [])
    with pytest.raises(DataError, match=r"as \.npz"):
        write(tmp_path / "d.json", [flat(1)])


def test_minari_without_the_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DataError, match="pip install minari"):
        read("minari:D4RL/minigrid/fourrooms-v0", BOX, TWO)


def test_minari_with_an_observation_to_adapt(monkeypatch):
    """A stand-in with the interface of the package, which is not part of the installation."""
    words = Vocabulary(3)
    episode = types.SimpleNamespace(
        observations={"image": np.arange(9).reshape(3, 3), "mission": ["reach the goal"] * 3},
        actions=np.array([0, 1]),
        rewards=np.array([0.0, 1.0]),
        terminations=np.array([False, True]),
    )
    fake = types.ModuleType("minari")
    fake.load_dataset = lambda name: types.SimpleNamespace(iterate_episodes=lambda: [episode])
    monkeypatch.setitem(sys.modules, "minari", fake)
    space = spaces.Dict({"image": BOX, "mission": spaces.Box(0, words.size, (3,), np.int32)})
    [found] = read(
        "minari:x", space, TWO, lambda o: {"image": o["image"], "mission": words.ids(o["mission"])}
    )
    assert found.observations["image"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert words.text(found.observations["mission"][1]) == "reach the goal"
    assert len(found) == 2


# -- experts -------------------------------------------------------------------------------------


def slow_distance(env):
    """Actions to the goal by trying all of them in copies of the level: no knowledge of its grid."""
    from rlft.sampling.snapshot import Course, restore, take

    level = env.unwrapped
    course = Course(0)
    line, seen, depth = [take(env, course)], set(), 0
    while line:
        after = []
        for snapshot in line:
            for action in (0, 1, 2):
                restore(env, snapshot)
                _, _, terminated, _, info = env.step(action)
                if terminated and info["success"]:
                    return depth + 1
                state = (*map(int, level.agent_pos), level.agent_dir)
                if not terminated and state not in seen:
                    seen.add(state)
                    after.append(take(env, course))
        line, depth = after, depth + 1
    raise AssertionError("no way")


def test_the_shortest_path_is_the_shortest():
    env = MiniGrid(id="MiniGrid-SimpleCrossingS9N1-v0").make()
    for seed in range(2):
        env.reset(seed=seed)
        distance = ShortestPath(env.unwrapped).distance
        expected = slow_distance(env)
        assert distance == expected == len(demonstrate(env, seed, 0.0, np.random.default_rng(0)))


def test_lava_is_walked_around():
    env = MiniGrid(id="MiniGrid-LavaGapS6-v0").make()
    for seed in range(5):
        found = demonstrate(env, seed, 0.0, np.random.default_rng(0))
        assert found.rewards[-1] > 0


@pytest.mark.parametrize(
    "keys",
    [
        {"id": "MiniGrid-FourRooms-v0"},
        {"id": "BabyAI-GoToLocal-v0", "view": "dict"},
        {"id": "BabyAI-PickupLoc-v0", "view": "dict"},
    ],
)
def test_experts_succeed_and_noise_makes_them_slower(keys, tmp_path):
    recipe = MiniGrid(**keys)
    made, left_out = demonstrations(recipe, 10)
    again, _ = demonstrations(recipe, 10)
    noisy, _ = demonstrations(recipe, 10, noise=0.4)
    assert left_out == 0
    assert all(d.terminated and d.rewards[-1] > 0 for d in made)
    for one, other in zip(made, again, strict=True):
        equal(one, other)
    assert sum(map(len, noisy)) > sum(map(len, made))
    env = recipe.make()
    write(tmp_path / "d.npz", made)
    found = read(tmp_path / "d.npz", env.observation_space, env.action_space)
    for demo in found:  # playing its actions again leads through its observations
        seen, _ = env.reset(seed=demo.seed)
        for t, action in enumerate(demo.actions):
            recorded = demo.observations
            image = recorded["image"][t] if isinstance(recorded, dict) else recorded[t]
            assert np.array_equal(image, seen["image"] if isinstance(seen, dict) else seen)
            seen, *_ = env.step(action)


def test_few_configurations_are_used_again():
    made, _ = demonstrations(MiniGrid(configurations=2), 4)
    assert made[0].seed == made[2].seed != made[1].seed == made[3].seed


def test_an_expert_that_never_arrives_is_not_waited_for():
    with pytest.raises(ConfigError, match=r"0 of 100 attempts.*raise max_steps"):
        demonstrations(MiniGrid(max_steps=1), 5)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "d.npz"
    assert main([str(out), "max_steps=60", "--episodes", "3", "--noise", "0.1"]) == 0
    assert "3 episodes" in capsys.readouterr().out
    env = MiniGrid(max_steps=60).make()
    assert len(read(out, env.observation_space, env.action_space)) == 3


@pytest.mark.parametrize(
    "argv, said",
    [
        (["d.txt"], "as .npz"),
        (["d.npz", "id=MiniGrid-DoorKey-5x5-v0"], "no goal can be reached"),
        (["d.npz", "max_step=3"], "Did you mean 'max_steps'"),
        (["d.npz", "maxsteps"], "key=value"),
        (["d.npz", "--noise", "2"], "--noise from 0 to 1"),
        (["d.npz", "actions=2"], "raise actions"),
    ],
)
def test_the_command_refuses(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
