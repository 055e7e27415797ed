"""Whatever is registered is picked up here by itself: environments, rewards, algorithms."""

import importlib
from pathlib import Path

import pytest
from small_runs import metrics, run

from rlft import registry
from rlft.errors import Invalid
from rlft.types import Task

DATA = Path(__file__).parents[1] / "data"
NEEDED = {
    "gsm8k": {
        "path": str(DATA / "gsm8k/train.jsonl"),
        "held_out_path": str(DATA / "gsm8k/test.jsonl"),
    },
    "jsonl": {
        "path": str(DATA / "gsm8k/train.jsonl"),
        "prompt": "question",
        "target": "answer",
        "held_out_size": 8,
    },
    "grounding": {
        "path": str(DATA / "grounding/activitynet.json"),
        "held_out_path": str(DATA / "grounding/held_out.json"),
    },
    "preferences": {"path": str(DATA / "preferences/pairs.jsonl"), "held_out_size": 8},
    "gym": {"id": "CartPole-v1"},
    "conditioned": {"of": {"name": "minigrid"}},
}
"""Keys without which an environment cannot be made here."""

ANSWERS_BACK = [
    n for n in registry.short_names("env") if hasattr(registry.resolve("env", n), "make")
]

NOT_COPIED = {"nethack"}
"""Simulators in native code, of which a snapshot is a replay."""

LEARNING = {"rft": {"online": True}}
"""Keys without which an algorithm does not train, here."""

JUNK = ("", " ", "\x00", "🙂" * 50, "9**9**9", "((((" * 500, "1/0", "answer: " + "9" * 5000, "####")


PAIRS = {"env": {"name": "preferences", "chat": False, **NEEDED["preferences"]}}
ALGO_NEEDS = {
    "dpo": PAIRS,
    "kto": PAIRS,
    "reward_model": {**PAIRS, "sampler__num": 0, "rewards": {"fns": []}},
}
"""What an algorithm needs besides the tasks and settings of the others."""


def problem(task):
    if "level" in task.info:  # of levels that look alike at first
        return f"level {task.info['level']}"
    return str(task.prompt) or f"seed {task.info['seed']}"


def make(name):
    return registry.build("env", {"name": name, **NEEDED.get(name, {})})


@pytest.mark.parametrize("name", registry.short_names("env"))
def test_an_environment_is_deterministic_and_keeps_its_held_out_tasks_apart(name):
    first, again = make(name), make(name)
    train, held_out = first.train(), first.held_out()
    assert len(train) > 0
    assert len(held_out) > 0
    for one, other in ((train, again.train()), (held_out, again.held_out())):
        assert len(one) == len(other)
        assert all(one[i] == other[i] for i in range(min(50, len(one))))
    # An environment that answers back asks nothing: its tasks differ in where they start.
    trained = {problem(train[i]) for i in range(min(2000, len(train)))}
    assert not trained & {problem(held_out[i]) for i in range(len(held_out))}
    ids = [train[i].id for i in range(min(2000, len(train)))]
    assert len(set(ids)) == len(ids)
    assert isinstance(train[0], Task)


@pytest.mark.parametrize("name", ANSWERS_BACK)
def test_an_environment_that_answers_back_is_deterministic_by_seed_and_its_snapshots_exact(name):
    recipe = make(name)
    from rlft.sampling.snapshot import probe, same
    from rlft.sampling.spaces import check_spaces

    env, again = recipe.make(), recipe.make()
    check_spaces(env.observation_space, env.action_space, name)
    task = recipe.held_out()[0]
    start = {"seed": task.info["seed"], "options": task.info["options"] or None}
    seen, info = env.reset(**start)
    assert same((seen, info), again.reset(**start))
    assert env.observation_space.contains(seen)
    assert set(recipe.traces) <= set(info)
    for _ in range(20):
        action = env.action_space.sample()
        answer = env.step(action)
        assert same(answer, again.step(action))
        if answer[2] or answer[3]:
            break
    for how in ("replay",) if name in NOT_COPIED else ("copy", "replay"):
        probe(env, how)


@pytest.mark.parametrize(
    "name", [n for n in registry.short_names("reward") if n in registry.short_names("env")]
)
def test_a_reward_survives_junk_and_gives_the_gold_answer_full_marks(name):
    reward = registry.resolve("reward", name)
    env = make(name)
    train = env.train()
    tasks = [train[i] for i in range(min(20, len(train)))]
    for task in tasks:
        for text in JUNK:
            try:
                answer = reward(text, task)
            except Invalid:
                continue
            value = answer["reward"] if isinstance(answer, dict) else answer
            assert value < 0.7, (text[:40], task.id)
    # The best demonstration of each task; a data set may also hold wrong ones.
    golden = [max(reward(d, t)["reward"] for d in t.demos) for t in tasks if t.demos]
    assert golden
    assert max(golden) >= 1.0


def writing():
    """Algorithms of policies that write; those that other tests run end to end are long ones here."""
    quick = ("mezo", "reward_model")
    for name in registry.short_names("algo"):
        if not registry.resolve("algo", name).acts:
            yield pytest.param(name, marks=() if name in quick else pytest.mark.long)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", writing())
def test_an_algorithm_takes_two_steps(name, tmp_path, tiny_model):
    algo = {"name": name, **LEARNING.get(name, {})}
    run(tmp_path / "run", tiny_model, steps=2, algo=algo, **ALGO_NEEDS.get(name, {}))
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["version"] == 2
    assert rows[-1].get("grad_norm", rows[-1].get("update_norm")) > 0


@pytest.mark.parametrize(
    "kind",
    [
        *("algo", "env", "engine", "loss", "advantage", "reward", "stabiliser", "correction"),
        *("preference", "check", "key", "distance", "diversity", "retention", "probe"),
    ],
)
def test_everything_says_what_it_is(kind):
    for name in registry.short_names(kind):
        assert len(registry.summary(kind, name)) > 10, f"{kind} {name} has no documentation"


def test_file_names_are_short_names():
    for kind in ("algos", "envs"):
        folder = Path(importlib.import_module(kind).__path__[0])
        files = {p.stem for p in folder.glob("*.py")} - {"__init__"}
        packages = {p.parent.name for p in folder.glob("*/__init__.py")}
        assert files | packages == set(registry.short_names(kind.removesuffix("s")))
