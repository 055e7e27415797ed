"""Films of episodes and maps of where they went, in the report of a policy that acts."""

import io

import gymnasium
import numpy as np
import pytest
from PIL import Image

from rlft.record import report_acting
from rlft.record.report_acting import films_html, maps
from rlft.sampling.films import LARGEST, MOST_FRAMES, Camera, Cameras, gif, smaller


class Drawn(gymnasium.Env):
    """Draws its step as a shade, or whatever `draw` gives."""

    observation_space = gymnasium.spaces.Discrete(1)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, draw=None):
        self.draw = draw

    def reset(self, **keys):
        self.at = 0
        self.render_mode = None  # as a reset to a snapshot of an environment that was not filmed
        return 0, {}

    def step(self, action):
        self.at += 1
        return 0, 0.0, False, False, {}

    def render(self):
        assert self.render_mode == "rgb_array"
        if self.draw is not None:
            return self.draw()
        return np.full((30, 40, 3), self.at, np.uint8)


def played(draw=None, steps=4):
    cameras = Cameras(lambda: Drawn(draw))
    env = cameras()
    for _ in range(2):  # the second episode is the one that is shown
        env.reset()
        for _ in range(steps):
            env.step(0)
    return cameras.film()


def test_a_film_has_a_frame_for_the_reset_and_one_a_step():
    film, why = played()
    assert why == ""
    assert Image.open(io.BytesIO(film)).n_frames == 5


def test_a_long_episode_is_filmed_to_a_bound():
    film, _ = played(steps=MOST_FRAMES + 20)
    assert Image.open(io.BytesIO(film)).n_frames <= MOST_FRAMES


@pytest.mark.parametrize("steps", [MOST_FRAMES - 1, MOST_FRAMES, 1000, 5000])
def test_of_a_long_episode_steps_equally_far_apart_are_shown_and_the_last(steps):
    class Ends(Drawn):
        def step(self, action):
            return *super().step(action)[:2], self.at >= steps, False, {}

        def render(self):  # its step in two digits of 200
            return np.full((1, 2, 3), (self.at // 200, self.at % 200, 0), np.uint8)

    camera = Camera(Ends())
    camera.reset()
    while not camera.step(0)[2]:
        pass
    assert len(camera.frames) <= MOST_FRAMES
    shown = [200 * int(x[0, 0, 0]) + int(x[0, 0, 1]) for x in camera.frames]
    assert shown[0] == 0 and shown[-1] == steps
    assert len(set(np.diff(shown[:-1]).tolist())) == 1, "the same distance"
    assert len(shown) > MOST_FRAMES // 4


def test_an_environment_that_cannot_draw_leaves_no_film_and_says_why():
    def fails():
        raise NotImplementedError("no screen")

    assert played(fails) == (b"", "NotImplementedError: no screen")
    assert played(lambda: [1]) == (b"", "render() gave list, expected an array [H, W, 3]")


@pytest.mark.parametrize("size", [(100, 160), (320, 200), (1000, 333), (161, 7)])
def test_frames_are_made_smaller_by_means_of_squares(size):
    frame = np.full((*size, 3), 200, np.uint8)
    found = smaller(frame)
    assert max(found.shape[:2]) <= LARGEST
    assert (found == 200).all()


def test_the_page_shows_the_films_of_the_first_and_the_last_evaluation(tmp_path, monkeypatch):
    folder = tmp_path / "films"
    folder.mkdir()
    film = gif([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    for step in (0, 5, 10):
        for number in range(2):
            (folder / f"step_{step:06d}.{number}.gif").write_bytes(film)
    page = "".join(films_html(tmp_path))
    assert page.count("data:image/gif;base64,") == 4
    assert page.index("after step 10") < page.index("after step 0")
    assert "after step 5<" not in page
    monkeypatch.setattr(report_acting, "MOST_BYTES", len(film) + 1)
    page = "".join(films_html(tmp_path))
    assert page.count("data:image/gif;base64,") == 1
    assert "3 more films are too large" in page
    assert "".join(films_html(tmp_path / "nowhere")) == ""


def sample(step, kind, places, **traces):
    return {"step": step, "kind": kind, "traces": {**traces, "position": places}}


def test_a_map_says_what_share_of_its_time_an_episode_was_where():
    rows = [
        sample(1, "train", [[2, 3], [2, 3], [3, 3], [2, 5]], room=[[0, 0]]),
        sample(10, "train", [[2, 3]]),
        sample(10, "eval", [[7, 7], [8, 7]]),
    ]
    first, last, held_out = maps(rows)
    [trace] = first.traces
    assert trace["z"] == [[0.5, 0.25], [0, 0], [0.25, 0]]
    assert (trace["x0"], trace["y0"]) == (2, 3)
    assert "steps 1 to 2" in first.title
    assert "steps 9 to 10" in last.title
    assert "after step 10" in held_out.title
    assert held_out.traces[0]["z"] == [[0.5, 0.5]]


def test_a_line_is_a_map_too_and_what_is_no_place_is_not_drawn():
    line = [{"step": 1, "kind": "train", "traces": {"place": [[3], [4], [4], [5]]}}]
    [chart] = maps(line)
    assert chart.traces[0]["z"] == [[0.25, 0.5, 0.25]]
    assert maps([{"step": 1, "kind": "train", "traces": {"cells": [[0.5, 1.0]]}}]) == []
    assert maps([{"step": 1, "kind": "train"}]) == []
    wide = [{"step": 1, "kind": "train", "traces": {"position": [[0, 0], [9999, 0]]}}]
    assert maps(wide) == []


def test_a_game_of_nethack_is_filmed_large_enough_to_be_read():
    pytest.importorskip("nle")
    from envs.nethack import NetHack
    from envs.nethack.screen import picture

    cameras = Cameras(NetHack().make)
    env = cameras()
    env.reset(seed=1)
    for _ in range(3):
        env.step(0)
    film, why = cameras.film()
    assert why == "" and Image.open(io.BytesIO(film)).size == (480, 264)
    chars, colors = np.full((24, 80), ord(" ")), np.full((24, 80), 9)
    chars[23, 79] = ord("@")
    drawn = picture(chars, colors)
    ink = drawn[-11:, -6:].reshape(-1, 3)
    assert {tuple(p) for p in ink.tolist()} == {(0, 0, 0), (255, 0, 0)}, "bright red on black"
    assert not drawn[:-11].any() and not drawn[:, :-6].any()
