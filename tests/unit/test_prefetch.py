"""Collecting ahead: the bound, the order, errors, and ending early."""

import asyncio
import threading
import time

import pytest

from rlft.lanes import Lanes
from rlft.prefetch import prefetch
from rlft.sampling.desk import Desk


class Slow:
    """Collects, and remembers which tickets were begun."""

    def __init__(self, fails_at=None):
        self.begun, self.fails_at = [], fails_at

    async def __call__(self, ticket):
        self.begun.append(ticket)
        if ticket == self.fails_at:
            raise ArithmeticError("at three")
        return ticket * 10


def settled(collect, count):
    """Waits until `count` tickets were begun, and a little for one too many."""
    end = time.monotonic() + 5
    while len(collect.begun) < count and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.05)
    return len(collect.begun)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_tickets_come_in_order_and_never_more_than_the_bound_ahead(ahead):
    collect, got = Slow(), []
    with prefetch(iter(range(8)), collect, ahead=ahead) as results:
        for ticket, result in results:
            # `ticket` is being learnt from: those up to `ahead` beyond it may have begun.
            expected = min(8, ticket + ahead + 1)
            assert settled(collect, expected) == expected
            got.append((ticket, result))
    assert got == [(i, 10 * i) for i in range(8)]


def test_how_long_collecting_stood_still_at_the_bound_is_told():
    waits, collect = [], Slow()
    with prefetch(iter(range(4)), collect, ahead=1, waited=waits.append) as results:
        for ticket, _ in results:
            time.sleep(0.3 if ticket < 2 else 0)
    assert max(waits[:2]) < min(waits[2:4]), "two may be begun at once, then one for each finished"
    assert min(waits[2:4]) > 0.1


class Gated:
    """Collects, but awaits the gate of its ticket; remembers what was begun and ended."""

    def __init__(self, tickets):
        self.log, self.gates = [], [threading.Event() for _ in range(tickets)]

    async def __call__(self, ticket):
        self.log.append(f"+{ticket}")
        await asyncio.to_thread(self.gates[ticket].wait, 5)
        self.log.append(f"-{ticket}")
        return ticket

    def comes_to(self, *expected):
        end = time.monotonic() + 5
        while self.log != list(expected) and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.05)
        assert self.log == list(expected)


def test_the_next_ticket_is_begun_while_one_awaits_and_they_still_come_in_order():
    collect, waits = Gated(4), []
    with prefetch(iter(range(4)), collect, ahead=1, waited=waits.append) as results:
        collect.comes_to("+0", "+1")
        collect.gates[1].set()
        collect.comes_to("+0", "+1", "-1")
        collect.gates[0].set()
        handed_out = iter(results)
        assert next(handed_out) == (0, 0)
        collect.comes_to("+0", "+1", "-1", "-0")  # 2 is beyond the bound until 0 is finished
        results.finished()
        collect.comes_to("+0", "+1", "-1", "-0", "+2")
        for gate in collect.gates:
            gate.set()
        assert [ticket for ticket, _ in handed_out] == [1, 2, 3]
    assert max(waits[:2]) < 0.01, "nobody stood still: something was being collected"
    assert waits[2] > 0.04, "both were collected, and the bound held 2 back"


def test_an_error_of_a_later_ticket_waits_for_the_one_before_it():
    async def fails_second(ticket):
        if ticket == 1:
            raise ArithmeticError("at one")
        await asyncio.sleep(0.1)
        return ticket

    got = []
    with (
        pytest.raises(ArithmeticError, match="at one"),
        prefetch(iter(range(4)), fails_second, ahead=3) as results,
    ):
        got.extend(ticket for ticket, _ in results)
    assert got == [0]


def test_a_lane_goes_on_to_the_next_piece_of_work_while_another_is_at_the_one_before():
    slow, log = threading.Event(), []

    def work(name, gate=None):
        def do():
            assert gate is None or gate.wait(5)
            log.append(name)
            return name

        return do

    async def both():
        works = [work("0 fast"), work("0 slow", slow)]
        first = asyncio.ensure_future(lanes.each(lambda lane: works[lane]()))
        await asyncio.sleep(0.05)
        then = [work("1 fast"), work("1 slow")]
        second = asyncio.ensure_future(lanes.each(lambda lane: then[lane]()))
        while "1 fast" not in log:
            await asyncio.sleep(0.005)
        slow.set()
        return await first, await second

    lanes = Lanes(2, lambda thread: None)
    try:
        (first, idle_before), (second, idle) = asyncio.run(both())
    finally:
        lanes.close()
    assert (first, second) == (["0 fast", "0 slow"], ["1 fast", "1 slow"])
    assert log == ["0 fast", "1 fast", "0 slow", "1 slow"]
    assert idle_before == 0
    assert 0.02 < idle < 2, "the fast one stood still, the slow one did not"
    assert not [t for t in threading.enumerate() if t.name.startswith("lane")]


def test_an_error_is_raised_after_what_was_collected_before_it():
    got = []
    with (
        pytest.raises(ArithmeticError, match="at three"),
        prefetch(iter(range(8)), Slow(fails_at=3), ahead=2) as results,
    ):
        got.extend(ticket for ticket, _ in results)
    assert got == [0, 1, 2]


def test_a_loop_that_ends_early_leaves_no_thread_and_abandons_its_waits():
    abandoned, released = [], threading.Event()

    async def waits(ticket):
        assert released.wait(5)

    def abandon(thread):
        abandoned.append(thread)
        released.set()

    with (
        pytest.raises(KeyboardInterrupt),
        prefetch(iter(range(8)), waits, ahead=1, abandon=abandon),
    ):
        raise KeyboardInterrupt
    assert len(abandoned) == 1
    assert "collect" not in [t.name for t in threading.enumerate()]


def test_the_desk_serves_between_tokens_and_when_there_are_none():
    desk, log = Desk(), []

    def load():
        log.append(("load", threading.get_ident()))
        return "done"

    def engine():
        for token in range(100):  # decoding
            desk.serve()
            log.append(("token", token))
            time.sleep(0.005)
            if ("load", threading.get_ident()) in log:
                break
        desk.serve_until(1)  # done already: returns at once
        desk.serve_until(2)  # nothing to decode: waits for it

    thread = threading.Thread(target=engine)
    thread.start()
    time.sleep(0.03)
    assert desk.ask(1, load) == "done"
    assert desk.ask(2, lambda: 2) == 2
    thread.join(5)
    kinds = [kind for kind, _ in log]
    assert kinds[0] == "token" and "load" in kinds
    assert {who for kind, who in log if kind == "load"} == {thread.ident}


def test_an_error_at_the_desk_belongs_to_who_asked():
    desk = Desk()
    thread = threading.Thread(target=desk.serve_until, args=(1,))
    thread.start()
    with pytest.raises(ZeroDivisionError):
        desk.ask(1, lambda: 1 / 0)
    thread.join(5)
    assert not thread.is_alive()


def test_ctrl_c_between_the_start_of_the_thread_and_the_loop_leaves_no_thread(monkeypatch):
    abandoned, started = [], []
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        prefetch(iter(range(8)), Slow(), ahead=1, abandon=abandoned.append),
    ):
        raise AssertionError("the loop was not begun")
    assert abandoned == [started[0].ident]
    assert not started[0].is_alive()
