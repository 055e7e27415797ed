"""The task of benchmarks/forgetting_text.py: two skills, one of which fine-tuning never sees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.addition import build_tokenizer
from rlft import registry
from rlft.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_skills():
    file = ROOT / "benchmarks/two_skills.py"
    names = ("TwoSkills", "Reversals", "texts", "reward")
    return SimpleNamespace(**{n: registry.resolve("env", f"{file}:{n}") for n in names})


def test_the_start_sees_both_and_fine_tuning_one(two_skills):
    both = two_skills.TwoSkills(size=100).train()
    assert len(both) == len(list(both)) == 200 and both[-1] == both[199]
    assert ["+" in t.prompt for t in islice(both, 6)] == [True, False] * 3
    assert both[3] == both[1:5][2]
    one = two_skills.TwoSkills(skill="addition")
    assert all("+" in t.prompt for t in [*one.held_out(), *islice(one.train(), 500)])


def test_what_is_shown_or_replayed_is_never_held_out(two_skills):
    tasks = two_skills.TwoSkills()
    kept = {t.id for t in tasks.reversals(shown=False)}
    shown = [t.id for t in tasks.reversals(shown=True)]
    assert len(kept) == 256 and len(set(shown)) == len(shown) == tasks.size
    assert kept.isdisjoint(shown)
    assert {t.id for t in two_skills.TwoSkills(skill="reversal").held_out()} == kept


def test_imitation_asking_and_text_are_the_same_tokens(two_skills):
    tokenizer = build_tokenizer()

    def tokens(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    shown = two_skills.TwoSkills().reversals(shown=True)
    (text,) = two_skills.texts(shown, 1)
    asked = two_skills.Reversals(shown.codes[:1], shown=False)[0]
    imitated = tokens(shown[0].prompt) + tokens(shown[0].demos[0]) + [tokenizer.eos_token_id]
    assert tokens(text) == imitated
    assert tokens(asked.prompt + asked.target) == imitated[:-1]
    assert two_skills.reward(asked.target, asked) == {"reward": 1.0}
    assert two_skills.reward(asked.target[::-1] + "0", asked) == {"reward": 0.0}


@pytest.mark.parametrize(
    "name", sorted(f.stem for f in (ROOT / "configs/forgetting_text").glob("*.yaml"))
)
def test_arms_differ_in_nothing_but_what_keeps(name):
    if name in ("start", "reversals"):
        return
    ours, plain = (
        load_config(ROOT / f"configs/forgetting_text/{n}.yaml").model_dump() for n in (name, "none")
    )
    differ = {key for key in plain if ours[key] != plain[key]} - {"name"}
    assert differ <= {"retention", "model", "learner"}
    assert not differ or len(differ) == 1 or name == "lora"
