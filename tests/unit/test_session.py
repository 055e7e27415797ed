"""What a run makes of the signals that end it."""

import os
import signal

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
