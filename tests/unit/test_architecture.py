"""What may know of what: read from the sources, and tried in processes of their own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlft"
SOURCES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 460
"""Lines of a file. Past 400 one should look for the second idea inside."""

BROAD = {
    "cli.py": "the outermost frame: usage errors of typer have no class of ours",
    "cluster/session.py": "whatever ray.init raises at an address is an address that does not work",
    "prefetch.py": "what is raised on the collecting thread is raised again by the loop",
    "probes/prober.py": "a probe may raise anything; the numbers of the others are not lost for it",
    "policy/start.py": "whatever the hub raises, the model is not to be had",
    "record/checkpoint.py": "whatever stops a write, what is half-written must go",
    "record/records.py": "a report that cannot be written must not hide how the run ended",
    "record/writers.py": "whatever a tracker raises, the run goes on without it",
    "registry.py": "a plug-in may raise anything while it is imported; its traceback is shown",
    "rewards/child.py": "a reward's class may raise anything when it is made; its traceback is shown",
    "sampling/films.py": "an environment may raise anything when it is drawn; there is no film",
    "sampling/guarded.py": "an environment may raise anything; its episode ends as an error",
    "sampling/desk.py": "what is raised at the desk is raised again where it was asked for",
    "rewards/outcome.py": "the boundary where a reward's failure becomes data",
}
"""Where `except Exception` is allowed, and why."""


def name(path):
    return path.relative_to(PACKAGE).as_posix()


def nodes(path, kind):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def imported(path):
    """Names of every module that a file imports, at its top or anywhere inside."""
    for node in nodes(path, ast.Import):
        yield from (alias.name for alias in node.names)
    for node in nodes(path, ast.ImportFrom):
        assert node.level == 0, f"{path}: imports are absolute"
        yield node.module


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_the_framework_knows_no_algorithm_and_no_environment(path):
    assert not [m for m in imported(path) if m.split(".")[0] in ("algos", "envs", "tests")]


def test_only_one_file_blocks_on_ray():
    blocking = {
        name(path)
        for path in SOURCES
        for call in nodes(path, ast.Call)
        if ast.unparse(call.func) == "ray.get"
    }
    imports = {
        name(path)
        for path in SOURCES
        for node in nodes(path, ast.ImportFrom)
        if node.module == "ray" and "get" in [alias.name for alias in node.names]
    }
    assert blocking | imports == {"cluster/waits.py"}


def broad(handler):
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(c is None or ast.unparse(c) in ("Exception", "BaseException") for c in caught)


def ends_by_raising(handler):
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_errors_are_caught_by_name_but_at_the_boundaries():
    """A handler that ends in a bare `raise` only cleans up, and may stand anywhere."""
    found = {
        name(path)
        for path in SOURCES
        for handler in nodes(path, ast.ExceptHandler)
        if broad(handler) and (not ends_by_raising(handler) or name(path) == "cli.py")
    }
    assert found == BROAD.keys()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def fresh(code):
    """Runs `code` in a process of its own, in the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PURE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "vllm", "deepspeed", "transformers", "envs", "algos"):
            raise ImportError(f"{name} must not be needed here")

sys.meta_path.insert(0, Blocked())

import torch
from rlft.credit import group_relative
from rlft.filters import drop_flat, rewards_of
from rlft.losses import ClippedSurrogate, decision_weight, denominator
from rlft.types import Batch, Group, Outcome, PolicyOut, RowRef, Task, Trajectory

members = tuple(
    Trajectory(str(i), "t", "policy", "", 1, 2, (0, 0), False, RowRef(None, i), Outcome("value", r))
    for i, r in enumerate((1.0, 0.0))
)
adv = group_relative(*rewards_of(drop_flat([Group(Task("t", ""), members)])), std="none")
logp = torch.zeros(2, 2, requires_grad=True)
mask = torch.ones(2, 2, dtype=torch.bool)
weight = decision_weight(mask, "token")
zeros = torch.zeros(2, 2)
batch = Batch(mask, weight, adv[:, None].expand(2, 2), zeros, zeros, torch.tensor([True, True]))
loss, _ = ClippedSurrogate()(PolicyOut(logp, zeros), batch)
(loss.sum() / denominator(mask, "token")).backward()
print(logp.grad.tolist())
"""


def test_credit_filters_and_losses_run_without_any_engine():
    expected = [[-0.125, -0.125], [0.125, 0.125]]  # advantage +-1/2, over four decisions
    assert fresh(PURE).strip() == str(expected)


@pytest.mark.parametrize(
    "module", ["rlft", "rlft.cli", "rlft.config", "rlft.registry", "rlft.types"]
)
def test_the_command_line_starts_without_the_heavy_packages(module):
    heavy = (
        "torch",
        "vllm",
        "nle",
        "minigrid",
        "ray",
        "transformers",
        "deepspeed",
        "envs",
        "algos",
    )
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_naming_one_engine_does_not_import_the_other():
    asked = "from rlft import registry; registry.short_names('engine')"
    code = f"import sys; {asked}; print('vllm' in sys.modules)"
    assert fresh(code).strip() == "False"
