"""The word problems: every path is right, and the model's tokens give the text back."""

import pytest

from envs.word_problems import STORIES, WordProblems, build_tokenizer, final_number, paths, reward
from rlft.errors import ConfigError
from rlft.paths.keys import marks
from rlft.paths.marks import all_right, is_right

TASKS = [*WordProblems(train_size=300).train(), *WordProblems().held_out()]


def test_every_path_of_a_problem_is_right_and_gives_its_answer():
    for task in TASKS:
        found = paths(task)
        assert len(found) >= 3
        for path in found:
            steps = path.split("|")
            assert all(map(is_right, steps))
            assert steps[-1].partition("=")[2] == task.target
    assert {task.info["story"] for task in TASKS} == set(range(len(STORIES)))


def test_a_demonstration_is_one_of_the_paths():
    for task in TASKS:
        [demo] = task.demos
        assert marks(demo) in paths(task)
        assert reward(demo, task) == {"reward": 1.0, "marks": 1.0}
        assert all(0 <= int(n) <= 120 for n in task.target.split())


def test_problems_are_shown_in_several_ways():
    """Otherwise there would be nothing to find by sampling."""
    first = {min(paths(task)) == marks(task.demos[0]) for task in TASKS}
    assert first == {True, False}


def test_the_reward_looks_at_the_answer_and_reports_the_marks():
    task = TASKS[0]
    right, wrong = f"<<1+1=3>>\n#### {task.target}", "#### 0"
    assert reward(right, task) == {"reward": 1.0, "marks": 0.0}
    assert reward(wrong, task) == {"reward": 0.0, "marks": 1.0}
    assert final_number("#### 1\n#### 22") == "22"
    assert final_number("22") is None
    assert final_number("#### 2 2") is None
    assert WordProblems().answer(right, task) == task.target


def test_facts_are_right_and_hold_no_solution():
    facts = WordProblems(demos="facts", train_size=400).train()
    assert all(all_right(task.demos[0]) and "<<" in task.demos[0] for task in facts)
    about = [task for task in facts if "?" in task.prompt]
    assert len(about) == 200
    assert not any("####" in task.demos[0] for task in about)


def test_the_held_out_problems_depend_on_the_seed_alone():
    held_out = WordProblems(train_size=5).held_out()
    assert held_out == WordProblems(train_size=50, demos="facts").held_out()
    assert held_out != WordProblems(seed=1).held_out()


def test_tokens_give_the_text_back():
    tokenizer = build_tokenizer()
    for task in [*TASKS, *WordProblems(demos="facts").train()]:
        for text in (task.prompt, task.demos[0]):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
        assert len(tokenizer(task.prompt + task.demos[0]).input_ids) <= 100


@pytest.mark.parametrize(
    "keys, said",
    [({"train_size": 0}, "must be at least 1"), ({"swap": 1.5}, r"swap=1.5 must lie in \[0, 1\]")],
)
def test_keys_that_cannot_be(keys, said):
    with pytest.raises(ConfigError, match=said):
        WordProblems(**keys)
