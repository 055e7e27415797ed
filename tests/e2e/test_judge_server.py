"""The judge against a real vLLM server on loopback: protocol, key, verdict, and what is no verdict."""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from judge_model import save_judge

from rlft.config import Rewards
from rlft.rewards.scorer import Scorer
from rlft.types import Attempt, Task

pytest.importorskip("vllm")
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
TASK = Task("1", "What is 2+3?", target="five")
PROMPT = {"role": "user", "content": "What is 2+3?"}
KEY = "RLFT_TEST_JUDGE_KEY"


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a server, as docs/write-a-reward.md starts one; its whole process group is ended."""
    folder = tmp_path_factory.mktemp("judge")
    save_judge(folder / "model")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    # What `vllm serve` runs; that command asks for the version of a package that the CPU wheel has not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(folder / "model"), "--served-model-name", "tiny-judge"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--api-key", "abc"]
    # As our own engine on a CPU: without it the first request waits for a C++ compiler.
    quick = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = folder / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quick},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not ready(url):
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        yield f"{url}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)


def outcomes(url, texts, **args):
    """What a reward process says of each text, as in a run."""
    judge = {"url": url, "model": "tiny-judge", "max_tokens": 8, "timeout": 60.0, **args}
    rewards = Rewards(fns=[{"fn": "judge", "args": judge}], timeout=100, env=[KEY])
    scorer = Scorer(rewards, ["."], 120)
    try:
        calls = []
        for text in texts:
            said = ({"role": "assistant", "content": text},)
            calls.append(pickle.dumps((Attempt("a", "policy", text, (PROMPT, *said)), TASK)))
        return scorer.score(calls).outcomes
    finally:
        scorer.close()


def test_a_judge_served_by_vllm(served, monkeypatch):
    monkeypatch.setenv(KEY, "abc")
    scored = outcomes(served, ["five", "2+3 is 5", "7 {braces}"], key_env=KEY)
    assert [(o.kind, o.reward) for o in scored] == [("value", 0.7)] * 3, scored[0].reason

    # This judge only ever says a score: for a comparison that is no verdict, and no number.
    [compared] = outcomes(served, ["five"], key_env=KEY, mode="pairwise")
    assert compared.kind == "invalid" and "no verdict" in compared.reason

    [refused] = outcomes(served, ["five"])
    assert refused.kind == "error" and refused.reward is None and "401" in refused.reason
    [unknown] = outcomes(served, ["five"], key_env=KEY, model="another")
    assert unknown.kind == "error" and "404" in unknown.reason and "another" in unknown.reason


def test_a_judge_whose_server_the_run_starts_and_ends(tmp_path):
    save_judge(tmp_path / "model")
    args = {"path": str(tmp_path / "model"), "max_tokens": 8, "timeout": 60.0}
    args["server_args"] = ["--dtype", "float32", "--max-model-len", "1024"]
    rewards = Rewards(fns=[{"fn": "served_judge", "args": args}], timeout=100)
    scorer = Scorer(rewards, ["."], 300)
    said = ({"role": "assistant", "content": "five"},)
    call = pickle.dumps((Attempt("a", "policy", "five", (PROMPT, *said)), TASK))
    try:
        [scored] = scorer.score([call]).outcomes
        assert (scored.kind, scored.reward) == ("value", 0.7), scored.reason
        # A server that ends is started again, and asked again.
        servers = serving(tmp_path / "model")
        assert len(servers) == 1
        os.kill(servers[0], signal.SIGKILL)
        again = scorer.score([call, call])
        assert "value" in {o.kind for o in again.outcomes} and again.restarts == 1
    finally:
        scorer.close()
    assert serving(tmp_path / "model") == []


def serving(model):
    """Process ids of vLLM servers of `model`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if str(model).encode() in words and b"--port" in words:
                found.append(int(folder.name))
    return found
