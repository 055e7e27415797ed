"""Plug-ins by name, and the promise of one new file and a YAML line."""

import asyncio
import functools
import sys

import pytest
import torch

from rlft import registry
from rlft.check import check_plugins, check_tasks, with_plugin_defaults
from rlft.config import dump_config, load_config
from rlft.errors import ConfigError, PluginError
from rlft.rewards.outcome import score_one
from rlft.seeding import Key
from rlft.types import Batch, Group, Outcome, PolicyOut, RowRef, Task, Ticket, Trajectory

KINDS = ("algo", "env", "engine", "loss", "advantage", "reward", "transport")


@pytest.fixture
def plugin(tmp_path):
    """Writes a plug-in file; returns its path as text."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    yield write
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def refusal(error, action, *args, **keys):
    with pytest.raises(error) as caught:
        action(*args, **keys)
    return str(caught.value)


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_short_name_stands_for_something_and_says_what(kind):
    names = registry.short_names(kind)
    assert names == sorted(names) and names
    for name in names:
        assert callable(registry.resolve(kind, name))
        assert registry.summary(kind, name)


@pytest.mark.parametrize(
    "kind, short, long",
    [
        ("algo", "grpo", "algos.grpo:GRPO"),
        ("env", "addition", "envs.addition:Addition"),
        ("reward", "addition", "envs.addition:reward"),
        ("loss", "ClippedSurrogate", "rlft.losses.surrogate:ClippedSurrogate"),
        ("advantage", "rloo", "rlft.credit.group:rloo"),
        ("engine", "transformers", "rlft.sampling.transformers:TransformersEngine"),
        ("transport", "object_store", "rlft.weights.object_store:ObjectStore"),
    ],
)
def test_a_short_name_is_its_long_one(kind, short, long):
    assert registry.resolve(kind, short) is registry.resolve(kind, long)


@pytest.mark.parametrize(
    "kind, wrong, nearest",
    [
        ("algo", "gpro", "grpo"),
        ("env", "adition", "addition"),
        ("engine", "transformer", "transformers"),
        ("loss", "ClipedSurrogate", "ClippedSurrogate"),
        ("advantage", "group_relativ", "group_relative"),
        ("reward", "gsm8", "gsm8k"),
        ("transport", "object_stor", "object_store"),
        ("reward", "envs.addition:rewar", "reward"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(kind, wrong, nearest):
    assert f"Did you mean {nearest!r}?" in refusal(PluginError, registry.resolve, kind, wrong)


def test_what_serves_the_losses_is_not_a_loss():
    assert "decision_weight" in refusal(PluginError, registry.resolve, "loss", "decision_weight")


def test_an_attribute_may_lie_deeper(plugin):
    path = plugin(
        "deep.py", "class Outer:\n    @staticmethod\n    def inner(x):\n        return x\n"
    )
    assert registry.resolve("reward", f"{path}:Outer.inner")(3) == 3


def test_a_file_and_a_module_that_are_not_there_say_where_they_were_sought(tmp_path):
    missing = tmp_path / "none.py"
    assert str(missing) in refusal(PluginError, registry.resolve, "reward", f"{missing}:f")
    text = refusal(PluginError, registry.resolve, "reward", "no.such.module:f")
    assert "no module named 'no.such.module'" in text and "path/to/file.py:attr" in text


@pytest.mark.parametrize(
    "body, said",
    [
        ("x = 1\nraise RuntimeError('boom')\n", "RuntimeError: boom"),
        ("import no_such_package\n", "No module named 'no_such_package'"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_import_shows_its_traceback(plugin, body, said):
    path = plugin("broken.py", body)
    text = refusal(PluginError, registry.resolve, "reward", f"{path}:f")
    assert "failed to import" in text and said in text
    assert f'File "{path}", line {body.count(chr(10))}' in text


def test_a_module_that_fails_to_import_shows_its_traceback(plugin, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin("failing_module.py", "import no_such_package\n")
    text = refusal(PluginError, registry.resolve, "reward", "failing_module:f")
    assert "Traceback" in text and "no_such_package" in text


def test_a_repaired_plugin_works_in_the_same_process(plugin):
    path = plugin("repaired.py", "raise RuntimeError\n")
    refusal(PluginError, registry.resolve, "reward", f"{path}:f")
    plugin("repaired.py", "def f(completion, task):\n    return 1\n")
    assert registry.resolve("reward", f"{path}:f")("", None) == 1


def test_the_same_file_is_one_module_however_it_is_spelled(plugin, tmp_path, monkeypatch):
    path = plugin("here/one.py", "class Thing:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    spellings = [path, "here/one.py", "./here/../here/one.py", path]
    found = {registry.resolve("reward", f"{s}:Thing") for s in spellings}
    assert len(found) == 1


def test_two_files_of_one_name_are_two_modules_and_stay_so(plugin):
    first, second = (
        plugin("a/reward.py", "class R: pass\n"),
        plugin("b/reward.py", "class R: pass\n"),
    )
    one, two = (registry.resolve("reward", f"{p}:R") for p in (first, second))
    assert one is not two
    assert registry.resolve("reward", f"{first}:R") is one
    assert registry.resolve("reward", f"{second}:R") is two
    assert sys.modules[one.__module__].R is one


# -- keys -----------------------------------------------------------------------------------------


def test_fields_are_converted_and_checked():
    algo = registry.build("algo", {"name": "grpo", "kl_coef": {"from": 1, "to": 0, "steps": 2}})
    assert algo.kl_coef(1) == 0.5
    text = refusal(ConfigError, registry.build, "algo", {"name": "grpo", "group_size": "many"})
    assert "algo grpo" in text and "group_size" in text and "str 'many'" in text
    text = refusal(ConfigError, registry.build, "algo", {"name": "grpo", "std": "groups"})
    assert "'group', 'batch' or 'none'" in text and "'groups'" in text


@pytest.mark.parametrize(
    "key, value", [("group_size", 1), ("epochs", 0), ("minibatches", 0), ("clip_low", 2)]
)
def test_grpo_refuses_what_cannot_train(key, value):
    assert key in refusal(ConfigError, registry.build, "algo", {"name": "grpo", key: value})


@pytest.mark.parametrize("key", ["loss", "advantage"])
def test_grpo_knows_its_plugins_before_it_samples(key):
    text = refusal(ConfigError, registry.build, "algo", {"name": "grpo", key: "no_such"})
    assert f"unknown {key} 'no_such'" in text


def test_an_unknown_key_of_a_plugin_gets_the_nearest():
    text = refusal(ConfigError, registry.build, "algo", {"name": "grpo", "group_sise": 3})
    assert "Did you mean 'group_size'?" in text and "minibatches" in text
    text = refusal(ConfigError, registry.build, "advantage", {"name": "group_relative", "sdt": 1})
    assert "Did you mean 'std'?" in text


def test_a_required_field_is_asked_for(plugin):
    path = plugin(
        "needs.py", "from dataclasses import dataclass\n@dataclass\nclass N:\n    size: int\n"
    )
    assert "size: Field required" in refusal(ConfigError, registry.build, "env", f"{path}:N")


def test_a_function_with_keys_is_a_partial_and_without_is_itself():
    plain = registry.build("advantage", "group_relative")
    assert plain is registry.resolve("advantage", "group_relative")
    bound = registry.build("advantage", {"name": "group_relative", "std": "none"})
    assert isinstance(bound, functools.partial) and bound.keywords == {"std": "none"}
    adv = bound(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]))
    assert adv.tolist() == [-1, 1]


def test_any_keyword_reaches_a_function_that_takes_them_all(plugin):
    path = plugin("kw.py", "def f(completion, task, **more):\n    return more['a']\n")
    assert registry.build("reward", {"name": f"{path}:f", "a": 5})("", None) == 5


def test_a_plain_class_that_refuses_its_keys_says_why(plugin):
    path = plugin(
        "plain.py", "class P:\n    def __init__(self, a):\n        raise ValueError('no a')\n"
    )
    assert "no a" in refusal(ConfigError, registry.build, "env", {"name": f"{path}:P", "a": 1})


def test_what_is_neither_class_nor_function_is_refused(plugin):
    path = plugin("constant.py", "LIMIT = 5\n")
    text = refusal(PluginError, registry.build, "reward", f"{path}:LIMIT")
    assert "expected a class or function, got 5" in text


def test_a_section_without_a_name_says_what_it_has():
    assert "['digits']" in refusal(ConfigError, registry.build, "env", {"digits": 3})


# -- one file and a YAML line ---------------------------------------------------------------------

LOSS = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Scaled:
    \"\"\"Minus the advantage times the log-prob.\"\"\"
    scale: float = 1.0
    def __call__(self, out, batch):
        return -self.scale * batch.adv * out.logp * batch.mask
"""
ADVANTAGE = """
def signs(reward_B, group_B, *, size: float = 1.0):
    \"\"\"Plus or minus size.\"\"\"
    return size * (reward_B * 2 - 1)
"""
REWARD = """
from rlft import Invalid
def ends_with(completion, task, *, mark="."):
    \"\"\"1 if the completion ends with a mark.\"\"\"
    if not completion:
        raise Invalid("empty")
    return float(completion.endswith(mark))
"""
ENV = """
from dataclasses import dataclass
from rlft import Task
@dataclass(frozen=True)
class Echo:
    \"\"\"Say it again.\"\"\"
    words: int = 3
    def train(self):
        return [Task(str(i), f"say {i}") for i in range(self.words)]
    def held_out(self):
        return []
"""
ALGO = """
from dataclasses import dataclass
from rlft.algo import Algo
from rlft.filters import keep_correct
from rlft.losses import NegativeLogLikelihood
from rlft.types import Term
@dataclass(frozen=True)
class Rejection(Algo):
    \"\"\"Imitate one's own right answers.\"\"\"
    tries: int = 2
    @property
    def terms(self):
        return (Term("nll", NegativeLogLikelihood()),)
    async def collect(self, run, ticket):
        return keep_correct(await run.score(await run.rollout(ticket.tasks, n=self.tries, key=ticket.key)))
    def learn(self, run, groups):
        return run.fit(groups, None)
"""


class RecordedRun:
    """What an algorithm is given, without a model: rewards 1 and 0 in turn; keeps what is fitted."""

    async def rollout(self, tasks, *, n, key):
        return [Group(t, tuple(self.member(t, i) for i in range(n))) for t in tasks]

    async def score(self, groups, least=2):
        return groups

    def fit(self, groups, adv, **_):
        self.fitted = groups, adv
        return "update"

    def member(self, task, index):
        outcome = Outcome("value", float(index % 2 == 0))
        row = RowRef(None, index)
        return Trajectory(
            f"{task.id}.{index}", task.id, "policy", "", 1, 1, (0, 0), False, row, outcome
        )


def take_a_step(algo, tasks):
    run = RecordedRun()
    groups = asyncio.run(algo.collect(run, Ticket(0, tuple(tasks), Key(0))))
    assert algo.learn(run, groups) == "update"
    return run.fitted


def test_five_new_files_work_by_name_from_yaml(plugin, tmp_path):
    files = {
        name: plugin(f"my_{name}.py", text)
        for name, text in {"loss": LOSS, "adv": ADVANTAGE, "reward": REWARD, "env": ENV}.items()
    }
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"""
name: mine
steps: 1
tasks_per_step: 2
algo:
  name: grpo
  loss: {{name: "{files["loss"]}:Scaled", scale: 3}}
  advantage: {{name: "{files["adv"]}:signs", size: 2}}
env: {{name: "{files["env"]}:Echo", words: 4}}
model: {{path: none}}
rewards: {{fns: [{{fn: "{files["reward"]}:ends_with", args: {{mark: "!"}}}}]}}
""")
    cfg = load_config(yaml)
    algo, env = check_plugins(cfg)
    tasks, held_out = check_tasks(cfg, env)
    assert len(env.train()) == 4 and not held_out
    _, adv = take_a_step(algo, tasks.ticket(0).tasks)
    assert adv.tolist() == [2, -2] * 8
    ones = torch.ones(1, 2)
    batch = Batch(ones.bool(), ones, 5 * ones, ones, ones, torch.tensor([True]))
    [term] = algo.terms
    loss_BT, _ = term.fn(PolicyOut(-ones, ones), batch)
    assert loss_BT.tolist() == [[15, 15]]
    spec = cfg.rewards.fns[0]
    reward = registry.build("reward", {"name": spec.fn, **spec.args})
    outcomes = [score_one([("r", reward, 1.0)], c, Task("0", ""), -1) for c in ("a!", "a", "")]
    assert [(o.kind, o.reward) for o in outcomes] == [("value", 1), ("value", 0), ("invalid", -1)]


@pytest.mark.parametrize(
    "algo",
    [
        "grpo",
        "{name: grpo, kl_coef: {kind: adaptive, from: 0.1, target: 0.02}, kl: k3_corrected}",
        "{name: grpo, correction: [token_truncate, {name: sequence_reject, high: 3}]}",
        "{name: grpo, loss: gspo, advantage: {name: gdpo, weights: {even: 2}}}",
        "{name: grpo, kl_coef: {kind: cosine, from: 0.1, to: 0.01, steps: 9}, correction: null}",
        "{name: grpo, loss: {name: clipped_surrogate, clip_high: 0.3}, advantage: rloo}",
        "{name: sft, epochs: 3}",
    ],
)
def test_what_a_run_folder_spells_out_makes_the_same_plugins_again(tmp_path, algo):
    given, spelt_out = tmp_path / "given.yaml", tmp_path / "spelt_out.yaml"
    given.write_text(f"""
name: mine
steps: 1
tasks_per_step: 2
algo: {algo}
env: addition
model: {{path: none}}
rewards: {{fns: [{{fn: addition}}]}}
""")
    cfg = load_config(given)
    made = check_plugins(cfg)
    spelt_out.write_text(dump_config(with_plugin_defaults(cfg, *made)))
    assert check_plugins(load_config(spelt_out)) == made
    assert load_config(spelt_out).algo.keys() > {"name"}


def test_a_new_algorithm_is_one_file(plugin, tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(f"""
name: mine
steps: 1
tasks_per_step: 2
algo: {{name: "{plugin("my_algo.py", ALGO)}:Rejection", tries: 3}}
env: addition
model: {{path: none}}
rewards: {{fns: [{{fn: addition}}]}}
""")
    algo, env = check_plugins(load_config(yaml))
    groups, adv = take_a_step(algo, env.train()[:2])
    assert adv is None
    assert [g.rewards for g in groups] == [[1, 1], [1, 1]], "of three tries the second was wrong"
    with pytest.raises(ConfigError, match="Did you mean 'tries'"):
        check_plugins(load_config(yaml, ["algo.tris=3"]))
