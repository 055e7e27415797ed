"""What a submitted job takes along: the files of the tree, their size, and the archive of them.

`rlft check` shows it and `launch/submit.py` packs it, from the same list.
"""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlft.errors import ResourceError

UPLOAD_LIMIT = 100 * 2**20
"""Bytes of one upload. Ray's dashboard takes no longer request (`DASHBOARD_CLIENT_MAX_SIZE`); the
512 MiB of Ray's documentation hold for `ray.init` alone."""

_NEVER = frozenset(
    {
        *(".git", ".venv", "venv", "runs", "wandb", "mlruns", "node_modules"),
        *("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".ipynb_checkpoints"),
    }
)
"""Folders left out wherever they are, whatever git says of them."""

_MODELS = "models"
"""Left out at the top of the tree only: `src/models/` may hold code."""

_NEVER_SUFFIX = (".pyc", ".pyo", ".egg-info")


@dataclass(frozen=True, slots=True)
class Shipment:
    """The files of a tree that travel, each with its bytes, the largest first.

    ignores_git: the tree is in no git repository (or there is no git), so `.gitignore` was not read.
    """

    root: Path
    files: tuple[tuple[str, int], ...]
    ignores_git: bool

    @property
    def size(self) -> int:
        """Bytes before compression."""
        return sum(size for _, size in self.files)

    def holds(self, path: Path) -> bool:
        """Whether a file, or anything of a folder, travels. Paths outside the tree do not."""
        if not path.is_relative_to(self.root):
            return False
        name = path.relative_to(self.root).as_posix()
        return any(file == name or file.startswith(f"{name}/") for file, _ in self.files)

    def largest(self, count: int = 10) -> list[str]:
        """A line for each of the largest files."""
        return [f"{amount(size):>12}  {name}" for name, size in self.files[:count]]


def shipment(root: Path) -> Shipment:
    """What would travel of the tree at `root`: what git tracks or would add, less the folders that
    never travel (environments, runs, models, caches). Links that lead nowhere are left out."""
    root = root.resolve()
    listed = _listed_by_git(root)
    names = set(_walked(root)) if listed is None else listed
    sizes = [
        (name, (root / name).stat().st_size)
        for name in names
        if _travels(name) and (root / name).is_file()
    ]
    return Shipment(root, tuple(sorted(sizes, key=lambda f: (-f[1], f[0]))), listed is None)


def pack(shipped: Shipment, archive: Path) -> int:
    """Writes the zip file; returns its bytes. Equal files make an equal archive, which Ray then
    does not upload twice.

    Raises ResourceError when it is over what Ray takes.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, _ in sorted(shipped.files):
            path = shipped.root / name
            entry = zipfile.ZipInfo(name)  # its date is 1980: content alone decides
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (path.stat().st_mode & 0o777) << 16
            packed.writestr(entry, path.read_bytes())
    size = archive.stat().st_size
    if size > UPLOAD_LIMIT:
        raise ResourceError(too_large(shipped, size, "packed"))
    return size


def too_large(shipped: Shipment, size: int, how: str) -> str:
    """What is said of a tree over the limit; how: `packed`, or how else its size was found."""
    return "\n".join(
        [
            f"{shipped.root} is too large to submit: {amount(size)} {how} in {len(shipped.files):,} "
            f"files, Ray's dashboard takes {amount(UPLOAD_LIMIT)}. Name what need not travel in "
            f".gitignore, or put data where the cluster can read it and give its absolute path. "
            f"The largest files:",
            *shipped.largest(),
        ]
    )


def amount(size: float) -> str:
    """Bytes as `12.3 MiB`, or in KiB where that says more."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"


def _listed_by_git(root: Path) -> set[str] | None:
    """Tracked and untracked files that git does not ignore; None without git or a repository."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    try:
        done = subprocess.run(
            [*command, "--exclude-standard"], capture_output=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    names = {name.decode(errors="surrogateescape") for name in done.stdout.split(b"\0") if name}
    # A repository inside this one is listed as a folder.
    inside = {n.rstrip("/") for n in names if (root / n).is_dir() and not (root / n).is_symlink()}
    for folder in inside:
        names |= {f"{folder}/{name}" for name in _walked(root / folder)}
    return names


def _walked(root: Path) -> Iterator[str]:
    for folder, below, files in os.walk(root):
        at = Path(folder).relative_to(root)
        below[:] = [d for d in below if _travels((at / d).as_posix())]
        yield from ((at / name).as_posix() for name in files)


def _travels(name: str) -> bool:
    parts = name.split("/")
    if parts[0] == _MODELS or any(part in _NEVER for part in parts):
        return False
    return not any(part.endswith(_NEVER_SUFFIX) for part in parts)
