"""The documentation against the code: links, names, keys, defaults, metrics and examples."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from rlft import registry
from rlft.config import Config, Freeze, Reward, load_config, parse_config
from rlft.schedule import Schedule
from rlft.yaml_tree import Loader

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "launch/README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
TOP_FOLDERS = "rlft|algos|envs|configs|docs|tests|launch|locks|benchmarks"
# The dot: so that `learner.num`s and module:attr names are not taken for paths.
PATH = re.compile(rf"(?<![\w./-])((?:{TOP_FOLDERS})/[\w./-]*\w/?)")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks in `language`."""
    return [code for lang, code in FENCE.findall(page.read_text()) if lang == language]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in found}


def table(heading: str) -> dict[str, str]:
    """`key -> default`, as written, of the first tables below a heading of configuration.md."""
    text = (ROOT / "docs/configuration.md").read_text()
    section = text.split(f"\n{heading}", 1)[1]
    section = re.split(r"\n## |\n`\w+` \(", section, maxsplit=1)[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", section, re.MULTILINE)
    return {key: default.strip() for key, default in rows}


# -- links and names -----------------------------------------------------------------------------


@pages
def test_links_lead_somewhere(page):
    for plain, image in LINK.findall(FENCE.sub("", page.read_text())):
        target = plain or image
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in headings(path), f"{page.name} links to {target}"


@pages
def test_files_that_are_named_exist(page):
    for name in PATH.findall(page.read_text()):
        if not any(c in name for c in ("NAME", "DATE")):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


@pages
def test_no_page_names_a_place_that_readers_do_not_have(page):
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", page.read_text())


# -- code ----------------------------------------------------------------------------------------


@pages
def test_python_compiles(page):
    for code in blocks(page, "python"):
        shown = code.startswith("# algos/")  # methods without their class
        compile("class _:\n" + code if shown else code, str(page), "exec")


@pages
def test_yaml_is_yaml(page):
    for code in blocks(page, "yaml"):
        yaml.load(code, Loader=Loader)


def test_the_readme_shows_the_quickstart_as_it_is():
    [shown] = blocks(ROOT / "README.md", "yaml")
    actual = (ROOT / "configs/quickstart.yaml").read_text()
    assert yaml.load(shown, Loader=Loader) == yaml.load(actual, Loader=Loader)


@pytest.mark.parametrize(
    "page, file",
    [
        ("README.md", "algos/grpo.py"),
        ("README.md", "docs/examples/my_rewards.py"),
        ("README.md", "docs/examples/my_grpo.py"),
        ("docs/write-a-reward.md", "docs/examples/http_reward.py"),
        ("docs/write-an-algorithm.md", "docs/examples/my_rft.py"),
        ("docs/write-an-environment.md", "docs/examples/my_env.py"),
        ("docs/write-a-multi-turn-environment.md", "docs/examples/my_dialogue.py"),
    ],
)
def test_code_that_is_shown_is_the_file_s(page, file):
    source = (ROOT / file).read_text()
    shown = [b.removeprefix(f"# {file}\n").strip() for b in blocks(ROOT / page, "python")]
    assert any(block in source for block in shown), f"{page} shows {file} as it no longer is"


@pytest.mark.parametrize(
    "page, file",
    [("write-an-environment", "largest"), ("write-a-multi-turn-environment", "guess")],
)
def test_the_page_on_environments_shows_the_example_s_yaml(page, file):
    [shown] = blocks(ROOT / f"docs/{page}.md", "yaml")
    assert shown in (ROOT / f"docs/examples/{file}.yaml").read_text()


def test_library_examples_print_what_they_say(capsys):
    """The README's blocks that import torch, and a comment under each print with its output."""
    for page in ("README.md", "docs/write-a-reward.md"):
        codes = [b for b in blocks(ROOT / page, "python") if "\nprint(" in b]
        expected = [
            line.removeprefix("# ")
            for code in codes
            for line in code.splitlines()
            if line.startswith(("# tensor", "# {"))
        ]
        space: dict[str, Any] = {}
        for code in codes:
            exec(code, space)
        assert capsys.readouterr().out.splitlines() == expected
        assert expected


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # plug-in files are named relative to the folder one is in


def test_examples_can_be_used(in_root):
    cfg = load_config("docs/examples/largest.yaml")
    env = registry.build("env", cfg.env)
    assert len(env.train()) == 900
    reward = registry.build("reward", cfg.rewards.fns[0].fn)
    assert all(reward(t.demos[0], t) == 1 and reward("", t) == 0 for t in env.held_out())
    gentle = registry.build(
        "algo", {"name": "docs/examples/my_grpo.py:GentleGRPO", "negative": 0.25}
    )
    assert gentle.negative == 0.25
    assert gentle.group_size == 8
    assert registry.build("algo", "docs/examples/my_rft.py:RFT").terms[0].name == "nll"


def test_the_example_reward_tells_a_wrong_answer_from_none(in_root):
    from rlft import Invalid, Task

    brevity = registry.build("reward", "docs/examples/my_rewards.py:brevity")
    task = Task(id="1", prompt="347+285=", target="632")
    assert brevity("c12,13,06=632", task) == {"reward": 0.9, "right": 1.0, "excess": 1.0}
    assert brevity("h1=633", task)["reward"] == 0
    with pytest.raises(Invalid, match="no result"):
        brevity("632", task)


# -- configuration -------------------------------------------------------------------------------


def sections(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """`dotted key -> default` of every key of the schema; `...` where it is required."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        inner = [a for a in (field.annotation, *get_args(field.annotation)) if _is_section(a)]
        if not (inner and inner[0] is field.annotation):
            found[key] = ... if field.is_required() else field.get_default()
        for section in inner:
            if section is not Schedule:
                found |= sections(
                    section, f"{key}[]." if section in (Reward, Freeze) else f"{key}."
                )
    return found


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def assert_documented(actual: dict[str, Any], documented: dict[str, str]) -> None:
    assert sorted(documented) == sorted(actual)
    for key, default in actual.items():
        written = documented[key].strip("`")
        if default is ...:
            assert written == "required", key
        elif written != "a prompt":
            value = list(default) if isinstance(default, tuple) else default
            assert yaml.load(written, Loader=Loader) == value, key


def test_every_key_and_default_of_the_configuration_is_documented():
    text = (ROOT / "docs/configuration.md").read_text()
    before_schedules = text.split("\n## Schedules")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]*) \|", before_schedules, re.MULTILINE)
    documented = {key: default.strip() for key, default in rows if key != "extends"}
    assert_documented(sections(Config), documented)


def test_every_key_of_a_schedule_is_documented():
    assert_documented(sections(Schedule), table("## Schedules"))


@pytest.mark.parametrize("kind", ["algo", "env", "retention", "probe"])
def test_every_key_of_the_built_in_plug_ins_is_documented(kind):
    for name in registry.short_names(kind):
        fields = dataclasses.fields(registry.resolve(kind, name))
        actual = {f.name: ... if f.default is dataclasses.MISSING else f.default for f in fields}
        assert_documented(actual, table(f"`{name}` ("))


def test_commands_name_configurations_that_parse(in_root):
    """Each `rlft run|check CONFIG key=value` of the pages, but those that show an error."""
    seen = 0
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^\$ \.venv/bin/rlft (?:run|check) (.+)$", text, re.MULTILINE):
            words = [w.strip("'") for w in re.findall(r"'[^']*'|\S+", line.split("  #")[0])]
            overrides = [w for w in words[1:] if "=" in w]
            if not any(o.startswith("larner") for o in overrides):
                load_config(words[0], overrides)
                seen += 1
    assert seen >= 7


# -- metrics -------------------------------------------------------------------------------------

SOURCES = (
    "rlft/loop.py",
    "rlft/run.py",
    "rlft/run_text.py",
    "rlft/run_control.py",
    "rlft/acting.py",
    "rlft/collecting.py",
    "rlft/record/acted.py",
    "rlft/learning/objective.py",
    "rlft/learning/strip_fit.py",
    "rlft/record/summary.py",
    "rlft/learning/fit.py",
)
LOSSES = (
    *("rlft/losses/surrogate.py", "rlft/losses/corrected.py", "rlft/losses/sapo.py"),
    *("rlft/losses/critic.py", "rlft/learning/appraisal.py", "algos/polychromic.py"),
)
NOT_METRICS = {"before/{}", "{}", "is_weight_squared"}


def produced() -> set[str]:
    """Names of metrics in the source, f-strings with `{}` for what is filled in."""
    found: set[str] = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            keys: list[ast.expr | None] = []
            if isinstance(node, ast.Subscript) and _ends_in(node.value, "row", "metrics", "result"):
                keys = [node.slice]
            elif isinstance(node, ast.Call) and _ends_in(node.func, "add", "over", "largest"):
                keys = list(node.args[:1])
            elif isinstance(node, ast.Dict) and file.endswith(("summary.py", "acted.py")):
                keys = list(node.keys)
            elif isinstance(node, ast.Dict | ast.DictComp) and file.endswith(
                ("run.py", "run_text.py", "run_control.py")
            ):
                keys = list(node.keys) if isinstance(node, ast.Dict) else [node.key]
                keys = [k for k in keys if isinstance(k, ast.JoinedStr)]
            elif isinstance(node, ast.DictComp):
                keys = [node.key]
            found |= {name for key in keys if (name := _text(key))}
    for file in LOSSES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Dict):
                found |= {name for key in node.keys if (name := _text(key))}
    return found - NOT_METRICS


def _ends_in(node: ast.expr, *names: str) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.lstrip("_") in names


def _text(key: ast.expr | None) -> str | None:
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    if isinstance(key, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in key.values)
    return None


SAMPLE_KEYS = {
    *("traces", "seed", "end", "facts", "turns"),
    *(
        "kind",
        "id",
        "task",
        "prompt",
        "completion",
        "target",
        "reward",
        "parts",
        "outcome",
        "reason",
    ),
    *("tokens", "truncated", "origin", "engine_logp", "learner_logp"),
}


def test_every_metric_is_documented_and_every_documented_one_is_produced():
    text = (ROOT / "docs/run-folder.md").read_text().split("## metrics.jsonl")[1]
    documented = set(re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]+\|$", text, re.MULTILINE))
    names = produced() - SAMPLE_KEYS
    assert len(names) > 20, "the source no longer looks as this test expects"
    patterns = {n: re.compile(re.escape(n).replace(r"\{\}", ".+")) for n in names}
    for name, pattern in patterns.items():
        assert any(pattern.fullmatch(d) for d in documented), f"{name} is not documented"
    for d in documented - {"step", "version"}:
        assert any(p.fullmatch(d) for p in patterns.values()), f"{d} is documented, not produced"


# -- errors --------------------------------------------------------------------------------------


def test_every_error_is_explained():
    from rlft import errors

    text = (ROOT / "docs/when-something-goes-wrong.md").read_text()
    roots = {errors.RlftError, errors.UserError}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, Exception) and value not in roots:
            assert name in text, f"{name} is not explained"


def test_the_documentation_s_configurations_are_whole():
    for code in blocks(ROOT / "docs/write-an-environment.md", "yaml"):
        parse_config(yaml.load(code, Loader=Loader), "the page")


def test_every_row_of_the_table_of_faults_is_a_test():
    text = (ROOT / "docs/reliability.md").read_text()
    rows = re.findall(r"^\| (?!fault|---).*\|$", text, re.MULTILINE)
    named = set(re.findall(r"`(test_\w+)`", text))
    sources = "".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in sources]
    assert len(rows) > 15
    assert all("`test_" in row or "the same" in row for row in rows)
