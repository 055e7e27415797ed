"""Every configuration of configs/reach fits the hardware that it names, by `rlft check --assume`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlft.check.known_models import KNOWN
from rlft.check.memory import learner_need
from rlft.check.model_shape import model_shape
from rlft.check.report import report
from rlft.config import load_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs/reach").glob("*.yaml"))


def data(folder: Path, env: str) -> list[str]:
    """Small local data in place of what is downloaded."""
    key, answer = ("question", "#### {}") if env == "gsm8k" else ("problem", "{}")
    rows = [{key: f"What is {i} + {i}?", "answer": answer.format(2 * i)} for i in range(700)]
    for name, part in (("train", rows[:600]), ("test", rows[600:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    return [f"env.path={folder}/train.jsonl", f"env.held_out_path={folder}/test.jsonl"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_it_fits_the_hardware_that_it_names(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = file.read_text()
    assert text.startswith("# NOT RUN.")
    [hardware] = re.findall(r"rlft check \S+ --assume (\S+)", text)
    assert hardware.lower() == file.stem.rsplit("_", 1)[1]
    env = load_config(file).env
    cfg = load_config(file, data(tmp_path, env["name"]))
    lines = list(report(cfg, assume=hardware))  # raises what does not fit
    assert any(line.startswith("memory of a learner") for line in lines), lines
    assert any(line.startswith("memory of a sampler") for line in lines), lines


def test_the_largest_does_not_fit_into_smaller_cards(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = ROOT / "configs/reach/gsm8k_qwen7b_ppo_8xh100.yaml"
    cfg = load_config(file, data(tmp_path, "gsm8k"))
    with pytest.raises(Exception, match="does not fit"):
        list(report(cfg, assume="8x24GiB"))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-Math-7B-Instruct", 7_615_616_512),
    ],
)
def test_a_known_model_has_as_many_parameters_as_published(name, params):
    cfg = load_config(FILES[0], [f"model.path={name}"])
    assert name in KNOWN
    assert model_shape(cfg).params == params


def test_a_critic_costs_the_policy_once_more_but_no_activations():
    cfg = load_config(ROOT / "configs/reach/gsm8k_qwen7b_8xh100.yaml")
    alone = model_shape(cfg)
    without = learner_need(cfg, alone, reference=False)
    with_it = learner_need(cfg, replace(alone, critic=True), reference=False)
    assert with_it.idle == 2 * without.idle
    for part in ("gradients", "buffers"):
        assert with_it.passing[part] == 2 * without.passing[part]
    assert with_it.passing["activations"] == without.passing["activations"]
