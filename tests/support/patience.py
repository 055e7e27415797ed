"""Actors for the tests of waits."""

import ctypes
import os
import time

import ray

from rlft.cluster import stacks


class Worker:
    """Waits, dies or fails on request, and counts."""

    def __init__(self, name):
        self._where = stacks.register(name)

    def whereabouts(self):
        return self._where

    def nap_in_here(self, seconds):
        time.sleep(seconds)
        return seconds

    def hold_the_lock(self, seconds):
        """Sleeps in native code without letting other Python threads run."""
        return ctypes.PyDLL(None).usleep(int(seconds * 1e6)) == 0

    def die(self):
        os._exit(1)

    def fail(self):
        raise KeyError("a column")

    @ray.method(concurrency_group="control")
    def progress(self):
        return 12, 32
