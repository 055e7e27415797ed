"""`rlft compare`: what was spent, what came out for it, and folders that cannot be compared."""

import re

import pytest
import yaml

from rlft.errors import ConfigError
from rlft.record.compare import at_equal_cost, compare, markdown, totals, write_page
from rlft.record.metrics import JsonLines


def folder(path, name="grpo", seed=0, evals=(), rows=(), **config):
    path.mkdir(parents=True)
    whole = {"name": name, "seed": seed, "steps": 9, "algo": {"name": name}, "env": "addition"}
    (path / "config.yaml").write_text(yaml.safe_dump({**whole, **config}))
    for row in rows:
        JsonLines(path / "metrics.jsonl").append(row)
    for step, value in evals:
        JsonLines(path / "eval.jsonl").append({"step": step, "eval/reward/mean": value})
    return str(path)


def step(number, sampled=0, trained=0, seconds=1.0, calls=0, **more):
    costs = {"tokens/sampled": sampled, "tokens/trained": trained}
    return {"step": number, **costs, "time/step_s": seconds, "reward/calls": calls, **more}


def sampler(path, values=(0.1, 0.4, 0.8), **more):
    """Two steps, each of 100 tokens sampled and 50 trained on, 2 s and 10 answers scored."""
    rows = [step(n, 100, 50, 2.0, 10) for n in (1, 2)]
    return folder(path, evals=list(enumerate(values)), rows=rows, **more)


def imitator(path, **more):
    rows = [step(n, trained=200) for n in (1, 2)]
    return folder(path, "sft", evals=[(1, 0.5), (2, 0.6)], rows=rows, **more)


def test_costs_add_up_and_the_metric_is_read_at_equal_cost(tmp_path):
    found = compare([sampler(tmp_path / "a"), imitator(tmp_path / "b")])
    assert found.metric == "eval/reward/mean"
    assert found.budgets == {
        "tokens/sampled": 200,
        "tokens/trained": 100,
        "time/step_s": 2,
        "reward/calls": 20,
    }
    head, grpo, sft = totals(found)
    assert head[-4:] == ["sampled tokens", "trained tokens", "seconds of steps", "answers scored"]
    assert grpo == ["grpo", "1", "2", "0.100", "0.800", "0.800", "200", "100", "4", "20"]
    assert sft == ["sft", "1", "2", "0.500", "0.600", "0.600", "0", "400", "2", "0"]
    # SFT has no value yet at 100 tokens, and spends neither samples nor rewards.
    assert [row[1:] for row in at_equal_cost(found)[1:]] == [
        ["0.800", "0.800", "0.400", "0.800"],
        ["-", "-", "0.600", "-"],
    ]


def test_runs_that_differ_in_the_seed_are_one_line(tmp_path):
    runs = [
        sampler(tmp_path / str(seed), (0.1, 0.2, end), seed=seed, probes={"every": 1 + seed})
        for seed, end in ((0, 0.5), (1, 0.7))
    ]
    other = sampler(tmp_path / "other", learner={"lr": 1.0})
    found = compare([*runs, other])
    assert [(line.label, len(line.curves)) for line in found.lines] == [
        ("grpo (0)", 2),
        ("grpo (other)", 1),
    ]
    assert totals(found)[1][4] == "0.600 [0.500, 0.700]"


def test_a_chain_counts_what_was_spent_before(tmp_path):
    first, then = sampler(tmp_path / "sampling"), imitator(tmp_path / "training")
    found = compare([f"{first}+{then}"])
    [line] = found.lines
    assert line.label == "sft"
    assert [p.spent["tokens/sampled"] for p in line.curves[0].points] == [200, 200]
    assert [p.spent["tokens/trained"] for p in line.curves[0].points] == [300, 500]
    assert [p.spent["time/step_s"] for p in line.curves[0].points] == [5, 6]


def test_a_resumed_run_counts_nothing_twice(tmp_path):
    """Rewinding drops the rows of steps that are taken again."""
    path = tmp_path / "run"
    sampler(path)
    metrics = JsonLines(path / "metrics.jsonl")
    metrics.forget_after(1)
    metrics.append(step(2, 100, 50, 2.0, 10))
    assert compare([str(path)]).lines[0].curves[0].total["tokens/sampled"] == 200


def test_a_metric_of_the_steps(tmp_path):
    rows = [step(1, 5, loss=1, **{"loss/nll": 2.0}), step(2, 5, **{"loss/nll": 1.0})]
    runs = [folder(tmp_path / "a", rows=rows), folder(tmp_path / "b", "b", rows=rows)]
    found = compare(runs)
    assert found.metric == "loss/nll"
    assert totals(found)[1][3:6] == ["2.000", "1.000", "1.000"]


def test_environments_that_differ_and_ledgers_that_are_missing_are_said(tmp_path):
    old = [{"step": 1, "time/step_s": 1.0, "reward/mean": 0.5}]
    a = folder(tmp_path / "a", rows=old, env="gsm8k")
    b = folder(tmp_path / "b", "b", rows=[step(1, 5, **{"reward/mean": 1.0})])
    found = compare([a, b])
    assert found.warnings[0] == "the runs have 2 different environments or keys of them"
    assert "no sampled tokens in grpo: an earlier version wrote them" in found.warnings
    assert totals(found)[1][-4:] == ["-", "-", "1", "-"]


def test_folders_that_cannot_be_compared(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is not a run folder"):
        compare([str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="has no step yet"):
        compare([folder(tmp_path / "new")])
    one = folder(tmp_path / "one", rows=[step(1, **{"loss/policy": 1.0})])
    other = folder(tmp_path / "two", rows=[step(1, **{"loss/nll": 1.0})])
    with pytest.raises(ConfigError, match=r"none of .* in common.*reward/calls.*--metric"):
        compare([one, other])
    with pytest.raises(ConfigError, match=r"no metric 'loss/polici'. Did you mean 'loss/policy'"):
        compare([one], "loss/polici")


def test_the_page_has_a_curve_for_each_run_and_axis(tmp_path):
    evil = "</script><b>"
    found = compare([sampler(tmp_path / "a", name=evil), imitator(tmp_path / "b")])
    write_page(found, tmp_path / "compare.html")
    text = (tmp_path / "compare.html").read_text("utf-8")
    assert evil not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert text.count("By sampled tokens") == text.count("By answers scored") == 1
    assert markdown(totals(found)).splitlines()[1] == "|" + " --- |" * 10
