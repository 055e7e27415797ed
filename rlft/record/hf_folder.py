"""A Hugging Face folder from tensors: `transformers` and vLLM load it as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch


def write_hf_folder(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], start: Path) -> None:
    """Writes weights; everything else (config, tokenizer, chat template) is copied from `start`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    copy_settings(start, folder)


def copy_settings(start: Path, folder: Path) -> None:
    """Copies what belongs to a model and is no weight."""
    for path in sorted(start.iterdir()):
        belongs = path.suffix in {".json", ".jinja", ".model", ".txt"}
        if path.is_file() and belongs and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
