"""The rewards of docs/examples in real reward processes; the remote one asks a server on this machine."""

import json
import pickle
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rlft.config import Rewards
from rlft.rewards.scorer import Scorer
from rlft.types import Attempt, Task

ROOT = Path(__file__).parents[2]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((question, self.headers.get("Authorization")))
        text = question["completion"]
        if text == "slow":
            time.sleep(1.5)
        status = 503 if text == "down" else 200
        answer = {"refused": "no text"} if text == "" else {"score": len(text) / 10}
        try:
            self.send_response(status)
            self.end_headers_as_json(json.dumps(answer).encode())
        except OSError:  # the slow one's client has left
            return

    def end_headers_as_json(self, body):
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.asked, made.daemon_threads = [], True
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def outcomes(fn, texts, **keys):
    scorer = Scorer(Rewards(fns=[fn], **keys), [str(ROOT)], 60)
    task = Task("t", "q", target="gold")
    try:
        calls = [pickle.dumps((Attempt(str(i), "policy", t), task)) for i, t in enumerate(texts)]
        scored = scorer.score(calls)
    finally:
        scorer.close()
    assert scored.restarts == 0
    return scored.outcomes


def test_a_remote_reward_scores_refuses_fails_and_times_out(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "k")
    url = f"http://127.0.0.1:{server.server_port}/"
    fn = {"fn": "docs/examples/http_reward.py:Judge", "args": {"url": url, "timeout": 0.5}}
    got = outcomes(fn, ["four", "", "down", "slow", "12345"], env=["JUDGE_KEY"])
    assert [o.kind for o in got] == ["value", "invalid", "error", "error", "value"]
    assert [o.reward for o in got] == [0.4, 0.0, None, None, 0.5]
    assert got[1].reason == "no text"
    assert "503" in got[2].reason
    assert "TimeoutError" in got[3].reason, "its own timeout, before that of the run"
    # Calls run at the same time, so they arrive in any order.
    [(question, key)] = [(q, k) for q, k in server.asked if q["completion"] == "four"]
    assert question == {"prompt": "q", "completion": "four", "target": "gold"}
    assert key == "Bearer k"


def test_nobody_answers(server):
    server.shutdown()
    server.server_close()
    url = f"http://127.0.0.1:{server.server_port}/"
    fn = {"fn": "docs/examples/http_reward.py:Judge", "args": {"url": url}}
    [got] = outcomes(fn, ["x"])
    assert (got.kind, got.reward) == ("error", None)
    assert "Cannot connect" in got.reason


def test_a_reward_of_the_conversation():
    scorer = Scorer(Rewards(fns=[{"fn": "docs/examples/turns_reward.py:polite"}]), [str(ROOT)], 60)
    task = Task("t", ({"role": "user", "content": "Name a colour."},))
    said = ("Red.", "Red, but then again there is much to be said for blue.")
    calls = []
    for text in said:
        messages = (*task.prompt, {"role": "assistant", "content": text})
        calls.append(pickle.dumps((Attempt("a", "policy", text, messages), task)))
    got = scorer.score(calls).outcomes
    scorer.close()
    assert [o.parts for o in got] == [{"short": 0.5, "whole": 0.5}, {"short": 0.0, "whole": 0.5}]
