"""What a submitted job takes along: git's view of the tree, less what never travels; and the archive."""

import os
import subprocess
import zipfile

import pytest

from rlft.check import shipping
from rlft.check.shipping import pack, shipment
from rlft.errors import ResourceError

FILES = {
    "rlft/run.py": "x",
    "configs/a.yaml": "name: a",
    "src/models/code.py": "a folder called models that holds code",
    "models/smollm/weights.bin": "w" * 5000,
    "runs/a/metrics.jsonl": "{}",
    ".git/HEAD": "ref",
    ".venv/lib/x.py": "x",
    "rlft/__pycache__/run.cpython-311.pyc": "x",
    "sub/.venv/x": "x",
    "secret.env": "password",
    "sub/data/large.bin": "b" * 3000,
}
TRAVELS = {"rlft/run.py", "configs/a.yaml", "src/models/code.py", "sub/data/large.bin"}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        if not name.startswith(".git/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    return tmp_path


def git(tree, *words):
    subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True)


def names(tree):
    return {name for name, _ in shipment(tree).files}


def test_git_s_ignored_files_stay_and_new_ones_go(tree):
    git(tree, "init")
    (tree / ".gitignore").write_text("*.env\n")
    assert names(tree) == {*TRAVELS, ".gitignore"}
    (tree / "sub/.gitignore").write_text("data/\n")
    assert names(tree) == {*TRAVELS, ".gitignore", "sub/.gitignore"} - {"sub/data/large.bin"}
    git(tree, "add", "-f", "sub/data/large.bin")
    assert "sub/data/large.bin" in names(tree), "what git tracks goes, ignored or not"


def test_without_git_everything_goes_but_what_never_does(tree):
    shipped = shipment(tree)
    assert shipped.ignores_git
    assert {name for name, _ in shipped.files} == {*TRAVELS, "secret.env"}


def test_a_repository_inside_goes_too(tree):
    git(tree, "init")
    git(tree / "sub", "init")
    (tree / "sub/plugin.py").write_text("x")
    assert "sub/plugin.py" in names(tree) and not any(".git/" in n for n in names(tree))


def test_largest_first_and_a_deleted_file_is_no_matter(tree):
    git(tree, "init")
    git(tree, "add", "-f", "secret.env")
    (tree / "secret.env").unlink()
    shipped = shipment(tree)
    sizes = [size for _, size in shipped.files]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == shipped.size
    assert "sub/data/large.bin" in shipped.largest(1)[0]
    assert "secret.env" not in names(tree)


def test_what_is_held_is_told_by_file_and_by_folder(tree):
    shipped = shipment(tree)
    assert shipped.holds(tree / "rlft") and shipped.holds(tree / "rlft/run.py")
    assert not shipped.holds(tree / "models/smollm") and not shipped.holds(tree.parent)
    assert not shipped.holds(tree / "rl")


def test_the_archive_has_the_files_with_their_modes_and_is_equal_for_equal_files(tree, tmp_path):
    (tree / "rlft/run.py").chmod(0o755)
    out = tmp_path / "runs"
    pack(shipment(tree), out / "1.zip")
    os.utime(tree / "rlft/run.py", (1, 1))
    pack(shipment(tree), out / "2.zip")
    assert (out / "1.zip").read_bytes() == (out / "2.zip").read_bytes()
    with zipfile.ZipFile(out / "1.zip") as packed:
        assert set(packed.namelist()) == {*TRAVELS, "secret.env"}
        assert packed.read("configs/a.yaml") == b"name: a"
        assert packed.getinfo("rlft/run.py").external_attr >> 16 & 0o777 == 0o755


def test_over_the_limit_it_names_the_ten_largest_and_the_way_out(tree, monkeypatch):
    for index in range(12):
        (tree / f"noise{index:02}.bin").write_bytes(os.urandom(2000 + index))
    monkeypatch.setattr(shipping, "UPLOAD_LIMIT", 10_000)
    with pytest.raises(ResourceError) as caught:
        pack(shipment(tree), tree / "runs/a.zip")
    said = str(caught.value)
    assert ".gitignore" in said and "absolute path" in said
    assert len([line for line in said.splitlines() if line.startswith("  ")]) == 10
    assert "noise11.bin" in said and "noise00.bin" not in said
