"""What a run makes of the signals that end it."""

import os
import signal

import pytest

from rlft.cluster import session


def test_sigterm_is_told_from_ctrl_c_even_where_ray_raises_its_own():
    with pytest.raises(session.Terminated), session._sigterm_as_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except session.Terminated:
            raise KeyboardInterrupt from None  # as Ray's waits do


def test_ctrl_c_stays_ctrl_c():
    with pytest.raises(KeyboardInterrupt) as caught, session._sigterm_as_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
    assert not isinstance(caught.value, session.Terminated)
