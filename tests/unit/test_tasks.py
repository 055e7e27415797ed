"""The task stream: a pure function of the ticket's number that deals every task once a pass."""

import pytest

from rlft.errors import DataError
from rlft.seeding import Key
from rlft.tasks import TaskStream
from rlft.types import Task

TASKS = [Task(str(i), "") for i in range(12)]


def stream(tasks=TASKS, per_ticket=5, seed=0):
    return TaskStream(tasks, per_ticket, Key(seed))


def dealt(s, tickets):
    return [task.id for i in tickets for task in s.ticket(i).tasks]


@pytest.mark.parametrize("per_ticket", [1, 3, 5, 7, 11, 12])
def test_every_task_comes_once_a_pass_even_across_tickets(per_ticket):
    ids = dealt(stream(per_ticket=per_ticket), range(24))
    for start in range(0, len(ids) - 11, 12):
        assert sorted(ids[start : start + 12], key=int) == [t.id for t in TASKS]


def test_a_ticket_depends_on_its_number_alone():
    whole = [stream().ticket(i) for i in range(30)]
    s = stream()
    for index in (29, 0, 17, 3, 29, 4, 0):
        assert s.ticket(index) == whole[index]
    assert [t.index for t in whole] == list(range(30))


def test_passes_and_seeds_come_in_different_orders():
    ids = dealt(stream(per_ticket=12), range(6))
    orders = {tuple(ids[i : i + 12]) for i in range(0, 72, 12)}
    orders |= {tuple(dealt(stream(per_ticket=12, seed=s), [0])) for s in range(1, 6)}
    assert len(orders) == 11


def test_each_place_of_the_order_sees_every_task():
    first = {stream(seed=s).ticket(0).tasks[0].id for s in range(200)}
    assert first == {t.id for t in TASKS}


def test_keys_of_tickets_differ_and_are_apart_from_the_order():
    keys = [stream().ticket(i).key for i in range(50)]
    assert len({k.seed() for k in keys}) == 50


def test_tasks_may_be_any_sequence_and_only_the_dealt_ones_are_made():
    class Lazy:
        made = 0

        def __len__(self):
            return 1_000

        def __getitem__(self, index):
            self.made += 1
            return Task(str(index), "")

    lazy = Lazy()
    stream(lazy, 4).ticket(3)
    assert lazy.made == 4


def test_nothing_to_deal_is_an_error_that_says_so():
    with pytest.raises(DataError, match="no training tasks"):
        stream([])
    with pytest.raises(DataError, match="tasks_per_step is 13, the environment has only 12"):
        stream(per_ticket=13)
