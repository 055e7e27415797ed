"""`rlft reward test`: outcomes of a plug-in on rows, and exit code 2 when it cannot be trusted."""

import json
import sys

import pytest

import rlft.cli

MINE = """\
import time
from rlft import Invalid

def fine(completion, task, scale=1.0):
    print("judging", completion)
    if completion == "":
        raise Invalid("no text")
    return {"reward": scale * (completion == task.target), "length": len(completion)}

def broken(completion, task):
    if completion == "hang":
        time.sleep(10_000)
    return {"a": 1.0}[completion]
"""


@pytest.fixture
def rlft_(tmp_path, monkeypatch, capsys):
    """Runs a command of rlft in a folder with `mine.py`; returns (exit code, output, errors)."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def command(*argv):
        monkeypatch.setattr(sys, "argv", ["rlft", "reward", "test", *argv])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            rlft.cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command


def lines(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def row(completion, target="4"):
    return {"prompt": "2+2?", "target": target, "completion": completion}


def test_a_reward_that_works_says_what_it_gave(rlft_, tmp_path):
    lines(tmp_path, row("4"), row("5"), row(""), row("4", target="3"))
    code, out, err = rlft_("mine.py:fine", "--data", "rows.jsonl", "--arg", "scale=2")
    assert (code, err) == (0, "")
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert table["value"][:3] == ["3", "75%", "0.667"]
    assert table["invalid"][:2] == ["1", "25%"]
    assert table["error"][:2] == ["0", "0%"]
    assert table["length"][:2] == ["3", "1.000"]
    assert "latency: p50" in out
    assert "1  no text" in out
    assert "it printed last:\njudging 4" in out


def test_without_completions_the_targets_are_scored(rlft_, tmp_path):
    lines(tmp_path, {"prompt": "p", "target": "x"}, {"prompt": "q", "target": "yy"})
    code, out, _ = rlft_("mine.py:fine", "--data", "rows.jsonl")
    assert code == 0
    assert "no column 'completion': the targets themselves were scored" in out
    [values] = [line.split() for line in out.splitlines() if line.startswith("value")]
    assert values[1:4] == ["2", "100%", "1.000"]


def test_failed_calls_are_shown_and_are_exit_code_2(rlft_, tmp_path):
    lines(tmp_path, row("a"), row("hang"), row("b"))
    code, out, err = rlft_("mine.py:broken", "--data", "rows.jsonl", "--timeout", "0.5")
    assert code == 2
    assert "row 2 failed: timed out after 0.5 s" in out
    assert 'mine.py", line 12 in broken' in out
    assert "row 3 failed: broken: Traceback" in out
    assert "KeyError: 'b'" in out
    assert "1 process replaced" in out
    assert err.startswith("error: 2 of 3 calls of mine.py:broken failed")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["mine.py:fien"], "Did you mean 'fine'?"),
        (["none.py:f"], "no file 'none.py'"),
        (["adition"], "unknown reward 'adition'. Did you mean 'addition'?"),
        (["mine.py:fine", "--arg", "scal=2"], "unknown key 'scal'. Did you mean 'scale'?"),
        (["mine.py:fine", "--arg", "scale"], "expected key=value"),
        (["mine.py:fine", "--set", "memory=2"], "Did you mean 'memory_gb'?"),
        (["mine.py:fine", "--timeout", "0"], "rewards.timeout"),
        (["mine.py:fine", "--set", "env=[NO_SUCH_KEY]"], "NO_SUCH_KEY, which is not set"),
        (["mine.py:fine", "--prompt", "question"], "no column 'question'"),
        (["mine.py:fine", "--data", "rws.jsonl"], "Did you mean 'rows.jsonl'?"),
    ],
)
def test_what_cannot_be_used_is_refused(rlft_, tmp_path, argv, said):
    lines(tmp_path, row("4"))
    code, _, err = rlft_(*argv, *([] if "--data" in argv else ["--data", "rows.jsonl"]))
    assert code == 2
    assert err.startswith("error: ")
    assert said in err
