"""Every loss, advantage and correction that is registered takes real steps with GRPO, and so does one
written to a file just now. The maths of each is in tests/oracles."""

import pytest
from small_runs import metrics, run

from rlft import registry

pytestmark = pytest.mark.usefixtures("ray_cluster")
MINUTE = {"group_size": 4, "minibatches": 2}
LOSS = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class RowLoss:
    \"\"\"Minus the row's advantage times its mean log-prob, one value a row.\"\"\"
    aggregate: ClassVar[str] = "sequence"
    scale: float = 1.0
    def __call__(self, out, batch):
        logp = out.logp.masked_fill(~batch.mask, 0.0).sum(1) / batch.mask.sum(1).clamp(min=1)
        return -self.scale * batch.adv[:, 0] * logp
"""
ADVANTAGE = """
def rank(reward_B, length_B, *, scale=1.0):
    \"\"\"+scale for the better half of the batch, -scale for the other; shorter first.\"\"\"
    value = reward_B - length_B / 1000
    return scale * (2.0 * (value > value.median()) - 1.0)
"""


def two_steps(tmp_path, tiny_model, **algo):
    run(tmp_path / "run", tiny_model, steps=2, algo={"name": "grpo", **MINUTE, **algo})
    rows = metrics(tmp_path / "run")
    assert rows[-1]["version"] == 2
    assert all(row["grad_norm"] > 0 for row in rows)
    return rows


@pytest.mark.long
@pytest.mark.parametrize("name", [n for n in registry.short_names("loss") if n != "KLToReference"])
def test_a_loss_by_a_yaml_line(name, tmp_path, tiny_model):
    rows = two_steps(tmp_path, tiny_model, loss=name)
    assert all(0 < row["is_weight/effective_share"] <= 1 for row in rows)


@pytest.mark.long
@pytest.mark.parametrize("name", registry.short_names("advantage"))
def test_an_advantage_by_a_yaml_line(name, tmp_path, tiny_model):
    sets = {"size": 2} if name == "poly_epo" else {}  # a set of all four has no others to be above
    two_steps(tmp_path, tiny_model, advantage={"name": name, **sets})


@pytest.mark.long
@pytest.mark.parametrize("name", registry.short_names("correction"))
def test_a_correction_by_a_yaml_line(name, tmp_path, tiny_model):
    window = {"low": 0.5, "high": 2.0} if name == "GeometricReject" else {}
    two_steps(tmp_path, tiny_model, correction={"name": name, **window})


def test_a_new_loss_and_a_new_advantage_are_one_file_each(tmp_path, tiny_model):
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "yours.py").write_text(ADVANTAGE)
    loss = {"name": f"{tmp_path}/mine.py:RowLoss", "scale": 2}
    advantage = {"name": f"{tmp_path}/yours.py:rank", "scale": 0.5}
    two_steps(tmp_path, tiny_model, loss=loss, advantage=advantage)


@pytest.mark.long
def test_dapo_with_an_adaptive_coefficient_resumes_with_its_state(tmp_path, tiny_model):
    steered = {"kind": "adaptive", "from": 0.05, "target": 1e-6}
    algo = {**MINUTE, "kl_coef": steered, "kl": "k3_corrected", "refill": 1, "overlong_buffer": 4}
    changes = {"algo": {"name": "grpo", **algo}, "save__every": 2}
    run(tmp_path / "whole", tiny_model, steps=4, **changes)
    run(tmp_path / "cut", tiny_model, steps=2, **changes)
    run(tmp_path / "cut", tiny_model, steps=4, resume=True, **changes)
    whole, cut = ([row["coef/kl"] for row in metrics(tmp_path / name)] for name in ("whole", "cut"))
    assert whole == cut
    assert len(set(whole)) > 2 and whole[0] == 0.05
