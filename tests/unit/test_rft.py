"""Rejection sampling and the rows that SFT reads, with runs that only look like runs."""

import asyncio
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from algos.rft import RFT
from algos.sft import SFT
from rlft.errors import ConfigError, DataError, PluginError
from rlft.paths.keys import marks
from rlft.seeding import Key
from rlft.types import Group, Outcome, RowRef, Task, Ticket, Trajectory

NOWHERE = RowRef(None, 0)


def member(name, text, reward=1.0, origin="policy", truncated=False):
    outcome = None if reward is None else Outcome("value", reward)
    return Trajectory(name, "t", origin, text, 2, 5, (3, 3), truncated, NOWHERE, outcome)


class Run:
    """Answers are looked up by task; a reward of None has failed, and its member is left out."""

    def __init__(self, folder, answers, algo=None):
        self.folder, self.step, self.version, self.key = folder, 0, 0, Key(7)
        model = SimpleNamespace(path="models/sft", build=None)
        self.cfg = SimpleNamespace(seed=5, model=model)
        self.state = algo.init_state() if algo else None
        self.answers, self.noted, self.fitted, self.asked = answers, {}, [], []

    async def rollout(self, tasks, *, n, key):
        self.asked += [task.id for task in tasks]
        return [
            Group(t, tuple(member(f"0.{t.id}.{i}", *a) for i, a in enumerate(self.answers[t.id])))
            for t in tasks
        ]

    async def score(self, groups):
        left = [Group(g.task, tuple(m for m in g.members if m.outcome)) for g in groups]
        return [g for g in left if g.members]

    async def demos(self, tasks):
        found = [
            Group(t, tuple(member(f"demo.{t.id}", d, None, "demo", len(d) > 40) for d in t.demos))
            for t in tasks
        ]
        return [g for g in found if g.members]

    def note(self, numbers):
        self.noted |= numbers

    def fit(self, groups, adv, **keys):
        self.fitted.append([m.text for g in groups for m in g.members])
        return "an update"


def task(name, *demos, prompt="what?"):
    return Task(name, prompt, target="2", demos=demos)


def turn(algo, run, *tasks, index=0):
    groups = asyncio.run(algo.collect(run, Ticket(index, tasks, Key(0))))
    return algo.learn(run, groups)


def rows(run):
    return [json.loads(line) for line in (run.folder / "rows.jsonl").read_text().splitlines()]


ONE, OTHER, BAD = "<<1+1=2>>", "so <<2+0=2>>", "<<1+1=3>>"


def test_what_is_right_in_answer_and_marks_is_kept_once_a_path_behind_the_gold_row(tmp_path):
    algo = RFT(num_samples=6, distance=None)
    answers = {"a": [(ONE,), (BAD,), ("<<2*1=2>>", 0.0), ("again " + ONE,), (OTHER,), ("x", None)]}
    run = Run(tmp_path, answers, algo)
    assert turn(algo, run, task("a", "gold <<1+1=2>>")) is None
    assert [r["response"] for r in rows(run)] == ["gold <<1+1=2>>", ONE, OTHER]
    assert run.noted["rft/passed"] == 4 / 5
    assert run.noted["rft/right"] == 3 / 5
    assert (run.noted["rft/paths"], run.noted["rft/none"], run.noted["rft/rows"]) == (2, 0, 3)
    gold, first, second = rows(run)
    assert gold["origin"] == "gold" and gold["model"] is None
    assert first["model"] == "models/sft" and first["seed"] == 5 and first["version"] == 3
    assert second["sample"] == "0.a.4" and second["key"] == "2+0=2" and second["step"] == 1
    assert run.fitted == []


def test_a_question_without_a_right_answer_keeps_its_gold_row_once(tmp_path):
    """Whether all answers are wrong or all rewards failed."""
    algo = RFT()
    run = Run(tmp_path, {"a": [("x", 0.0)], "b": [("x", None)], "c": [(ONE,)]}, algo)
    tasks = [task(name, "gold") for name in "abc"]
    turn(algo, run, *tasks)
    turn(algo, run, *tasks, index=1)
    kept = [(r["question"], r["origin"]) for r in rows(run)]
    assert kept == [("a", "gold"), ("b", "gold"), ("c", "gold"), ("c", "sample")]
    assert run.noted["rft/none"] == 2


def test_a_question_that_comes_again_adds_new_paths_only(tmp_path):
    algo = RFT(distance=None)
    run = Run(tmp_path, {"a": [(ONE,), (OTHER,)]}, algo)
    turn(algo, run, task("a"), task("a"))
    assert run.asked == ["a"]
    run.answers = {"a": [("later " + ONE,), ("<<0+2=2>>",)]}
    turn(algo, run, task("a"), index=1)
    assert [r["response"] for r in rows(run)] == [ONE, OTHER, "<<0+2=2>>"]


def test_a_step_appends_and_writes_nothing_again(tmp_path):
    algo = RFT(distance=None)
    run = Run(tmp_path, {name: [(ONE,)] for name in "abc"}, algo)
    turn(algo, run, task("a"))
    file = tmp_path / "rows.jsonl"
    inode, first = file.stat().st_ino, file.read_bytes()
    turn(algo, run, task("b"), task("c"), index=1)
    turn(algo, run, task("a"), index=2)  # again, and nothing new
    assert file.stat().st_ino == inode, "written in its place"
    assert file.read_bytes().startswith(first)
    assert [r["question"] for r in rows(run)] == ["a", "b", "c"]
    assert run.noted["rft/rows"] == 3


@pytest.mark.parametrize("left", ["ahead", "torn", "gone"])
def test_a_resumed_run_neither_loses_nor_repeats_a_row(tmp_path, left):
    """Whatever the interrupted run left of the steps after its checkpoint."""
    algo = RFT(distance=None)
    answers = {name: [(ONE,), (OTHER,)] for name in "abc"}
    whole, cut = (Run(tmp_path / name, answers, algo) for name in ("whole", "cut"))
    for run in (whole, cut):
        run.folder.mkdir()
        turn(algo, run, task("a", "gold"))
    saved = pickle.dumps(cut.state)
    for run in (whole, cut):
        turn(algo, run, task("b", "gold"), index=1)
    file = tmp_path / "cut/rows.jsonl"
    if left == "torn":
        os.truncate(file, file.stat().st_size - 7)
    elif left == "gone":
        file.unlink()
    cut.state = pickle.loads(saved)
    turn(algo, cut, task("b", "gold"), index=1)
    for run in (whole, cut):
        turn(algo, run, task("c", "gold"), index=2)
    assert rows(cut) == rows(whole) and len(rows(cut)) == 9
    assert cut.noted["rft/rows"] == 9


def test_a_disk_that_is_full_leaves_whole_rows(tmp_path, monkeypatch):
    algo = RFT(distance=None)
    run = Run(tmp_path, {name: [(ONE,)] for name in "ab"}, algo)
    turn(algo, run, task("a"))
    before = (tmp_path / "rows.jsonl").read_bytes()
    real = Path.open

    def full(path, *args, **keys):
        stream = real(path, *args, **keys)
        write = stream.write

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                stream.close()

            def write(self, data):
                if len(data) <= 9:
                    raise OSError(28, "No space left on device")
                return write(bytes(data)[:-9])

        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        turn(algo, run, task("b"), index=1)
    monkeypatch.undo()
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_other_runs_are_combined(tmp_path):
    for name, texts in (("one", [ONE]), ("two", [OTHER, "more " + ONE])):
        (tmp_path / name).mkdir()
        algo = RFT(distance=None)
        run = Run(tmp_path / name, {"a": [(t,) for t in texts]}, algo)
        turn(algo, run, task("a", "gold"))
    files = [str(tmp_path / name / "rows.jsonl") for name in ("one", "two")]
    algo = RFT(combine=files)
    run = Run(tmp_path, {"a": [("<<0+2=2>>",)]}, algo)
    turn(algo, run, task("a", "gold"))
    found = rows(run)
    assert [r["origin"] for r in found] == ["gold", "sample", "sample", "sample"]
    assert {r["key"] for r in found[1:]} == {marks(t) for t in (ONE, OTHER, "<<0+2=2>>")}
    with pytest.raises(DataError, match="two prompts"):
        turn(algo, Run(tmp_path, run.answers, algo), task("a", prompt="another"))


def test_online_trains_on_the_step_s_own_rows(tmp_path):
    algo = RFT(online=True, distance=None)
    run = Run(tmp_path, {"a": [(ONE,), ("again " + ONE,)], "b": [("x", 0.0)]}, algo)
    assert turn(algo, run, task("a", "gold"), task("b")) == "an update"
    assert run.fitted == [["gold", ONE]]


def test_retention_is_refused_where_nothing_is_trained():
    kept = SimpleNamespace(retention=[{"name": "l2"}])
    with pytest.raises(ConfigError, match=r"trains nothing unless algo.online.*algo: sft"):
        RFT().suits(kept)
    assert RFT(online=True).suits(kept) == RFT().suits(SimpleNamespace(retention=[])) == []


def test_plug_ins_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(text, task, *, most=3):\n    return len(text) <= most\n"
        "def first(text):\n    return text[:1]\n"
    )
    check = {"name": f"{tmp_path}/mine.py:short", "most": 2}
    algo = RFT(check=check, key=f"{tmp_path}/mine.py:first", distance="words", gold=False)
    run = Run(tmp_path, {"a": [("ab",), ("ac",), ("b",), ("long",)]}, algo)
    turn(algo, run, task("a", "gold"))
    assert [r["response"] for r in rows(run)] == ["ab", "b"] or [
        r["response"] for r in rows(run)
    ] == ["ac", "b"]
    with pytest.raises(PluginError, match=r"unknown key 'mark'. Did you mean 'marks'"):
        RFT(key="mark")
    with pytest.raises(ConfigError, match="unknown key 'more'"):
        RFT(check={**check, "more": 1})


# -- SFT on rows ---------------------------------------------------------------------------------


def written(path, *objects):
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))
    return str(path)


def collected(algo, run, index=0, tasks=2):
    ticket = Ticket(
        index, tuple(task(f"env{i}", "the environment's") for i in range(tasks)), Key(0)
    )
    return asyncio.run(algo.collect(run, ticket))


def test_sft_reads_every_row_of_its_files_once_a_pass(tmp_path):
    one = written(tmp_path / "a.jsonl", *({"prompt": f"p{i}", "response": f"r{i}"} for i in (1, 2)))
    two = written(tmp_path / "b.jsonl", *({"prompt": f"p{i}", "response": f"r{i}"} for i in (3, 4)))
    algo = SFT(rows=[one, two])
    run = Run(tmp_path, {})
    seen = [m.text for i in range(4) for g in collected(algo, run, i) for m in g.members]
    assert sorted(seen[:4]) == sorted(seen[4:]) == ["r1", "r2", "r3", "r4"]
    again = [m.text for g in collected(algo, run, 1) for m in g.members]
    assert again == seen[2:4], "a ticket's rows depend on its number alone"


def test_sft_on_what_rft_wrote(tmp_path):
    sampling = RFT()
    turn(sampling, Run(tmp_path, {"a": [(ONE,)]}, sampling), task("a", "gold"))
    run = Run(tmp_path, {})
    got = {
        m.text for g in collected(SFT(rows=str(tmp_path / "rows.jsonl")), run) for m in g.members
    }
    assert got == {"gold", ONE}


def test_a_row_longer_than_the_context_is_left_out_and_counted(tmp_path):
    long = {"prompt": "p", "response": "r" * 41}
    path = written(tmp_path / "rows.jsonl", {"prompt": "p", "response": "r"}, long)
    run = Run(tmp_path, {})
    groups = collected(SFT(rows=path), run)
    assert [m.text for g in groups for m in g.members] == ["r"]
    assert run.noted == {"rows/too_long": 1}


@pytest.mark.parametrize(
    "lines, said",
    [
        ((), "has no rows"),
        (({"prompt": "p"},), r"row 1 has no column 'response'"),
        (
            ({"prompt": "p", "response": "r"}, {"prompt": "p", "response": " "}),
            "row 2: 'response' is empty",
        ),
        (({"question": "p", "response": "r"},), r"row 1 has no column 'prompt'. Found: 'question'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        SFT(rows=written(tmp_path / "rows.jsonl", *lines))


def test_more_rows_a_step_than_there_are(tmp_path):
    path = written(tmp_path / "rows.jsonl", {"prompt": "p", "response": "r"})
    with pytest.raises(DataError, match="tasks_per_step is 2"):
        collected(SFT(rows=path), Run(tmp_path, {}))
