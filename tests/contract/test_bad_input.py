"""Input that cannot be used: exit code 2 and a sentence that says what was got, what was expected and what
to do; before Ray is started, and with nothing written that looks like a run."""

import contextlib
import json
import sys

import pytest
import torch

import rlft.cli
import rlft.cluster.session
import rlft.train

GOOD = """\
name: bad-input
steps: 1
tasks_per_step: 2
algo: {name: grpo, group_size: 2, drop_flat: false}
env: {name: addition, train_size: 50, held_out_size: 4}
model: {build: "envs.addition:build_model", dtype: float32, max_length: 64}
sampler: {engine: transformers, max_tokens: 4}
learner: {lr: 1e-4}
rewards: {fns: [{fn: addition}]}
deadlines: {start: 120, rollout: 60, learn: 60, publish: 60, reward: 60}
"""

RESULTS = ("result.json", "metrics.jsonl", "eval.jsonl", "samples.jsonl", "state.json")


def rlft_command(patch, *argv):
    """Runs the command line in this process; returns its exit code."""
    patch.setattr(sys, "argv", ["rlft", *map(str, argv)])
    patch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        rlft.cli.main()
    return ended.value.code


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with one good configuration, and in which no Ray may be started."""

    def started(*_):
        raise AssertionError("Ray was started for input that could have been refused before")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(rlft.train, "ray_session", started)
    monkeypatch.setattr(rlft.cluster.session.ray, "is_initialized", lambda: False)
    (tmp_path / "good.yaml").write_text(GOOD)
    return tmp_path


@pytest.fixture
def refused(here, monkeypatch, capsys):
    """Runs a command that must be refused; returns what was said."""

    def refuse(*argv):
        before = {p for p in here.rglob("*") if p.name in RESULTS}
        assert rlft_command(monkeypatch, *argv) == 2
        said = capsys.readouterr().err
        assert {p for p in here.rglob("*") if p.name in RESULTS} == before
        assert said.startswith("error: ")
        return said

    return refuse


def assert_says(said, *parts):
    for part in parts:
        assert part in said


def test_the_good_configuration_is_good(here, monkeypatch, capsys):
    assert rlft_command(monkeypatch, "check", "good.yaml") == 0
    assert capsys.readouterr().out.endswith("ok\n")


both = pytest.mark.parametrize("command", ["check", "run"])
"""What `rlft check` can know, it tells as `rlft run` does."""


@both
@pytest.mark.parametrize(
    "override, parts",
    [
        ("stpes=3", ["unknown key 'stpes'", "Did you mean 'steps'?"]),
        ("sampler.temprature=1", ["'temprature' in sampler", "Did you mean 'temperature'?"]),
        ("algo.group_sise=4", ["'group_sise'", "Did you mean 'group_size'?", "Its keys are"]),
        ("env.digit=4", ["'digit'", "Did you mean 'digits'?"]),
        ("steps=many", ["steps", "str 'many'", "integer"]),
        ("algo.group_size=1", ["group_size", "greater than or equal to 2", "int '1'"]),
        ("steps", ["'steps'", "key=value"]),
        ("algo.name=gpro", ["unknown algo 'gpro'", "Did you mean 'grpo'?", "path/file.py:attr"]),
        ("env.name=adition", ["unknown env 'adition'", "Did you mean 'addition'?"]),
        ("sampler.engine=vlm", ["unknown engine 'vlm'", "Did you mean 'vllm'?"]),
        ("rewards.fns=[{fn: gsm8}]", ["unknown reward 'gsm8'", "Did you mean 'gsm8k'?"]),
        ("rewards.fns=[{fn: none.py:f}]", ["no file 'none.py'", "none.py"]),
        ("rewards.fns=[{fn: no.such:f}]", ["no module named 'no.such'", "path/to/file.py:attr"]),
        ("algo.loss=Cliped", ["unknown loss 'Cliped'", "ClippedSurrogate"]),
        ("algo.advantage=group", ["unknown advantage 'group'", "group_relative"]),
        ("publish.transport=ncl", ["unknown transport 'ncl'"]),
        ("model.build=envs.addition:bild_model", ["Did you mean 'build_model'?"]),
        ("model.path=m", ["exactly one start", "path='m'", "build="]),
        ("model.build=null", ["exactly one start"]),
        ("sampler.num=0", ["sampler.num is 0", "at least 1"]),
        ("rewards.fns=[]", ["rewards.fns is empty", "name at least one"]),
        ("tasks_per_step=51", ["tasks_per_step is 51", "only 50 training tasks", "lower"]),
        ("cluster.cpus=4096", ["asks for 4096 cores", "the cluster has", "lower it"]),
        ("cluster.threads_per_sampler=4096", ["x 4096 threads", "cluster.threads_per_sampler"]),
        ("learner.lr={kind: exponential, from: 1, to: 0}", ["positive ends"]),
        ("algo={name: sft, rows: none.jsonl}", ["none.jsonl is not a file"]),
        ("algo={name: sft, rows: good.yaml}", ["good.yaml", "expected a name that ends in"]),
        ("algo={name: rft, combine: none.jsonl}", ["none.jsonl is not a file", "an rft run"]),
        ("algo={name: rft, key: mark}", ["unknown key 'mark'", "Did you mean 'marks'?"]),
        ("algo={name: rft, distance: edits}", ["unknown distance 'edits'", "'edit'"]),
    ],
)
def test_a_wrong_value(refused, command, override, parts):
    assert_says(refused(command, "good.yaml", override), *parts)


@both
@pytest.mark.parametrize(
    "text, parts",
    [
        ("a: [1", ["not valid YAML", "line"]),
        ("- a\n", ["expected keys and values", "list"]),
        ("", ["expected keys and values"]),
        ("extends: god.yaml\n", ["god.yaml", "Did you mean 'good.yaml'?"]),
        ("extends: bad.yaml\n", ["circle"]),
        ("name: x\n", ["steps: Field required", "tasks_per_step: Field required"]),
    ],
)
def test_a_file_that_is_no_configuration(here, refused, command, text, parts):
    (here / "bad.yaml").write_text(text)
    assert_says(refused(command, "bad.yaml"), "bad.yaml" if "god" not in text else "", *parts)


@pytest.mark.parametrize(
    "written, parts",
    [
        ({}, ["is not a run folder", "no config.yaml"]),
        ({"config.yaml": "name: a\n"}, ["has no step yet"]),
        ({"config.yaml": "name: a\n", "metrics.jsonl": '{"step": 1, "lr": 1}\n'}, ["--metric"]),
    ],
)
def test_a_folder_that_cannot_be_compared(here, refused, written, parts):
    (here / "run").mkdir()
    for name, text in written.items():
        (here / "run" / name).write_text(text)
    before = {p.name for p in here.rglob("*")}
    assert_says(refused("compare", "run"), "run", *parts)
    assert {p.name for p in here.rglob("*")} == before


@both
def test_no_such_file(refused, command):
    said = refused(command, "goood.yaml")
    assert_says(said, "no configuration file 'goood.yaml'", "Did you mean 'good.yaml'?")


def gsm8k(here, *lines, path="train.jsonl"):
    """The override that trains on these lines, and evaluates on a row that is in order."""
    fine = {"question": "1+1?", "answer": "#### 2"}
    (here / "fine.jsonl").write_text(json.dumps(fine) + "\n")
    if lines:
        (here / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return f"env={{name: gsm8k, path: {path}, held_out_path: fine.jsonl}}"


@both
@pytest.mark.parametrize(
    "lines, parts",
    [
        ([], ["trian.jsonl", "not a file", "Expected a .jsonl"]),
        ([""], ["train.jsonl"]),
        (['{"question": "x", "anwser": "#### 1"}'], ["no column 'answer'", "'anwser'"]),
        (['{"question": "x", "answer": 3}'], ["'answer'", "int", "expected a string"]),
        (['{"question": "x", "answer": "three"}'], ["#### <number>", "'three'"]),
        (["{"], ["train.jsonl, line 1", "not JSON"]),
        (["[1]"], ["list", "expected an object"]),
    ],
    ids=["missing", "empty", "column", "type", "answer", "torn", "list"],
)
def test_data_that_cannot_be_read(here, refused, command, lines, parts):
    path = "train.jsonl" if lines else "trian.jsonl"
    said = refused(command, "good.yaml", gsm8k(here, *lines, path=path), "tasks_per_step=1")
    assert_says(said, *parts)


def test_a_prompt_longer_than_the_context(refused):
    said = refused("run", "good.yaml", "env.digits=30", "model.max_length=64")
    assert_says(said, "its prompt has 62 tokens", "sampler.max_tokens=4", "model.max_length=64")
    assert_says(said, "Shorten", "raise model.max_length")


def test_a_chat_prompt_for_a_model_without_a_template(here, refused):
    row = json.dumps({"question": "1+1?", "answer": "#### 2"})
    said = refused("run", "good.yaml", gsm8k(here, row), "tasks_per_step=1")
    assert_says(said, "chat messages", "no chat template", "raw text", "instruct model")


@both
def test_a_plugin_that_fails_to_import_shows_its_traceback(here, refused, command):
    (here / "broken.py").write_text("import no_such_package\n")
    said = refused(command, "good.yaml", "rewards.fns=[{fn: broken.py:reward}]")
    assert_says(said, "reward 'broken.py' failed to import", "Traceback", "line 1")
    assert "No module named 'no_such_package'" in said


@both
def test_the_traceback_of_a_plugin_inside_a_plugin_is_shown_too(here, refused, command):
    (here / "loss.py").write_text("1 / 0\n")
    said = refused(command, "good.yaml", "algo.loss=loss.py:Mine")
    assert_says(said, "loss 'loss.py' failed to import", "ZeroDivisionError")


@both
def test_vllm_is_asked_for_and_not_installed(refused, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    said = refused(command, "good.yaml", "sampler.engine=vllm")
    assert_says(said, "vLLM is not installed", "locks/cpu.txt", "sampler.engine=transformers")


@both
def test_gpus_are_asked_of_a_torch_without(refused, command, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    said = refused(command, "good.yaml", "learner.gpus=1")
    assert_says(said, "GPUs are asked for", "a CPU build", "locks/gpu.txt", "learner.gpus=0")


def test_more_gpus_than_the_cluster_has(here, refused, monkeypatch):
    """How many there are only the cluster knows; but nothing is run or written on it before."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = {"CPU": 2.0, "GPU": 1.0}
    session = contextlib.nullcontext(found)
    monkeypatch.setattr(rlft.train, "ray_session", lambda *_: session)
    monkeypatch.setattr(rlft.train, "_after_warm_start", lambda *_: pytest.fail("it ran first"))
    (here / "warm.yaml").write_text(GOOD)
    for more in ([], ["warm_start=warm.yaml", "model.build=null"]):
        said = refused("run", "good.yaml", "learner.num=2", "learner.gpus=1", *more)
        assert_says(said, "asks for 2 GPUs", "the cluster has 1", "lower sampler.gpus")


def test_a_warm_start_is_checked_before_anything_is_started(here, refused):
    (here / "warm.yaml").write_text(GOOD.replace("grpo", "gpro"))
    after = ["warm_start=warm.yaml", "model.build=null"]
    assert_says(refused("run", "good.yaml", *after), "unknown algo 'gpro'")
    said = refused("run", "good.yaml", "warm_start=wram.yaml", "model.build=null")
    assert_says(said, "wram.yaml", "Did you mean 'warm.yaml'?")


@pytest.mark.parametrize("argv", [["run"], ["run", "good.yaml", "--fodler", "x"], ["rnu"]])
def test_the_command_itself_is_mistyped(here, monkeypatch, capsys, argv):
    assert rlft_command(monkeypatch, *argv) == 2
    assert "Usage" in capsys.readouterr().err


def test_a_model_that_cannot_be_fetched(refused):
    said = refused("fetch", "smollm-135m")
    assert_says(said, "unknown model 'smollm-135m'", "Did you mean 'smollm2-135m'?")


# -- resuming -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_cluster):
    """A folder with `good.yaml` and a run of it that went to its end."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "good.yaml").write_text(GOOD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert rlft_command(patch, "run", "good.yaml", "--dir", "run") == 0
    assert (folder / "run" / "result.json").is_file()
    return folder


@pytest.fixture
def unresumed(finished, refused, monkeypatch):
    """Resumes the finished run, which must be refused and must leave every file as it was."""

    def refuse(*argv, resume=True):
        monkeypatch.chdir(finished)
        before = contents(finished)
        more = ["--resume"] if resume else []
        said = refused("run", "good.yaml", "--dir", "run", *more, *argv)
        assert contents(finished) == before
        return said

    return refuse


def test_a_finished_run_has_nothing_to_resume(unresumed):
    assert_says(unresumed(), "nothing to do", "at step 1 of 1", "raise steps=")


def test_the_configuration_in_the_run_folder_is_that_of_the_run(finished, refused, monkeypatch):
    monkeypatch.chdir(finished)
    said = refused("run", "run/config.yaml", "--dir", "run", "--resume")
    assert_says(said, "nothing to do", "at step 1 of 1")


def test_a_folder_that_holds_a_run_is_not_used_again(unresumed):
    assert_says(unresumed(resume=False), "already holds a run", "--resume")


@pytest.mark.parametrize(
    "override, difference",
    [("seed=4", "seed: 0 there, 4 here"), ("name=other", "'bad-input' there, 'other' here")],
)
def test_a_checkpoint_of_another_run(unresumed, override, difference):
    said = unresumed("steps=2", override)
    assert_says(said, "belongs to another run", difference, "config.yaml", "start a new run")


@pytest.mark.parametrize("name", ["model/model.safetensors", "algo.pkl"])
def test_a_checkpoint_with_a_flipped_bit(finished, unresumed, name):
    path = finished / "run/checkpoints/step_000001" / name
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    try:
        assert_says(unresumed("steps=2"), "corrupted", f"{path} has changed", "Remove")
    finally:
        path.write_bytes(whole)


def test_a_checkpoint_that_lost_a_file(finished, unresumed):
    path = finished / "run/checkpoints/step_000001/model/config.json"
    whole = path.read_bytes()
    path.unlink()
    try:
        assert_says(unresumed("steps=2"), "corrupted", f"{path} is missing")
    finally:
        path.write_bytes(whole)


def test_there_is_nothing_to_resume(here, refused):
    said = refused("run", "good.yaml", "--resume")
    assert_says(said, "nothing to resume", "bad-input", "without --resume")
    said = refused("run", "good.yaml", "--resume", "--dir", "empty")
    assert_says(said, "nothing to resume", "without --resume")
    assert not (here / "empty").exists()


# -- what breaks while running --------------------------------------------------------------------


def test_a_reward_that_always_raises_ends_the_run_and_is_never_a_zero(
    tmp_path, ray_cluster, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    plugin = tmp_path / "raising.py"
    plugin.write_text("def reward(completion, task):\n    raise KeyError('gold answer')\n")
    argv = ["run", "good.yaml", f"rewards.fns=[{{fn: '{plugin}:reward'}}]", "--dir", "run"]
    assert rlft_command(monkeypatch, *argv) == 1
    said = capsys.readouterr().err
    assert_says(said, "failed: step 1: 4 of 4 rewards failed", "never counted as 0")
    assert_says(said, "Traceback", f'File "{plugin}", line 2', "KeyError: 'gold answer'")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "the step was not taken"
    assert not (tmp_path / "run" / "result.json").exists()
    samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in samples]
    assert {(s["outcome"], s["reward"]) for s in told} == {("error", None)}
