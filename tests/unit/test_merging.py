"""`rlft merge` on folders: what is read, written, held in memory, and refused before it begins."""

import json
import math
import re
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rlft import cli
from rlft.errors import ConfigError, PluginError
from rlft.merging import shards
from rlft.merging.merge import merge, recipe
from rlft.merging.pareto import front, picture
from rlft.merging.sweep import Point, points_of


def weights(seed, layers=3, width=4):
    generator = torch.Generator().manual_seed(seed)
    names = {"model.embed_tokens.weight": (6, width), "model.norm.weight": (width,)}
    names |= {f"model.layers.{i}.mlp.up_proj.weight": (8, width) for i in range(layers)}
    return {n: torch.randn(shape, generator=generator) for n, shape in names.items()}


def saved(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True, **config}))
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


@pytest.fixture
def two(tmp_path):
    return saved(tmp_path / "base", weights(0)), saved(tmp_path / "tuned", weights(1))


def test_a_merge_is_a_folder_that_says_where_it_comes_from(two, tmp_path):
    base, tuned = two
    out = merge(
        recipe({"name": "wise_ft", "alpha": 0.25}, [tuned], base=base, onto=None), tmp_path / "o"
    )
    found = load_file(out / "model.safetensors")
    assert found.keys() == weights(0).keys()
    for name, tensor in found.items():
        assert torch.allclose(tensor, 0.75 * weights(0)[name] + 0.25 * weights(1)[name], atol=1e-6)
    assert (out / "tokenizer.json").is_file()
    said = json.loads((out / "merge.json").read_text())
    assert said["settings"] == {"alpha": 0.25}
    assert [m["role"] for m in said["models"]] == ["base", "model"]
    assert len({m["weights"] for m in said["models"]}) == 2


def test_shards_are_read_and_written(two, tmp_path):
    made = recipe({"name": "lo_fi"}, list(two), base=None, onto=None)
    out = merge(made, tmp_path / "sharded", shard_bytes=200)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    again = merge(recipe({"name": "lo_fi"}, [str(out)], base=None, onto=None), tmp_path / "again")
    whole = merge(made, tmp_path / "whole")
    one, other = load_file(again / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all(torch.equal(one[n], other[n]) for n in other)


def test_the_dtype_is_the_model_s_or_the_one_asked_for(two, tmp_path):
    base, _ = two
    half = {n: t.bfloat16() for n, t in weights(1).items()}
    half["rotary.table"] = torch.arange(3)
    tuned = saved(tmp_path / "half", half, dtype="bfloat16")
    full = {**weights(0), "rotary.table": torch.arange(3)}
    base = saved(tmp_path / "full", full)
    made = recipe({"name": "wise_ft", "alpha": 1.0}, [tuned], base=base, onto=None)
    found = load_file(merge(made, tmp_path / "own") / "model.safetensors")
    assert all(torch.equal(found[n], half[n]) and found[n].dtype == half[n].dtype for n in half)
    out = merge(made, tmp_path / "asked", "float32")
    found = load_file(out / "model.safetensors")
    assert found["model.norm.weight"].dtype == torch.float32
    assert found["rotary.table"].dtype == torch.int64
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_weights_that_float16_cannot_hold_are_refused_and_nothing_is_left(tmp_path):
    large = {n: torch.full_like(t, 7e4) for n, t in weights(0).items()}
    models = [saved(tmp_path / "a", large), saved(tmp_path / "b", large)]
    made = recipe({"name": "lo_fi"}, models, base=None, onto=None)
    with pytest.raises(
        ConfigError, match=r"24 of its weights are beyond 65504.*bfloat16 or float32"
    ):
        merge(made, tmp_path / "out", "float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    found = load_file(merge(made, tmp_path / "out", "bfloat16") / "model.safetensors")
    assert all(t.isfinite().all() for t in found.values())


def test_a_tied_head_that_is_stored_all_the_same_is_left_out(tmp_path):
    head = {**weights(0), "lm_head.weight": weights(0)["model.embed_tokens.weight"].clone()}
    models = [saved(tmp_path / "with", head), saved(tmp_path / "without", weights(1))]
    out = merge(recipe({"name": "lo_fi"}, models, base=None, onto=None), tmp_path / "out")
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["wise_ft", "lo_fi", "ema", "model_stock", "slerp", "lines", "transfer"]
)
def test_memory_is_that_of_one_tensor_not_of_the_model(tmp_path, monkeypatch, name):
    """Bytes of tensors that came from disk and are still alive, at every read."""
    models = [saved(tmp_path / str(i), weights(i, layers=40, width=64)) for i in range(4)]
    largest = 8 * 64 * 4
    alive, peak = weakref.WeakSet(), [0]
    read = shards.Stored.read

    def counted(self):
        tensor = read(self)
        alive.add(tensor)
        peak[0] = max(peak[0], sum(t.nbytes for t in alive))
        return tensor

    monkeypatch.setattr(shards.Stored, "read", counted)
    onto, base = {
        "transfer": (models[0], models[1]),
        **dict.fromkeys(("wise_ft", "model_stock", "lines"), (None, models[0])),
    }.get(name, (None, None))
    tuned = [m for m in models if m not in (onto, base)]
    tuned = tuned[: {"wise_ft": 1, "lines": 1, "slerp": 2, "transfer": 1}.get(name)]
    merge(recipe({"name": name}, tuned, base=base, onto=onto), tmp_path / "out")
    held = {"model_stock": 4, "transfer": 3}.get(name, 2)
    assert 0 < peak[0] <= held * largest < 0.2 * 42 * largest


def refused(two, tmp_path, models, message, **roles):
    spec = {"name": roles.pop("name", "wise_ft")}
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConfigError, match=message):
        merge(recipe(spec, models, **{"base": two[0], "onto": None, **roles}), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_a_setting_that_is_no_number_is_refused(two, alpha):
    with pytest.raises(ConfigError, match=r"wise_ft: alpha.*finite"):
        recipe({"name": "wise_ft", "alpha": alpha}, [two[1]], base=two[0], onto=None)


def test_models_that_differ_are_refused_before_anything_is_written(two, tmp_path):
    wide = saved(tmp_path / "wide", weights(2, width=5))
    refused(
        two, tmp_path, [wide], r"embed_tokens.weight is \[6, 4\] in .*base and \[6, 5\] in .*wide"
    )
    deep = saved(tmp_path / "deep", weights(2, layers=4))
    refused(
        two, tmp_path, [deep], "1 tensors are in one only, e.g. model.layers.3.mlp.up_proj.weight"
    )
    untied = {**weights(2), "lm_head.weight": torch.zeros(6, 4)}
    head = saved(tmp_path / "head", untied, tie_word_embeddings=False)
    refused(two, tmp_path, [head], "One ties its output head to its embedding and one does not")


def test_what_cannot_be_mixed_is_refused(two, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refused(
        two, tmp_path, [str(adapter)], "is an adapter.*A and B is not the mix of their products BA"
    )
    integers = [
        saved(tmp_path / f"int{i}", {**weights(i), "packed": torch.full((3,), i)}) for i in range(2)
    ]
    refused(two, tmp_path, integers[1:], "packed is no weight", base=integers[0])
    eighth = {"w": torch.zeros(2).to(torch.float8_e4m3fn)}
    refused(
        two, tmp_path, [saved(tmp_path / "fp8", eighth)], "stored as F8_E4M3, which is quantised"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    refused(two, tmp_path, [str(empty)], "holds no model.safetensors")
    cut = tmp_path / "cut"
    saved(cut, weights(3))
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-10])
    refused(two, tmp_path, [str(cut)], "truncated")
    (cut / "model.safetensors").write_bytes(whole[:40])
    refused(two, tmp_path, [str(cut)], "is not a safetensors file, or is truncated")


def test_a_wrong_number_of_models_and_roles_that_do_not_belong_are_refused(two, tmp_path):
    refused(two, tmp_path, list(two), r"needs 1 model\(s\), got 2")
    refused(two, tmp_path, [two[1]], "needs --base", base=None)
    refused(two, tmp_path, [two[1]], "takes no --onto", onto=two[0])
    refused(two, tmp_path, [two[1]], "lo_fi takes no --base", name="lo_fi")
    refused(two, tmp_path, [two[1]], r"needs at least 2 model\(s\)", name="model_stock")
    with pytest.raises(PluginError, match="Did you mean 'wise_ft'"):
        recipe({"name": "wise"}, [two[1]], base=two[0], onto=None)
    (tmp_path / "out").mkdir()
    refused(two, tmp_path, [two[1]], "out exists")


def run_folder(tmp_path, steps=(2, 4, 6)):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("name: x\n")
    for step in steps:
        (run / f"checkpoints/step_{step:06d}").mkdir()
        saved(run / f"checkpoints/step_{step:06d}/model", weights(step))
    return str(run)


def test_a_run_folder_stands_for_its_newest_checkpoint_and_for_ema_for_all(tmp_path):
    run = run_folder(tmp_path)
    made = recipe({"name": "ema", "decay": 0.5}, [run], base=None, onto=None)
    assert [s.folder.parent.name for s in made.sources] == [f"step_00000{i}" for i in (2, 4, 6)]
    found = load_file(merge(made, tmp_path / "ema") / "model.safetensors")["model.norm.weight"]
    two, four, six = (weights(i)["model.norm.weight"] for i in (2, 4, 6))
    assert torch.allclose(found, 0.25 * two + 0.25 * four + 0.5 * six, atol=1e-6)
    made = recipe({"name": "lo_fi"}, [run], base=None, onto=None)
    assert [s.folder.parent.name for s in made.sources] == ["step_000006"]


def test_a_merge_that_breaks_leaves_nothing(two, tmp_path, monkeypatch):
    def broken(self, of, place):
        raise OSError("disk full")

    from rlft.merging.methods.wise_ft import WiseFt

    monkeypatch.setattr(WiseFt, "mixed", broken)
    made = recipe({"name": "wise_ft"}, [two[1]], base=two[0], onto=None)
    with pytest.raises(OSError, match="disk full"):
        merge(made, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "tuned"]


SCORES = """
from safetensors.torch import load_file

def norm(folder):
    return float(load_file(folder / "model.safetensors")["model.norm.weight"].norm())

def minus(folder):
    return -norm(folder)
"""


def test_the_command_merges_and_sweeps(two, tmp_path):
    base, tuned = two
    (tmp_path / "scores.py").write_text(SCORES)
    call = CliRunner().invoke
    out = tmp_path / "one"
    done = call(
        cli.app, ["merge", "wise_ft", tuned, "alpha=0.5", "--base", base, "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((out / "merge.json").read_text())["settings"] == {"alpha": 0.5}
    out = tmp_path / "many"
    scores = [
        "--target",
        f"{tmp_path}/scores.py:norm",
        "--retention",
        f"{tmp_path}/scores.py:minus",
    ]
    given = ["merge", "wise_ft", tuned, "--base", base, "--out", str(out), "--sweep", "0:1:0.25"]
    done = call(cli.app, [*given, *scores])
    assert done.exit_code == 0, done.output
    said = json.loads((out / "sweep.json").read_text())
    assert [p["weight"] for p in said["points"]] == [0, 0.25, 0.5, 0.75, 1]
    assert said["points"][0]["target"] == pytest.approx(
        float(weights(0)["model.norm.weight"].norm())
    )
    assert said["points"][-1]["target"] == pytest.approx(
        float(weights(1)["model.norm.weight"].norm())
    )
    assert sorted(p.name for p in out.iterdir()) == ["pareto.svg", "sweep.json"]
    for wrong, message in (
        (["alpha=0.5"], "alpha=0.5 is what --sweep varies"),
        (["--sweep", "0:1:0.3"], "divides evenly"),
        (["--target", "gone.yaml"], "no such file"),
    ):
        done = call(cli.app, [*given, *scores, "--out", str(tmp_path / "new"), *wrong])
        assert message in str(done.exception)
    done = call(cli.app, ["merge", "lo_fi", tuned, "--sweep", "0:1:1", *scores, "--out", "x"])
    assert "has no mixing weight" in str(done.exception)


def test_the_front_holds_what_no_other_beats():
    points = [
        Point(0, 0, 2),
        Point(0.5, 1, 1),
        Point(0.7, 0.5, 0.5),
        Point(1, 2, 0),
        Point(2, 2, 0),
    ]
    assert [p.weight for p in front(points)] == [0, 0.5, 1, 2]
    assert picture(points, list("abcde")).count("<circle") == 5
    assert "nan" not in picture([Point(0, 1, 1)], ["a"])


def test_labels_stay_on_the_page_and_apart():
    points = [Point(0, 1, 1), Point(1, 1, 1), Point(2, 0, 0)]
    drawn = picture(points, ["same", "place", "far"])
    places = {
        label: (float(x), float(y), bool(end))
        for x, y, end, label in re.findall(
            r'<text x="([\d.]+)" y="([\d.]+)"( text-anchor="end")?>(same|place|far)<', drawn
        )
    }
    assert len(places) == 3
    assert places["same"][2] and places["place"][2] and not places["far"][2]
    assert abs(places["same"][1] - places["place"][1]) >= 12
    crowd = picture([Point(i, 1, 1) for i in range(101)], [f"alpha={i}" for i in range(101)])
    assert crowd.count(">alpha=") == 101
    assert all(0 < float(y) < 420 for y in re.findall(r'y="([\d.]+)"[^>]*>alpha', crowd))


def test_values_of_a_sweep():
    assert points_of("0:1:0.1") == [i / 10 for i in range(11)]
    assert points_of("1:0:-0.5") == [1, 0.5, 0]
    assert math.isclose(points_of("0.2:0.4:0.1")[-1], 0.4)
