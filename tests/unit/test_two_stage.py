"""The level of two rooms: what each cell is worth, and that every one can be solved."""

import numpy as np
import pytest

from envs.minigrid.demonstrations import demonstrate
from envs.two_stage import TwoStage

LEFT, RIGHT, FORWARD = 0, 1, 2


def at(env, place, facing):
    env.unwrapped.agent_pos, env.unwrapped.agent_dir = place, facing


def cells(env, kind):
    level = env.unwrapped
    return [
        (x, y)
        for x in range(level.width)
        for y in range(level.height)
        if getattr(level.grid.get(x, y), "type", "") == kind
    ]


def test_the_green_square_of_the_first_room_is_a_trap_and_that_of_the_second_the_goal():
    env = TwoStage().make()
    env.reset(seed=3)
    level = env.unwrapped
    trap, goal = cells(env, "goal")
    assert trap[0] <= 5 < goal[0]
    side, facing = (-1, 0) if trap[0] > 1 else (1, 2)
    at(env, (trap[0] + side, trap[1]), facing)
    _, reward, terminated, truncated, info = env.step(FORWARD)
    assert (reward, terminated, truncated) == (0, True, False)
    assert not info["success"]
    env.reset(seed=3)
    at(env, (5, level.gap), 0)
    told = [env.step(FORWARD) for _ in range(2)]
    assert [t[1] for t in told] == pytest.approx([0.02, 0.32])
    assert [int(t[4]["stage"][0]) for t in told] == [0, 1]
    assert level.grid.get(6, level.gap).type == "wall", "it closes behind the agent"
    x, y = goal
    side = next(
        (dx, facing)
        for dx, facing in ((-1, 0), (1, 2))
        if 7 <= x + dx <= 11 and level.grid.get(x + dx, y) is None
    )
    at(env, (x + side[0], y), side[1])
    _, reward, terminated, _, info = env.step(FORWARD)
    assert terminated
    assert info["success"]
    assert reward == pytest.approx(0.7 * (1 - 0.5 * 3 / 60))
    assert int(info["stage"][0]) == 2


def test_every_far_start_is_solved_by_the_shortest_path_and_close_starts_reach_the_opening():
    recipe = TwoStage(start="far")
    env, rng = recipe.make(), np.random.default_rng(0)
    for task in recipe.train()[:60]:
        found = demonstrate(env, task.info["seed"], 0.0, rng)
        assert found is not None
        assert found.rewards[-1] > 0.4
        assert found.rewards[:-1].sum() == 0
    close = TwoStage().make()
    for task in TwoStage().train()[:60]:
        close.reset(seed=task.info["seed"])
        assert close.unwrapped.stage == 0
        assert int(close.unwrapped.agent_pos[0]) <= 5
        assert len(cells(close, "lava")) == 3


def test_the_way_out_is_as_long_as_a_search_says_and_pays_by_the_action():
    env, rng = TwoStage().make(), np.random.default_rng(0)
    for task in TwoStage().train()[:20]:
        env.reset(seed=task.info["seed"])
        level, whole = env.unwrapped, 0.0
        first = level.left[level._state()]
        assert first < 30
        for _ in range(25):
            here = level.left[level._state()]
            _, reward, terminated, _, _ = env.step(int(rng.integers(3)))
            if terminated or level.stage:
                break
            whole += reward
            now = level.left[level._state()]
            assert abs(now - here) <= 3, "a step back, and a turn before and after"
            assert whole == pytest.approx(0.02 * (first - now))


def test_the_rooms_differ_in_the_colour_of_their_walls_and_far_looks_the_same_however_it_was_reached():
    def colours(seen):
        view = seen.reshape(7, 7, 3)
        return set(view[..., 1][view[..., 0] == 2].tolist())  # 2: MiniGrid's number of a wall

    blue, grey = 2, 5
    close, far = TwoStage().make(), TwoStage(start="far").make()
    for seed in range(20):
        assert colours(close.reset(seed=seed)[0]) <= {blue, grey}, "grey: FAR, through the opening"
        assert blue in colours(close.reset(seed=seed)[0])
        assert colours(far.reset(seed=seed)[0]) == {grey}
        level = close.unwrapped
        at(close, (6, level.gap), 0)
        seen, *_ = close.step(FORWARD)
        assert colours(seen) == {grey}
        at(close, (7, level.gap), 2)
        seen, *_ = close.step(LEFT)
        assert colours(seen) == {grey}, "the wall that closed behind the agent too"
