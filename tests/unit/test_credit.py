"""Properties of group advantages: invariances, edge cases, refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from rlft.credit import group_relative, rloo

Credit = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
STDS = ["group", "batch", "none"]


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve rewards in four interleaved groups of three."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, generator=generator), torch.tensor([5, -2, 9, 0] * 3)


def group_sums(adv_B: torch.Tensor, group_B: torch.Tensor) -> list[float]:
    return [float(adv_B[group_B == g].sum()) for g in group_B.unique()]


@pytest.mark.parametrize("std", STDS)
def test_advantages_sum_to_zero_in_each_group(std: Any) -> None:
    reward_B, group_B = case()
    adv_B = group_relative(reward_B, group_B, std=std)
    assert adv_B.dtype == torch.float32
    assert adv_B.abs().min() > 0
    assert group_sums(adv_B, group_B) == pytest.approx([0] * 4, abs=1e-6)
    assert group_sums(rloo(reward_B, group_B), group_B) == pytest.approx([0] * 4, abs=1e-6)


def test_each_group_has_unit_unbiased_deviation() -> None:
    reward_B, group_B = case()
    adv_B = group_relative(reward_B * 7 + 3, group_B, eps=0.0)
    for group in group_B.unique():
        assert float(adv_B[group_B == group].std(unbiased=True)) == pytest.approx(1, rel=1e-6)


def test_batch_deviation_is_one_scale_for_all_groups() -> None:
    reward_B, group_B = case()
    scale_B = group_relative(reward_B, group_B, std="none") / group_relative(
        reward_B, group_B, std="batch", eps=0.0
    )
    torch.testing.assert_close(scale_B, reward_B.std().expand(12))


@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("scale,shift", [(4.0, 0.0), (0.01, -3.0), (1.0, 1e6)])
def test_normalised_advantages_ignore_affine_changes_of_the_reward(
    std: Any, scale: float, shift: float
) -> None:
    reward_B, group_B = case()
    reward_B = reward_B.double()
    torch.testing.assert_close(
        group_relative(scale * reward_B + shift, group_B, std=std, eps=0.0),
        group_relative(reward_B, group_B, std=std, eps=0.0),
    )


@pytest.mark.parametrize("credit", [partial(group_relative, std="none"), rloo])
def test_unnormalised_advantages_ignore_the_shift_and_keep_the_scale(credit: Credit) -> None:
    reward_B, group_B = case()
    torch.testing.assert_close(
        credit(3 * reward_B.double() + 8, group_B), 3 * credit(reward_B, group_B)
    )


@pytest.mark.parametrize("std", STDS)
def test_order_of_rows_and_names_of_groups_do_not_matter(std: Any) -> None:
    reward_B, group_B = case()
    order_B = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    adv_B = group_relative(reward_B, group_B, std=std)
    moved_B = group_relative(reward_B[order_B], group_B[order_B] * 1000 - 7, std=std)
    torch.testing.assert_close(moved_B, adv_B[order_B])
    torch.testing.assert_close(
        rloo(reward_B[order_B], group_B[order_B]),
        rloo(reward_B, group_B)[order_B],
    )


@pytest.mark.parametrize("std", ["group", "none"])
def test_groups_do_not_see_each_other(std: Any) -> None:
    reward_B, group_B = case()
    alone_B = group_B == 9
    whole_B = group_relative(reward_B, group_B, std=std)
    part_B = group_relative(reward_B[alone_B], group_B[alone_B], std=std)
    torch.testing.assert_close(whole_B[alone_B], part_B)


def test_rloo_is_the_centred_reward_scaled_up() -> None:
    reward_B, group_B = case()
    centred_B = group_relative(reward_B, group_B, std="none")
    torch.testing.assert_close(rloo(reward_B, group_B), centred_B * 3 / 2)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e12])
def test_a_flat_group_gets_exactly_zero(std: str, eps: float, value: float) -> None:
    reward_B = torch.tensor([value] * 7 + [0.0, 1.0], dtype=torch.float64)
    group_B = torch.tensor([1] * 7 + [2, 2])
    adv_B = group_relative(reward_B, group_B, std=std, eps=eps)
    assert adv_B[:7].tolist() == [0.0] * 7
    assert adv_B[8] > 0 > adv_B[7]
    assert rloo(reward_B, group_B)[:7].tolist() == [0.0] * 7


@pytest.mark.parametrize("std", STDS)
def test_a_group_of_one_gets_zero(std: Any) -> None:
    reward_B, group_B = torch.tensor([5.0, 0.0, 1.0]), torch.tensor([7, 8, 8])
    assert group_relative(reward_B, group_B, std=std)[0] == 0
    assert rloo(reward_B, group_B)[0] == 0
    assert group_relative(reward_B[:1], group_B[:1], std=std, eps=0.0).tolist() == [0.0]


def test_no_rows_give_no_advantages() -> None:
    empty_B, none_B = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert group_relative(empty_B, none_B).tolist() == []
    assert rloo(empty_B, none_B).tolist() == []


def test_an_unknown_std_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"group, batch, none; got 'grup'.* mean 'group'"):
        group_relative(torch.ones(2), torch.zeros(2, dtype=torch.int64), std="grup")  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [-1e-6, float("nan"), float("inf")])
def test_a_bad_eps_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="eps"):
        group_relative(torch.ones(2), torch.zeros(2, dtype=torch.int64), eps=eps)


@pytest.mark.parametrize("credit", [group_relative, rloo])
def test_bad_inputs_are_refused(credit: Credit) -> None:
    ids_B = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\[3\].*\[2\]"):
        credit(torch.ones(3), ids_B[:2])
    with pytest.raises(ValueError, match=r"shape \[B\]"):
        credit(torch.ones(3, 1), ids_B[:, None])
    with pytest.raises(ValueError, match="float32"):
        credit(torch.ones(3), torch.zeros(3))
    for bad in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match=rf"finite, got {bad} at row 1 \(1 such"):
            credit(torch.tensor([0.0, bad, 1.0]), ids_B)
