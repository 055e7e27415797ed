"""The shipped environments of several turns: rewards by hand, demonstrations that succeed, episodes told
again that answer the same."""

import numpy as np
import pytest

from envs.babyai_text import ACTIONS, BabyAIText, described
from envs.babyai_text import build_model as words_model
from envs.calculator import Calculator, build_model
from rlft.errors import ConfigError
from rlft.policy.text import Text


def play(env, task, texts, seed=0):
    one = env.dialogue(task, seed)
    return [one.reply(text) for text in texts]


# -- calculator ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calculator():
    return Calculator(train_size=200, held_out_size=50)


def test_every_dialogue_of_the_calculator_is_one_that_it_answers_so(calculator):
    shown = [t for t in calculator.train() if t.dialogues]
    assert 30 < len(shown) < 90
    for task in shown:
        [turns] = task.dialogues
        answers = play(calculator, task, turns[::2])
        assert [a[0] for a in answers[:-1]] == list(turns[1::2])
        assert [a[1:3] for a in answers] == [(0.0, False), (0.0, False), (1.0, True)]
        assert answers[-1][3] == {"calls": 2.0, "unread": 0.0}


def test_a_guess_is_seldom_right_and_ends_the_episode(calculator):
    guessed = [t for t in calculator.train() if t.demos]
    ended = [play(calculator, t, t.demos)[0] for t in guessed]
    assert all(over for _, _, over, _ in ended)
    assert sum(reward for _, reward, _, _ in ended) / len(guessed) < 0.1


@pytest.mark.parametrize("text", ["", "47*6", "<47*6", "<1/2>", "<1+2+3>", "= 5", "<9999999*2>"])
def test_what_is_neither_call_nor_answer_is_asked_for_again(calculator, text):
    assert play(calculator, calculator.held_out()[0], [text])[0][:3] == ("?", 0.0, False)


def test_held_out_problems_are_none_of_those_to_train_on(calculator):
    ours = {t.id for t in calculator.train()}
    theirs = [t.id for t in calculator.held_out()]
    assert len(theirs) == len(set(theirs)) == 50
    assert not ours & set(theirs)
    assert [t.id for t in Calculator(train_size=9, held_out_size=50).held_out()] == theirs


def test_the_calculator_refuses_more_problems_than_there_are():
    with pytest.raises(ConfigError, match="there are 64800 problems"):
        Calculator(train_size=64_800)


# -- BabyAI in words -------------------------------------------------------------------------------


def view(**cells):
    """A view of empty cells, but for `x_y` cells given as (object, colour, state)."""
    image = np.full((7, 7, 3), (1, 0, 0), np.uint8)
    for at, cell in cells.items():
        x, y = map(int, at.removeprefix("at").split("_"))
        image[x, y] = cell
    return image


def test_what_is_seen_is_said_from_near_to_far_in_the_agents_own_directions():
    wall, red_ball, closed_door = (2, 5, 0), (6, 0, 0), (4, 2, 1)
    said = list(described(view(at3_4=wall, at2_5=red_ball, at5_0=closed_door, at0_0=wall), None))
    assert said == [
        "You see a red ball 1 step left and 1 step forward",
        "You see a closed blue door 2 steps right and 6 steps forward",
        "You see a wall 2 steps forward",
    ]


def test_what_is_carried_is_said():
    class Ball:
        color, type = "red", "ball"

    assert list(described(view(), Ball())) == ["You carry a red ball"]


@pytest.fixture(scope="module")
def rooms():
    pytest.importorskip("minigrid")
    return BabyAIText(demonstrations=True, train_size=12)


def test_a_demonstration_succeeds_and_is_answered_so(rooms):
    for task in rooms.train():
        [turns] = task.dialogues or [()]
        if not turns:
            continue  # BabyAI's bot needs more than 16 steps there
        assert task.prompt.startswith("Goal: go to the ")
        answers = play(rooms, task, turns[::2])
        assert [a[0] for a in answers[:-1]] == list(turns[1::2])
        assert [a[2] for a in answers] == [False] * (len(answers) - 1) + [True]
        assert answers[-1][1] == pytest.approx(1 - 0.5 * len(answers) / 16)
        assert answers[-1][3]["success"] == 1


def test_what_is_no_action_is_answered_and_takes_no_step(rooms):
    task = rooms.held_out()[0]
    first, second = play(rooms, task, ["dance", "Turn left"])
    assert first == second
    assert first[0].startswith("Unknown action\nYou see")
    assert first[0].removeprefix("Unknown action\n") == task.prompt.split("\n", 1)[1]


def test_every_word_that_is_said_is_a_token(rooms, tmp_path):
    _, tokenizer = words_model(0)
    tokenizer.save_pretrained(tmp_path)
    text = Text(tmp_path)
    for task in rooms.train():
        for said in (task.prompt, *(x for d in task.dialogues for x in d)):
            assert tokenizer.unk_token_id not in text.prompt_ids(said)
    for action in ACTIONS:
        assert text.decode(text.response_ids(action)) == action


def test_the_models_are_functions_of_their_seed():
    one, other = (build_model(3)[0].state_dict() for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)
