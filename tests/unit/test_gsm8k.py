"""GSM8K: rows become tasks, bad files are explained, and answers are compared by value, safely."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.gsm8k import GSM8K, candidate, reward
from rlft.errors import ConfigError, DataError
from rlft.types import Task

SLICE = Path(__file__).parents[1] / "data" / "gsm8k"
ROW = {"question": "How many?", "answer": "1+1=<<1+1=2>>2\n#### 2"}


def problem(target: str) -> Task:
    return Task(id="t", prompt="", target=target)


@pytest.fixture(scope="module")
def env() -> GSM8K:
    return GSM8K(path=str(SLICE / "train.jsonl"), held_out_path=str(SLICE / "test.jsonl"))


def write(path: Path, *rows: object) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_slice_becomes_tasks(env):
    train, held_out = env.train(), env.held_out()
    assert (len(train), len(held_out)) == (64, 32)
    assert len({t.id for t in [*train, *held_out]}) == 96
    assert not {t.prompt[0]["content"] for t in train} & {t.prompt[0]["content"] for t in held_out}
    assert list(train) == list(env.train())
    first = train[0]
    assert first.target == "72"
    assert first.prompt[0]["role"] == "user"
    assert "Natalia sold clips" in first.prompt[0]["content"]
    assert first.demos[0].startswith("Natalia sold 48/2 = 24 clips in May.")


def full_marks_and_none(tasks):
    for task in tasks:
        assert reward(task.demos[0], task) == {"reward": 1.0, "answer": 1.0, "format": 1.0}
        assert reward(f"\\boxed{{{task.target}}}", task)["reward"] == 1.0
        wrong = int(task.target) + 1
        assert reward(f"so #### {wrong}", task) == {"reward": 0.0, "answer": 0.0, "format": 1.0}


def test_gold_rows_get_full_marks_and_a_wrong_number_none(env):
    full_marks_and_none([*env.train(), *env.held_out()])


def test_whole_training_split(data_dir):
    path = Path(data_dir) / "gsm8k" / "train.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"--data has no {path.name}")
    tasks = GSM8K(path=str(path)).train()
    assert len(tasks) == 7473
    assert sum(t.target.startswith("-") for t in tasks) == 3
    full_marks_and_none(tasks)


def test_keys_shape_the_prompt_and_the_number_of_rows():
    path = str(SLICE / "train.jsonl")
    plain = GSM8K(
        path=path, template="Q: {question} {x}\nA:", chat=False, limit=3, annotations=True
    )
    assert len(plain.train()) == 3
    assert plain.train()[0].prompt.startswith("Q: Natalia")
    assert plain.train()[0].prompt.endswith("{x}\nA:")
    assert "<<48/2=24>>" in plain.train()[0].demos[0]
    system = GSM8K(path=path, system="Be brief.", held_out_path=path, held_out_limit=2)
    assert [m["role"] for m in system.train()[0].prompt] == ["system", "user"]
    assert len(system.held_out()) == 2


@pytest.mark.parametrize(
    ("target", "completion", "answer", "form"),
    [
        ("1250", "#### 1,250", 1, 1),
        ("1250", "#### 1250.00", 1, 1),
        ("1250", "#### $1,250 dollars", 1, 1),
        ("1250", "#### \\$1250", 1, 1),
        ("1250", "####\n**1250**", 1, 1),
        ("1250", "#### 1250\nThat is more than 7.", 1, 1),
        ("1250", "#### 1000 + 250 = 1250", 1, 1),
        ("1250", "\\boxed{1{,}250}", 1, 1),
        ("1250", "$\\boxed{1250\\text{ m}^2}$", 1, 1),
        ("1250", "\\boxed{\\frac{2500}{2}}", 1, 1),
        ("1250", "#### 3 \\boxed{1250}", 1, 1),
        ("1250", "\\boxed{3} #### 1250", 1, 1),
        ("1250", "She has 1,250 apples.", 1, 0),
        ("1250", "#### 1251", 0, 1),
        ("1250", "#### -1250", 0, 1),
        ("1250", "#### 1250 + 3", 0, 0),
        ("1250", "#### 1250^2", 0, 0),
        ("1250", "#### 1250**2", 0, 0),
        ("1250", "#### 1.25e3", 0, 0),
        ("1250", "#### 1250/0", 0, 0),
        ("1250", "#### none, although 1250 came up\n", 1, 1),
        ("1250", "1250 ####", 0, 0),
        ("1250", "1250 or 7", 0, 0),
        ("-5", "#### -5", 1, 1),
        ("-5", "#### \u22125", 1, 1),
        ("-5", "#### -$5", 1, 1),
        ("5", "10-5", 1, 0),
        ("-5", "10-5", 0, 0),
        ("0", "#### 0", 1, 1),
        ("0.5", "#### 1/2", 1, 1),
        ("50", "#### 50%", 1, 1),
        ("5", "", 0, 0),
        ("5", "no number", 0, 0),
    ],
)
def test_reward_by_value(target, completion, answer, form):
    expected = {"reward": answer, "answer": answer, "format": form}
    assert reward(completion, problem(target)) == expected


def test_reward_does_not_need_the_main_thread():
    got: list[dict[str, float]] = []
    thread = threading.Thread(target=lambda: got.append(reward("#### 1,250", problem("1250"))))
    thread.start()
    thread.join()
    assert got == [{"reward": 1.0, "answer": 1.0, "format": 1.0}]


PIECES = ["####", "\\boxed{", "}", "{", "9**9**9", "9^{9^{9}}", "1/0", "\\frac{1}{0}", "\n", " "]
PIECES += [
    "é☃",
    "\0",
    "\ud800",
    "((((",
    "٣",
    "1,000",
    "-",
    ".",
    "%",
    "!",
    "e99",
    "=",
    "$",
    "import",
]


def test_junk_never_raises():
    rng = random.Random(0)
    reward("#### 1", problem("1"))
    for _ in range(3000):
        completion = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        parts = reward(completion, problem("18"))
        assert parts["reward"] == 0.0, completion


@pytest.mark.parametrize("before", ["", "#### ", "\\boxed{"])
@pytest.mark.parametrize(
    "junk",
    [
        "x" * 10**6,
        "9" * 10**6,
        "9**9**9",
        "9^{9^{9^{9}}}",
        "10^100000000",
        "1e999999999",
        "99999999999!",
        "(" * 100_000 + ")" * 100_000,
        "{" * 100_000 + "}" * 100_000,
        "#" * 10**6,
        "\\boxed{" * 100_000,
        "\\frac{" * 100_000,
        "1,111" + ",111" * 100_000 + "1",
        "1 " * 500_000,
        " " * 10**6,
        "1/0",
        "9" * 25 + "/" + "7" * 25,
        "__import__('os').getcwd()",
        "".join(map(chr, range(0x3000))),
    ],
    ids=lambda text: repr(text[:20]),
)
def test_hostile_completions_are_scored_at_once(before, junk):
    reward("#### 1", problem("1"))
    start = time.perf_counter()
    assert reward(before + junk, problem("18"))["reward"] == 0.0
    assert time.perf_counter() - start < 1.0


def test_what_is_compared_is_short():
    for marker in ("####", "\\boxed{"):
        text, found = candidate(marker + "7" * 1000)
        assert found and len(text) <= 60


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["rows.jsonl", "no rows"]),
        (["", "  "], ["no rows"]),
        (
            [ROW, {"qestion": "?", "answer": "#### 1"}],
            ["row 2", "'question'", "Did you mean 'qest"],
        ),
        ([ROW, ROW, {"question": "?"}], ["row 3", "'answer'", "Found: 'question'"]),
        ([{"question": 3, "answer": "#### 1"}], ["row 1", "'question' is a int"]),
        ([[1, 2]], ["row 1", "list"]),
        ([ROW, "{not json"], ["line 2", "not JSON"]),
        ([{"question": "?", "answer": "it is 1"}], ["row 1", "#### <number>", "it is 1"]),
        ([{"question": "?", "answer": "#### many"}], ["row 1", "#### <number>"]),
    ],
)
def test_bad_rows_are_explained(tmp_path, rows, words):
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError) as error:
        GSM8K(path=path).train()
    assert [word for word in words if word not in str(error.value)] == []


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.jsonl", ROW)
    with pytest.raises(DataError, match=r"Did you mean 'train\.jsonl'"):
        GSM8K(path=str(tmp_path / "trian.jsonl")).train()
    with pytest.raises(DataError, match="is not a file"):
        GSM8K(path=str(tmp_path)).train()
    with pytest.raises(DataError, match="is not a file"):
        GSM8K(path=str(tmp_path / "nowhere" / "rows.jsonl")).train()


def test_unreadable_files_are_data_errors(tmp_path):
    whole = gzip.compress("".join(json.dumps(ROW) + "\n" for _ in range(999)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_text(json.dumps(ROW))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    for name in ("cut.jsonl.gz", "plain.jsonl.gz", "latin.jsonl"):
        with pytest.raises(DataError, match="cannot be read"):
            GSM8K(path=str(tmp_path / name)).train()


def test_compressed_file_reads_like_the_plain_one(tmp_path, env):
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress((SLICE / "train.jsonl").read_bytes()))
    assert list(GSM8K(path=str(packed)).train()) == list(env.train())


def test_commas_in_the_gold_answer_are_stripped(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"question": "?", "answer": "x\n#### 1,250,000"})
    assert GSM8K(path=path).train()[0].target == "1250000"


def test_held_out_is_never_guessed():
    with pytest.raises(ConfigError, match="held_out_path"):
        GSM8K(path=str(SLICE / "train.jsonl")).held_out()


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"template": "{qestion}"}, "template"),
        ({"chat": False, "system": "Be brief."}, "system"),
        ({"limit": 0}, "limit"),
        ({"held_out_limit": -1}, "held_out_limit"),
    ],
)
def test_unusable_keys_are_refused_by_name(keys, word):
    with pytest.raises(ConfigError, match=word):
        GSM8K(**keys)


def test_hub_rows_by_split(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return itertools.repeat(ROW, 5)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert (len(GSM8K().train()), len(GSM8K(held_out_limit=2).held_out())) == (5, 2)
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "train"}),
        (("openai/gsm8k", "main"), {"split": "test"}),
    ]


def test_no_hub_says_that_a_local_file_will_do(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"hub did not give.*set path"):
        GSM8K().train()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        GSM8K().train()
