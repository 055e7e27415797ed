"""Which run folder is resumed, who may write to it, and what a killed process left in it."""

import os

import pytest

from rlft.config import parse_config
from rlft.errors import CheckpointError, ConfigError
from rlft.record.folder import latest_folder, locked, open_folder

TREE = {
    "name": "run",
    "steps": 10,
    "tasks_per_step": 2,
    "algo": "grpo",
    "env": "addition",
    "model": {"path": "models/tiny"},
}


@pytest.fixture
def cfg(tmp_path):
    return parse_config({**TREE, "run_root": str(tmp_path)}, "here")


def past_run(tmp_path, stamp, *checkpoints):
    folder = tmp_path / "run" / stamp
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    for step in checkpoints:
        (folder / step).mkdir(parents=True)
    return folder


def test_the_newest_run_with_a_checkpoint_is_resumed_and_a_newer_one_without_is_named(
    cfg, tmp_path
):
    past_run(tmp_path, "20260101-000000", "checkpoints/step_000001")
    saved = past_run(tmp_path, "20260102-000000", "checkpoints/step_000001")
    said = []
    assert latest_folder(cfg, said.append) == saved and not said
    newer = past_run(tmp_path, "20260103-000000", "checkpoints/.writing_step_000001")
    assert latest_folder(cfg, said.append) == saved
    assert str(newer) in said[0] and str(saved) in said[0]


def test_a_run_killed_after_its_warm_start_has_something_to_resume(cfg, tmp_path):
    folder = past_run(tmp_path, "20260101-000000", "warm_start/checkpoints/step_000001")
    assert latest_folder(cfg, print) == folder


def test_runs_without_any_checkpoint_say_so(cfg, tmp_path):
    past_run(tmp_path, "20260101-000000")
    with pytest.raises(CheckpointError, match="none of the 1 runs"):
        latest_folder(cfg, print)


def test_a_second_run_on_a_folder_is_refused_by_the_name_of_the_first(tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*another --dir"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def test_opening_a_folder_sweeps_what_a_killed_save_left(cfg, tmp_path):
    root = tmp_path / "checkpoints"
    for name in (".writing_step_000004", ".removing_step_000001", "step_000003"):
        (root / name).mkdir(parents=True)
        (root / name / "part").write_text("x")
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    open_folder(cfg, tmp_path, resume=True)
    assert [p.name for p in root.iterdir()] == ["step_000003"]
    assert (tmp_path / "metrics.jsonl").exists()


def test_an_attempt_that_begins_again_forgets_the_lines_of_the_one_before(cfg, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n')
    open_folder(cfg, tmp_path, resume=True, forget=True)
    assert not (tmp_path / "metrics.jsonl").exists()
