"""Probes: what they measure, what they refuse, and the numbers made of them."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from envs.apple_retrieval import AppleRetrieval
from rlft import registry
from rlft.check import check_plugins
from rlft.config import parse_config
from rlft.demonstrations import Demonstration, write
from rlft.errors import ConfigError, DataError
from rlft.policy.actor_critic import load_policy, new_policy
from rlft.policy.lm import load_lm
from rlft.probes import Restart, TeacherLikelihood
from rlft.probes.probe import ForgettingProbe, Subject, probes_of
from rlft.probes.prober import Prober
from rlft.record.forgetting import curve, forgetting_html, lines, probe_charts
from rlft.record.report import write_report
from rlft.record.transfer import area, backward_transfer, forward_transfer
from rlft.seeding import Key

TREE = {
    "name": "x",
    "steps": 1,
    "tasks_per_step": 1,
    "algo": "control_ppo",
    "env": {"name": "apple_retrieval", "distance": 4, "max_steps": 12},
    "model": {"build": "mlp", "dtype": "float32"},
}


def right_going(folder: Path, logit: float, memory: int = 0) -> Path:
    """A policy that goes right with log odds `logit`, whatever it sees."""
    env = AppleRetrieval(distance=4, max_steps=12).make()
    network = {"name": "cnn_gru", "channels": [], "memory": memory} if memory else {"name": "mlp"}
    new_policy(network, env, 0, folder)
    policy = load_policy(folder, env)
    with torch.no_grad():
        policy.policy_head.weight.zero_()
        policy.policy_head.bias.copy_(torch.tensor([0.0, logit]))
    from safetensors.torch import save_file

    save_file({n: t.contiguous() for n, t in policy.state_dict().items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


def walks(path: Path, back_from: int = 2) -> Path:
    """Two right walks of 8 steps with seeds."""
    obs = np.array([[-0.3]] * 4 + [[0.3]] * 4, np.float32)
    actions = np.array([1] * 4 + [0] * 4)
    write(path, [Demonstration(obs, actions, np.ones(8, np.float32), seed=s) for s in (1, 2)])
    return path


def subject(model: Path, **changes) -> Subject:
    cfg = parse_config({**TREE, **changes}, "test")
    return Subject(cfg, model, model, registry.build("env", cfg.env), Key(0))


def test_a_restart_begins_where_it_says(tmp_path):
    model = right_going(tmp_path / "model", -8.0)  # it goes left: home from the apple, nowhere else
    far = Restart(env={"start": "back"}, tasks=3)(subject(model))
    assert far["success"] == 1
    assert far["return"] == 4
    assert far["length"] == 4
    assert far["stage_2"] == 1
    assert far == Restart(env={"start": "back"}, tasks=3)(subject(model)), "the same episodes again"
    home = Restart(env={"start": "home"}, tasks=3)(subject(model))
    assert home["success"] == 0
    assert "stage_1" not in home


@pytest.mark.parametrize("memory", [0, 5])
def test_a_restart_from_a_saved_state_goes_on_from_there(tmp_path, memory):
    model = right_going(tmp_path / "model", -8.0, memory)
    saved = str(walks(tmp_path / "walks.npz"))
    late = Restart(saved=saved, after=0.75)(subject(model))
    assert (late["success"], late["length"], late["return"]) == (1, 2, 2)
    early = Restart(saved=saved, after=0.25)(subject(model))
    assert (early["success"], early["length"]) == (0, 10)


def test_the_likelihood_is_that_of_the_policy(tmp_path):
    model = right_going(tmp_path / "model", 1.0)
    path = str(walks(tmp_path / "walks.npz"))
    found = TeacherLikelihood(path)(subject(model))
    p = 1 / (1 + np.exp(-1.0))
    assert found["logp"] == pytest.approx((np.log(p) + np.log(1 - p)) / 2, rel=1e-5)
    assert found["agree"] == 0.5


def test_probes_that_cannot_work_are_refused_before_anything_starts(tmp_path):
    def refused(match, *fns):
        cfg = parse_config({**TREE, "probes": {"fns": list(fns)}}, "test")
        with pytest.raises((ConfigError, DataError), match=match):
            check_plugins(cfg)

    restart = {"name": "restart", "env": {"start": "back"}}
    check_plugins(parse_config({**TREE, "probes": {"fns": [restart]}}, "test"))
    refused("two probes are called 'restart'", restart, restart)
    refused("give `env`, keys that differ", {"name": "restart"})
    cfg = parse_config({**TREE, "probes": {"fns": [restart], "scratch": str(tmp_path)}}, "test")
    with pytest.raises(ConfigError, match=r"probes.scratch: .* no run folder with a probes.jsonl"):
        check_plugins(cfg)
    refused("unknown key 'strat'", {"name": "restart", "env": {"strat": "back"}})
    refused("other observations or actions", {"name": "restart", "env": {"c": 0.5}})
    refused("is not a file", {"name": "teacher_likelihood", "path": "none.npz"})
    refused("TextForgetting is not for a policy that acts",
            {"name": "text_forgetting", "path": "none.jsonl"})  # fmt: skip
    (tmp_path / "unseeded.jsonl").write_text(
        json.dumps({"observations": [[0.3], [0.3]], "actions": [0, 0]}) + "\n"
    )
    refused("a state is found by seed and actions",
            {"name": "restart", "saved": str(tmp_path / "unseeded.jsonl")})  # fmt: skip


def lm_eval(**keys):
    return registry.build("probe", {"name": "lm_eval", **keys})


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_lm_eval_says_what_is_missing():
    with pytest.raises(ConfigError, match="needs the package lm-eval"):
        lm_eval(tasks=["arc_easy"]).check(None, None)


def test_every_number_of_a_task_is_told_once_however_its_answers_are_read(monkeypatch, tmp_path):
    """The harness itself is played here: it says what it was asked, and numbers in its shape."""
    asked = {}

    def simple_evaluate(**keys):
        asked.update(keys)
        numbers = {
            "alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,strict-match": 0.01, "acc,none": 1, "acc_stderr,none": "N/A",
            "sample_len": 40,
        }  # fmt: skip
        return {"results": {"gsm8k": numbers}}

    tasks = SimpleNamespace(TaskManager=lambda include_path: include_path)
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    cfg = parse_config({**TREE, "model": {"path": "x", "dtype": "float32"}}, "test")
    found = lm_eval(tasks=["gsm8k"], limit=7, include=str(tmp_path))(
        Subject(cfg, tmp_path, tmp_path, None, Key(0))
    )
    assert found == {
        "gsm8k/exact_match/strict-match": 0.25,
        "gsm8k/exact_match/flexible-extract": 0.5,
        "gsm8k/acc": 1.0,
    }
    assert asked["model_args"]["pretrained"] == str(tmp_path)
    assert (asked["limit"], asked["device"], asked["task_manager"]) == (7, "cpu", str(tmp_path))


def test_a_task_of_the_harness_is_measured(tiny_model, tmp_path):
    """With lm-eval itself, on a task of our own: of two answers the model's likelier one is right."""
    pytest.importorskip("lm_eval")
    rows = [{"said": f"{a}+{a}=", "answers": ["c0", "7"], "right": 0} for a in range(10)]
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "sums.yaml").write_text(
        "task: our_sums\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.json'}}}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{said}}"\ndoc_to_choice: "{{answers}}"\ndoc_to_target: right\n'
        'target_delimiter: ""\nmetric_list: [{metric: acc}]\n'
    )
    probe = lm_eval(tasks=["our_sums"], include=str(tmp_path))
    probe.check(None, None)
    with pytest.raises(ConfigError, match=r"no task 'our_sum'.*Did you mean 'our_sums'"):
        lm_eval(tasks=["our_sum"], include=str(tmp_path)).check(None, None)
    with pytest.raises(ConfigError, match="is not a folder"):
        lm_eval(tasks=["our_sums"], include=str(tmp_path / "none")).check(None, None)
    cfg = parse_config({**TREE, "model": {"path": str(tiny_model), "dtype": "float32"}}, "test")
    found = probe(Subject(cfg, tiny_model, tiny_model, None, Key(0)))
    policy, right = load_lm(tiny_model, "float32"), 0
    read = AutoTokenizer.from_pretrained(tiny_model)
    for row in rows:
        worth = []
        for answer in row["answers"]:
            ids = torch.tensor([read(row["said"] + answer).input_ids])
            first = len(read(row["said"]).input_ids)
            places = torch.arange(first, ids.shape[1])[None]
            with torch.no_grad():
                logp, _ = policy.eval()(ids, places, torch.ones_like(places, dtype=torch.bool))
            worth.append(float(logp.sum()))
        right += worth[0] > worth[1]
    assert found == {"our_sums/acc": pytest.approx(right / 10)}


def test_transfer_is_that_of_its_papers():
    assert area([0, 5, 10], [0, 1, 1]) == pytest.approx(0.75)
    assert area([3], [0.4]) == 0.4
    assert area([0, 1, 10], [1, 1, 1]) == 1
    with pytest.raises(ValueError, match="rising steps"):
        area([0, 0], [1, 1])
    assert forward_transfer(0.75, 0.5) == pytest.approx(0.5)
    assert forward_transfer(0.4, 0.5) == pytest.approx(-0.2)
    assert np.isnan(forward_transfer(1.0, 1.0))
    assert backward_transfer(0.9, 0.3) == pytest.approx(-0.6)


ROWS = [
    {"step": 0, "far/success": 0.9, "far/stage_2": 0.9, "time/probe_s": 1.0},
    {"step": 5, "failed": "it <died>"},
    {"step": 10, "far/success": 0.3},
    {"step": 20, "far/success": 0.6, "far/stage_2": 0.6},
]


def test_a_step_at_which_every_episode_failed_is_a_gap_and_no_collapse():
    rows = [
        *ROWS,
        {"step": 30, "far/failed": 1.0},
        {"step": 40, "far/failed": 0.5, "far/return": 2.0},
    ]
    steps, reached = curve(rows, "far/stage_2")
    assert (steps.tolist(), reached.tolist()) == ([0, 10, 20, 40], [0.9, 0.0, 0.6, 0.0])


def test_the_page_says_forward_transfer_beside_a_run_from_nothing(tmp_path, monkeypatch):
    scratch = [
        {"step": 0, "far/success": 0.0, "far/stage_2": 0.0},
        {"step": 20, "far/success": 0.4, "far/stage_2": 0.0},
    ]
    html = "".join(forgetting_html(ROWS, scratch, Path("runs/nothing")))
    ours = (0.6 * 10 + 0.45 * 10) / 20  # areas of .9, .3, .6 at 0, 10, 20 and of 0, .4
    assert "<th>forward transfer</th>" in html
    assert f"<td>-0.300</td><td>{(ours - 0.2) / 0.8:+.3f}</td>" in html
    shorter = "".join(forgetting_html(ROWS, scratch[:1], Path("runs/<nothing>")))
    assert "<th>forward transfer</th>" not in shorter
    assert "runs/&lt;nothing&gt; has no success probed up to the same step" in shorter

    monkeypatch.chdir(tmp_path)
    tree = {**TREE, "probes": {"scratch": "nothing"}}
    said = parse_config(tree, "test").model_dump(mode="json", by_alias=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(said))
    (tmp_path / "nothing").mkdir()
    for folder, rows in ((tmp_path, ROWS), (tmp_path / "nothing", scratch)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "probes.jsonl").write_text(text)
    monkeypatch.chdir("/")
    assert "<th>forward transfer</th>" in write_report(tmp_path).read_text()


def test_the_report_shows_the_curve_and_what_was_lost():
    assert curve(ROWS, "far/success")[0].tolist() == [0, 10, 20]
    assert curve(ROWS, "far/stage_2")[1].tolist() == [0.9, 0.0, 0.6], "nobody came there: 0"
    html = "".join(forgetting_html(ROWS))
    cells = "<td>0.900</td><td>0.300</td><td>0.900</td><td>0.600</td><td>-0.300</td>"
    assert f"<td>far/success</td>{cells}" in html
    assert "it &lt;died&gt;" in html
    [chart] = probe_charts(ROWS)
    assert chart.title == "Probe: far"
    assert not list(forgetting_html([])) + probe_charts([])


def test_the_command_prints_both_transfers(tmp_path):
    for name, scale in (("ours", 1.0), ("scratch", 0.5)):
        (tmp_path / name).mkdir()
        rows = [{"step": r["step"], "far/success": scale * r["far/success"]}
                for r in ROWS if "failed" not in r]  # fmt: skip
        (tmp_path / name / "probes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    said = list(lines(tmp_path / "ours", "far/success", tmp_path / "scratch"))
    assert said[1].split() == ["far/success", "0.900", "0.300", "0.600", "-0.300"]
    ours = area([0, 10, 20], [0.9, 0.3, 0.6])
    expected = forward_transfer(ours, ours / 2)
    assert said[2].startswith(f"forward transfer of far/success: {expected:.3f}")
    with pytest.raises(ConfigError, match="Did you mean 'far/success'"):
        list(lines(tmp_path / "ours", "far/sucess", tmp_path / "scratch"))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "probes.jsonl").write_text('{"step": 20, "near/success": 0.5}\n')
    with pytest.raises(ConfigError, match=r"nothing: the other has no far/success in its probes"):
        list(lines(tmp_path / "ours", "far/success", tmp_path / "nothing"))
    with (tmp_path / "scratch" / "probes.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1000, "far/success": 1.0}) + "\n")
    with pytest.raises(
        ConfigError, match=r"scratch: the run .* step 20, the other up to step 1000"
    ):
        list(lines(tmp_path / "ours", "far/success", tmp_path / "scratch"))
    with pytest.raises(ConfigError, match=r"no probes\.jsonl"):
        list(lines(tmp_path, None, None))


def test_a_policy_that_was_not_measured_is_measured_when_the_run_is_resumed(tmp_path, monkeypatch):
    from rlft.probes.schedule import Probing
    from rlft.record.folder import forget_records

    asked = []
    monkeypatch.setattr(Probing, "_ask", lambda self, step, model: asked.append((step, model.name)))
    cfg = parse_config({**TREE, "probes": {"fns": [{"name": "restart", "env": {}}]}}, "test")
    probing = Probing(cfg, tmp_path, tmp_path, None, None)
    for step in (1, 2, 4):
        (tmp_path / f"probes/step_{step:06d}").mkdir(parents=True)
    rows = "".join(json.dumps({"step": s, "x/y": 1.0}) + "\n" for s in (0, 1, 3))
    (tmp_path / "probes.jsonl").write_text(rows)
    probing.resume(2)
    assert asked == [(2, "step_000002")]
    assert [p.name for p in (tmp_path / "probes").iterdir()] == ["step_000002"]
    kept = [json.loads(x)["step"] for x in (tmp_path / "probes.jsonl").read_text().splitlines()]
    assert kept == [0, 1], "steps that are taken again are forgotten"
    forget_records(tmp_path)
    assert not (tmp_path / "probes").exists()


class Told(ForgettingProbe):
    def __init__(self, called, answer):
        self.called, self.answer = called, answer

    def __call__(self, subject):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_probe_that_fails_takes_no_numbers_from_the_others(monkeypatch, tmp_path):
    probes = [
        Told("near", {"return": 1}),
        Told("far", ArithmeticError("no far room")),
        Told("number", 3.0),
        Told("moved", {"return": 2.0}),
    ]
    monkeypatch.setattr("rlft.probes.prober.probes_of", lambda cfg: probes)
    prober = Prober.__new__(Prober)
    prober._cfg, prober._start = parse_config(TREE, "test"), tmp_path
    found = prober.measure(tmp_path)
    assert (found["near/return"], found["moved/return"]) == (1.0, 2.0)
    assert found["failed"].startswith("far: ArithmeticError: no far room\n")
    assert "number: AttributeError" in found["failed"]
    rows = [{"step": 0, **found}, {"step": 1, "near/return": 3.0}]
    assert curve(rows, "near/return")[1].tolist() == [1.0, 3.0]
    assert curve(rows, "far/stage_1")[1].tolist() == []


def test_a_probe_without_a_name_is_refused(monkeypatch):
    monkeypatch.setattr("rlft.registry.build", lambda kind, spec: ForgettingProbe())
    cfg = parse_config({**TREE, "probes": {"fns": ["x.py:NoName"]}}, "test")
    with pytest.raises(ConfigError, match="ForgettingProbe has no `called`; give it a field"):
        probes_of(cfg)
