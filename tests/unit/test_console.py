"""What a person sees while a run goes on."""

import re

import pytest

from rlft.record import console as module
from rlft.record.console import Console


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock.now = 12.0`."""

    class Clock:
        now = 1_000.0

        def monotonic(self):
            return self.now

    moved = Clock()
    monkeypatch.setattr(module, "time", moved)
    return moved


def row(step, **changes):
    return {
        "step": step,
        "tokens/prompt": 100,
        "tokens/completion": 300,
        "time/step_s": 2.0,
        "time/rollout_s": 1.5,
        "time/learn_s": 0.25,
        "time/publish_s": 0.0,
        "reward/mean": 0.125,
        **changes,
    }


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_step_tells_reward_speed_and_phases(clock, capsys):
    Console(10).step(row(3))
    [line] = lines(capsys)
    for part in ("step 3/10", "reward 0.125", "200 tokens/s", "rollout 1.5 s", "learn 0.2 s"):
        assert part in line


def test_steps_of_demonstrations_have_a_speed(clock, capsys):
    numbers = {"tokens/prompt": 0.0, "tokens/completion": 0.0, "tokens/trained": 500.0}
    Console(10).step(row(3, **numbers))
    assert " 0 tokens/s" not in (line := lines(capsys)[0]) and " steps/s" in line


def test_without_rewards_there_is_no_reward_to_tell(clock, capsys):
    without = row(1)
    del without["reward/mean"]
    Console(2).step(without)
    assert "reward" not in lines(capsys)[0]


def test_fast_steps_share_a_line_and_the_last_is_always_told(clock, capsys):
    console = Console(100)
    for step in range(1, 101):
        clock.now += 0.1
        console.step(row(step))
    told = [int(re.match(r"step (\d+)/", line)[1]) for line in lines(capsys)]
    assert told[0] == 1 and told[-1] == 100
    assert len(told) <= 7


def test_slow_steps_get_a_line_each(clock, capsys):
    console = Console(5)
    for step in range(1, 6):
        clock.now += 30
        console.step(row(step))
    assert len(lines(capsys)) == 5


@pytest.mark.parametrize("first", [1, 51])
def test_the_time_left_is_measured_from_where_this_process_began(clock, capsys, first):
    console = Console(first + 20)
    for step in range(first, first + 11):
        console.step(row(step))
        clock.now += 9
    told = lines(capsys)
    assert "ETA" not in told[0], "one step says nothing about the next"
    assert told[-1].endswith("ETA 1:30"), "ten steps of nine seconds are left"


def test_what_is_said_is_printed_as_it_is(capsys):
    text = "[bold]x[/bold] :key: [/] ray: 'a:x:b' " + "long " * 60 + "end"
    Console(1).say(text)
    assert lines(capsys) == [text]


def test_outside_a_terminal_nothing_moves(capsys):
    console = Console(3)
    with console.live():
        console.phase("learn", 1)
        console.say("x")
    assert lines(capsys) == ["x"]


def test_in_a_terminal_the_phase_shows_and_is_gone_afterwards(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(3)
    console.phase("too early", 1)
    with console.live():
        console.phase("learn", 2)
        console._live.refresh()
    console.phase("too late", 3)
    shown = capsys.readouterr().out
    assert "step 2/3  learn" in shown
    assert "too early" not in shown and "too late" not in shown


def test_a_run_that_fails_leaves_no_live_line(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console(3)
    with pytest.raises(RuntimeError), console.live():
        raise RuntimeError
    assert console._live is None


def test_the_time_left_is_that_of_a_budget_which_ends_the_run_first(clock, capsys):
    console = Console(1000)
    for step in range(1, 6):
        console.step(row(step), spent=step / 10)
        clock.now += 9
    assert lines(capsys)[-1].endswith("ETA 0:45"), "five steps are left, not 995"
    console.step(row(10), spent=1.0)
    assert lines(capsys)[-1].endswith("ETA 0:00")
