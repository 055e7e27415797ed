"""Which answers follow the same strategy, by each plug-in; and Poly-EPO's worked case through one."""

import math

import pytest
import torch

from rlft import registry
from rlft.credit.reads import advantages, reads
from rlft.errors import ConfigError, PluginError
from rlft.types import Group, Outcome, RowRef, Task, Trajectory

TASK = Task("t", "How much is it?")


def clusters(spec, *texts):
    return registry.build("cluster", spec)(texts, TASK)


def same(ids):
    """A partition as sets of places, whatever the numbers are; degenerate ones apart."""
    return {
        frozenset(i for i, one in enumerate(ids) if one == other) for other in ids if other >= 0
    }


def test_equal_texts():
    assert clusters("text", "a", " a ", "b", "", "  ") == [0, 0, 1, -1, -1]


def test_equal_answers_whatever_leads_there():
    texts = ("so it is 7", "2 + 5 = 7", "I think 8", "none")
    assert clusters("answer", *texts) == [0, 0, 1, -1]
    letter = {"name": "answer", "pattern": r"\b([A-D])\)"}
    assert clusters(letter, "A) or B)", "B)", "A)", "7") == [0, 0, 1, -1]
    with pytest.raises(ConfigError, match="no expression"):
        clusters({"name": "answer", "pattern": "("}, "a")


def test_equal_equations_in_order():
    first, spaced = "<<3+4=7>> and <<7*2=14>>", "3 + 4 = 7, so 7 * 2 = 14."
    swapped, other = "7*2=14 after 3+4=7", "3*4=12, 12+2=14"
    ids = clusters("equations", first, spaced, swapped, other, "14")
    assert ids == [0, 0, 1, 2, -1]
    kinds = {"name": "equations", "operators": True}
    assert clusters(kinds, "3+4=7", "5+9=14", "3*4=12", "") == [0, 0, 1, -1]


def test_hashed_characters_tell_close_wording_from_another():
    near = "first add three and four, then double it"
    ids = clusters("embedding", near, near + ".", "guess: nineteen", "")
    assert same(ids) == {frozenset({0, 1}), frozenset({2})}
    assert ids[3] == -1
    strict = clusters({"name": "embedding", "threshold": 1.0}, near, near + ".")
    assert len(set(strict)) == 2


def test_an_embedding_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def lengths(texts):\n    return [[len(t), 1.0 if t else 0.0] for t in texts]\n"
    )
    spec = {"name": "embedding", "embed": f"{tmp_path}/mine.py:lengths", "threshold": 0.999}
    assert clusters(spec, "aaaaaaaaaa", "bbbbbbbbbbb", "c", "") == [0, 0, 1, -1]


def test_a_judge_is_asked_once_and_never_guessed_for(tmp_path):
    (tmp_path / "judge.py").write_text(
        "asked = []\n"
        "def ask(prompt):\n    asked.append(prompt)\n    return '0 0 1 -1'\n"
        "def broken(prompt):\n    return 'I would say 1, 2'\n"
    )
    ask = f"{tmp_path}/judge.py:ask"
    assert clusters({"name": "judge", "ask": ask}, "x", "y", "z", "") == [0, 0, 1, -1]
    [prompt] = registry.resolve("ask", f"{tmp_path}/judge.py:asked")
    assert "How much is it?" in prompt and "Answer 3:\nz" in prompt
    with pytest.raises(PluginError, match=r"4 answers.*2 numbers"):
        clusters({"name": "judge", "ask": f"{tmp_path}/judge.py:broken"}, *"abcd")
    with pytest.raises(ConfigError, match="ask"):
        clusters("judge", "a")


def test_the_worked_case_of_poly_epo_through_a_cluster_plug_in():
    """N = 4, n = 2, R = (1, 0, 0, 0), strategies (a, b, b, a): marginals (.5, 0, 0, -.5)."""
    texts = ("2+3=5 right", "2*3=6", "2 * 3 = 6!", "2+3=5")
    members = tuple(
        Trajectory(
            *(f"m{i}", "t", "policy", text, 1, 3, (0, 0), False, RowRef(None, i)),
            outcome=Outcome("value", float(i == 0)),
        )
        for i, text in enumerate(texts)
    )
    spec = {"name": "poly_epo", "size": 2, "reduce": "sum", "cluster": "equations"}
    adv_B = advantages(registry.build("advantage", spec), [Group(TASK, members)])
    torch.testing.assert_close(adv_B, torch.tensor([0.5, 0.0, 0.0, -0.5]))
    assert math.isclose(float(adv_B.sum()), 0.0, abs_tol=1e-7)


@pytest.mark.parametrize(
    ("cluster", "error", "match"),
    [
        ("equatoins", PluginError, "Did you mean 'equations'"),
        ({"name": "answer", "patern": "a"}, ConfigError, "Did you mean 'pattern'"),
    ],
)
def test_a_wrong_cluster_is_an_error_before_the_first_rollout(cluster, error, match):
    with pytest.raises(error, match=match):
        reads(registry.build("advantage", {"name": "poly_epo", "cluster": cluster}))
