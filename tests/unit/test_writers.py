"""Trackers may be slow, fail or be absent: the run must not notice."""

import sys
import threading
import time
import types

import pytest

from rlft.config import load_config
from rlft.errors import ResourceError
from rlft.record.trackers import MlflowRun, TensorBoard, WandbRun
from rlft.record.writers import Writers, check_writers


class Memory:
    def __init__(self, fail_at=(), wait=None):
        self.rows, self.fail_at, self.wait = [], set(fail_at), wait
        self.opened, self.ok = [], None

    def open(self, first_step):
        self.opened.append(first_step)

    def log(self, row, step):
        if self.wait is not None:
            self.wait.wait(20)
        if step in self.fail_at:
            raise ConnectionError(f"no route at {step}\nsecond line")
        self.rows.append((step, dict(row)))

    def close(self, ok):
        self.ok = ok


def written(tracker, rows, **keys):
    said = []
    writers = Writers({"memory": tracker}, lambda name, why: said.append((name, why)), **keys)
    for step, row in rows:
        writers.log(row, step)
    return writers.close(ok=True), said


def test_numbers_arrive_in_order_and_nothing_else_does():
    tracker = Memory()
    row = {"a": 1, "b": float("nan"), "c": None, "d": "text", "e": float("inf")}
    lost, said = written(tracker, [(4, row), (5, {"a": 2.5})])
    assert tracker.rows == [(4, {"a": 1.0}), (5, {"a": 2.5})]
    assert (tracker.opened, tracker.ok, lost, said) == ([4], True, [], [])


def test_a_failure_is_counted_and_said_once():
    tracker = Memory(fail_at=[2, 4])
    lost, said = written(tracker, [(i, {"a": i}) for i in range(1, 6)])
    assert [step for step, _ in tracker.rows] == [1, 3, 5]
    assert lost == ["memory: 2 of 5 rows were not written (it failed)"]
    [(name, why)] = said
    assert name == "memory"
    assert "no route at 2" in why
    assert "second line" not in why


def test_a_tracker_that_hangs_holds_up_neither_a_step_nor_the_end():
    release = threading.Event()
    tracker = Memory(wait=release)
    began = time.monotonic()
    lost, _ = written(tracker, [(1, {"a": 1}), (2, {"a": 2})], close_s=0.2)
    release.set()
    assert time.monotonic() - began < 10, "it waits 20 s for the event"
    assert lost == ["memory: 2 of 2 rows were not written (it did not end in time)"]


def configured(**record):
    overrides = [f"record.{k}={v}" for k, v in record.items()]
    return load_config("configs/quickstart.yaml", overrides)


@pytest.mark.parametrize(
    "name, value",
    [("tensorboard", "true"), ("wandb", "{project: p}"), ("mlflow", "{experiment: e}")],
)
def test_a_missing_package_is_named_before_anything_starts(monkeypatch, name, value):
    cfg = configured(**{name: value})
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ResourceError, match=f"record.{name}.*pip install {name}"):
        check_writers(cfg)


def test_tensorboard_files_hold_the_numbers_and_a_resumed_run_overwrites(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = configured(tensorboard="true")
    for first, values in ((1, [0.5, 0.25, 9.0]), (3, [0.125])):
        board = TensorBoard(cfg, tmp_path)
        board.open(first)
        for step, value in enumerate(values, start=first):
            board.log({"reward/mean": value}, step)
        board.close(True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("reward/mean")
    assert {e.step: e.value for e in events} == {1: 0.5, 2: 0.25, 3: 0.125}


def test_wandb_gets_steps_as_a_metric_and_a_resumed_run_the_same_id(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        id = "abc"

        def define_metric(self, *args, **keys):
            calls.append(("define", args, keys))

        def log(self, row):
            calls.append(("log", row))

        def finish(self, exit_code):
            calls.append(("finish", exit_code))

    def init(**keys):
        calls.append(("init", keys["id"], keys["resume"], keys["project"], keys["mode"]))
        return FakeRun()

    fake = types.SimpleNamespace(init=init, Settings=lambda **keys: keys)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    cfg = configured(wandb="{project: p, mode: offline}")
    for first in (1, 2):
        run = WandbRun(cfg, tmp_path)
        run.open(first)
        run.log({"reward/mean": 0.5}, first)
        run.close(first == 1)
    assert [c for c in calls if c[0] == "init"] == [
        ("init", None, None, "p", "offline"),
        ("init", "abc", "allow", "p", "offline"),
    ]
    assert ("define", ("*",), {"step_metric": "step"}) in calls
    assert ("log", {"reward/mean": 0.5, "step": 2}) in calls
    assert [c[1] for c in calls if c[0] == "finish"] == [0, 1]


def test_mlflow_logs_a_batch_a_row_under_names_it_accepts(tmp_path, monkeypatch):
    batches, ends = [], []

    class Client:
        def __init__(self, tracking_uri):
            assert tracking_uri == "file:///x"

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment, run_name):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run-{experiment}"))

        def log_param(self, run_id, key, value):
            assert len(value) <= 500

        def log_batch(self, run_id, metrics):
            batches.append((run_id, metrics))

        def set_terminated(self, run_id, status):
            ends.append(status)

    tracking = types.SimpleNamespace(MlflowClient=Client)
    entities = types.SimpleNamespace(Metric=lambda *args: args)
    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mlflow.tracking", tracking)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    run = MlflowRun(configured(mlflow="{experiment: e, tracking_uri: 'file:///x'}"), tmp_path)
    run.open(1)
    run.log({"reward/a<b": 0.5}, 3)
    run.close(False)
    [(run_id, [(name, value, _, step)])] = batches
    assert (run_id, name, value, step) == ("run-7", "reward/a_b", 0.5, 3)
    assert ends == ["FAILED"]
