"""The configuration: what a file, its bases and the command line make together, and what is refused."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from rlft import registry
from rlft.config import Config, dump_config, load_config, parse_config
from rlft.config_schema import schema
from rlft.errors import ConfigError
from rlft.schedule import Schedule
from rlft.yaml_tree import Loader

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
EVERY = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yaml"))

BASE = """\
name: base
steps: 3
tasks_per_step: 2
algo: {name: grpo, group_size: 4, clip_high: 0.28}
env: addition
model: {path: some/model, max_length: 64}
sampler: {max_tokens: 16}
rewards: {fns: [{fn: addition}]}
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def beside(base, name, text):
    path = base.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(action, *args):
    with pytest.raises(ConfigError) as caught:
        action(*args)
    return str(caught.value)


def tree(**changes):
    return {**yaml.safe_load(BASE), **changes}


# -- extends --------------------------------------------------------------------------------------


def test_a_chain_of_bases_is_one_configuration_and_the_nearest_wins(base):
    beside(base, "middle.yaml", "extends: base.yaml\nsteps: 5\nsampler: {temperature: 0.5}\n")
    top = beside(base, "deep/er/top.yaml", "extends: ../../middle.yaml\nsteps: 7\n")
    cfg = load_config(top)
    assert cfg.steps == 7
    assert (cfg.sampler.temperature, cfg.sampler.max_tokens) == (0.5, 16)
    assert cfg.model.path == "some/model"


def test_a_new_name_for_the_run_keeps_everything_else_of_the_base(base):
    child = beside(base, "child.yaml", "extends: base.yaml\nname: child\n")
    changed = load_config(child).model_copy(update={"name": "base"})
    assert changed == load_config(base)


def test_a_list_replaces_the_list_of_the_base(base):
    child = beside(base, "child.yaml", "extends: base.yaml\nrewards: {fns: [{fn: gsm8k}]}\n")
    assert [r.fn for r in load_config(child).rewards.fns] == ["gsm8k"]


@pytest.mark.parametrize("first", ["a.yaml", "b.yaml", "c.yaml"])
def test_bases_in_a_circle_are_refused(base, first):
    for name, other in (("a", "b"), ("b", "a"), ("c", "c")):
        beside(base, f"{name}.yaml", f"extends: {other}.yaml\n")
    assert "circle" in refusal(load_config, base.parent / first)


def test_a_missing_base_names_the_nearest_file(base):
    child = beside(base, "child.yaml", "extends: bse.yaml\n")
    assert "Did you mean 'base.yaml'?" in refusal(load_config, child)


def test_a_section_of_another_plugin_replaces_and_of_the_same_merges(base):
    other = beside(base, "other.yaml", "extends: base.yaml\nalgo: {name: sft, epochs: 2}\n")
    assert load_config(other).algo == {"name": "sft", "epochs": 2}
    same = beside(base, "same.yaml", "extends: base.yaml\nalgo: {name: grpo, group_size: 8}\n")
    more = beside(base, "more.yaml", "extends: base.yaml\nalgo: {group_size: 8}\n")
    merged = {"name": "grpo", "group_size": 8, "clip_high": 0.28}
    assert load_config(same).algo == load_config(more).algo == merged
    text = beside(base, "text.yaml", "extends: base.yaml\nalgo: sft\n")
    assert load_config(text).algo == "sft"
    keys = beside(base, "keys.yaml", "extends: base.yaml\nenv: {digits: 2}\n")
    assert load_config(keys).env == {"name": "addition", "digits": 2}


def test_a_warm_start_is_relative_to_the_file_that_names_it(base, monkeypatch):
    warm = "extends: ../base.yaml\nwarm_start: first.yaml\nmodel: {path: null}\n"
    beside(base, "below/warm.yaml", warm)
    top = beside(base, "top.yaml", "extends: below/warm.yaml\n")
    expected = base.parent / "below/first.yaml"
    assert Path(load_config(top).warm_start) == expected
    monkeypatch.chdir(base.parent)
    assert Path(load_config("top.yaml").warm_start) == expected
    given = load_config("top.yaml", ["warm_start=elsewhere.yaml"])
    assert Path(given.warm_start) == base.parent / "elsewhere.yaml"


# -- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, read, expected",
    [
        ("steps=9", lambda c: c.steps, 9),
        ("learner.lr=1e-6", lambda c: c.learner.lr, 1e-6),
        ("learner.lr={from: 2e-5, to: 0}", lambda c: c.learner.lr.start, 2e-5),
        ("learner.lr.from=2e-5", lambda c: c.learner.lr(0), 2e-5),
        ("sampler.stop=[a, b]", lambda c: c.sampler.stop, ["a", "b"]),
        ("eval.at_end=true", lambda c: c.eval.at_end, True),
        ("cluster.cpus=null", lambda c: c.cluster.cpus, None),
        ("model.lora.rank=4", lambda c: c.model.lora.rank, 4),
        ("env.digits=2", lambda c: c.env, {"name": "addition", "digits": 2}),
        ("algo.group_size=8", lambda c: c.algo["group_size"], 8),
        ("run_root=a=b", lambda c: c.run_root, "a=b"),
    ],
)
def test_an_override_sets_one_value_and_leaves_the_rest(base, override, read, expected):
    cfg = load_config(base, [override])
    assert read(cfg) == expected
    assert cfg.model.path == "some/model" and cfg.algo["clip_high"] == 0.28


def test_later_overrides_win(base):
    assert load_config(base, ["steps=4", "steps=6"]).steps == 6


@pytest.mark.parametrize(
    "override, said",
    [
        ("steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("name.x=1", "name is a str, not a section"),
        ("steps=[", "not a YAML value"),
        ("learner.lrr=1", "Did you mean 'lr'?"),
    ],
)
def test_a_bad_override_is_quoted_and_explained(base, override, said):
    text = refusal(load_config, base, [override])
    assert said in text


@pytest.mark.parametrize("text", ["1e-6", "-1E6", "1.5e-4", "3e+3", ".5e1", "1.e2"])
def test_what_looks_like_a_number_is_one(text):
    assert yaml.load(text, Loader=Loader) == float(text)


@pytest.mark.parametrize("text", ["e5", "1e", "v1e6", "1e6x", "1-6", "2024-e1"])
def test_what_only_resembles_a_number_stays_text(text):
    assert yaml.load(text, Loader=Loader) == text


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, wrong, where, nearest",
    [
        ("stpes=1", "stpes", "the top level", "steps"),
        ("learner.lrr=1", "lrr", "learner", "lr"),
        ("sampler.temprature=1", "temprature", "sampler", "temperature"),
        ("model.lora.rnk=4", "rnk", "model.lora", "rank"),
        ("rewards.fns=[{fn: addition, wieght: 2}]", "wieght", "rewards.fns.0", "weight"),
        ("learner.lr={form: 1}", "form", "learner.lr", "from"),
        ("deadlines.lern=1", "lern", "deadlines", "learn"),
    ],
)
def test_an_unknown_key_gets_its_place_and_the_nearest_name(base, override, wrong, where, nearest):
    text = refusal(load_config, base, [override])
    assert f"unknown key {wrong!r} in {where}" in text
    assert f"Did you mean {nearest!r}?" in text
    assert str(base) in text


def test_an_unknown_key_like_no_other_gets_the_list(base):
    text = refusal(load_config, base, ["save.zzz=1"])
    assert "Did you mean" not in text
    assert "every, keep, at_end" in text


@pytest.mark.parametrize(
    "override, key, got, expected",
    [
        ("steps=many", "steps", "str 'many'", "integer"),
        ("steps=0", "steps", "int '0'", "greater than or equal to 1"),
        ("learner.lr=fast", "learner.lr", "str 'fast'", "number"),
        ("learner.lr=.nan", "learner.lr", "float 'nan'", "finite"),
        ("sampler.temperature=.inf", "sampler.temperature", "float 'inf'", "finite"),
        ("learner.zero_stage=4", "learner.zero_stage", "int '4'", "0, 1, 2 or 3"),
        ("model.dtype=float16", "model.dtype", "str 'float16'", "'float32' or 'bfloat16'"),
        ("sampler=3", "sampler", "int '3'", "Sampler"),
        ("name=a b/c", "name", "str 'a b/c'", "pattern"),
        ("eval.at_end=perhaps", "eval.at_end", "str 'perhaps'", "boolean"),
    ],
)
def test_a_wrong_value_says_what_was_got_and_expected(base, override, key, got, expected):
    text = refusal(load_config, base, [override])
    assert f"{key}" in text and got in text and expected in text


def test_every_fault_is_told_at_once(base):
    text = refusal(load_config, base, ["steps=many", "sampler.max_tokns=3", "seed=-1"])
    assert all(word in text for word in ("steps", "max_tokns", "seed"))


def test_a_missing_key_is_named(base):
    base.write_text(BASE.replace("steps: 3\n", ""))
    assert "steps: Field required" in refusal(load_config, base)


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [1", "not valid YAML"),
        ("- a\n- b\n", "got list"),
        ("", "got NoneType"),
        ("extends: [base.yaml]\n", "one file name"),
        ("extends: 3\n", "one file name"),
        ("extends: base.yaml\nwarm_start: 3\nmodel: {path: null}\n", "warm_start"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(base, text, said):
    bad = beside(base, "bad.yaml", text)
    assert said in (told := refusal(load_config, bad)) and str(bad) in told


def test_a_file_that_is_not_text_is_refused(base):
    base.write_bytes(b"name: \xff\xfe\n")
    assert "not valid YAML" in refusal(load_config, base)


def test_a_missing_file_names_the_nearest(base):
    assert "Did you mean 'base.yaml'?" in refusal(load_config, base.parent / "basee.yaml")
    assert "no configuration file" in refusal(load_config, base.parent)


STARTS = {"path": {"path": "m"}, "build": {"build": "a:b"}, "warm": {}}


@pytest.mark.parametrize(
    "given", [c for n in range(4) for c in itertools.combinations(STARTS, n)], ids="+".join
)
def test_exactly_one_start_is_accepted(given):
    model = {"max_length": 64}
    for name in given:
        model.update(STARTS[name])
    changed = tree(model=model, warm_start="w.yaml" if "warm" in given else None)
    if len(given) == 1:
        parse_config(changed, "here")
    else:
        assert "exactly one start" in refusal(parse_config, changed, "here")


@pytest.mark.parametrize(
    "sampler, said",
    [
        ({"max_tokens": 64}, "no room for a prompt"),
        ({"max_tokens": 8, "min_tokens": 9}, "min_tokens is above"),
    ],
)
def test_lengths_must_leave_room(sampler, said):
    assert said in refusal(parse_config, tree(sampler=sampler), "here")


# -- after parsing --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "sampler", "model", "rewards"])
def test_nothing_can_be_changed_after_parsing(base, where):
    section = cfg = load_config(base)
    if where:
        section = getattr(cfg, where)
    for name in type(section).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)


RICH = tree(
    learner={"lr": {"kind": "cosine", "from": 3e-3, "to": 1e-7, "steps": 9, "warmup": 2}},
    model={"build": {"name": "a:b", "width": 3}, "max_length": 64, "lora": {"rank": 4}},
    sampler={"stop": ["\n", "é"], "max_tokens": 3, "engine_args": {"x": [1, None, 1e-9]}},
)


@pytest.mark.parametrize("path", [*CONFIGS, None], ids=lambda p: p.stem if p else "rich")
def test_what_is_dumped_is_read_back_the_same_from_anywhere(path, tmp_path, monkeypatch):
    cfg = load_config(path) if path else parse_config(RICH, "rich")
    copy = tmp_path / "runs" / "config.yaml"
    copy.parent.mkdir()
    copy.write_text(dump_config(cfg))
    assert load_config(copy) == cfg
    monkeypatch.chdir(tmp_path)
    assert load_config("runs/config.yaml") == cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_relative_path_and_an_absolute_one_are_the_same_configuration(path):
    assert load_config(os.path.relpath(path)) == load_config(path)


# -- schema ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="needs the jsonschema package")
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


@pytest.mark.parametrize("path", EVERY, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_algorithm_of_what_is_shipped_has_the_keys_that_are_given(path):
    cfg = load_config(path)
    assert registry.build("algo", cfg.algo).terms is not None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_schema_accepts_what_is_shipped(validator, path):
    validator.validate(yaml.load(path.read_text(), Loader=Loader))


@pytest.mark.parametrize(
    "change",
    [
        {"stpes": 3},
        {"steps": "three"},
        {"sampler": {"max_tokns": 3}},
        {"algo": {"name": "grpo", "group_sise": 3}},
        {"algo": {"name": "grpo", "std": "groups"}},
        {"env": {"name": "addition", "digitts": 3}},
        {"learner": {"lr": {"kind": "cubic", "from": 1}}},
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(validator, change):
    assert not validator.is_valid(tree(**change))


def test_the_schema_accepts_other_plugins(validator):
    assert validator.is_valid(tree(algo={"name": "my.py:Mine", "anything": 1}, env="other"))


@pytest.mark.parametrize("kind", ["algo", "env"])
def test_the_schema_names_the_keys_of_every_builtin(kind):
    variants = {
        v["properties"]["name"].get("const"): v
        for v in schema()["properties"][kind]["anyOf"]
        if "properties" in v
    }
    for name in registry.short_names(kind):
        fields = {f.name for f in dataclasses.fields(registry.resolve(kind, name))}
        assert fields <= variants[name]["properties"].keys()


def test_the_schema_knows_every_key_of_the_parser():
    assert schema()["properties"].keys() == Config.model_fields.keys() | {"extends"}


def test_a_schedule_in_yaml_is_a_schedule(base):
    cfg = load_config(base, ["learner.lr={kind: linear, from: 1e-3, to: 1e-5, steps: 10}"])
    assert cfg.learner.lr == Schedule(kind="linear", start=1e-3, end=1e-5, steps=10)
