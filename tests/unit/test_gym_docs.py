"""The pages on Gymnasium environments and diversity against the code that they show."""

import re
from pathlib import Path

import numpy as np
import pytest

from rlft import registry
from rlft.sampling.snapshot import probe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs/examples/my_corridor.py"
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", ["write-a-gym-environment", "write-a-diversity-function"])
def test_the_example_is_shown_as_it_is_and_the_rest_runs(page, in_root, capsys):
    shown, tried = CODE.findall((ROOT / f"docs/{page}.md").read_text())
    assert shown in EXAMPLE.read_text()
    exec(tried, {})
    said = [line[2:] for line in tried.splitlines() if re.match(r"# [\d.]", line)]
    assert capsys.readouterr().out.splitlines() == said


def test_the_corridor_is_an_environment(in_root):
    recipe = registry.build(
        "env",
        {
            "name": "gym",
            "id": "docs/examples/my_corridor.py:Corridor",
            "kwargs": {"length": 7},
            "max_steps": 40,
            "traces": ["place"],
        },
    )
    env = recipe.make()
    for how in ("copy", "replay"):
        probe(env, how, before=2)
    sides = set()
    for task in recipe.held_out()[:20]:
        seen, info = env.reset(seed=task.info["seed"])
        assert env.observation_space.contains(seen)
        assert info["place"] == 3
        done = False
        while not done:
            _, reward, done, truncated, info = env.step(1)
            if truncated:
                break
        sides.add(bool(reward))
        assert info.get("success", False) == bool(reward)
    assert sides == {True, False}, "the door is left in some episodes and right in others"


def test_the_example_s_diversity_counts_from_the_rollout_state():
    fn = registry.build("diversity", f"{EXAMPLE}:first_turns")
    way = {"place": np.array([5, 4, 3, 4])}
    assert fn([way, way | {"vine_start": np.array([2])}]) == 1
    assert fn([way | {"vine_start": np.array([1])}, way]) == 0
