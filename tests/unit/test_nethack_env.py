"""NetHack: seeds, limits, facts, snapshots by replay, screens."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from envs.nethack import TASKS, NetHack
from envs.nethack.play import main as play
from envs.nethack.screen import ansi, text, write_cast
from rlft import registry
from rlft.errors import ConfigError
from rlft.sampling.guarded import Guarded, Running
from rlft.sampling.snapshot import same

SEARCH = 75
DATA = Path(__file__).parents[1] / "data/nethack"


def keys(env):
    return {int(key): place for place, key in enumerate(env.unwrapped.actions)}


def wandering(env, steps, seed=0):
    """Moves and searches, at random."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        answer = env.step(rng.integers(8))
        yield answer
        if answer[2] or answer[3]:
            return


def test_a_seed_is_a_game_at_every_reset_and_other_seeds_are_others():
    one, other = NetHack().make(), NetHack().make()
    first = one.reset(seed=7)[0]["tty_chars"].copy()
    seen = [pickle.dumps(a) for a in wandering(one, 300)]
    assert not np.array_equal(one.reset(seed=8)[0]["tty_chars"], first)
    assert np.array_equal(one.reset(seed=7)[0]["tty_chars"], first), "a second reset is seeded too"
    other.reset(seed=7)
    assert [pickle.dumps(a) for a in wandering(other, 300)] == seen


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_nle_is_there(task):
    env = NetHack(task=task).make()
    seen, info = env.reset(seed=3)
    assert env.observation_space.contains(seen)
    assert info == {}
    assert env.action_space.n == 121
    assert type(env.unwrapped).__name__ == TASKS[task]
    assert sum(1 for _ in wandering(env, 50)) == 50


def test_the_default_is_a_human_monk_and_challenge_is_anyone():
    monk = NetHack().make()
    monk.reset(seed=0)
    assert "Agent the Candidate" in monk.text()
    anyone = NetHack(task="challenge").make()
    ranks = set()
    for seed in range(6):
        anyone.reset(seed=seed)
        ranks.add(anyone.text().splitlines()[22].split("  ")[0])
    assert len(ranks) > 2


def test_a_limit_truncates_and_keeps_the_last_observation():
    env = NetHack(max_steps=5).make()
    env.reset(seed=1)
    *_, (seen, _, terminated, truncated, info) = wandering(env, 10)
    assert (terminated, truncated) == (False, True)
    assert seen["blstats"][20] > 0, "NLE itself would have quit the game and emptied the numbers"
    assert info["facts"]["death"] == "alive"
    idle = NetHack(no_progress=4).make()
    idle.reset(seed=1)
    found = [idle.step(keys(idle)[27])[3] for _ in range(4)]  # escape takes no turn
    assert found == [False, False, False, True]


def test_the_end_of_a_game_is_told():
    env = NetHack(max_steps=500).make()
    env.reset(seed=1)
    list(wandering(env, 100))
    press = keys(env)
    score = env._score
    for key in (27, 27, 128 | ord("q"), ord("y")):
        answer = env.step(press[key])
    while not (answer[2] or answer[3]):
        answer = env.step(press[13])
    facts = answer[4]["facts"]
    assert answer[2] and facts["death"] == "quit"
    assert facts["turns"] > 5 and facts["depth"] == 1 and facts["sokoban"] == 0
    assert facts["score"] == score


def test_a_task_that_is_fulfilled_is_a_success(monkeypatch):
    env = NetHack(task="staircase").make()
    env.reset(seed=1)
    monkeypatch.setattr(env.unwrapped, "_is_episode_end", lambda seen: 2)
    _, reward, terminated, truncated, info = env.step(SEARCH)
    assert reward == pytest.approx(1, abs=0.02) and terminated and not truncated
    assert info["success"] is True and info["facts"]["death"] == "won"


def test_a_point_in_a_game_is_returned_to_in_another_process_s_environment():
    def guarded():
        return Guarded(NetHack().make, (), 60, "replay")

    env = guarded()
    env.begin(Running(11))
    env.reset()
    list(wandering(env, 120))
    point = pickle.loads(pickle.dumps(env.point()))
    after = [pickle.dumps(a) for a in wandering(env, 60, seed=1)]
    again = guarded()
    again.begin(point)
    seen, _ = again.reset()
    assert same(seen, point.snapshot.course.observation)
    assert [pickle.dumps(a) for a in wandering(again, 60, seed=1)] == after
    assert again.running.length == env.running.length
    assert again.running.ret == env.running.ret
    assert list(again.running.actions) == list(env.running.actions)


def test_screens_are_text_colours_and_a_recording(tmp_path):
    env = NetHack().make()
    env.reset(seed=2)
    seen = next(wandering(env, 1))[0]
    shown = text(seen["tty_chars"])
    assert len(shown.splitlines()) == 24
    assert "@" in shown and "Dlvl:1" in shown
    coloured = ansi(seen["tty_chars"], seen["tty_colors"])
    assert "\033[" in coloured
    plain = "".join(p.partition("m")[2] for p in ("m" + coloured).split("\033["))
    assert [line.rstrip() for line in plain.splitlines()] == shown.splitlines()
    screens = [(a[0]["tty_chars"].copy(), a[0]["tty_colors"].copy()) for a in wandering(env, 20)]
    assert write_cast(tmp_path / "a.cast", screens, rate=10) == 20
    head, *events = [json.loads(x) for x in (tmp_path / "a.cast").read_text().splitlines()]
    assert (head["version"], head["width"], head["height"]) == (2, 80, 24)
    assert events[0][0] == 0 and all(e[1] == "o" for e in events)
    assert all(len(e[2]) < len(events[0][2]) for e in events[1:])


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"task": "chess"}, "task"),
        ({"traces": ["gold"]}, "no trace 'gold'.*dungeon"),
        ({"character": "monk"}, "character='monk'.*mon-hum-neu-mal"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"snapshots": "copy"}, "snapshots"),
    ],
)
def test_what_nethack_does_not_have_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        registry.build("env", {"name": "nethack", **wrong})


@pytest.mark.parametrize("task", ["score", "staircase", "gold", "eat", "scout"])
def test_rewards_are_those_of_nle(task):
    """A game stepped by NLE itself, with the same actions."""
    from nle import nethack
    from nle.env import tasks

    theirs = getattr(tasks, TASKS[task])(
        actions=nethack.ACTIONS,
        allow_all_yn_questions=True,
        allow_all_modes=True,
        fix_moon_phase=True,
        max_episode_steps=10**6,
        **({"penalty_step": 0.0} if task == "score" else {}),
    )
    ours = NetHack(task=task).make()
    rng, paid = np.random.default_rng(0), 0
    for seed in (4, 9):
        theirs.seed(seed, seed, reseed=False)
        theirs.reset()
        ours.reset(seed=seed)
        for _ in range(600):
            action = rng.choice([*range(16), 75, 49, 60])
            seen, reward, done, _, _ = theirs.step(action)
            mine = ours.step(action)
            assert np.array_equal(mine[0]["tty_chars"], seen["tty_chars"])
            assert mine[1:3] == (reward, done)
            paid += reward != 0
            if done:
                break
    assert paid or task in (
        "score",
        "gold",
    )  # which recorded games have (test_nethack_recordings.py)


def test_a_game_is_watched(tmp_path, capsys):
    assert play(["--steps", "30", "--seed", "5", "--cast", str(tmp_path / "a.cast")]) == 0
    said = capsys.readouterr().out
    assert "Agent the Candidate" in said and "steps 30  score" in said and "31 screens" in said
    assert play(["--recording", str(DATA), "--game", "early/1025", "--steps", "200"]) == 0
    assert "game early/1025  steps 200" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["score"], "expected key=value"),
        (["--recording", str(DATA), "--game", "x"], "has no game 'x'; it has early/1025"),
        (["--policy", "nowhere"], "holds no policy of an environment"),
    ],
)
def test_what_cannot_be_watched_is_told(wrong, said, capsys):
    assert play(wrong) == 2
    assert said in capsys.readouterr().err
