"""Collecting ahead: the bound, the order, errors, and ending early."""

import threading
import time

import pytest

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
