"""Temporal grounding: annotation files with their defects, answers, rewards and figures."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from envs.grounding import Grounding, reward, saliency
from envs.grounding.annotations import load
from envs.grounding.answers import (
    best_iou,
    block,
    highlights,
    interval,
    iou,
    timestamp_score,
    well_formed,
    windows_of,
    written,
)
from envs.grounding.metrics import (
    average_precision,
    hit_at_1,
    mean_average_precision,
    mean_iou,
    recall_at,
)
from rlft.errors import ConfigError, DataError

DATA = Path(__file__).parents[1] / "data/grounding"
MADE_UP = {"path": str(DATA / "activitynet.json"), "held_out_path": str(DATA / "held_out.json")}


# -- files ---------------------------------------------------------------------------------------


def test_defects_of_activitynet_s_layout_are_counted_and_said(caplog):
    load.cache_clear()
    with caplog.at_level(logging.WARNING):
        found = load("activitynet", MADE_UP["path"])
    assert found.defects == {
        "empty intervals, left out": 1,
        "intervals that end before they start, left out": 1,
        "intervals outside the clip, left out": 1,
        "intervals that end past the clip, cut there": 1,
        "queries without text, left out": 1,
        "queries with stray white space, tidied": 3,
    }
    assert "7 usable queries; 1 empty intervals, left out;" in caplog.text
    assert [m.id for m in found.moments if m.video == "v_climb"] == ["v_climb-0", "v_climb-3"]
    assert found.moments[2].windows == ((41.25, 60.0),)
    assert found.moments[-1].query == "A dog watches her."


def test_defects_of_charades_are_counted():
    lengths = str(DATA / "charades_lengths.csv")
    found = load("charades", str(DATA / "charades.txt"), lengths)
    assert found.defects == {
        "intervals that end before they start, left out": 1,
        "intervals that end past the clip, cut there": 1,
        "intervals outside the clip, left out": 1,
        "with a video of unknown duration, left out": 1,
    }
    assert [(m.video, m.windows[0], m.duration) for m in found.moments] == [
        ("AAAA1", (0.0, 6.9), 30.5),
        ("BBBB2", (20.5, 31.0), 31.0),
        ("BBBB2", (24.3, 29.0), 31.0),
    ]
    assert found.moments[0].query == "a person is putting a cup on a shelf."


def qv(**changes):
    row = {
        "qid": 7,
        "query": "Cat  on a roof",
        "duration": 150,
        "vid": "a_b_60.0_210.0",
        "relevant_windows": [[10, 14], [20, 22]],
        "relevant_clip_ids": [5, 6, 10],
        "saliency_scores": [[4, 3, 2], [1, 1, 1], [0, 2, 4]],
    }
    return json.dumps(row | changes)


def test_qvhighlights_keeps_every_window_and_score(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(f"{qv()}\n\n{qv(qid=8)}".encode()))
    [first, _] = load("qvhighlights", str(path)).moments
    assert first.windows == ((10, 14), (20, 22))
    assert first.scores == {5: (4, 3, 2), 6: (1, 1, 1), 10: (0, 2, 4)}
    assert (first.id, first.video) == ("7", "a_b_60.0_210.0")


@pytest.mark.parametrize(
    "source, text, message",
    [
        ("activitynet", "[]", "expected a JSON object, got list"),
        ("activitynet", "{", "is not JSON"),
        ("activitynet", '{"v": {"duration": 3, "timestamps": []}}', "video 'v' has no 'sentences'"),
        ("activitynet", '{"v": {"duration": 0, "timestamps": [], "sentences": []}}', "positive"),
        (
            "activitynet",
            '{"v": {"duration": 9, "timestamps": [[1, 2]], "sentences": []}}',
            "1 timestamps for 0 sentences",
        ),
        (
            "activitynet",
            '{"v": {"duration": 9, "timestamps": [[1]], "sentences": ["a"]}}',
            "expected [start, end]",
        ),
        (
            "activitynet",
            '{"v": {"duration": 9, "timestamps": [[3, 2]], "sentences": ["a"]}}',
            "no usable query (1 intervals that end before",
        ),
        ("qvhighlights", qv(saliency_scores=[[1, 1, 1]]), "1 saliency_scores for 3"),
        ("charades", "AAAA1 0.0 6.9 a person", "expected `VIDEO START END##SENTENCE`"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, source, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    lengths = str(DATA / "charades_lengths.csv") if source == "charades" else None
    with pytest.raises(DataError) as refused:
        load(source, str(path), lengths)
    assert message in str(refused.value)


def test_a_missing_file_names_its_neighbour():
    with pytest.raises(DataError, match=r"Did you mean 'held_out\.json'"):
        load("activitynet", str(DATA / "heldout.json"))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"source": "activtynet"}, "Did you mean 'activitynet'"),
        ({"task": "highlights"}, "needs source: qvhighlights"),
        ({"template": "when?"}, "must contain {query}"),
        ({"limit": 0}, "limit=0"),
        ({"source": "charades"}, "needs durations"),
    ],
)
def test_wrong_keys_are_refused(keys, message):
    with pytest.raises(ConfigError) as refused:
        Grounding(**MADE_UP, **keys).train()
    assert message in str(refused.value)


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<answer> 12.54 to 17.83 </answer>", (12.54, 17.83)),
        ("<Answer>from 3 and 4</ANSWER>", (3, 4)),
        ("<answer>1 to 2, or rather 5 to 9</answer>", (5, 9)),
        ("<answer>1 - 2 then 3-4.5</answer>", (3, 4.5)),
        ("<answer>1-2, no: 3 to 4</answer>", (3, 4)),
        ("<answer>start 3.5 end 8</answer>", (3.5, 8)),
        ("<answer>1 to 2</answer><answer>5 to 6</answer>", (1, 2)),
        ("<answer>9 to 3</answer>", (9, 3)),
        ("<answer>7</answer>", None),
        ("<answer>no idea</answer>", None),
        ("1 to 2", None),
        ("<answer>1 to 2", None),
        ("", None),
    ],
)
def test_intervals_are_read_by_the_order_of_forms(text, expected):
    assert interval(text) == expected


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ((0, 10), (0, 10), 1.0),
        ((0, 10), (5, 15), 1 / 3),
        ((2, 4), (0, 10), 0.2),
        ((0, 1), (5, 6), 0.0),
        ((0, 5), (5, 6), 0.0),
        ((8, 2), (0, 10), 0.0),
        ((3, 3), (0, 10), 0.0),
        (None, (0, 10), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)
    if a is not None:
        assert iou(b, a) == iou(a, b)


ANSWER, THOUGHT = "<answer>1 to 2</answer>", "<think>at once</think>"


@pytest.mark.parametrize(
    "text, answer, think, strict",
    [
        (ANSWER, True, False, True),
        (THOUGHT + ANSWER, True, True, True),
        ((THOUGHT + ANSWER).upper(), True, True, True),
        (ANSWER + THOUGHT, True, False, False),
        (ANSWER + ANSWER, True, False, False),
        ("<answer>1\nto 2</answer>", True, False, False),
        ("<answer>1, 2</answer>", False, False, False),
        ("1 to 2", False, False, False),
        ("</think>" + ANSWER + "<think>", True, False, False),
    ],
)
def test_form(text, answer, think, strict):
    assert well_formed(text, "answer") is answer
    assert well_formed(text, "think") is think
    assert well_formed(text, "answer", strict=True) is strict


def test_a_letter_that_grows_in_lower_case_shifts_nothing():
    assert block("İİ<answer>1 to 2</answer>", "answer") == "1 to 2"


def test_a_short_interval_is_written_so_that_it_does_not_vanish():
    assert written((3.01, 3.04), 1) == "<answer> 3.01 to 3.04 </answer>"
    assert written((3, 12.5), 0) == "<answer> 3 to 12 </answer>"


TEXT = (
    "<answer> The highlight timestamps are in the 82, 84, 85, 90 seconds. Their saliency scores "
    "are 1.3, 1.7, 5, 4 </answer>"
)


def test_highlights_are_read_on_the_grid():
    assert highlights(TEXT) == {41: 1.3, 42: 1.7, 45: 4}
    assert highlights("<answer>82, 84</answer>") is None


def test_the_timestamp_score_by_hand():
    truth = {1: 2.0, 2: 4.0}
    assert timestamp_score(truth, truth) == pytest.approx(1.0)
    # One of two clips, and one too many: P = R = 1/2, F2 = 1/2; WMSE = (4 * 0 + 16 * 16) / 20.
    got = timestamp_score({1: 2.0, 9: 1.0}, truth)
    assert got == pytest.approx(0.6 * 0.5 + 0.4 / (1 + 256 / 20))
    # Recall counts for more than precision: F2 = 5/9 against 5/6.
    few, many = timestamp_score({1: 2.0}, truth), timestamp_score({**truth, 8: 1, 9: 1}, truth)
    assert few == pytest.approx(0.6 * 5 / 9 + 0.4 / (1 + 256 / 20))
    assert many == pytest.approx(0.6 * 5 / 6 + 0.4)
    assert timestamp_score(None, truth) == timestamp_score({7: 3.0}, truth) == 0


def test_neighbouring_clips_are_one_window():
    assert windows_of({5: 1.0, 6: 3.0, 9: 4.0}) == [((18, 20), 4.0), ((10, 14), 2.0)]


# -- figures -------------------------------------------------------------------------------------


def test_recall_and_mean_count_failures():
    ious = [best_iou(a, [(0, 10), (20, 30)]) for a in ((0, 10), (20, 26), (4, 6), None)]
    assert ious == pytest.approx([1, 0.6, 0.2, 0])
    assert [recall_at(ious, t) for t in (0.3, 0.5, 0.7)] == [0.5, 0.5, 0.25]
    assert mean_iou(ious) == pytest.approx(0.45)


def test_average_precision_by_hand():
    truth = [(0, 10), (20, 30)]
    assert average_precision([(0, 10), (20, 30)], truth, 0.5) == 1
    assert average_precision([(50, 60), (0, 10)], truth, 0.5) == pytest.approx(0.5 / 2)
    # A true window is matched once; the second copy is a false alarm before the other is found.
    ranked = [(0, 10), (0, 9), (20, 30)]
    assert average_precision(ranked, truth, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([], truth, 0.5) == 0
    assert mean_average_precision([(0, 8)], [(0, 10)]) == pytest.approx(0.7)  # 0.5 to 0.8


def test_hit_at_1_asks_for_one_annotator_s_best():
    scores = {5: (4, 0, 0), 6: (3, 3, 3)}
    assert hit_at_1({5: 2.0, 6: 1.0}, scores) == 1
    assert hit_at_1({5: 1.0, 6: 2.0}, scores) == 0
    assert hit_at_1({9: 2.0}, scores) == hit_at_1(None, scores) == 0


# -- tasks and reward ----------------------------------------------------------------------------


def test_the_policy_sees_query_and_duration_and_no_interval():
    [task, *_] = Grounding(**MADE_UP, chat=False).train()
    assert "A man washes potatoes." in task.prompt and "60 seconds" in task.prompt
    assert "12.5" not in task.prompt.replace("12.54", "")
    assert task.demos == ("<answer> 0.00 to 12.50 </answer>",)
    assert task.info["video"] == "v_cook" and task.info["duration"] == 60


def test_the_annotation_earns_everything_through_the_real_parser():
    for task in Grounding(**MADE_UP).train():
        got = reward(task.demos[0], task)
        assert got["iou"] == 1 and got["reward"] == pytest.approx(1.1)
        assert got["r1@0.7"] == 1


def test_parts_and_options_of_the_reward():
    [task, *_] = Grounding(**MADE_UP).train()  # 0 to 12.5
    got = reward("so <answer>0 to 8.6</answer> it is", task)
    assert got["iou"] == pytest.approx(8.6 / 12.5)
    assert (got["r1@0.3"], got["r1@0.5"], got["r1@0.7"], got["format"]) == (1, 1, 0, 1)
    strict = reward("so <answer>0 to 8.6</answer> it is", task, strict=True, format_weight=0.5)
    assert strict["format"] == 0 and strict["reward"] == got["iou"]
    rounded = reward("<answer>0 to 8.6</answer>", task, round_seconds=True)
    assert rounded["iou"] == pytest.approx(9 / 12.5) and rounded["r1@0.7"] == 1


def test_think_has_another_prompt_and_no_ground_truth():
    [task, *_] = Grounding(**MADE_UP, mode="think").train()
    assert "<think>" in task.prompt[0]["content"] and task.demos == ()
    assert reward(ANSWER, task)["format"] == 0 and reward(THOUGHT + ANSWER, task)["format"] == 1
    [answered, *_] = Grounding(**MADE_UP, mode="think", think_demos=True).train()
    assert answered.demos


def test_held_out_tasks_in_both_modes_are_told_apart():
    tasks = Grounding(**MADE_UP, held_out_modes=("answer", "think")).held_out()
    assert [t.info["mode"] for t in tasks] == ["answer", "think"] * 3
    assert {"answer/iou", "answer/r1@0.5"} <= reward(ANSWER, tasks[0]).keys()
    assert "think/iou" in reward(ANSWER, tasks[1])


def test_random_demonstrations_have_the_form_and_not_the_place():
    annotated = Grounding(**MADE_UP).train()
    drawn = Grounding(**MADE_UP, demos="random").train()
    assert [t.demos for t in drawn] == [
        t.demos for t in Grounding(**MADE_UP, demos="random").train()
    ]
    assert all(a.demos != b.demos for a, b in zip(annotated, drawn, strict=True))
    for task in drawn:
        assert well_formed(task.demos[0], "answer", strict=True)
        assert 0 <= interval(task.demos[0])[0] < interval(task.demos[0])[1] <= task.info["duration"]


def test_a_limit_takes_some_of_all_videos():
    some = Grounding(**MADE_UP, limit=3).train()
    assert len(some) == 3
    assert [t.id for t in some] == [t.id for t in Grounding(**MADE_UP, limit=3).train()]
    assert [t.id for t in some] != [t.id for t in Grounding(**MADE_UP).train()[:3]]


def test_highlights_from_file_to_reward(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(qv())
    keys = {"path": str(path), "held_out_path": str(path), "source": "qvhighlights"}
    [task] = Grounding(**keys, task="highlights").train()
    assert saliency(task.target["scores"]) == pytest.approx({5: 4.0, 6: 2.0, 10: 3.0})
    got = reward(task.demos[0], task)
    assert got["timestamps"] == pytest.approx(1) and got["hit@1"] == 1
    assert got["ap@0.5"] == got["ap"] == 1
    [moments] = Grounding(**keys).train()
    assert len(moments.demos) == 2 and all(reward(d, moments)["iou"] == 1 for d in moments.demos)


# -- real files ----------------------------------------------------------------------------------


def test_real_activitynet_captions(data_dir):
    folder = data_dir / "activitynet_captions"
    if not folder.is_dir():
        pytest.skip(f"{data_dir} has no activitynet_captions")
    train = load("activitynet", str(folder / "train.json.gz"))
    assert len(train.moments) == 37_421 - 4
    assert train.defects["empty intervals, left out"] == 2
    assert train.defects["intervals that end before they start, left out"] == 2
    assert train.defects["intervals that end past the clip, cut there"] == 261
    val = load("activitynet", str(folder / "val_1_part1.json.gz"))
    assert val.defects["intervals that end past the clip, cut there"] == 63
    assert len(load("activitynet", str(folder / "val_2_part1.json.gz")).moments) == 8_527
    env = Grounding(str(folder / "train.json.gz"), str(folder / "val_1_part1.json.gz"))
    scores = [reward(t.demos[0], t)["iou"] for t in env.train()]
    # Two decimals; a handful of intervals and cut ends have more.
    assert min(scores) > 0.99
    assert sum(s == 1 for s in scores) > 37_000


def test_real_qvhighlights(data_dir):
    folder = data_dir / "qvhighlights"
    if not folder.is_dir():
        pytest.skip(f"{data_dir} has no qvhighlights")
    path = str(folder / "highlight_train_release.jsonl.gz")
    found = load("qvhighlights", path)
    assert len(found.moments) == 7_218
    assert found.defects == {"queries with stray white space, tidied": 87}
    assert sum(len(m.windows) > 1 for m in found.moments) == 2_363
    held_out = str(folder / "highlight_val_part1.jsonl.gz")
    env = Grounding(path, held_out, source="qvhighlights", task="highlights")
    for task in env.held_out():
        got = reward(task.demos[0], task)
        assert got["timestamps"] > 0.99  # saliency is written with one decimal
        assert got["ap"] == pytest.approx(1)
