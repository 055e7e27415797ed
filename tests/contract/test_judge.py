"""The judge against a server on loopback that speaks the protocol: only a verdict is a number."""

import asyncio
import json
import pickle
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlft.check import plugin_warnings
from rlft.config import Rewards, parse_config
from rlft.errors import ConfigError, Invalid, PluginError
from rlft.rewards.judge import Judge
from rlft.rewards.scorer import Scorer
from rlft.rewards.served_judge import ServedJudge
from rlft.types import Attempt, Task

TASK = Task("1", "What is 2+3?", target="five")
PROMPT = ({"role": "user", "content": "What is 2+3?"},)


def attempt(text):
    return Attempt("a", "policy", text, (*PROMPT, {"role": "assistant", "content": text}))


class Server(ThreadingHTTPServer):
    """Answers with what `say(prompt, number of the request)` returns: text, or (status, body)."""

    daemon_threads = True
    request_queue_size = 128  # fifty calls come at once

    def __init__(self, say):
        self.say, self.asked = say, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        said = self.server.say(body["messages"][0]["content"], len(self.server.asked))
        status, answer = said if isinstance(said, tuple) else (200, message(said))
        data = answer.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def message(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def server():
    made = []

    def make(say):
        made.append(Server(say))
        return made[-1]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def judged(judge, *texts, task=TASK):
    """What the judge says of each text: a number, or the exception."""

    async def all_of_them():
        calls = [judge(attempt(text), task) for text in texts]
        said = await asyncio.gather(*calls, return_exceptions=True)
        if judge._session is not None:
            await judge._session.close()
        return said

    return asyncio.run(all_of_them())


def test_a_score_is_scaled_and_the_question_is_put_whole(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "abc")
    one = server(lambda prompt, n: "Good. Score: 3\nOn second thought.\nScore: **7.5**")
    judge = Judge(one.url, "m", rubric="Be {strict}.", low=5, high=10, key_env="JUDGE_KEY")
    assert judged(judge, "{five} is it") == [0.5]
    path, headers, body = one.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer abc"
    assert body["model"] == "m" and body["temperature"] == 0.0
    for text in ("What is 2+3?", "{five} is it", "Be {strict}.", "from 5 to 10"):
        assert text in body["messages"][0]["content"]


@pytest.mark.parametrize(
    "said, reason",
    [
        ("I cannot say.", "no score"),
        ("Score: none", "no score"),
        ("Score: 11", "outside 0 to 10"),
        ("Score: -1", "outside 0 to 10"),
        ("", "no score"),
    ],
)
def test_an_answer_without_a_verdict_is_invalid_with_its_reason(server, said, reason):
    [error] = judged(Judge(server(lambda prompt, n: said).url, "m"), "x")
    assert isinstance(error, Invalid) and reason in str(error)
    [error] = judged(Judge(server(lambda prompt, n: said).url, "m", "pairwise"), "x")
    assert isinstance(error, Invalid) and "no verdict" in str(error)


def longer(prompt, n):
    """A fair judge: prefers the longer of the two answers."""
    a, b = prompt.split("[Answer A]\n")[1].split("\n\nThink")[0].split("\n\n[Answer B]\n")
    return "Verdict: tie" if len(a) == len(b) else f"Verdict: {'A' if len(a) > len(b) else 'B'}"


def test_pairwise_compares_with_the_reference_in_an_order_that_is_drawn_and_repeatable(server):
    one = server(longer)
    texts = [f"{i:02d}" for i in range(24)] + [f"{i:09d}" for i in range(24)] + ["fiv3"]
    judge = Judge(one.url, "m", "pairwise")
    assert judged(judge, *texts) == [0.0] * 24 + [1.0] * 24 + [0.5]
    firsts = {body["messages"][0]["content"]: None for _, _, body in one.asked}
    own_first = [p.split("[Answer A]\n")[1].split("\n")[0] != "five" for p in firsts]
    assert 10 < sum(own_first) < 39, "each order has its share"
    asked = {body["messages"][0]["content"] for _, _, body in one.asked}  # some of them twice
    one.asked.clear()
    judged(Judge(one.url, "m", "pairwise"), *reversed(texts))
    assert {body["messages"][0]["content"] for _, _, body in one.asked} == asked
    one.asked.clear()
    judged(Judge(one.url, "m", "pairwise", seed=1), *texts)
    assert {body["messages"][0]["content"] for _, _, body in one.asked} != asked


def test_a_judge_that_prefers_a_place_gives_half_a_point_when_asked_in_both_orders(server):
    judge = Judge(server(lambda prompt, n: "verdict: A").url, "m", "pairwise", both_orders=True)
    assert judged(judge, "x", "yy", "zzz") == [0.5, 0.5, 0.5]


def test_a_task_without_a_reference_is_an_error_that_says_so(server):
    judge = Judge(server(longer).url, "m", "pairwise")
    [error] = judged(judge, "x", task=Task("9", "q"))
    assert isinstance(error, ValueError) and "no reference" in str(error)
    assert judged(judge, "xx", task=Task("9", "q", demos=("y",))) == [1.0]


def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_judge_that_is_down_is_an_error_that_says_what_to_do():
    [error] = judged(Judge(f"http://127.0.0.1:{unused_port()}/v1", "some/model"), "x")
    assert isinstance(error, ConnectionError)
    assert "cannot be reached" in str(error) and "vllm serve some/model" in str(error)


def test_a_slow_judge_is_an_error(server):
    def slow(prompt, n):
        time.sleep(0.6)
        return "Score: 10"

    [error] = judged(Judge(server(slow).url, "m", timeout=0.2), "x")
    assert isinstance(error, TimeoutError) and "within 0.2 s" in str(error)


def test_a_busy_judge_is_asked_again_and_a_refusal_is_shown(server):
    busy = server(lambda prompt, n: "Score: 10" if n == 2 else (503, "loading"))
    assert judged(Judge(busy.url, "m"), "x") == [1.0]
    refuses = server(lambda prompt, n: (404, "no such model"))
    [error] = judged(Judge(refuses.url, "m"), "x")
    assert isinstance(error, ConnectionError) and "404: no such model" in str(error)
    assert len(refuses.asked) == 1
    odd = server(lambda prompt, n: (200, '{"choices": []}'))
    [error] = judged(Judge(odd.url, "m"), "x")
    assert isinstance(error, ConnectionError) and "something else" in str(error)


def test_in_a_reward_process_failures_are_outcomes_and_never_numbers(server):
    one = server(lambda prompt, n: "Score: 4" if "good" in prompt else "hm")
    outcomes = {}
    for name, url in (("up", one.url), ("down", f"http://127.0.0.1:{unused_port()}/v1")):
        fns = [{"fn": "judge", "args": {"url": url, "model": "m"}}]
        scorer = Scorer(Rewards(fns=fns, invalid_score=-1.0), ["."], 60)
        try:
            calls = [pickle.dumps((attempt(text), TASK)) for text in ("good", "bad")]
            outcomes[name] = scorer.score(calls).outcomes
        finally:
            scorer.close()
    assert [(o.kind, o.reward) for o in outcomes["up"]] == [("value", 0.4), ("invalid", -1.0)]
    assert [(o.kind, o.reward) for o in outcomes["down"]] == [("error", None)] * 2
    assert "cannot be reached" in outcomes["down"][0].reason


@pytest.mark.parametrize(
    "args, said",
    [
        ({"url": "localhost:8000"}, "expected http://"),
        ({"url": "http://x", "mode": "rank"}, "score, pairwise"),
        ({"url": "http://x", "low": 3, "high": 3}, "must be below"),
    ],
)
def test_a_judge_that_cannot_be_meant_is_refused(args, said):
    with pytest.raises(ConfigError, match=said):
        Judge(model="m", **args)


@pytest.mark.parametrize(
    "judge, path, warned",
    [
        ("Qwen/Qwen3-0.6B", "models/qwen3-0.6b/", True),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B", False),
    ],
)
def test_a_judge_of_its_own_answers_is_warned_of(judge, path, warned):
    tree = {
        **{"name": "j", "steps": 1, "tasks_per_step": 1, "algo": "grpo", "env": "addition"},
        "model": {"path": path},
        "rewards": {"fns": [{"fn": "judge", "args": {"url": "http://x/v1", "model": judge}}]},
    }
    said = plugin_warnings(parse_config(tree, "j"))
    assert bool(said) is warned
    assert not warned or "favour" in said[0]


def test_a_served_judge_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        ServedJudge(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="unexpected keyword argument 'rubrik'"):
        ServedJudge(str(tmp_path), rubrik="x")
    with pytest.raises(ConfigError, match=r"low .* must be below high"):
        ServedJudge(str(tmp_path), low=3, high=2)
    judge = ServedJudge(str(tmp_path), server_args=["--max-model-len", 1024])
    command = judge.command(8123)
    assert command[-2:] == ["--max-model-len", "1024"]
    assert command[command.index("--host") + 1] == "127.0.0.1", "nobody else is served"


def test_a_server_that_ends_before_it_answers_is_quoted(tmp_path, monkeypatch):
    judge = ServedJudge(str(tmp_path))
    failing = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    monkeypatch.setattr(judge, "command", lambda port: failing)
    with pytest.raises(PluginError, match=r"ended with code 3 .*\nno such model"):
        judge.load()
