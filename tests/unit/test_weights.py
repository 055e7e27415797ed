"""Proof that weights arrived: content hashes, the way through the object store, and the canary."""

import numpy as np
import pytest
import torch

from rlft.errors import WeightsMismatch
from rlft.seeding import Key
from rlft.types import TensorSpec
from rlft.weights.fingerprint import as_bytes, check_manifest, fingerprint
from rlft.weights.object_store import ObjectStore
from rlft.weights.proof import CanaryWatch, canary_ids

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
SHAPES = [(), (1,), (3,), (7, 5), (2, 3, 5), (0,), (33, 1), (4, 0)]


def tensor(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 50).to(dtype)


def model():
    return [
        (f"layer.{i}", tensor(s, d, i))
        for i, (s, d) in enumerate((s, d) for s in SHAPES for d in DTYPES)
    ]


def manifest(tensors):
    return tuple(fingerprint(n, t) for n, t in tensors)


def mismatch(sent, handed):
    with pytest.raises(WeightsMismatch) as caught:
        check_manifest(manifest(sent), manifest(handed), receiver="sampler 1")
    assert "sampler 1" in str(caught.value)
    return str(caught.value)


# -- fingerprints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_changed_bit_changes_the_hash(dtype):
    whole = tensor((5, 3), dtype)
    hashes = {fingerprint("w", whole).hash}
    raw = whole.reshape(-1).view(torch.uint8)
    for place in range(len(raw)):
        changed = raw.clone()
        changed[place] ^= 1 << place % 8
        hashes.add(fingerprint("w", changed.view(dtype).reshape(5, 3)).hash)
    assert len(hashes) == 1 + len(raw)


def test_the_hash_is_of_content_not_of_layout():
    whole = tensor((4, 6), torch.float32)
    turned = whole.t().contiguous().t()
    assert not turned.is_contiguous()
    assert fingerprint("w", turned) == fingerprint("w", whole)
    assert fingerprint("w", whole.t()) != fingerprint("w", whole)
    sliced = torch.cat([whole, whole])[4:]
    assert fingerprint("w", sliced) == fingerprint("w", whole.clone().requires_grad_())


def test_zeros_of_either_sign_and_nans_are_told_apart():
    hashes = [fingerprint("w", torch.tensor([x])).hash for x in (0.0, -0.0, torch.nan, 0.0)]
    assert len(set(hashes)) == 3 and hashes[0] == hashes[3]
    assert fingerprint("w", torch.tensor([torch.nan])) == fingerprint(
        "w", torch.tensor([torch.nan])
    )


def test_shape_and_dtype_belong_to_the_fingerprint():
    zeros = torch.zeros(4)
    prints = [fingerprint("w", t) for t in (zeros, zeros.reshape(2, 2), torch.zeros(4).int())]
    assert len({p.hash for p in prints}) == 1 and len(set(prints)) == 3


def test_the_bytes_are_those_of_the_tensor():
    assert bytes(as_bytes(torch.tensor([1, 2], dtype=torch.int16))) == b"\x01\x00\x02\x00"


def test_the_same_weights_in_any_order_pass():
    check_manifest(manifest(model()), manifest(reversed(model())), receiver="sampler 1")


def test_swapped_names_are_both_named():
    sent = [("a", torch.ones(3)), ("b", torch.zeros(3)), ("c", torch.ones(1))]
    text = mismatch(sent, [("b", sent[0][1]), ("a", sent[1][1]), sent[2]])
    assert "a differs" in text and "b differs" in text and "c " not in text
    assert "2 of 3" in text


def test_missing_unexpected_and_different_tensors_are_named():
    sent = [("a", torch.ones(3)), ("b", torch.zeros(3))]
    assert "b is missing" in mismatch(sent, sent[:1])
    assert "c was not sent" in mismatch(sent, [*sent, ("c", torch.ones(1))])
    text = mismatch(sent, [sent[0], ("b", torch.zeros(3, dtype=torch.bfloat16))])
    assert "sent float32[3]" in text and "loaded bfloat16[3]" in text
    assert "2 of 2" in mismatch(sent, [])


def test_of_many_wrong_tensors_a_few_are_shown_and_all_are_counted():
    sent = [(f"layer.{i}", torch.ones(1)) for i in range(500)]
    text = mismatch(sent, [])
    assert "500 of 500" in text and len(text) < 400


# -- object store ---------------------------------------------------------------------------------


def sent(tensors, version=4):
    stored = []
    update = ObjectStore().send(iter(tensors), version, lambda x: stored.append(x) or "ref")
    [payload] = stored
    payload.flags.writeable = False  # as the object store maps it
    return update, payload


def test_whatever_is_sent_arrives_bit_for_bit():
    update, payload = sent(model())
    received = list(ObjectStore().receive(update, payload))
    assert [n for n, _ in received] == [n for n, _ in model()]
    for (name, there), (_, here) in zip(model(), received, strict=True):
        assert (here.shape, here.dtype) == (there.shape, there.dtype), name
        assert bytes(as_bytes(here)) == bytes(as_bytes(there)), name
    check_manifest(update.manifest, manifest(received), receiver="sampler 1")


def test_the_description_carries_no_payload_and_knows_its_version():
    update, payload = sent(model(), version=4)
    assert (update.version, update.kind, update.source) == (4, "full", "ref")
    assert payload.dtype == np.uint8 and payload.ndim == 1
    assert payload.nbytes < 2 * sum(t.nbytes for _, t in model()) + 64 * len(model())


def test_tensors_that_are_not_contiguous_arrive_too():
    turned = tensor((4, 6), torch.bfloat16).t()
    update, payload = sent([("w", turned)])
    [(_, here)] = ObjectStore().receive(update, payload)
    assert torch.equal(here, turned)


def test_receiving_copies_nothing():
    update, payload = sent([("a", torch.ones(1000)), ("b", torch.ones(1000))])
    for _, here in ObjectStore().receive(update, payload):
        start = payload.__array_interface__["data"][0]
        assert start <= here.data_ptr() < start + payload.nbytes


def test_a_byte_lost_on_the_way_is_found():
    update, payload = sent(model())
    damaged = payload.copy()
    damaged[0] ^= 1
    with pytest.raises(WeightsMismatch, match=r"layer\.0 differs"):
        check_manifest(
            update.manifest, manifest(ObjectStore().receive(update, damaged)), receiver="sampler 0"
        )


def test_no_weights_at_all_are_no_error():
    update, payload = sent([])
    assert list(ObjectStore().receive(update, payload)) == []


# -- canary ---------------------------------------------------------------------------------------

LOGP = -np.arange(1, 16, dtype=np.float32)


def weights(version, changed=10, of=10):
    """A manifest in which `changed` of `of` tensors differ from those of every other version."""
    return [
        TensorSpec(f"t{i}", (1,), "float32", f"{version if i < changed else 0}") for i in range(of)
    ]


def alarm(watch, learner, engines, sent):
    with pytest.raises(WeightsMismatch) as caught:
        watch.check(learner, engines, sent)
    return str(caught.value)


@pytest.mark.parametrize("dtype, small, large", [("float32", 1e-4, 0.1), ("bfloat16", 0.06, 1.0)])
def test_a_gap_beyond_what_kernels_explain_names_the_engine_and_its_size(dtype, small, large):
    watch = CanaryWatch(dtype, None)
    engines = {"sampler 0": LOGP + small, "sampler 1": LOGP - small / 2}
    assert watch.check(LOGP, engines, weights(1)) == pytest.approx(small, rel=1e-2)
    engines = {"sampler 0": LOGP - small, "sampler 1": LOGP + large}
    text = alarm(watch, LOGP, engines, weights(2))
    assert "sampler 1" in text and "sampler 0" not in text and f"{large:.4f}" in text


def test_the_configured_tolerance_wins():
    CanaryWatch("float32", 5.0).check(LOGP, {"s": LOGP + 4}, weights(1))
    assert "0.001" in alarm(CanaryWatch("bfloat16", 0.001), LOGP, {"s": LOGP + 0.1}, weights(1))


@pytest.mark.parametrize("where", ["engine", "learner", "both"])
def test_a_nan_anywhere_is_a_gap(where):
    bad = LOGP.copy()
    bad[3] = np.nan
    learner = LOGP if where == "engine" else bad
    engine = LOGP if where == "learner" else bad
    assert "nan" in alarm(CanaryWatch("bfloat16", None), learner, {"sampler 0": engine}, weights(1))


def test_an_engine_that_answers_bit_for_bit_as_before_new_weights_is_stale():
    watch = CanaryWatch("float32", 1.0)
    watch.check(LOGP, {"sampler 0": LOGP, "sampler 1": LOGP}, weights(1))
    tiny = np.nextafter(LOGP, np.float32(0))
    text = alarm(watch, tiny, {"sampler 0": tiny, "sampler 1": LOGP.copy()}, weights(2))
    assert "sampler 1 is stale" in text and "10 of 10" in text


def test_an_engine_may_answer_the_same_while_nothing_or_little_changed():
    watch = CanaryWatch("float32", None)
    for sent in (weights(0), weights(0), weights(2, changed=5), weights(3, changed=5)):
        assert watch.check(LOGP, {"sampler 0": LOGP.copy()}, sent) == 0


def test_an_engine_may_answer_the_same_where_the_learner_does_too():
    watch = CanaryWatch("float32", None)
    few = LOGP.copy()
    few[0] = np.nextafter(few[0], np.float32(0))
    for learner, sent in ((LOGP, weights(1)), (LOGP, weights(2)), (few, weights(3))):
        watch.check(learner, {"sampler 0": LOGP.copy()}, sent)


def test_the_first_answer_and_an_engine_that_is_new_are_never_stale():
    watch = CanaryWatch("float32", None)
    watch.check(LOGP, {"sampler 0": LOGP}, weights(1))
    watch.check(LOGP, {"sampler 1": LOGP}, weights(2))


def test_staleness_is_noticed_at_any_later_version():
    watch = CanaryWatch("float32", 1.0)
    for version in range(4):
        moved = LOGP - version / 100
        watch.check(moved, {"sampler 0": moved}, weights(version))
    assert "stale" in alarm(watch, LOGP, {"sampler 0": LOGP - 3 / 100}, weights(9))


def test_no_engines_have_no_gap():
    assert CanaryWatch("float32", None).check(LOGP, {}, weights(1)) == 0


def test_a_canary_begins_like_a_prompt_and_goes_on_with_what_nobody_expects():
    ids = canary_ids(list(range(100, 140)), 50, Key(0))
    assert ids == canary_ids(list(range(100, 140)), 50, Key(0)) != canary_ids([1], 50, Key(0))
    assert ids[:8] == list(range(100, 108))
    assert all(0 <= i < 50 for i in ids[8:]) and len(set(ids[8:])) > 2
    assert len(canary_ids([5], 50, Key(0))) == len(ids) == 16
    assert ids[8:] != canary_ids(list(range(100, 140)), 50, Key(1))[8:]
