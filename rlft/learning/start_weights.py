"""The weights that a run started from: what distance and decay are measured against, on resume too."""

from __future__ import annotations

from pathlib import Path

import torch
import xxhash

from rlft.config import Config
from rlft.policy.lm import load_lm


class StartWeights:
    """Start weights by name, read from their folder when asked for: no copy is kept in memory. Where
    the files use other names, or the parameters are an adapter's, a loaded copy is."""

    def __init__(self, folder: Path, cfg: Config) -> None:
        from safetensors import safe_open

        self._copy: dict[str, torch.Tensor] | None = None
        self._folder, self._cfg = folder, cfg
        files = [safe_open(p, framework="pt") for p in sorted(folder.glob("*.safetensors"))]
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __call__(self, name: str) -> torch.Tensor:
        if self._copy is None and name in self._files:
            return self._files[name].get_tensor(name).float()
        if self._copy is None:
            policy = load_lm(
                self._folder, "float32", lora=self._cfg.model.lora, seed=self._cfg.seed
            )
            self._copy = {n: p.detach() for n, p in policy.causal_lm().named_parameters()}
        return self._copy[name]

    def digest(self) -> str:
        """A hash of the start weights' files."""
        digest = xxhash.xxh3_64()
        for path in sorted(self._folder.glob("*.safetensors")):
            with path.open("rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
        return digest.hexdigest()
