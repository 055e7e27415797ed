"""Recorded NetHack games: read, replayed, read in streams, damaged."""

import bz2
import io
import itertools
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

from algos.clone import Clone
from envs.nethack import NetHack
from envs.nethack import nld as nld_module
from envs.nethack.demonstrations import Shards, keys_of, open_recordings
from envs.nethack.nld import first_border, open_nld, statistics
from rlft.cloning import EMPTY, Library, library_of, strips_of
from rlft.config import parse_config
from rlft.errors import ConfigError, DataError
from rlft.policy.actor_critic import new_policy
from rlft.probes.likelihood import TeacherLikelihood
from rlft.probes.probe import Subject
from rlft.probes.restart import Restart
from rlft.recordings import Streams, stretches
from rlft.retention.cloning import BehaviouralCloning
from rlft.retention.ewc import EWC
from rlft.seeding import Key

DATA = Path(__file__).parents[1] / "data/nethack"
KEYS = keys_of(NetHack())


@pytest.fixture(scope="module")
def shards():
    return Shards(DATA, KEYS)


def raw(path=DATA / "early/game_01025_00.npz.xz"):
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        return {name: file[name] for name in file.files}


def packed(path, arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(file.getvalue(), preset=0))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The game's first 300 steps in shards of 120, and another of 90 in one: two games."""
    folder, arrays, rows = tmp_path_factory.mktemp("cut"), raw(), []
    shutil.copy(DATA / "actions.json", folder)
    for game, (begin, upto) in enumerate([(0, 300), (500, 590)]):
        files = []
        for first in range(begin, upto, 120):
            name = f"full/game_{game}_{first}.npz.xz"
            cut = slice(first, min(first + 120, upto))
            packed(
                folder / name,
                {k: v[cut] for k, v in arrays.items() if np.ndim(v) and len(v) == 2240},
            )
            files.append(name)
        rows.append({"game": game, "set": "full", "steps": upto - begin, "files": files})
    (folder / "games.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def replay(shards, game, steps, seed):
    """How many of the first steps differ when the game is played again."""
    env = NetHack(max_steps=10**6).make()
    seen, _ = env.reset(seed=seed)
    demo = shards.read(game, 0, steps)
    differ = 0
    for t in range(len(demo)):
        differ += any(not np.array_equal(seen[n], demo.observations[n][t]) for n in seen)
        seen, reward, over, _, _ = env.step(demo.actions[t])
        differ += reward != demo.rewards[t]
        if over:
            break
    return differ


def test_a_recorded_game_is_what_the_environment_shows_from_its_seed(shards):
    assert replay(shards, 0, 2240, 1025) == 0


def test_observations_are_the_environment_s(shards):
    env = NetHack().make()
    demo = shards.read(0, 40, 60)
    for t in range(20):
        seen = {name: x[t] for name, x in demo.observations.items()}
        assert env.observation_space.contains(seen)
        assert env.action_space.contains(demo.actions[t])
    assert demo.observations["prev_action"][1:].tolist() == demo.actions[:-1].tolist()
    assert shards.read(0, 0, 1).observations["prev_action"] == [121], "none before the first"


def test_reading_does_not_depend_on_how_a_game_is_cut(shards, cut):
    pieces = Shards(cut / "full", KEYS, kept=1)
    assert pieces.steps(0) == 300 and pieces.steps(1) == 90
    for first, last in ((0, 300), (110, 130), (119, 241), (240, 300)):
        ours, theirs = pieces.read(0, first, last), shards.read(0, first, last)
        assert np.array_equal(ours.actions, theirs.actions)
        for name, x in theirs.observations.items():
            assert np.array_equal(ours.observations[name], x)


# -- streams ---------------------------------------------------------------------------------------


def test_readers_go_through_games_in_order_and_every_game_comes_once_a_round():
    lengths = [70, 33, 64, 5]
    streams = Streams(range(4), lengths.__getitem__, num=1, window=32, key=Key(1))
    windows = [streams.at(0, n) for n in range(40)]
    assert windows[0].fresh
    for one, other in itertools.pairwise(windows):
        if other.first:
            assert (other.game, other.first) == (one.game, one.last), "the same game goes on"
            assert not other.fresh
        else:
            assert one.last == lengths[one.game] and other.fresh
        assert other.last - other.first == 32 or other.last == lengths[other.game]
    starts = [w.game for w in windows[1:] if w.first == 0]
    first_game = windows[0].game
    assert sorted([first_game, *starts[:3]]) == [0, 1, 2, 3]
    assert sorted(starts[3:7]) == [0, 1, 2, 3]


def test_what_a_reader_has_depends_on_nothing_that_was_asked_before():
    def make():
        return Streams(range(5), [40, 10, 90, 33, 7].__getitem__, num=3, window=8, key=Key(2))

    straight = make()
    want = {(s, n): straight.at(s, n) for s in range(3) for n in range(50)}
    backwards = make()
    assert {k: backwards.at(*k) for k in reversed(list(want))} == want
    assert len({(w.game, w.first) for w in (want[s, 0] for s in range(3))}) == 3


def test_what_is_measured_is_spread_over_games(cut):
    pieces = Shards(cut, KEYS)
    found = stretches(pieces, [0, 1], 120, 30)
    assert [(w.game, w.first) for w in found] == [(0, 0), (0, 270), (1, 0), (1, 60)]
    assert all(w.fresh for w in found)
    few = stretches(pieces, [0] * 10, 4 * 30, 30)  # fewer windows than games
    assert len(few) == 4 and len({w.first for w in few}) == 4
    assert min(w.first for w in few) < 90 and max(w.first for w in few) > 180


def test_windows_are_strips_that_say_whether_a_memory_begins_empty(cut):
    library = library_of(str(cut), NetHack())
    assert library is library_of(str(cut), NetHack()), "opened and checked once"
    streams = Streams([0, 1], library.recordings.steps, 2, 50, Key(0))
    strips, stream, minibatch = library.windows(streams, 2, 0, 8)
    assert stream.tolist() == [0, 1] * 8 and minibatch.tolist() == sorted([*range(8)] * 2)
    for strip, s, m in zip(strips, stream, minibatch, strict=True):
        window = streams.at(s, m)
        assert (strip.state is EMPTY) == window.fresh
        assert len(strip.reward) == window.last - window.first
        assert (strip.slot, strip.continues) == (s, not window.fresh), (
            "as a teacher carries its memory"
        )
        assert strip.action.shape == (len(strip.reward), 1)


def test_recorded_games_are_states_for_retention_and_probes(cut):
    env = NetHack()
    strips = strips_of(str(cut), env, 512)
    assert [len(s.reward) for s in strips] == [256, 90], "a stretch of each game"
    cfg = config(cut)
    BehaviouralCloning(path=str(cut), size=128).check(cfg, env, acts=True)
    EWC(path=str(cut)).check(cfg, env, acts=True)
    TeacherLikelihood(path=str(cut), steps=100).check(cfg, env)
    with pytest.raises(DataError, match="no seed begins again"):
        Restart(saved=str(cut)).check(cfg, env)


def test_as_many_games_stay_unpacked_as_are_read_in_turn(cut):
    library = Library(Shards(cut, KEYS, kept=1), NetHack().make().action_space)
    streams = Streams([0, 1], library.recordings.steps, 2, 30, Key(0))
    library.windows(streams, 2, 0, 12)
    found = library.recordings._shard.cache_info()
    assert found.maxsize == 2 and found.misses < 10, "24 windows of two games in turn"


def config(path, **algo):
    return parse_config(
        {
            "algo": {"name": "clone", "path": str(path), **algo},
            "env": {"name": "nethack"},
            "model": {"build": {"name": "envs.nethack.network:NetHackNet"}, "dtype": "float32"},
            "name": "x",
            "steps": 1,
            "tasks_per_step": 1,
        },
        "here",
    )


def test_a_clone_says_what_it_will_read_and_keeps_games_apart(cut):
    clone = Clone(str(cut), held_out=0.5, batch=64, window=16)
    [said] = clone.suits(config(cut))
    assert said == (
        "recordings: 2 games of 390 steps in 4 shards; 1 games to learn from, 1 held out, 4 readers"
    )
    with pytest.raises(DataError, match=r"has 1 games, of which held_out=0.2.*held_out to 0"):
        Clone(str(DATA)).suits(config(DATA))


# -- damage ----------------------------------------------------------------------------------------


def truncated(folder):
    path = folder / "full/game_0_120.npz.xz"
    path.write_bytes(path.read_bytes()[:-200])


def flipped(folder):
    path = folder / "full/game_0_120.npz.xz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def lost(folder):
    (folder / "full/game_0_240.npz.xz").unlink()


def longer(folder):
    text = (folder / "games.jsonl").read_text()
    (folder / "games.jsonl").write_text(text.replace('"steps": 90', '"steps": 91'))


def without_array(folder):
    packed(folder / "full/game_1_500.npz.xz", {"action": np.zeros(90, np.uint8)})


def changed(**arrays):
    def harm(folder):
        path = folder / "full/game_1_500.npz.xz"
        packed(path, {**raw(path), **{k: make(raw(path)[k]) for k, make in arrays.items()}})

    return harm


def reward_of(x):
    return np.where(np.arange(len(x)) == 7, np.nan, x).astype(np.float32)


def other_keys(folder):
    actions = json.loads((folder / "actions.json").read_text())
    (folder / "actions.json").write_text(json.dumps(actions[::-1]))


@pytest.mark.parametrize(
    "harm, said",
    [
        (truncated, r"game_0_120.npz.xz is damaged.*copy it again"),
        (flipped, r"game_0_120.npz.xz is damaged.*copy it again"),
        (lost, r"game_0_240.npz.xz is missing, which games.jsonl names"),
        (longer, r"full/1 has 90 steps in its shards, games.jsonl says 91"),
        (without_array, r"game_1_500.npz.xz has no array 'tty_chars'; it has \['action'\]"),
        (
            changed(tty_chars=lambda x: x.astype(np.float32)),
            r"tty_chars is float32 .* expected uint8",
        ),
        (
            changed(blstats=lambda x: x[:-1]),
            r"blstats is int32 \[89, 27\], expected int32 \[90, 27\]",
        ),
        (changed(reward=reward_of), r"game_1_500.npz.xz holds a reward that is no finite number"),
        (
            changed(prev_action=lambda x: x + np.int16(500)),
            r"prev_action goes from .*expected -1 to 120",
        ),
        (other_keys, r"number 0 is another key; set env.actions"),
        (lambda f: (f / "games.jsonl").write_text("{"), r"games.jsonl: expected an object a line"),
        (lambda f: (f / "games.jsonl").unlink(), r"games.jsonl is missing"),
    ],
)
def test_damage_is_found_before_any_work_starts(cut, tmp_path, harm, said):
    folder = tmp_path / "games"
    shutil.copytree(cut, folder)
    harm(folder)
    with pytest.raises(DataError, match=said):
        Clone(str(folder), held_out=0.5).suits(config(folder))


@pytest.mark.parametrize(
    "path, said",
    [
        ("no/such/games", "no/such/games is no folder; expected recorded games"),
        ("nld:no/such.db:aa", "no/such.db is no file; expected a data base that nle.dataset made"),
        ("nld:x", "expected nld:FILE.db:NAME"),
    ],
)
def test_a_path_that_is_not_there_is_refused(path, said):
    with pytest.raises(DataError, match=said):
        open_recordings(path, NetHack())


def test_an_environment_with_other_actions_is_refused(cut):
    with pytest.raises(DataError, match="with 121 actions, the environment has 23"):
        open_recordings(str(cut), NetHack(actions="task"))
    assert open_recordings("demos.npz", NetHack()) is None


# -- NLD -------------------------------------------------------------------------------------------


def nld(folder, games=2, steps=60):
    """A data base of games that NLE records itself, with what was seen and done."""
    from nle import dataset, nethack
    from nle.env import tasks

    env = tasks.NetHackScore(
        actions=nethack.ACTIONS,
        allow_all_yn_questions=True,
        allow_all_modes=True,
        savedir=str(folder / "data/run"),
        save_ttyrec_every=1,
        fix_moon_phase=True,
    )
    rng, played = np.random.default_rng(0), []
    for seed in range(games):
        env.seed(seed, seed, reseed=False)
        seen, _ = env.reset()
        actions = [*rng.integers(8, size=steps), 38, 65, 7, *[19] * 9]
        found = []
        for action in actions:
            found.append(({k: v.copy() for k, v in seen.items()}, int(action)))
            seen, _, over, _, _ = env.step(action)
            if over:
                break
        played.append(found)
    env.reset()
    env.close()
    db = str(folder / "ttyrecs.db")
    dataset.db.create(db)
    dataset.add_nledata_directory(str(folder / "data"), "mine", db)
    return played


@pytest.fixture(scope="module")
def nld_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nld")
    return folder, nld(folder)


def test_nld_is_read_as_what_was_seen_and_done(nld_folder):
    folder, played = nld_folder
    games = open_recordings(f"nld:{folder}/ttyrecs.db:mine", NetHack())
    assert len(games.names) == 2 and games.summary() == "2 games of NLD"
    space = NetHack().make().observation_space
    for game, want in enumerate(played):
        demo = games.read(game, 0, 60)
        assert space.contains({name: x[5] for name, x in demo.observations.items()})
        offset = next(
            t for t in range(3)
            if np.array_equal(want[0][0]["tty_chars"], demo.observations["tty_chars"][t])
        )  # fmt: skip
        for t, (seen, action) in enumerate(want[:50]):
            ours = {name: x[t + offset] for name, x in demo.observations.items()}
            assert np.array_equal(ours["tty_chars"], seen["tty_chars"])
            assert np.array_equal(ours["tty_colors"], seen["tty_colors"])
            assert demo.actions[t + offset] == action
            stats = seen["blstats"].copy()
            # A monster's level and the alignment are not on the screen.
            stats[[17, 23, 26]] = ours["blstats"][[17, 23, 26]]
            row, column = seen["tty_cursor"]
            if seen["tty_chars"][row, column] != ord(
                "@"
            ):  # a question: the place is that of before
                stats[:2] = ours["blstats"][:2]
            assert ours["blstats"].tolist() == stats.tolist()


def test_how_a_game_of_nld_is_cut_in_memory_changes_nothing(nld_folder, monkeypatch):
    spec = f"{nld_folder[0]}/ttyrecs.db:mine"
    whole, pieces = (open_nld(spec, KEYS) for _ in range(2))
    theirs = whole.read(0, 0, whole.steps(0))
    monkeypatch.setattr("envs.nethack.nld._CHUNK", 16)
    monkeypatch.setattr("envs.nethack.nld._BLOCK", 10)
    assert pieces.steps(0) == whole.steps(0) == len(theirs) > 60
    for first, last in ((0, len(theirs)), (9, 11), (25, 26), (60, len(theirs))):
        ours = pieces.read(0, first, last)
        assert np.array_equal(ours.actions, theirs.actions[first:last])
        assert np.array_equal(ours.rewards, theirs.rewards[first:last])
        for name, x in ours.observations.items():
            assert np.array_equal(x, theirs.observations[name][first:last]), name
        assert ours.terminated == (last == len(theirs))
    packed = sum(len(block) for block in whole._game(0)._blocks)
    assert packed < len(theirs) * 3840 / 10


@pytest.mark.parametrize(
    "spec, said",
    [
        ("ttyrecs.db:theirs", "has no data set 'theirs'; it has mine"),
        ("data/run:mine", "is no file"),
    ],
)
def test_an_nld_that_is_not_whole_is_refused(nld_folder, spec, said):
    with pytest.raises(DataError, match=said):
        open_nld(f"{nld_folder[0]}/{spec}", KEYS)


def test_recordings_that_nld_names_must_be_there(tmp_path):
    nld(tmp_path, games=1, steps=5)
    for recording in (tmp_path / "data/run").glob("*.ttyrec3.bz2"):
        recording.unlink()
    with pytest.raises(DataError, match="recordings are missing"):
        open_nld(f"{tmp_path}/ttyrecs.db:mine", KEYS)


@pytest.mark.parametrize("damage, said", [("cut", "no whole bzip2"), ("junk", "no whole bzip2")])
def test_an_nld_recording_that_is_cut_or_something_else_is_found_when_it_is_opened(
    tmp_path, damage, said
):
    nld(tmp_path, games=2, steps=5)
    path = sorted((tmp_path / "data/run").glob("*.ttyrec3.bz2"))[1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"junk" * 100)
    with pytest.raises(DataError, match=said) as error:
        open_nld(f"{tmp_path}/ttyrecs.db:mine", KEYS)
    assert str(path) in str(error.value)


def test_an_nld_recording_may_have_two_streams_and_zeros_after_them(tmp_path):
    whole = bz2.compress(b"a" * 9000) + bz2.compress(bytes(range(256)) * 40)
    for number, tail in enumerate((b"", b"\0" * 700)):
        path = tmp_path / f"{number}.bz2"
        path.write_bytes(whole + tail)
        nld_module._require_both_ends(path)
        nld_module._require_whole(path)
    broken = bytearray(whole)
    broken[-40] ^= 255
    path.write_bytes(bytes(broken))
    with pytest.raises(DataError, match="is damaged"):
        nld_module._require_whole(path)


def test_an_nld_recording_with_a_wrong_byte_inside_is_named_when_it_is_read(tmp_path):
    nld(tmp_path, games=1, steps=5)
    path = min((tmp_path / "data/run").glob("*.ttyrec3.bz2"))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(bytes(whole))
    games = open_nld(f"{tmp_path}/ttyrecs.db:mine", KEYS)
    with pytest.raises(DataError, match=f"{path} is damaged"):
        games.steps(0)


def untrained(folder, **keys):
    """A new policy of the environment with these keys, for a probe."""
    env, model = NetHack(**keys), folder / "model"
    network = {"name": "envs.nethack.network:NetHackNet"}
    new_policy(network, env.make(), 0, model)
    tree = {
        **{"name": "x", "steps": 1, "tasks_per_step": 1, "algo": {"name": "control_ppo"}},
        **{"env": {"name": "nethack", **keys}, "model": {"build": network, "dtype": "float32"}},
    }
    return Subject(parse_config(tree, "test"), model, model, env, Key(0))


def test_a_game_is_gone_on_with_from_where_it_first_came_to_a_place(tmp_path):
    """By the probe, from the recorded game's seed: its second level, and what it scores there."""
    subject = untrained(tmp_path, max_steps=650)
    cfg, env = subject.cfg, subject.env
    probe = Restart(saved=str(DATA), at={"depth": 2}, episodes=2)
    probe.check(cfg, env)
    library, [(number, steps, seed)] = probe._places(env)
    strip = probe._strip(env, library, number, steps)
    depth = strip.obs["blstats"][:, 12]
    assert seed == 1025 and depth[-1] == 2 and depth[:-1].max() == 1 and len(depth) == 603
    found = probe(subject)
    assert found["length"] <= 48 and found["unreachable"] == 0 and "failed" not in found
    with pytest.raises(
        DataError, match=r"comes to {'depth': 9}.*The most that is reached: depth 2"
    ):
        Restart(saved=str(DATA), at={"depth": 9}).check(cfg, env)
    with pytest.raises(
        ConfigError, match=r"recorded games are to go on after \d+ to \d+ steps, but "
    ):
        Restart(saved=str(DATA), at={"depth": 2}, env={"max_steps": 20}).check(cfg, env)
    with pytest.raises(ConfigError, match="no milestone 'floor'; there are depth, dungeon"):
        Restart(saved=str(DATA), at={"floor": 1}).check(cfg, env)


def test_games_that_take_another_course_are_told(tmp_path):
    # No Monk: another game from its first step.
    subject = untrained(tmp_path, character="val-hum-fem-law")
    with pytest.raises(DataError, match="none of 1 recorded games took the course"):
        Restart(saved=str(DATA), at={"depth": 2})(subject)


def test_a_border_is_where_turns_fall_or_the_clock_jumps():
    turns = np.array([1, 2, 2, 3, 1, 2])
    clock = np.arange(6) * 1000
    assert first_border(clock, turns) == 4
    assert first_border(clock, np.arange(6)) == 6
    assert first_border(np.array([5, 6, 7, 2, 3, 4]), np.arange(6)) == 3
    assert first_border(np.array([0, 1, 4 * 10**9, 4 * 10**9 + 1, 5 * 10**9, 0]), np.arange(6)) == 2
    assert first_border(clock, np.array([1, 2, 0, 0, 2, 3])) == 6, "a covered line is no border"


def test_statistics_are_read_from_the_screen():
    screen = np.full((2, 24, 80), 32, np.uint8)

    def write(row, text):
        screen[0, row, : len(text)] = np.frombuffer(text.encode(), np.uint8)

    write(22, "Agent the Student   St:18/03 Dx:17 Co:13 In:7 Wi:11 Ch:10 Neutral S:1234")
    write(23, "Dlvl:5 $:77 HP:9(30) Pw:2(8) AC:-2 Xp:7/700 T:4321 Hungry Burdened Conf Lev")
    screen[0, 11, 40] = ord("@")
    cursor = np.array([[11, 40], [3, 7]], np.uint8)
    x, known = statistics(screen, cursor)
    assert known.tolist() == [True, True]
    assert x[0].tolist() == [
        *(40, 10, 19, 21, 17, 13, 7, 11, 10, 1234, 9, 30, 5, 77, 2, 8, -2, 0, 7, 700, 4321),
        *(2, 1, 0, 5, 1 << 8 | 1 << 10, 0),
    ]
    assert x[1].tolist() == x[0].tolist(), "covered lines, a cursor elsewhere: as it was"


# -- the whole set ---------------------------------------------------------------------------------


def test_statistics_read_from_screens_are_nle_s(shards):
    """On a real game: every statistic that the screen shows."""
    demo = shards.read(0, 0, 2240)
    want = demo.observations["blstats"]
    ours, known = statistics(demo.observations["tty_chars"], demo.observations["tty_cursor"])
    shown = np.array([b"HP:" in s[23].tobytes() for s in demo.observations["tty_chars"]])
    assert known.all() and shown.mean() > 0.8
    for place in (*range(2, 17), *range(18, 23), 24, 25):
        wrong = np.flatnonzero(shown & (ours[:, place] != want[:, place]))
        assert len(wrong) <= 0.01 * shown.sum(), (place, len(wrong))


@pytest.mark.long
def test_the_whole_set_is_sound_and_its_games_replay(data_dir):
    folder = data_dir / "nethack_autoascend"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    whole = Shards(folder, KEYS, kept=2)
    assert whole.summary() == "74 games of 937,009 steps in 192 shards"
    rows = [json.loads(x) for x in (folder / "games.jsonl").read_text().splitlines()]
    for game in (0, 31, 59):
        assert replay(whole, game, 5000, rows[game]["seed_core"]) == 0
