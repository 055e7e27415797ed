"""Pairs: from files, from groups, and those that say nothing."""

import json

import pytest

from envs.preferences import Preferences
from rlft.errors import ConfigError, DataError
from rlft.pairing import as_pairs, best_and_worst, comparable, strengths, with_unrelated
from rlft.types import Group, Outcome, RowRef, Task, Trajectory

ROW = {"prompt": "2+3=", "chosen": "5", "rejected": "6"}


def file(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def member(text, reward=0.0, origin="policy", truncated=False):
    outcome = Outcome("error" if reward is None else "value", reward)
    return Trajectory(text, "t", origin, text, 1, 1, (0, 0), truncated, RowRef(0, 0), outcome)


def group(*members, **info):
    return Group(Task("t", "", info=info), tuple(members))


def texts(groups):
    return [[m.text for m in g.members] for g in groups]


def test_a_row_becomes_a_demonstration_and_what_was_rejected(tmp_path):
    rows = [ROW, {**ROW, "rejected": "7", "gap": "2.5"}, {**ROW, "chosen": "five", "gap": 1}]
    renamed = [{**{"q" if k == "prompt" else k: v for k, v in r.items()}, "gap": 1} for r in rows]
    env = Preferences(file(tmp_path, *renamed), prompt="q", margin="gap", chat=False)
    first, second, third = env.train()
    assert (first.prompt, first.demos, first.info["rejected"]) == ("2+3=", ("5",), "6")
    assert [t.info["margin"] for t in (first, second, third)] == [1.0, 1.0, 1.0]
    assert [t.demos for t in as_pairs([first, third])] == [("5", "6"), ("five", "6")]
    chat = Preferences(file(tmp_path, *rows)).train()[0]
    assert chat.prompt == ({"role": "user", "content": "2+3="},)


def test_held_out_pairs_are_not_trained_on(tmp_path):
    path = file(tmp_path, *({**ROW, "prompt": f"{i}"} for i in range(20)))
    env = Preferences(path, held_out_size=5)
    train, held = ({str(t.prompt) for t in part} for part in (env.train(), env.held_out()))
    assert len(train) == 15 and len(held) == 5 and not train & held


@pytest.mark.parametrize(
    "rows, said",
    [
        ([], "has no rows"),
        ([{"prompt": "a", "rejected": "b"}], "no column 'chosen'"),
        ([{"prompt": "a", "chosen": "b", "rejectd": "c"}], "Did you mean 'rejectd'"),
        ([{**ROW, "rejected": ["5"]}], "must be one text each"),
        ([{**ROW, "chosen": ["5", "6"]}], "must be one text each"),
        ([{**ROW, "rejected": "5"}] * 2, "nothing to prefer"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused(tmp_path, rows, said):
    with pytest.raises(DataError, match=said):
        Preferences(file(tmp_path, *rows)).train()


@pytest.mark.parametrize("gap", [0, -1, "x", None, float("nan")])
def test_a_margin_must_be_above_0(tmp_path, gap):
    with pytest.raises(DataError, match="expected a number above 0"):
        Preferences(file(tmp_path, {**ROW, "gap": gap}), margin="gap").train()


def test_columns_must_be_three(tmp_path):
    with pytest.raises(ConfigError, match="three columns"):
        Preferences(file(tmp_path, ROW), chosen="prompt")


def test_tasks_of_other_environments_are_no_pairs():
    with pytest.raises(DataError, match="environment `preferences`"):
        as_pairs([Task("1", "q", demos=("a",))])


def test_the_best_and_the_worst_of_a_group_are_its_pair():
    groups = [
        group(member("a", 0.5), member("b", -1.0), member("c", 2.0), member("d", 2.0)),
        group(member("e", 1.0), member("f", 1.0)),
        group(member("g", 0.0), member("h", 1.0)),
    ]
    assert texts(best_and_worst(groups)) == [["c", "b"], ["h", "g"]]
    with pytest.raises(ValueError, match="no reward"):
        best_and_worst([group(member("a", 1.0), member("b", None))])


def test_equal_and_cut_pairs_are_left_out_and_counted():
    cut = member("x", origin="demo", truncated=True)
    sampled = member("x", truncated=True)
    groups = [
        group(member("a"), member("a")),
        group(member("a"), cut),
        group(member("a"), sampled),
        group(member("a"), member("b")),
    ]
    kept, left_out = comparable(groups)
    assert texts(kept) == [["a", "x"], ["a", "b"]]
    assert left_out == {"pairs/equal": 1.0, "pairs/too_long": 1.0}


def test_an_unrelated_response_is_the_next_pair_s_and_has_no_strength():
    pairs = [Task(str(i), "q", demos=(f"good{i}", f"bad{i}")) for i in range(3)]
    assert [t.demos[2] for t in with_unrelated(pairs)] == ["good1", "good2", "good0"]
    three = group(member("a"), member("b"), member("c"))
    assert strengths([three, three]).tolist() == [1.0, -1.0, 0.0] * 2
    with pytest.raises(DataError, match="at least 2"):
        with_unrelated(pairs[:1])


def test_strengths_follow_the_margin_and_refuse_none():
    pairs = [group(member("a"), member("b")), group(member("c"), member("d"), margin=2.5)]
    assert strengths(pairs).tolist() == [1.0, -1.0, 2.5, -2.5]
    with pytest.raises(DataError, match="expected a number above 0"):
        strengths([group(member("a"), member("b"), margin=0.0)])
