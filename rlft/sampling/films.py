"""Episodes as pictures: what an environment draws of each step, as a GIF.

Of use to look at, so nothing may fail because of it: an environment that cannot draw leaves no film, and
says why.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np

MOST_FRAMES = 120
"""Frames of a film; of a longer episode every second step is shown, or every fourth, and its last."""

LARGEST = 200
"""Pixels of the longer side, unless the environment's metadata say `film_pixels`; larger frames are made
smaller by whole factors."""

FRAME_MS = 120


class Camera(gymnasium.Wrapper):
    """An environment whose episode is filmed. frames: uint8 `[H, W, 3]`, of the reset, of every `apart`-th
    step and of the last; fault: why there are none."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame would open a window
        self.frames: list[np.ndarray] = []
        self.apart, self._steps = 1, 0
        self.fault = ""

    def reset(self, **keys: Any) -> tuple[Any, dict[str, Any]]:
        self.frames, self.fault = [], ""
        self.apart, self._steps = 1, 0
        found = self.env.reset(**keys)
        self._shoot()
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        found = self.env.step(action)
        self._steps += 1
        over = found[2] or found[3]
        if self._steps % self.apart == 0 or over:
            self._shoot()
        if len(self.frames) >= MOST_FRAMES and not over:
            self.frames, self.apart = self.frames[::2], 2 * self.apart
        return found

    def _shoot(self) -> None:
        if self.fault:
            return
        # Each time: a reset to a snapshot brings back the mode of the environment that it was taken of.
        with contextlib.suppress(AttributeError):  # whose mode is fixed draws as it does
            self.unwrapped.render_mode = "rgb_array"
        try:
            drawn: Any = self.env.render()
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"
            return
        if isinstance(drawn, np.ndarray) and drawn.ndim == 3 and drawn.shape[2] == 3:
            largest = int(self.env.metadata.get("film_pixels", LARGEST))
            self.frames.append(smaller(drawn.astype(np.uint8), largest))
        else:
            self.fault = f"render() gave {type(drawn).__name__}, expected an array [H, W, 3]"


class Cameras:
    """Makes environments that are filmed; `made` has them."""

    def __init__(self, make: Callable[[], gymnasium.Env]) -> None:
        self._make = make
        self.made: list[Camera] = []

    def __call__(self) -> Camera:
        self.made.append(Camera(self._make()))
        return self.made[-1]

    def film(self) -> tuple[bytes, str]:
        """The GIF of the last episode, empty if there is none, and why."""
        last = self.made[-1]
        return (gif(last.frames), "") if last.frames else (b"", last.fault or "no frame was drawn")


def smaller(frame: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """The frame by means over squares, so that no side is longer than `largest`."""
    factor = -(-max(frame.shape[:2]) // largest)
    if factor == 1:
        return frame
    height, width = (n // factor * factor for n in frame.shape[:2])
    cut = frame[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return cut.mean((1, 3)).astype(np.uint8)


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """An endless film of `[H, W, 3]` frames, which stays at its last for a while."""
    from PIL import Image

    images = [Image.fromarray(f).quantize(64) for f in frames]
    out = io.BytesIO()
    shown = [FRAME_MS] * (len(images) - 1) + [10 * FRAME_MS]
    images[0].save(
        out, "GIF", save_all=True, append_images=images[1:], duration=shown, loop=0, optimize=True
    )
    return out.getvalue()
