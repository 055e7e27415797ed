"""A run submitted to a cluster: exit codes, results that stay, nothing left behind; and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from interruptible import interruptible
from private_head import ROOT, free_ports, private_head
from small_runs import tree

pytestmark = pytest.mark.timeout(420)
PATIENCE_S = 240


@pytest.fixture(scope="module")
def head():
    with private_head() as started:
        yield started


@pytest.fixture
def folder(tmp_path, tiny_model):
    """A folder to submit from, with a short run, one that goes on, and one that cannot be used."""
    support = ROOT / "tests" / "support" / "plain_rewards.py"
    reward = [{"fn": "reward.py:vowels"}]
    (tmp_path / "reward.py").write_text(support.read_text())
    for name, steps in (("short", 2), ("long", 100_000)):
        text = yaml.safe_dump(tree(tiny_model, name=name, steps=steps, rewards__fns=reward))
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def command(*argv):
    return [sys.executable, str(ROOT / "launch" / "submit.py"), *map(str, argv)]


def submit(folder, env, *argv):
    """Runs launch/submit.py in `folder`; returns its exit code and what it said."""
    done = subprocess.run(
        command(*argv),
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def refused(folder, env, *argv):
    code, said = submit(folder, env, *argv)
    assert code == 2, said
    assert "error: " in said and "Traceback" not in said
    return said


# -- what works ------------------------------------------------------------------------------------


def test_a_submitted_run_ends_with_its_code_and_leaves_its_folder_here(head, folder):
    code, said = submit(
        folder, head.env, "short.yaml", "seed=3", "--address", head.address, "--skip-check"
    )
    assert code == 0, said
    assert "step 2/2" in said and "is done" in said
    [run] = (folder / "runs" / "short").iterdir()
    assert json.loads((run / "result.json").read_text())["step"] == 2
    assert (run / "checkpoints/step_000002/model/model.safetensors").is_file()
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 3
    assert not head.commands(), "the job is over, and so is every process of it"


def test_options_after_two_dashes_are_those_of_the_run_and_a_refusal_there_is_its_own_exit_code(
    head, folder
):
    there = ["--address", head.address, "--skip-check"]
    code, said = submit(folder, head.env, "short.yaml", *there, "--", "--resume")
    assert code == 2, said
    assert "nothing to resume" in said and "failed with exit code 2" in said


@pytest.fixture
def following(head, folder, request):
    """A submitter that follows a run without end, past the line that the test names (its first step); and
    the job's name."""
    past = getattr(request, "param", "step 1/")
    process = subprocess.Popen(
        command("long.yaml", "--address", head.address, "--skip-check"),
        cwd=folder,
        env={**head.env, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=interruptible,
        start_new_session=True,
    )
    lines, job = [], None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("submitted "):
            job = line.split()[1].rstrip(":")
        if line.startswith(past):
            break
    else:
        pytest.fail("it ended before its first step:\n" + "".join(lines))
    yield process, job
    if process.poll() is None:
        process.kill()
    stop(head, job)


def stop(head, job):
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", head.address]
    env = {**head.env, "RAY_AUTH_MODE": "token"}
    return subprocess.run([*ray, job], env=env, capture_output=True, timeout=120, check=False)


def test_ray_job_stop_leaves_nothing_behind(head, following):
    process, job = following
    running = "\n".join(head.commands())
    for name in ("-m rlft", "ray::Sampler", "ray::LearnerRank", "ray::RewardWorker"):
        assert name in running
    assert stop(head, job).returncode == 0
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM" in output, "it closed its actors itself, and was not killed"
    assert f"{job} was stopped" in output
    end = time.monotonic() + 20
    while head.commands() and time.monotonic() < end:
        time.sleep(0.2)
    assert not head.commands()


@pytest.mark.parametrize("following", ["cluster: "], indirect=True, ids=["before its first step"])
def test_ctrl_c_stops_following_and_says_that_the_job_goes_on(head, following):
    process, job = following
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the job goes on" in output and "Traceback" not in output
    assert f"ray job stop --address {head.address} {job}" in output
    assert any("-m rlft" in line for line in head.commands()), "it does go on"


# -- what is refused -------------------------------------------------------------------------------


def test_a_cluster_that_is_down(folder):
    [port] = free_ports(1)
    said = refused(folder, dict(os.environ), "short.yaml", "--address", f"http://127.0.0.1:{port}")
    assert "no Ray cluster answers" in said and "ray start --head" in said and "8265" in said


def test_an_address_of_another_kind(folder):
    said = refused(folder, dict(os.environ), "short.yaml", "--address", "ray://head:10001")
    assert "expected the dashboard's address" in said


def test_a_cluster_that_wants_a_token_which_is_not_here(head, folder):
    env = {**head.env, "RAY_AUTH_TOKEN_PATH": str(folder / "none")}
    said = refused(folder, env, "short.yaml", "--address", head.address)
    assert "wants a token" in said and str(folder / "none") in said and "get-auth-token" in said


def test_a_token_of_another_cluster(head, folder):
    (folder / "token").write_text("f" * 32)
    env = {**head.env, "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    said = refused(folder, env, "short.yaml", "--address", head.address)
    assert "refuses the token" in said and "Copy the head's" in said


def test_a_tree_over_the_upload_limit_names_its_largest_files(head, folder):
    with (folder / "pixels.bin").open("wb") as stream:
        for _ in range(101):
            stream.write(os.urandom(2**20))
    there = ["--address", head.address, "--skip-check"]
    said = refused(folder, head.env, "short.yaml", *there)
    assert "101.0 MiB  pixels.bin" in said.replace("\n", " ") and "100.0 MiB" in said
    assert ".gitignore" in said
    assert not (folder / "runs").exists()


def test_a_configuration_outside_of_the_folder(head, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "short.yaml"
    other.write_text((folder / "short.yaml").read_text())
    said = refused(folder, head.env, other, "--address", head.address, "--skip-check")
    assert "must lie below" in said


class Dashboard(BaseHTTPRequestHandler):
    """A head on another machine, with the Ray version that its path names."""

    version = "2.60.0"

    def do_GET(self):
        node = {"raylet": {"isHeadNode": True, "sessionDir": "/nowhere/session_1"}}
        body = {"ray_version": self.version, "data": {"summary": [node]}}
        text = b"<html>" if self.version == "none" else json.dumps(body).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere():
    """Starts a dashboard that says it is on another machine; returns its address."""
    servers = []

    def start(version):
        handler = type("Handler", (Dashboard,), {"version": version})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_cluster_with_another_ray(folder, elsewhere):
    address = elsewhere("2.9.3")
    said = refused(folder, dict(os.environ), "short.yaml", "--address", address)
    assert "runs Ray 2.9.3, this environment has Ray 2." in said and "same lock" in said


def test_a_server_that_is_no_dashboard(folder, elsewhere):
    said = refused(folder, dict(os.environ), "short.yaml", "--address", elsewhere("none"))
    assert "not as a Ray dashboard" in said


def test_results_that_would_be_lost_on_another_machine(folder, elsewhere):
    import ray

    there = ["--address", elsewhere(ray.__version__), "--skip-check"]
    said = refused(folder, dict(os.environ), "short.yaml", *there)
    assert "run_root is 'runs'" in said and "--run-root /shared/runs" in said


def test_data_that_is_here_and_would_not_be_there(folder, elsewhere):
    import ray

    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".gitignore").write_text("kept.py\n")
    Path(folder / "kept.py").write_text((folder / "reward.py").read_text())
    there = ["--address", elsewhere(ray.__version__), "--skip-check", "--run-root", "/shared/runs"]
    said = refused(
        folder, dict(os.environ), "short.yaml", "rewards.fns=[{fn: 'kept.py:vowels'}]", *there
    )
    assert "rewards.fns[0].fn names 'kept.py'" in said and "not sent along" in said
