"""The report: whole in one file, every metric drawn, and what a model writes stays text."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from rlft.config import dump_config, load_config
from rlft.errors import ConfigError
from rlft.record.charts import binned, charts, running_mean
from rlft.record.metrics import JsonLines
from rlft.record.report import write_report
from rlft.record.report_samples import chosen_steps

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


def row(step, **more):
    times = {"time/step_s": 4.0, "time/rollout_s": 1.0, "time/learn_s": 2.0}
    tokens = {"tokens/prompt": 10, "tokens/completion": 30}
    return {"step": step, "version": step, **tokens, **times, **more}


def sample(step, kind="train", **more):
    base = {"id": "0.0.0", "task": EVIL, "prompt": EVIL, "completion": EVIL, "target": EVIL}
    base |= {"reward": 1.0, "parts": {EVIL: 0.5}, "outcome": "invalid", "reason": EVIL}
    return {
        "step": step,
        "kind": kind,
        **base,
        "tokens": 3,
        "truncated": True,
        "version": [1, 2],
    } | more


def folder(tmp_path, metrics=(), evals=(), samples=(), tokens=(), alerts=()):
    (tmp_path / "config.yaml").write_text(dump_config(load_config("configs/quickstart.yaml")))
    for name, rows in (
        ("metrics", metrics),
        ("eval", evals),
        ("samples", samples),
        ("tokens", tokens),
        ("alerts", alerts),
    ):
        for r in rows:
            JsonLines(tmp_path / f"{name}.jsonl").append(r)
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts, and the contents of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self._inside = [], "", [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag in ("script", "style")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside = False

    def handle_data(self, data):
        if not self._inside:
            self.text += data
        elif self.tags[-1][0] == "script":
            self.scripts[-1] += data


def read(path):
    return Page(write_report(path).read_text("utf-8"))


def test_what_a_model_or_a_data_set_says_is_text_everywhere(tmp_path):
    trace = {"step": 1, "id": "0.0.0", "task": EVIL, "version": [1, 2], "tokens": [EVIL, "\n"]}
    trace |= {"engine_logp": [-1.0, -2.0], "learner_logp": [-1.3, -2.0]}
    alert = {"step": 1, "kind": "guard", "name": EVIL, "stop": True, "message": EVIL}
    chat = [{"role": EVIL, "content": EVIL}]
    samples = [sample(1), sample(1, "eval", prompt=chat, task="t")]
    metrics = [row(1, **{f"reward/{EVIL}": 0.5, EVIL: 1.0})]
    page = read(folder(tmp_path, metrics, [], samples, [trace], [alert]))
    assert len(page.scripts) == 3
    assert not [t for t, a in page.tags if t == "img" or any(k.startswith("on") for k in a)]
    shown = page.text.count(EVIL)
    assert shown >= 10, "prompt, completion, target, reason, task (twice), chat, token, alert"
    names = {t["name"] for c in json.loads(page.scripts[0]) for t in c["traces"] if "name" in t}
    assert not [n for n in names if "<" in n], "plotly reads HTML in names"


def test_only_its_own_two_scripts_may_run_and_nothing_is_fetched(tmp_path):
    page = read(folder(tmp_path, [row(1)], [], [sample(1)]))
    [policy] = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert "default-src 'none'" in policy
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 2
    assert not [a for t, a in page.tags if "src" in a or "href" in a]


def test_every_metric_is_drawn():
    metrics = [
        row(s, entropy=1.0, **{"reward/mean": 0.1, "mine/own": 3, "plain": 2}) for s in (1, 2)
    ]
    metrics[0]["staleness/mean"] = 1.0
    evals = [{"step": 0, "eval/reward/mean": 0.3, "eval/reward/careful": 0.2}]
    drawn = {t.get("name") for c in charts(metrics, evals, ["careful"]) for t in c.traces}
    expected = {"entropy", "reward/mean", "mine/own", "plain", "staleness/mean", "tokens/s"}
    assert expected | {"eval/reward/mean", "eval/reward/careful", "rollout", "learn"} <= drawn


def test_the_stack_of_a_step_is_its_seconds():
    stack = charts([row(1), row(2)], [], [])[-1]
    assert stack.title == "Where the time went"
    totals = [sum(t["y"][i] for t in stack.traces) for i in (0, 1)]
    assert totals == [4.0, 4.0], "what no phase accounts for is there as well"


def test_long_runs_are_binned_without_losing_the_mean_or_the_last_step():
    xs, ys = binned(list(range(1, 2501)), [float(x % 7) for x in range(1, 2501)], 1000)
    assert len(xs) == len(ys) <= 1000
    assert xs[-1] == 2500
    assert sum(y * 3 for y in ys[:-1]) + ys[-1] == pytest.approx(sum(x % 7 for x in range(1, 2501)))
    assert binned([], []) == ([], [])
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]


@pytest.mark.parametrize("steps", [[1], [1, 2, 3], list(range(1, 40))])
def test_completions_are_of_the_first_and_last_step_and_some_between(steps):
    chosen = chosen_steps(steps, 6)
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1], len(chosen)) == (steps[0], steps[-1], min(6, len(steps)))


def test_status(tmp_path):
    path = folder(tmp_path)
    assert "No step is finished yet" in read(path).text
    JsonLines(path / "metrics.jsonl").append(row(1))
    assert re.search(r"quickstart running.*Its last step ended", read(path).text, re.DOTALL)
    (path / "result.json").write_text('{"step": 1}')
    assert "quickstart finished" in read(path).text
    alert = {"step": 1, "kind": "end", "name": "ActorFailed", "message": "it died"}
    JsonLines(path / "alerts.jsonl").append(alert)
    assert "ended early, after step 1" in read(path).text
    assert "it died" in read(path).text


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        write_report(tmp_path)
