"""Files of rows become tasks whatever their format; what cannot be read is said with file and row."""

import csv
import gzip
import json

import pytest

from envs.jsonl import Rows, rows
from rlft import registry
from rlft.errors import ConfigError, DataError

ROWS = [
    {"prompt": "1+1?", "target": "2", "level": "easy"},
    {"prompt": 'ü, "2"\n+2?', "target": "4", "level": "hard"},
    {"prompt": "3+3?", "target": "6", "level": "easy"},
]


def written(folder, name, content=ROWS):
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(r) + "\n\n" for r in content), encoding="utf-8-sig")
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in content).encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(content))
    elif name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if name.endswith(".tsv") else ","
            writer = csv.DictWriter(file, list(content[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(content)
    return str(path)


FORMATS = ("a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.tsv", "a.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tasks(tmp_path, name):
    tasks = Rows(written(tmp_path, name), chat=False).train()
    assert [t.prompt for t in tasks] == [r["prompt"] for r in ROWS]
    assert [t.target for t in tasks] == ["2", "4", "6"]
    assert [t.info for t in tasks] == [{"level": r["level"]} for r in ROWS]
    assert [t.id for t in tasks] == ["1", "2", "3"]


def test_columns_template_and_system_are_configurable(tmp_path):
    content = [{"q": "1 {x}?", "a": 2, "worked": ["one", "two"], "key": "k1"}]
    path = written(tmp_path, "a.jsonl", content)
    [task] = Rows(
        path,
        prompt="q",
        target="a",
        demos="worked",
        id="key",
        template="Q: {prompt} {y}",
        system="S",
    ).train()
    assert task.prompt == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q: 1 {x}? {y}"},
    )
    assert (task.id, task.target, task.demos) == ("k1", 2, ("one", "two"))
    assert Rows(path, prompt="q", target=None).train()[0].target is None


def test_chat_messages_are_taken_as_they_are(tmp_path):
    messages = [{"role": "user", "content": "hi"}]
    path = written(tmp_path, "a.jsonl", [{"prompt": messages, "target": "x"}])
    assert Rows(path).train()[0].prompt == tuple(messages)


def test_held_out_rows_are_drawn_by_seed_and_not_trained_on(tmp_path):
    path = written(tmp_path, "a.jsonl", [{"prompt": str(i), "target": i} for i in range(50)])
    env = Rows(path, held_out_size=10)
    train, held_out = [t.target for t in env.train()], [t.target for t in env.held_out()]
    assert len(held_out) == 10
    assert sorted(train + held_out) == list(range(50))
    assert held_out == [t.target for t in Rows(path, held_out_size=10).held_out()]
    assert held_out != [t.target for t in Rows(path, held_out_size=10, seed=1).held_out()]
    assert held_out != list(range(40, 50)), "not the end of a file, which may be sorted"
    assert Rows(path).held_out() == []
    assert len(Rows(path, held_out_path=path, held_out_limit=3, limit=5).held_out()) == 3
    assert len(Rows(path, limit=5).train()) == 5
    with pytest.raises(DataError, match="has 50 rows; held_out_size=50 leaves none"):
        Rows(path, held_out_size=50).train()


@pytest.mark.parametrize(
    "name, text, parts",
    [
        ("a.jsonl", "", ["a.jsonl has no rows", "'prompt', 'target'"]),
        ("a.jsonl", "[1]\n", ["row 1 is a list, expected an object"]),
        (
            "a.jsonl",
            '{"promt": "x", "target": 1}\n',
            ["no column 'prompt'", "Did you mean 'promt'"],
        ),
        ("a.jsonl", '{"prompt": "x"}\n', ["row 1 has no column 'target'", "Found: 'prompt'"]),
        (
            "a.jsonl",
            '{"prompt": 3, "target": 1}\n',
            ["'prompt' is '3'", "expected text, or a list"],
        ),
        ("a.jsonl", '{"prompt": [{"role": "user"}], "target": 1}\n', ["messages"]),
        ("a.jsonl", "{\n", ["line 1 is not JSON"]),
        ("a.json", "{}", ["holds a dict, expected a list of objects"]),
        ("a.json", "[1", ["not JSON"]),
        ("a.csv", "prompt,target\nx\n", ["row 1 has fewer values"]),
        ("a.csv", "prompt,target\nx,1,2\n", ["row 1 has more values"]),
        ("a.csv", 'prompt,target\n"x,1\n', ["cannot be read"]),
        ("a.csv", "prompt,target\n", ["has no rows"]),
        ("a.parquet", "no parquet", ["is not a Parquet file"]),
        ("a.txt", "x", ["ends in one of .jsonl, .json, .csv"]),
        ("a", "x", ["ends in one of"]),
        ("a.jsonl.gz", "no gzip", ["cannot be read", "BadGzipFile"]),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path, name, text, parts):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        Rows(str(tmp_path / name)).train()
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    written(tmp_path, "train.jsonl")
    with pytest.raises(DataError, match=r"not a file. Did you mean 'train.jsonl'"):
        Rows(str(tmp_path / "trian.jsonl")).train()


def test_bytes_that_are_no_text_are_explained(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="UnicodeDecodeError"):
        list(rows(tmp_path / "a.jsonl"))


def test_names_that_repeat_are_refused(tmp_path):
    path = written(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match="rows 1 and 3 have the same 'level', 'easy'"):
        Rows(path, id="level").train()


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"template": "x"}, "must contain {prompt}"),
        ({"system": "s", "chat": False}, "system needs chat: true"),
        ({"held_out_size": 1, "held_out_path": "x"}, "not both"),
        ({"held_out_size": -1}, "at least 0"),
        ({"limit": 0}, "limit=0 must be at least 1"),
        ({"promt": "q"}, "Did you mean 'prompt'"),
    ],
)
def test_keys_are_checked(keys, said):
    with pytest.raises(ConfigError, match=said):
        registry.build("env", {"name": "jsonl", "path": "a.jsonl", **keys})
