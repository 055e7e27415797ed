"""The addition task set: its problems and habits, its reward, its tokenizer and its model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from envs.addition import Addition, build_model, build_tokenizer, reward, worked
from rlft.errors import ConfigError
from rlft.types import Task

SMALL = Addition(train_size=6_000)


def numbers(task: Task) -> tuple[int, int]:
    a, b = re.fullmatch(r"(\d{3})\+(\d{3})=", task.prompt).groups()
    return int(a), int(b)


def has_carry(a: int, b: int) -> bool:
    """Whether a column below the highest sums to ten or more; only those lose a carry."""
    return any(a // place % 10 + b // place % 10 > 9 for place in (1, 10))


def test_problems_are_distinct_and_the_parts_disjoint() -> None:
    train, held_out = SMALL.train(), SMALL.held_out()
    train_prompts = {task.prompt for task in train}
    held_out_prompts = {task.prompt for task in held_out}
    assert len(train) == len(train_prompts) == 6_000
    assert len(held_out) == len(held_out_prompts) == 512
    assert not train_prompts & held_out_prompts
    assert len({task.id for task in train}) == 6_000


def test_target_is_the_sum_of_the_prompt() -> None:
    for task in [*SMALL.train()[:500], *SMALL.held_out()]:
        assert task.target == str(sum(numbers(task)))


def test_same_seed_same_tasks_and_other_seed_others() -> None:
    again = Addition(train_size=6_000)
    assert list(SMALL.train()) == list(again.train())
    assert list(SMALL.held_out()) == list(again.held_out())
    assert list(SMALL.held_out()) != list(Addition(train_size=6_000, seed=1).held_out())


def test_held_out_depends_neither_on_the_size_of_training_nor_on_the_habits() -> None:
    other = Addition(train_size=10, careful_share=0.9)
    assert list(SMALL.held_out()) == list(other.held_out())


def test_held_out_has_no_demonstrations() -> None:
    assert all(task.demos == () for task in SMALL.held_out())


def test_tasks_are_indexed_like_a_sequence() -> None:
    train = SMALL.train()
    assert train[-1] == train[5_999]
    assert list(train[2:4]) == [train[2], train[3]]
    with pytest.raises(IndexError):
        train[6_000]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_share_of_careful_demonstrations(share: float) -> None:
    train = Addition(train_size=6_000, careful_share=share).train()
    found = sum(reward(task.demos[0], task)["careful"] for task in train) / len(train)
    assert found == pytest.approx(share, abs=0.02)  # three standard deviations at 0.4


def test_careful_demonstrations_are_right_and_hasty_ones_exactly_without_carry() -> None:
    hasty_rewards = []
    for task in SMALL.train():
        scores = reward(task.demos[0], task)
        if scores["careful"]:
            assert scores["reward"] == 1.0
        else:
            assert scores["reward"] == float(not has_carry(*numbers(task)))
            hasty_rewards.append(scores["reward"])
    assert sum(hasty_rewards) / len(hasty_rewards) == pytest.approx(0.55**2, abs=0.03)


@pytest.mark.parametrize(
    ("a", "b", "careful", "hasty"),
    [
        (347, 285, "c12,13,06=632", "h12,12,05=522"),
        (999, 999, "c18,19,19=1998", "h18,18,18=1888"),
        (120, 304, "c04,02,04=424", "h04,02,04=424"),
        (7, 5, "c12=12", "h12=12"),
    ],
)
def test_worked_examples(a: int, b: int, careful: str, hasty: str) -> None:
    assert worked(a, b, with_carry=True) == careful
    assert worked(a, b, with_carry=False) == hasty


@pytest.mark.parametrize(
    ("completion", "scores"),
    [
        ("c12,13,06=632", {"reward": 1.0, "careful": 1.0}),
        ("c=632", {"reward": 1.0, "careful": 1.0}),
        ("h12,12,05=632", {"reward": 1.0, "careful": 0.0}),
        ("632", {"reward": 1.0, "careful": 0.0}),
        ("h12,12,05=522", {"reward": 0.0, "careful": 0.0}),
        ("c12,13,06=0632", {"reward": 0.0, "careful": 1.0}),
        ("c12,13,06=632=", {"reward": 0.0, "careful": 1.0}),
        ("c12,13,06=632 ", {"reward": 0.0, "careful": 1.0}),
        ("c12,13,06632", {"reward": 0.0, "careful": 1.0}),
        ("", {"reward": 0.0, "careful": 0.0}),
        ("=" * 1_000, {"reward": 0.0, "careful": 0.0}),
        ("<eos>\x00\n٦٣٢", {"reward": 0.0, "careful": 0.0}),
    ],
)
def test_reward(completion: str, scores: dict[str, float]) -> None:
    assert reward(completion, Task(id="347+285", prompt="347+285=", target="632")) == scores


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": 0},
        {"train_size": 0},
        {"held_out_size": 0},
        {"careful_share": 1.1},
        {"digits": 1, "train_size": 80, "held_out_size": 2},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Addition(**wrong)


def test_all_problems_can_be_used() -> None:
    every = Addition(digits=1, train_size=80, held_out_size=1)
    assert {t.id for t in [*every.train(), *every.held_out()]} == {
        f"{a}+{b}" for a in range(1, 10) for b in range(1, 10)
    }


def test_tokenizer_round_trip_and_one_token_per_character(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for task in SMALL.train()[:200]:
        text = task.prompt + task.demos[0]
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert loaded.encode(text) == ids
        assert loaded.decode(ids) == text
        prompt_ids, demo_ids = tokenizer.encode(task.prompt), tokenizer.encode(task.demos[0])
        assert prompt_ids + demo_ids == ids


def test_special_tokens_are_distinct_kept_by_saving_and_dropped_on_request(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for tok in (tokenizer, loaded):
        assert (tok.pad_token_id, tok.bos_token_id, tok.eos_token_id, tok.unk_token_id) == (
            0,
            1,
            2,
            3,
        )
        ids = [*tok.encode("c12=12"), tok.eos_token_id, tok.pad_token_id]
        assert tok.decode(ids, skip_special_tokens=True) == "c12=12"
        assert tok.encode("1x\n2") == [*tok.encode("1"), 3, 3, *tok.encode("2")]


def test_model_is_a_function_of_its_seed_and_leaves_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    first, tokenizer = build_model(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(5)
    second, other = build_model(3)[0], build_model(4)[0]
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(x, y) for x, y in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert all(p.dtype == torch.float32 for p in first.parameters())
    assert first.config.vocab_size == len(tokenizer)
    assert first.config.eos_token_id == tokenizer.eos_token_id
    assert sum(p.numel() for p in first.parameters()) < 3_000_000


def test_model_continues_a_prompt_within_its_context() -> None:
    model, tokenizer = build_model(0)
    ids = torch.tensor([tokenizer.encode("347+285=c12,13,06=632")])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.shape == (1, ids.shape[1], len(tokenizer))
    assert torch.isfinite(logits).all()
