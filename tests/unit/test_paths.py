"""Solution paths: marks, keys, and which of a question's right answers are kept."""

import gzip
import json
import random
from pathlib import Path

import pytest

from rlft import registry
from rlft.errors import DataError
from rlft.paths.keys import equations, marks, text
from rlft.paths.marks import all_right, is_right, marks_of
from rlft.paths.rows import Kept, Question, read_questions, write_questions
from rlft.paths.selection import added, merge

GSM8K = Path(__file__).parents[1] / "data/gsm8k"
GOLD = "Half of 48 is 48/2 = <<48/2=24>>24. Together 48+24 = <<48+24=72>>72.\n#### 72"


@pytest.mark.parametrize(
    "mark, right",
    [
        ("48/2=24", True),
        ("48/2=25", False),
        ("1+1", False),
        ("0.1+0.2=0.3", True),
        ("2*3=6=7", True),  # what follows the second sign is ignored
        ("10%*5=.5", False),
        ("(1/2)*48=24.0", True),
        ("-3+5=2", True),
        ("10-5*3=-5", True),
        ("1/3=0.333", True),  # less than 0.001 apart
        ("1/3=0.33", False),
        ("2**3=8", False),
        ("7//2=3", False),
        ("1/0=1", False),
        ("=", False),
        ("1=1e0", False),
        ("1=inf", False),
        ("9**9**9=1", False),
        ("(" * 150 + "1" + ")" * 40 + "=1", False),
        ("9" * 5000 + "=1", False),
        ("__import__('os')=1", False),
    ],
)
def test_a_mark(mark, right):
    assert is_right(mark) is right


def test_a_text_is_right_if_all_its_marks_are():
    assert all_right(GOLD)
    assert not all_right(GOLD.replace("=24>>", "=23>>"))
    assert all_right("no mark at all, 1+1=3")
    assert marks_of("<<1+1=2>>2 <<broken\n<<2*2=4>>4 <>") == ["1+1=2", "2*2=4"]


def test_the_solutions_of_gsm8k_pass():
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()]
        assert all(all_right(row["answer"]) for row in rows)
        assert sum(len(marks_of(row["answer"])) for row in rows) > 2 * len(rows)


def test_all_of_gsm8k(data_dir):
    """7,471 of 7,473: the other two divide with `//`, which is no sign here."""
    with gzip.open(data_dir / "gsm8k/train.jsonl.gz", "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    wrong = [m for a in answers for m in marks_of(a) if not is_right(m)]
    assert len(answers) == 7473
    assert wrong == ["560//10=56", "180//3=60"]


def test_keys():
    assert marks(GOLD) == "48/2=24|48+24=72"
    assert marks("<< 48 / 2 = 24>> and <<48+24=72>>") == marks(GOLD)
    assert marks("<<48+24=72>><<48/2=24>>") != marks(GOLD)  # order matters
    assert marks("72") == marks("24") == ""
    assert equations("so 3 x 4 = 12, and 12+1=13.") == "3*4=12|12+1=13"
    assert equations("3*4=12") == equations("we get 3 × 4 = 12")
    assert text("a  b\nc ") == "a b c"


def levenshtein(one, other):
    """By the recursion, row by row."""
    row = list(range(len(other) + 1))
    for i, x in enumerate(one, start=1):
        last, row[0] = row[0], i
        for j, y in enumerate(other, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_distances():
    edit, words = (registry.build("distance", name) for name in ("edit", "words"))
    rng = random.Random(0)
    for _ in range(50):
        one, other = ("".join(rng.choices("ab c", k=rng.randint(0, 9))) for _ in range(2))
        assert edit(one, other) == levenshtein(one, other)
        assert words(one, other) == levenshtein(one.split(), other.split())


def paper(samples, key, distance):
    """Steps 4 and 5 of the paper's code, over all samples of a question."""
    kept = {}
    for q in samples:
        if key(q) not in kept:
            kept[key(q)] = q
            continue
        o = kept[key(q)]
        others = [r for r in kept.values() if r != o]
        if sum(distance(q, r) for r in others) > sum(distance(o, r) for r in others):
            kept[key(q)] = q
    return list(kept.values())


def selected(samples, key, distance):
    kept = ()
    for sample in samples:
        kept = added(kept, Kept(sample, key(sample), {}), distance)
    return [k.text for k in kept]


def test_selection_is_the_paper_s():
    rng = random.Random(1)
    for _ in range(100):
        samples = [
            f"{rng.choice('abc') * rng.randint(1, 9)}<<{k}+1={k + 1}>>"
            for k in (rng.randint(1, 4) for _ in range(12))
        ]
        assert selected(samples, marks, levenshtein) == paper(samples, marks, levenshtein)
        # The distance never changes how many are kept, nor their keys.
        first = selected(samples, marks, None)
        assert [marks(t) for t in first] == [
            marks(t) for t in selected(samples, marks, levenshtein)
        ]
        assert first == [next(s for s in samples if marks(s) == marks(t)) for t in first]


def test_the_farthest_of_a_key_stays():
    one, near, far = "x<<1+1=2>>", "a <<2+0=2>>", "a long way round <<2+0=2>>"
    assert selected([one, near, far], marks, levenshtein) == [one, far]
    assert selected([one, far, near], marks, levenshtein) == [one, far]
    assert selected([near, far], marks, levenshtein) == [near]  # there is no other to be far from


def question(name, *texts, gold=("g",), prompt="q"):
    return Question(
        name, prompt, gold, tuple(Kept(t, marks(t), {"model": "m", "seed": 3}) for t in texts)
    )


def test_a_union_has_the_keys_of_both():
    questions = {}
    merge(questions, question("1", "a<<1+1=2>>", "<<2+0=2>>"), levenshtein)
    merge(questions, question("1", "bb<<1+1=2>>", "<<0+2=2>>"), levenshtein)
    merge(questions, question("2", "<<2+0=2>>", gold=()), levenshtein)
    assert [k.key for k in questions["1"].kept] == ["1+1=2", "2+0=2", "0+2=2"]
    assert questions["1"].kept[0].text == "bb<<1+1=2>>"
    assert questions["1"].gold == ("g",)
    with pytest.raises(DataError, match=r"'2' has two prompts, 'q' and 'p'"):
        merge(questions, question("2", prompt="p"), levenshtein)


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    chat = ({"role": "user", "content": "zwei\u2028"},)
    found = {
        "1": question("1", "<<1+1=2>>", "<<2+0=2>>", prompt=chat),
        "2": question("2", prompt=chat),
    }
    assert write_questions(path, found) == 4
    again = {q.id: q for q in read_questions(path, marks)}
    assert [(q.gold, q.prompt) for q in again.values()] == [(("g",), chat)] * 2
    assert [k.text for k in again["1"].kept] == ["<<1+1=2>>", "<<2+0=2>>"]
    rows = [json.loads(line) for line in path.read_text().split("\n") if line]
    assert [r["origin"] for r in rows] == ["gold", "sample", "sample", "gold"]
    assert rows[1]["model"] == "m" and rows[1]["seed"] == 3 and rows[1]["key"] == "1+1=2"


def test_datasets_loads_the_rows(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    path = tmp_path / "rows.jsonl"
    write_questions(path, {"1": question("1", "<<1+1=2>>"), "2": question("2", "<<2+0=2>>")})
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["origin"] == ["gold", "sample"] * 2
    assert loaded["response"] == ["g", "<<1+1=2>>", "g", "<<2+0=2>>"]
    assert loaded["seed"] == [None, 3, None, 3]


@pytest.mark.parametrize(
    "content, said",
    [
        ("", "has no rows"),
        ("{", r"line 1 is not JSON"),
        ("[1]", r"line 1 has no column 'question'"),
        ('\n{"question": "1", "prompt": "q", "origin": "gold"}', "line 2 has no column 'response'"),
    ],
)
def test_files_that_cannot_be_combined(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match=r"is not a file; expected the rows\.jsonl"):
        read_questions(path, marks)
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_questions(path, marks)
