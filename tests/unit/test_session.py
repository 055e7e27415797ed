"""What a run makes of the signals that end it."""

import os
import signal
import threading
import time

import pytest

from rlft.cluster import session


@session._sigterm_as_interrupt()
def one_of_rays_waits():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except session.Terminated:
        raise KeyboardInterrupt from None  # as Ray has it


def test_sigterm_is_told_from_ctrl_c_even_where_ray_raises_its_own():
    with pytest.raises(session.Terminated):
        one_of_rays_waits()


def test_ctrl_c_stays_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    wait = session._sigterm_as_interrupt()(os.kill)
    with pytest.raises(KeyboardInterrupt) as caught:
        wait(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, session.Terminated)


def test_what_arrives_during_the_clean_up_is_not_heard_whichever_thread_it_reaches():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)  # as Ray's, which block nothing
    other.start()
    try:
        with session._signals_held():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
                time.sleep(0.05)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        ended.set()
        other.join()
        signal.signal(signal.SIGINT, before)
