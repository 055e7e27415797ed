"""A Gymnasium environment of one's own, and a diversity function for it."""

import gymnasium as gym
import numpy as np


class Corridor(gym.Env):
    """Walk to the open door, which is seen from nearby only. Starts in the middle."""

    def __init__(self, length: int = 11, sight: int = 2):
        self.length, self.sight = length, sight
        self.observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(2)  # left, right

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.length // 2
        self.open = int(self.np_random.integers(2)) * (self.length - 1)
        return self._seen(), self._info()

    def step(self, action):
        self.at = int(np.clip(self.at + 2 * int(action) - 1, 0, self.length - 1))
        won = self.at == self.open
        info = self._info() | ({"success": True} if won else {})
        return self._seen(), float(won), won, False, info

    def _seen(self):
        here = 2 * self.at / (self.length - 1) - 1
        doors = [0.0, 0.0]
        for side, end in enumerate((0, self.length - 1)):
            if abs(self.at - end) <= self.sight:
                doors[side] = 1.0 if end == self.open else -1.0
        return np.array([here, *doors], np.float32)

    def _info(self):
        return {"place": self.at}


def first_turns(traces, *, trace="place"):
    """1 if episodes of the set go different ways at first, else 0."""
    turns = set()
    for episode in traces:
        start = int(episode.get("vine_start", [0])[0])
        turns.add(tuple(np.diff(episode[trace].ravel()[start : start + 2])))
    return float(len(turns) > 1)
