"""Members against plain models, in this process: engines, sampler, master."""

import copy
import dataclasses
import types

import numpy as np
import pytest
import torch
from small_runs import tree

from algos.es import ES
from algos.mezo import MeZO, slopes
from rlft import registry
from rlft.check import check_plugins
from rlft.config import parse_config
from rlft.credit.evolution import Ratchet, member_rewards, merged
from rlft.errors import CheckpointError, ConfigError, NonFinite, WeightsMismatch
from rlft.filters import drop_errors
from rlft.learning.noise import Drawing, Noise, NoiseStep, noise, pack, unpack
from rlft.learning.noise_rank import NoiseRank
from rlft.sampling.low_rank import linear_weights, with_matrices
from rlft.sampling.population import PopulationSampler
from rlft.sampling.sampler import Ask
from rlft.sampling.transformers import TransformersEngine
from rlft.seeding import Key
from rlft.types import Request, Row, Sampling, WeightUpdate
from rlft.weights.fingerprint import fingerprint

SAMPLING = Sampling(max_tokens=8, greedy=True, stop_ids=(2,))
PROMPTS = [(5, 6, 7), (8, 9, 10, 11), (4, 5)]


def config(model, **changes):
    return parse_config(tree(model, **{"algo": {"name": "es"}, **changes}), "small")


@pytest.fixture
def rank(tiny_model, monkeypatch):
    made = NoiseRank("learner 0", config(tiny_model), tiny_model)
    made.connect(("127.0.0.1", 0))
    return made


@pytest.fixture
def sampler(tiny_model, rank):
    made = PopulationSampler("sampler 0", config(tiny_model), tiny_model)
    made.start()
    update = sent(rank, 0)
    made.load(update, update.source)
    return made


def sent(rank, version, snapshot=False):
    import rlft.learning.noise_rank as module

    put, module.ray.put = module.ray.put, lambda value: value
    try:
        return rank.snapshot(version) if snapshot else rank.send(version)
    finally:
        module.ray.put = put


def plain(folder, noise_of=None):
    """A float32 model, its weights moved by `noise_of(index, name, shape)`."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(lm.named_parameters()):
            if noise_of:
                parameter += noise_of(index, name, parameter.shape)
    return lm


def greedy(lm, prompt):
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(SAMPLING.max_tokens):
            ids.append(int(lm(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in SAMPLING.stop_ids:
                break
    return ids[len(prompt) :]


# -- engines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [64, 5], ids=["one batch", "uneven batches"])
def test_rows_of_many_members_are_those_of_models_with_whole_low_rank_noise(
    tiny_model, max_batch
):  # I10 for the engine's own chunks
    engine = TransformersEngine(tiny_model, dtype="float32", max_length=64, max_batch=max_batch)
    drawing = Drawing(rank=2, matrices=linear_weights(tiny_model))
    members = [Noise(seed, scale) for seed, scale in ((1, 0.3), (2, -0.3), (3, 0.5), (1, -0.3))]
    requests = [Request(p, 0, m) for m in range(len(members)) for p in PROMPTS]
    got = engine.generate_members(requests, SAMPLING, members, drawing)
    texts = set()
    for place, member in enumerate(members):

        def moved(index, name, shape, member=member):
            return member.scale * noise(member.seed, name, shape, drawing)

        lm = plain(tiny_model, moved)
        for at, prompt in enumerate(PROMPTS):
            ids = got[place * len(PROMPTS) + at].ids.tolist()
            assert ids == greedy(lm, prompt)
            texts.add(tuple(ids))
    assert len(texts) > len(PROMPTS), "members answer differently"
    after = engine.generate([Request(p, 0) for p in PROMPTS], SAMPLING)
    base = plain(tiny_model)
    assert [c.ids.tolist() for c in after] == [greedy(base, p) for p in PROMPTS]


def test_the_output_head_is_never_copied_once_a_row(tiny_model):
    """torch copies the weight for each row of a batch whose rows do not lie one after the other."""
    engine = TransformersEngine(tiny_model, dtype="float32", max_length=64, max_batch=64)
    seen = []
    engine._model.get_output_embeddings().register_forward_hook(
        lambda _, args, out: seen.append((args[0].shape, args[0].stride()))
    )
    engine.generate([Request(p, 0) for p in PROMPTS], SAMPLING)
    assert seen and all(
        stride[0] == shape[1] * shape[2] and stride[1] == shape[2] for shape, stride in seen
    )


def test_only_linear_maps_are_matrices(tiny_model):
    names = linear_weights(tiny_model)
    assert "model.layers.0.self_attn.q_proj.weight" in names and len(names) == 14
    assert not [n for n in names if "embed" in n or "head" in n or "norm" in n]


# -- sampler and master ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hashed", "shared", "iid"])
def test_a_member_answers_as_a_model_with_its_noise(sampler, tiny_model, mode):
    members, drawing = [Noise(7, 0.05), Noise(7, -0.05), Noise(8, 0.05)], Drawing(mode)
    asks = [Ask(p, (0,)) for p in PROMPTS]
    (_, perturbing, version, heads), rows = sampler.population(members, drawing, asks, SAMPLING)
    assert version == 0 and perturbing > 0 and len(heads) == 9
    answers = iter(rows)
    for member in members:

        def moved(index, name, shape, member=member):
            return member.scale * noise(member.seed, name, shape, drawing, index=index)

        lm = plain(tiny_model, moved)
        for prompt in PROMPTS:
            row = next(answers)
            assert row.ids[row.prompt_len :].tolist() == greedy(lm, prompt)
    assert len({tuple(r.ids.tolist()) for r in rows}) > len(PROMPTS)


def engine_hashes(sampler):
    return {n: fingerprint(n, w).hash for n, w in sampler._engine.weights().items()}


def test_after_members_the_engine_is_put_back_before_anything_else(sampler, tiny_model):
    before = engine_hashes(sampler)
    asks = [Ask(p, (0,)) for p in PROMPTS]
    for member in range(3):
        sampler.population([Noise(member, 0.05)], Drawing(), asks, SAMPLING)
        assert engine_hashes(sampler) != before
    _, rows = sampler.generate(asks, SAMPLING)
    assert engine_hashes(sampler) == before
    base = plain(tiny_model)
    assert [r.ids[r.prompt_len :].tolist() for r in rows] == [greedy(base, p) for p in PROMPTS]


def test_low_rank_members_one_at_a_time_answer_as_together(sampler):
    """What an engine without the row path does: the same noise, whole."""
    members = [Noise(seed, 0.4) for seed in range(4)]
    asks = [Ask(p, (0,)) for p in PROMPTS]
    together = sampler.population(members, Drawing(rank=1), asks, SAMPLING)
    inner = sampler._engine

    class Plainer:
        generate, weights = inner.generate, inner.weights

    sampler._engine = Plainer()
    alone = sampler.population(members, Drawing(rank=1), asks, SAMPLING)
    assert together[0][1] == 0 < alone[0][1]
    for a, b in zip(together[1], alone[1], strict=True):
        assert a.ids.tolist() == b.ids.tolist()


def test_a_step_replayed_from_seeds_is_the_learners_and_is_proved(sampler, rank):
    step = NoiseStep(pack([Noise(1, 0.02), Noise(2, -0.01)]), Drawing(), 0.1, "l2", by_seeds=True)
    report = rank.add_noise(step)
    update = sent(rank, 1)
    assert update.kind == "noise" and len(update.source.terms) == 24
    assert sampler.load(update, update.source) == 1
    for name, master in rank._master.items():
        assert torch.equal(sampler._master[name], master)
        assert torch.equal(sampler._engine.weights()[name], master)
    assert report["update_norm"] > report["distance"] > 0, "the decay shortens the way"
    rank.add_noise(step)
    update = sent(rank, 2)
    wrong = WeightUpdate(
        2, 1, "noise", update.manifest, NoiseStep(pack([Noise(1, 0.03)]), Drawing())
    )
    with pytest.raises(WeightsMismatch, match="differs: sent"):
        sampler.load(wrong, wrong.source)


def test_a_low_rank_step_moves_the_linear_maps_of_master_and_engine(sampler, rank, tiny_model):
    before = {n: m.clone() for n, m in rank._master.items()}
    terms = [Noise(1, 0.02), Noise(2, -0.01)]
    rank.add_noise(NoiseStep(pack(terms), Drawing(rank=1), by_seeds=True))
    update = sent(rank, 1)
    sampler.load(update, update.source)
    names = linear_weights(tiny_model)
    drawing = Drawing(rank=1, matrices=names)
    for name, master in rank._master.items():
        expected = before[name]
        if name in names:
            for term in terms:
                expected = expected + term.scale * noise(term.seed, name, master.shape, drawing)
            assert not torch.equal(master, before[name])
        assert torch.allclose(master, expected, atol=1e-6)
        assert torch.equal(sampler._engine.weights()[name], master)


def test_a_gap_is_not_skipped_and_a_snapshot_closes_it(sampler, rank):
    step = NoiseStep(pack([Noise(1, 0.02)]), Drawing(), by_seeds=True)
    for version in (1, 2):
        rank.add_noise(step)
        update = sent(rank, version)
    with pytest.raises(WeightsMismatch, match="holds version 0 and was sent a step from 1 to 2"):
        sampler.load(update, update.source)
    whole = sent(rank, 2, snapshot=True)
    assert sampler.load(whole, whole.source) == 2
    assert all(torch.equal(sampler._master[n], m) for n, m in rank._master.items())


def test_a_master_is_saved_and_restored_bit_for_bit_but_not_for_another_start(
    rank, tiny_model, tmp_path
):
    rank.add_noise(NoiseStep(pack([Noise(1, 0.02)]), Drawing()))
    rank.save(tmp_path / "c")
    held = {n: m.clone() for n, m in rank._master.items()}
    rank.add_noise(NoiseStep(pack([Noise(2, 0.02)]), Drawing()))
    rank.load(tmp_path / "c")
    assert all(torch.equal(rank._master[n], held[n]) for n in held)
    lm = plain(tmp_path / "c/model")
    assert all(torch.equal(dict(lm.named_parameters())[n], held[n]) for n in held)
    other = tmp_path / "other"
    changed = plain(tiny_model, lambda i, n, s: 0.1)
    changed.save_pretrained(other)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny_model / name).read_bytes())
    stranger = NoiseRank("learner 0", config(other), other)
    stranger.connect(("127.0.0.1", 0))
    with pytest.raises(CheckpointError, match="started from another model"):
        stranger.load(tmp_path / "c")


def test_with_lora_the_adapter_alone_moves_and_is_merged(tiny_model):
    cfg = config(tiny_model, model__lora={"rank": 2})
    made = NoiseRank("learner 0", cfg, tiny_model)
    made.connect(("127.0.0.1", 0))
    base = dict(plain(tiny_model).named_parameters())
    assert all(torch.equal(t, base[n]) for n, t in made._whole()), "an adapter starts at 0"
    made.add_noise(NoiseStep(pack([Noise(1, 0.1)]), Drawing()))
    moved = {n for n, t in made._whole() if not torch.equal(t, base[n])}
    assert moved == linear_weights(tiny_model)
    merged = plain(tiny_model)
    with torch.no_grad():
        for name, tensor in made._whole():
            dict(merged.named_parameters())[name].copy_(tensor)
        ids = [3, 4, 5, 6, 7, 8]
        logp = torch.log_softmax(merged(torch.tensor([ids])).logits[0, :-1], -1)
    expected = logp.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1).numpy()
    assert np.abs(made.canary(ids) - expected).max() < 1e-5


@pytest.mark.parametrize("by_seeds", [False, True], ids=["weights", "seeds"])
def test_with_lora_members_are_perturbed_in_the_adapter(tiny_model, by_seeds):
    cfg = config(tiny_model, model__lora={"rank": 2, "alpha": 6})
    rank = NoiseRank("learner 0", cfg, tiny_model)
    rank.connect(("127.0.0.1", 0))
    sampler = PopulationSampler("sampler 0", cfg, tiny_model)
    sampler.start()
    start = sent(rank, 0)
    sampler.load(start, start.source)
    rank.add_noise(NoiseStep(pack([Noise(1, 0.2)]), Drawing(), by_seeds=by_seeds))
    update = sent(rank, 1)
    assert update.kind == ("noise" if by_seeds else "full")
    sampler.load(update, update.source)
    pristine = engine_hashes(sampler)
    assert pristine == {n: fingerprint(n, t).hash for n, t in rank._whole()}

    member, asks = Noise(5, 0.3), [Ask(p, (0,)) for p in PROMPTS]
    _, rows = sampler.population([member], Drawing(), asks, SAMPLING)
    base = plain(tiny_model)
    weights = dict(base.named_parameters())
    moved = {n: m + 0.3 * noise(5, n, m.shape, Drawing()) for n, m in rank._master.items()}
    with torch.no_grad():
        for name in linear_weights(tiny_model):
            down, up = (
                moved[name.replace(".weight", f".lora_{side}.default.weight")] for side in "AB"
            )
            weights[name] += 3.0 * up @ down
    assert [r.ids[r.prompt_len :].tolist() for r in rows] == [greedy(base, p) for p in PROMPTS]
    assert engine_hashes(sampler) != pristine
    sampler.score([3, 4, 5])
    assert engine_hashes(sampler) == pristine


# -- the algorithm ---------------------------------------------------------------------------------


class Verbs:
    """What `collect` and `learn` are given, on a function of the noise instead of a model."""

    def __init__(self, cfg, score=None, losses=None):
        self.cfg, self.key, self.step, self.version = cfg, Key(3), 0, 0
        self.noted, self.steps, self._losses, self.state = {}, [], losses, 0

    def note(self, values):
        self.noted |= values

    def add_noise(self, step):
        self.steps.append(step)
        return WeightUpdate(self.version + 1, self.version, "noise", ())

    def losses(self, groups, probes, drawing):
        return [self._losses(p) for p in probes]


def groups_of(rewards, tasks=2):
    """Groups in which member i earns `rewards[i]` on every task; None: its reward failed."""
    from rlft.types import Group, Outcome, RowRef, Task, Trajectory

    def member(task, i, r):
        outcome = Outcome("error", None) if r is None else Outcome("value", r)
        one = Trajectory(f"{i}", task, "policy", "", 1, 1, (0, 0), False, RowRef(None, 0), outcome)
        return copy.replace(one, member=i) if hasattr(copy, "replace") else _member(one, i)

    return [
        Group(Task(f"t{t}", ""), tuple(member(f"t{t}", i, r) for i, r in enumerate(rewards)))
        for t in range(tasks)
    ]


def _member(trajectory, i):
    import dataclasses

    return dataclasses.replace(trajectory, member=i)


def weights_of(algo, rewards, cfg):
    run = Verbs(cfg)
    update = algo.learn(run, groups_of(rewards))
    return run, update, {n.seed: n.scale for n in unpack(run.steps[0].terms)} if run.steps else {}


def test_the_weight_of_a_member_is_its_z_score(tiny_model):  # I5
    algo, cfg = ES(population=4, lr=0.4), config(tiny_model)
    rewards = np.array([1.0, 2.0, 4.0, 3.5])
    _, _, found = weights_of(algo, rewards, cfg)
    z = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    seeds = [m.seed for m in algo.members(Key(3), 0)]
    assert len(set(seeds)) == 4
    assert [found[s] for s in seeds] == pytest.approx(list(0.4 / 4 * z), rel=1e-6)
    _, _, scaled = weights_of(algo, 10 * rewards - 7, cfg)
    assert [scaled[s] for s in seeds] == pytest.approx([found[s] for s in seeds], rel=1e-5)
    _, _, negated = weights_of(algo, -rewards, cfg)
    assert [negated[s] for s in seeds] == pytest.approx([-found[s] for s in seeds], rel=1e-6)


def test_centred_ranks_do_not_see_how_far_apart_rewards_are(tiny_model):
    algo, cfg = ES(population=4, lr=4.0, shaping="ranks"), config(tiny_model)
    _, _, found = weights_of(algo, [0.0, 1000.0, 3.0, 3.0], cfg)
    expected = {-0.5: 1, 0.5: 1, 0.0: 2}
    assert sorted(found.values()) == [-0.5, 0.5], "a weight of 0 does not travel"
    assert sum(expected.values()) == 4


def test_equal_rewards_take_no_step_and_are_counted(tiny_model):  # I4
    run, update, _ = weights_of(ES(population=4), [2.0] * 4, config(tiny_model))
    assert update is None and run.steps == [] and run.noted["es/flat"] == 1
    run, update, found = weights_of(ES(population=4, decay=2.0), [2.0] * 4, config(tiny_model))
    assert update is not None and found == {} and run.steps[0].decay == pytest.approx(1e-3)


def test_a_member_without_a_reward_has_no_part_in_mean_and_update(tiny_model):
    algo, cfg = ES(population=5, lr=0.3), config(tiny_model)
    run, _, found = weights_of(algo, [1.0, None, 2.0, 4.0, None], cfg)
    assert run.noted["es/lost"] == 2 and run.noted["es/fitness_mean"] == pytest.approx(7 / 3)
    left = np.array([1.0, 2.0, 4.0])
    z = (left - left.mean()) / (left.std() + 1e-8)
    seeds = [m.seed for m in algo.members(Key(3), 0)]
    assert found.keys() == {seeds[0], seeds[2], seeds[3]}
    assert [found[seeds[i]] for i in (0, 2, 3)] == pytest.approx(list(0.1 * z), rel=1e-6)
    run, update, _ = weights_of(algo, [None] * 5, cfg)
    assert update is None and run.noted["es/lost"] == 5


def test_a_slope_with_one_side_missing_has_no_part_in_the_step(tiny_model):
    algo, cfg = ES(population=4, lr=0.3, antithetic=True, shaping="raw"), config(tiny_model)
    run, _, found = weights_of(algo, [5.2, 5.0, 5.1, None], cfg)
    seeds = [m.seed for m in algo.members(Key(3), 0)]
    assert found == {seeds[0]: pytest.approx(0.3 / 2 * 0.2 / 1e-3)}
    assert run.noted["es/lost"] == 2


def test_a_task_that_a_step_holds_twice_keeps_both_of_its_second_attempts():
    def one(*rewards):
        return groups_of(rewards, 1)[0]

    first = drop_errors([one(1.0, None), one(1.0, None)])
    again = [dataclasses.replace(g, members=g.members[1:]) for g in (one(1.0, 2.0), one(1.0, 4.0))]
    assert member_rewards(merged(first, again), 2) == [1.0, 3.0]


def test_a_loss_that_is_not_finite_is_left_out_and_three_such_steps_end_the_run(tiny_model):
    cfg, nan = config(tiny_model), float("nan")
    algo = MeZO(directions=2, eps=0.01, lr=0.3)
    seeds = [p.seed for p in algo.pairs.members(Key(3), 0)]

    def losses(probe):
        return nan if probe.seed == seeds[0] else 2.0 + probe.scale

    run = Verbs(cfg, losses=losses)
    algo.learn(run, groups_of([1.0]))
    [term] = unpack(run.steps[0].terms)
    assert term.seed == seeds[2] and term.scale == pytest.approx(-0.3)
    assert run.noted["es/lost"] == 1
    run = Verbs(cfg, losses=lambda probe: nan)
    assert algo.learn(run, groups_of([1.0])) is None
    assert algo.learn(run, groups_of([1.0])) is None
    with pytest.raises(NonFinite, match="3 steps in a row"):
        algo.learn(run, groups_of([1.0]))
    assert run.steps == []


def test_a_ratchet_reads_evaluations_that_have_a_mean_and_notes_the_lr_it_took(tiny_model):
    algo = ES(population=2, lr=0.4, ratchet=1)
    run = Verbs(config(tiny_model))
    run.state = Ratchet(scale=0.5, best=0.9, seen=0)
    rows = [{"step": 1.0}, {"step": 2.0, "eval/reward/mean": 0.95}]
    run.records = types.SimpleNamespace(evaluations=lambda: rows)
    run.keep_best = lambda: run.noted.update(kept=1)
    algo.learn(run, groups_of([1.0, 2.0]))
    assert run.noted["kept"] == 1 and run.noted["lr"] == 0.2 and run.state.best == 0.95


def test_one_antithetic_pair_is_mezo(tiny_model):  # spec 4.5
    cfg, eps, lr = config(tiny_model), 0.01, 0.3
    mezo = MeZO(eps=eps, lr=lr)
    up, down = 1.75, 1.5  # losses
    run = Verbs(cfg, losses=lambda probe: up if probe.scale > 0 else down)
    mezo.learn(run, groups_of([1.0]))
    [step] = unpack(run.steps[0].terms)
    assert step.scale == pytest.approx(-lr * (up - down) / (2 * eps))
    es = ES(population=2, sigma=eps, lr=lr, antithetic=True, shaping="raw")
    _, _, found = weights_of(es, [-up, -down], cfg)
    assert found == {step.seed: pytest.approx(step.scale)}
    on_rewards = MeZO(objective="reward", eps=eps, lr=lr)
    _, _, again = weights_of(on_rewards, [-up, -down], cfg)
    assert again == found


def test_equal_losses_take_no_step(tiny_model):  # M7
    run = Verbs(config(tiny_model), losses=lambda probe: 2.0)
    assert MeZO().learn(run, groups_of([1.0])) is None and run.steps == []
    assert slopes([2.0, 1.0, 3.0, 3.5], 0.5) == [1.0, -0.5]


def test_losses_under_probes_are_those_of_moved_models(rank, tiny_model):
    """SPSA's two numbers, against plain forward passes; nothing is left behind."""
    import rlft.learning.noise_rank as module
    from rlft.types import RowRef

    rows = [
        Row(np.arange(4, 14, dtype=np.int32), 4, np.full(6, np.nan, np.float32)),
        Row(np.arange(3, 9, dtype=np.int32), 2, np.full(4, np.nan, np.float32)),
    ]
    before = {n: w.clone() for n, w in rank._parameters.items()}
    fetch, module.fetch_rows = module.fetch_rows, lambda wanted, refs, limit: dict(enumerate(rows))
    try:
        probes = [Noise(5, 0.01), Noise(5, -0.01)]
        found = rank.losses(probes, Drawing(), [RowRef(None, i) for i in range(2)])
    finally:
        module.fetch_rows = fetch
    for probe, loss in zip(probes, found, strict=True):
        lm = plain(tiny_model, lambda i, n, s, p=probe: p.scale * noise(p.seed, n, s))
        total = 0.0
        for row in rows:
            ids = torch.tensor(row.ids[None].astype(np.int64))
            with torch.no_grad():
                logp = torch.log_softmax(lm(ids).logits[0, :-1], -1)
            total -= float(logp.gather(1, ids[0, 1:, None])[row.prompt_len - 1 :].sum())
        assert loss == pytest.approx(total / 10, abs=1e-5)
    assert all(torch.equal(before[n], w) for n, w in rank._parameters.items())


def test_a_ratchet_keeps_the_best_and_goes_back_after_a_sustained_drop():
    state, said = Ratchet(), []
    for shown in ([0.2], [0.2, 0.5], [0.2, 0.5], [0.2, 0.5, 0.4], [0.2, 0.5, 0.4, 0.3]):
        state, todo = state.after(shown, 2)
        said.append(todo)
    assert said == ["keep", "keep", "", "", "recall"]
    assert state == Ratchet(scale=0.5, best=0.5, seen=4, below=0)


def test_the_best_weights_come_back_and_are_sent_whole(rank, tmp_path):
    rank.keep_best()
    best = {n: m.clone() for n, m in rank._master.items()}
    rank.add_noise(NoiseStep(pack([Noise(1, 0.02)]), Drawing(), by_seeds=True))
    rank.save(tmp_path / "c")
    rank._best = {}
    rank.load(tmp_path / "c")
    rank.recall_best()
    assert all(torch.equal(rank._master[n], best[n]) for n in best)
    assert sent(rank, 1).kind == "full"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"population": 1}, "population"),
        ({"sigma": 0.0}, "sigma must be above 0, got 0"),
        ({"sigma": {"from": 1e-3, "to": 0.0, "steps": 5}}, "sigma must be above 0, got 0"),
        ({"population": 5, "antithetic": True}, "needs pairs"),
        ({"rank": 2, "noise": "shared"}, "is of full rank"),
    ],
)
def test_keys_that_cannot_work_are_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        registry.build("algo", {"name": "es", **keys})


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learner__num": 2}, "one master: set learner.num=1"),
        ({"model__lora": {"rank": 2}, "algo": {"name": "es", "rank": 1}}, "set algo.rank=0"),
        ({"rewards__on_error": "refill"}, "set rewards.on_error=shrink"),
        ({"sampler__gpus": 1}, "depends on the type of device"),
        ({"record__bundles": [1]}, "cannot be replayed"),
        ({"max_staleness": 1}, "at most 0 versions old"),
    ],
)
def test_a_configuration_that_does_not_suit_is_refused(tiny_model, changes, said):
    with pytest.raises(ConfigError, match=said):
        check_plugins(config(tiny_model, **changes))


def test_an_engine_without_row_noise_is_said():
    from pathlib import Path

    cfg = parse_config(
        tree(Path("models/none"), algo={"name": "es", "rank": 1}, sampler__engine="vllm"), "small"
    )
    [line] = registry.build("algo", cfg.algo).suits(cfg)
    assert "vllm cannot add low-rank noise row by row" in line
    assert ES(rank=1).suits(config(Path("models/none"))) == []


def test_low_rank_noise_of_a_model_without_linear_maps_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=20)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ConfigError, match=r"has none .* use algo\.rank=0"):
        with_matrices(Drawing(rank=1), tmp_path)
    assert with_matrices(Drawing(), tmp_path) == Drawing()


def test_a_decay_of_the_whole_way_and_a_ratchet_without_evaluations_are_refused(tiny_model):
    with pytest.raises(ConfigError, match=r"must be below 1, got 3"):
        ES(lr=0.01, decay=300)
    ES(lr=0.01, decay=300, decay_norm="l1")
    cfg = config(tiny_model, eval={"every": 0})
    with pytest.raises(ConfigError, match=r"eval\.every is 0"):
        ES(ratchet=2).suits(cfg)


def test_a_run_says_how_much_of_the_model_low_rank_noise_moves(tiny_model):
    made = NoiseRank("learner 0", config(tiny_model, algo={"name": "es", "rank": 1}), tiny_model)
    [said] = made.connect(("127.0.0.1", 0))
    assert said.startswith("noise of rank 1 moves 14 of ")
