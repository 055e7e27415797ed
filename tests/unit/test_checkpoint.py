"""Checkpoints are whole or absent, whatever goes wrong while writing; and what a torn file leaves."""

import errno
import json
import os
import shutil
import subprocess

import pytest

from rlft.config import parse_config
from rlft.errors import ActorDied, CheckpointError
from rlft.record import checkpoint
from rlft.record.checkpoint import (
    identity,
    newest_checkpoint,
    read_checkpoint,
    resumable,
    write_checkpoint,
)
from rlft.record.metrics import JsonLines

TREE = {
    "name": "run",
    "steps": 10,
    "tasks_per_step": 2,
    "algo": {"name": "grpo"},
    "env": "addition",
    "model": {"path": "models/tiny", "max_length": 64},
    "sampler": {"max_tokens": 8},
}
CFG = parse_config(TREE, "here")


def big_parts(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "learner_state").mkdir()
    (folder / "learner_state" / "rank_0.pt").write_bytes(b"optimizer" * 50)


def write(root, step, parts=big_parts, *, algo_state=None, keep=10, **state):
    whole = {"version": step, "identity": identity(CFG), **state}
    return write_checkpoint(root, step, whole, algo_state, parts, keep)


def contents(root):
    """Every file below `root` with its bytes."""
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refusal(action, *args, **keys):
    with pytest.raises(CheckpointError) as caught:
        action(*args, **keys)
    return str(caught.value)


def test_what_was_written_is_read_back(tmp_path):
    folder = write(tmp_path, 3, algo_state={"best": (1, 2.5)})
    state, algo_state = read_checkpoint(folder)
    assert (state["step"], state["version"], algo_state) == (3, 3, {"best": (1, 2.5)})
    assert newest_checkpoint(tmp_path) == folder


def test_it_does_not_exist_before_it_is_whole(tmp_path):
    before = write(tmp_path, 1)

    def parts(folder):
        big_parts(folder)
        assert newest_checkpoint(tmp_path) == before
        assert not (tmp_path / "step_000002").exists()

    assert newest_checkpoint(tmp_path) != write(tmp_path, 2, parts)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full(folder):
    big_parts(folder)
    full_disk()


FAILURES = {
    "at once": lambda patch: {"parts": full_disk},
    "halfway": lambda patch: {"parts": half_then_full},
    "an actor died": lambda patch: {"parts": lambda folder: 1 / 0},
    "algorithm state": lambda patch: {"algo_state": lambda: None},
    "state.json": lambda patch: {"extra": {1, 2}},
    "reading back": lambda patch: patch.setattr(checkpoint, "_hash", full_disk) or {},
    "flushing": lambda patch: patch.setattr(os, "fsync", full_disk) or {},
    "renaming": lambda patch: patch.setattr("pathlib.Path.rename", full_disk) or {},
}


@pytest.mark.parametrize("when", FAILURES)
@pytest.mark.parametrize("earlier", [True, False])
def test_a_failing_write_leaves_what_was_there_and_no_rubbish(tmp_path, monkeypatch, when, earlier):
    if earlier:
        write(tmp_path, 1)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        text = refusal(write, tmp_path, 2, **FAILURES[when](patch))
    assert "step 2" in text and "could not be written" in text
    assert ("step_000001, is intact" if earlier else "no earlier one") in text
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"] * earlier
    write(tmp_path, 2)
    read_checkpoint(newest_checkpoint(tmp_path))


def test_the_reason_of_a_full_disk_is_told(tmp_path):
    text = refusal(write, tmp_path, 1, half_then_full)
    assert "No space left on device" in text and "free some space" in text


def test_a_disk_that_is_really_full(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        write(tmp_path, 1)
        before = contents(tmp_path)

        def too_much(folder):
            big_parts(folder)
            (folder / "more.bin").write_bytes(bytes(1 << 20))

        assert "No space left on device" in refusal(write, tmp_path, 2, too_much)
        assert contents(tmp_path) == before
        assert write(tmp_path, 2) == newest_checkpoint(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_an_interrupted_write_leaves_is_ignored_and_then_replaced(tmp_path):
    write(tmp_path, 1)

    def interrupted(folder):
        big_parts(folder)
        (folder / "stray").write_text("left behind")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, interrupted)
    assert newest_checkpoint(tmp_path).name == "step_000001"
    folder = write(tmp_path, 2)
    assert not (folder / "stray").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000001", "step_000002"]


def test_the_same_step_may_be_written_again(tmp_path):
    write(tmp_path, 1, algo_state="old")
    assert read_checkpoint(write(tmp_path, 1, algo_state="new"))[1] == "new"


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_k_are_kept_by_number_not_by_spelling(tmp_path, keep):
    steps = [2, 10, 999_999, 1_000_000]
    for step in steps:
        write(tmp_path, step, keep=keep)
    assert {p.name for p in tmp_path.iterdir()} == {f"step_{s:06d}" for s in steps[-keep:]}
    assert newest_checkpoint(tmp_path).name == "step_1000000"


def test_only_checkpoints_count_as_checkpoints(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    for name in ("step_12", ".writing_step_000009", "step_000009.tmp", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000007").write_text("a file")
    assert newest_checkpoint(tmp_path) is None
    write(tmp_path, 1, keep=1)
    assert (tmp_path / "notes").is_dir(), "nobody else's folder is removed"


# -- reading --------------------------------------------------------------------------------------


def names(folder):
    return sorted(json.loads((folder / "state.json").read_text())["files"])


def test_every_file_is_under_watch(tmp_path):
    folder = write(tmp_path, 1)
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert set(names(folder)) == there - {"state.json"}


@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_one_flipped_bit_in_any_file_is_found(tmp_path, place):
    folder = write(tmp_path, 1)
    for name in names(folder):
        path = folder / name
        whole = bytearray(path.read_bytes())
        whole[int(place * len(whole))] ^= 1
        path.write_bytes(whole)
        text = refusal(read_checkpoint, folder)
        assert f"{path} has changed" in text and f"Remove {folder}" in text
        whole[int(place * len(whole))] ^= 1
        path.write_bytes(whole)
    read_checkpoint(folder)


def test_a_missing_and_a_shortened_file_are_found(tmp_path):
    folder = write(tmp_path, 1)
    for name in names(folder):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert "has changed" in refusal(read_checkpoint, folder)
        path.unlink()
        assert f"{path} is missing" in refusal(read_checkpoint, folder)
        path.write_bytes(whole)


def test_a_torn_state_is_not_a_checkpoint_wherever_it_was_torn(tmp_path):
    folder = write(tmp_path, 1)
    path = folder / "state.json"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "not an rlft checkpoint" in refusal(read_checkpoint, folder)
    for other in (b"[]", b"3", b"{}", b"\xff\xfe", b'{"step": 1}', b'{"step": 1, "files": 3}'):
        path.write_bytes(other)
        assert "not an rlft checkpoint" in refusal(read_checkpoint, folder)
    path.unlink()
    assert "not an rlft checkpoint" in refusal(read_checkpoint, folder)


def test_a_changed_state_is_found(tmp_path):
    folder = write(tmp_path, 1)
    path = folder / "state.json"
    whole = path.read_text()
    path.write_text(whole.replace('"version": 1', '"version": 7'))
    assert f"{path} has changed" in refusal(read_checkpoint, folder)
    state = json.loads(whole)
    del state["hash"]
    path.write_text(json.dumps(state))
    assert f"{path} has changed" in refusal(read_checkpoint, folder)


def test_an_actor_lost_while_saving_is_not_taken_for_a_full_disk(tmp_path):
    def lost(folder):
        big_parts(folder)
        raise ActorDied("step 2: learner 0 died at save")

    write(tmp_path, 1)
    with pytest.raises(ActorDied):
        write(tmp_path, 2, lost)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_another_format_is_refused(tmp_path):
    folder = write(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 99}))
    assert "format 99" in refusal(read_checkpoint, folder)


# -- resuming -------------------------------------------------------------------------------------


def changed(**changes):
    return parse_config({**TREE, **changes}, "here")


def test_a_run_continues_with_other_lengths_and_speeds(tmp_path):
    folder = write(tmp_path / "checkpoints", 4)
    other = changed(
        steps=20, learner={"lr": 1.0}, save={"keep": 5}, algo={"name": "grpo", "clip_low": 0.1}
    )
    assert resumable(tmp_path / "checkpoints", other).folder == folder


@pytest.mark.parametrize(
    "change, said",
    [
        ({"name": "other"}, "name: 'run' there, 'other' here"),
        ({"seed": 5}, "seed: 0 there, 5 here"),
        ({"algo": "sft"}, "algo: 'grpo' there, 'sft' here"),
        ({"env": {"name": "gsm8k"}}, "env: 'addition' there"),
        ({"tasks_per_step": 3}, "tasks_per_step: 2 there, 3 here"),
        ({"learner": {"num": 2}}, "learner.num: 1 there, 2 here"),
        ({"learner": {"zero_stage": 2}}, "learner.zero_stage"),
        ({"learner": {"optimizer": "muon"}}, "learner.optimizer: None there, 'muon' here"),
        ({"runner": {"envs": 4}}, "runner.envs: None there, 4 here"),
        ({"model": {"path": "models/big", "max_length": 64}}, "model.path: 'tiny' there"),
        ({"model": {"path": "models/tiny", "max_length": 64, "dtype": "float32"}}, "model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path, change, said):
    folder = write(tmp_path / "checkpoints", 4)
    text = refusal(resumable, tmp_path / "checkpoints", changed(**change))
    assert f"{folder} belongs to another run" in text and said in text
    assert str(tmp_path / "config.yaml") in text


def test_what_was_unusual_there_and_is_usual_here_differs_too(tmp_path):
    theirs = changed(runner={"blocks": 2})
    folder = write(tmp_path / "checkpoints", 4, identity=identity(theirs))
    assert "runner.blocks: 2 there, None here" in refusal(resumable, tmp_path / "checkpoints", CFG)
    assert folder.is_dir()


def test_a_run_whose_model_a_warm_start_made_is_the_same_before_and_after_it():
    before = changed(model={"max_length": 64}, warm_start="w.yaml")
    model = before.model.model_copy(update={"path": "run/warm_start/checkpoints/step_000600/model"})
    after = before.model_copy(update={"model": model})
    assert identity(before) == identity(after)


def test_nothing_to_resume_and_nothing_to_do_say_so(tmp_path):
    root = tmp_path / "checkpoints"
    assert "run without --resume" in refusal(resumable, root, CFG)
    (root.parent / "metrics.jsonl").write_text("")
    assert "begin again in another folder" in refusal(resumable, root, CFG)
    write(root, 10)
    assert resumable(root, CFG).state["step"] == 10, (
        "killed before its result: that is to be written"
    )
    (tmp_path / "result.json").write_text("{}")
    assert "is at step 10 of 10" in refusal(resumable, root, CFG)


def test_a_corrupted_newest_is_named_and_without_it_the_one_before_goes_on(tmp_path):
    before, newest = write(tmp_path, 1), write(tmp_path, 2)
    (newest / "algo.pkl").write_bytes(b"")
    assert f"Remove {newest}" in refusal(resumable, tmp_path, CFG)
    shutil.rmtree(newest)
    assert resumable(tmp_path, CFG).folder == before


# -- lines ----------------------------------------------------------------------------------------


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_line_is_json_for_every_reader(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "a": float("nan"), "b": float("inf"), "c": 1e-30, "d": "é\n"})
    lines.append({"step": 2, "target": {3, 4}})
    first, second = [strict(line) for line in lines.path.read_text("utf-8").split("\n")[:-1]]
    assert first == {"step": 1, "a": None, "b": None, "c": 1e-30, "d": "é\n"}
    assert second["target"] == "{3, 4}", "what JSON does not know is written as text"


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\r", "\n", "\r\n"])
def test_no_character_of_a_completion_breaks_its_line(tmp_path, odd):
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.append({"step": 1, "text": f"a{odd}b"})
    lines.forget_after(1)
    assert lines.rows() == [{"step": 1, "text": f"a{odd}b"}]


def test_a_torn_last_line_is_left_out_and_gone_after_a_resume(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step, "text": "é"})
    whole = lines.path.read_bytes()
    third = len(whole) // 3
    for cut in range(2 * third + 1, 3 * third - 1):
        lines.path.write_bytes(whole[:cut])
        assert [r["step"] for r in lines.rows()] == [1, 2]
    lines.forget_after(2)
    lines.append({"step": 3, "text": "again"})
    assert [r["step"] for r in lines.rows()] == [1, 2, 3]


def test_later_steps_are_forgotten_and_earlier_ones_are_not_touched(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (0, 1, 1, 2, 3):
        lines.append({"step": step, "x": 0.1 * step, "text": "\u2028é"})
    before = lines.path.read_bytes().splitlines(keepends=True)
    lines.forget_after(1)
    assert lines.path.read_bytes() == b"".join(before[:3])
    lines.forget_after(1)
    assert lines.path.read_bytes() == b"".join(before[:3])
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]


def test_no_file_has_no_rows(tmp_path):
    assert JsonLines(tmp_path / "none.jsonl").rows() == []


# -- the best ------------------------------------------------------------------------------------


def scored(root, step, value, keep=1, best_is="highest"):
    score = {"metric": "m", "value": value} if value is not None else {}
    state = {"version": 0, "identity": {}, "score": score}
    write_checkpoint(root, step, state, None, lambda folder: None, keep, best_is)


@pytest.mark.parametrize(
    "best_is, values, kept, best",
    [
        ("highest", [1.0, 3.0, 2.0], ["step_000002", "step_000003"], "step_000002"),
        ("lowest", [1.0, 3.0, 2.0], ["step_000001", "step_000003"], "step_000001"),
        ("highest", [1.0, 3.0, 4.0], ["step_000003"], "step_000003"),
        ("highest", [2.0, 2.0], ["step_000002"], "step_000002"),
        # A step that was not evaluated does not displace the best so far.
        ("highest", [5.0, None, None], ["step_000001", "step_000003"], "step_000001"),
    ],
)
def test_the_best_survives_pruning(tmp_path, best_is, values, kept, best):
    for step, value in enumerate(values, start=1):
        scored(tmp_path, step, value, best_is=best_is)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == kept
    assert (tmp_path / "best").resolve().name == best
    assert newest_checkpoint(tmp_path).name == f"step_{len(values):06d}"
