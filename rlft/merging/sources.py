"""The models of a merge: where they lie, and whether they can be mixed. Reads headers, not weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlft.errors import ConfigError
from rlft.merging.shards import DTYPES, Stored, stored
from rlft.policy.start import folder_of
from rlft.record.checkpoint import all_checkpoints

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Source:
    """A model's folder and its tensors by name; a tied output head is left out."""

    folder: Path
    tensors: Mapping[str, Stored]
    tied: bool


def source(path: str, role: str) -> Source:
    """The model at `path`: a Hugging Face folder, a hub name, a checkpoint, or a run folder (its newest
    checkpoint). role: what errors call it.

    Raises ConfigError: no such model, a LoRA adapter, quantised weights.
    """
    return _opened(_model_folder(path, role), role)


def newest(path: str) -> list[Source]:
    """The one model that `path` stands for; see `source`."""
    return [source(path, "the model")]


def every_checkpoint(path: str) -> list[Source]:
    """The models of all checkpoints of the run folder `path`, the oldest first; a model that is no run
    folder is itself."""
    folder = Path(path).expanduser()
    if not (folder / "config.yaml").is_file():
        return newest(path)
    found = all_checkpoints(folder / "checkpoints")
    if not found:
        raise ConfigError(f"{path} has no checkpoint yet; nothing to merge")
    return [_opened(one / "model", str(one)) for one in found]


def _model_folder(path: str, role: str) -> Path:
    folder = Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        found = all_checkpoints(folder / "checkpoints")
        if not found:
            raise ConfigError(f"{role} {path} has no checkpoint yet; nothing to merge")
        return found[-1] / "model"
    if (folder / "state.json").is_file():
        return folder / "model"
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{role} {path} is an adapter, not a model. A mix of two adapters' A and B is not the mix "
            f"of their products BA, so merge it into its base first: "
            f"`PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(out)` of "
            f"peft. (The `model` folder of an rlft checkpoint is merged already.)"
        )
    if (folder / "policy.json").is_file():
        return folder.resolve()
    return folder_of(path, role)


def _opened(folder: Path, role: str) -> Source:
    tensors = stored(folder)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConfigError(
                f"{role} {folder}: {name} is stored as {tensor.dtype}, which is quantised; merge the "
                f"models before they are quantised"
            )
    tied = _tied(folder, tensors)
    if tied:
        tensors = {n: t for n, t in tensors.items() if n != _HEAD}
    return Source(folder, tensors, tied)


def _tied(folder: Path, tensors: Mapping[str, Stored]) -> bool:
    """Whether the output head is the embedding. A file may hold it all the same, as a copy."""
    path = folder / "config.json"
    if _HEAD not in tensors or not path.is_file():
        return _HEAD not in tensors
    said = json.loads(path.read_text())
    if "tie_word_embeddings" in said:
        return bool(said["tie_word_embeddings"])
    from transformers import AutoConfig

    try:  # what is not written down is the architecture's own default
        return bool(AutoConfig.from_pretrained(folder).tie_word_embeddings)
    except (ValueError, AttributeError):
        return False


def refuse_unlike(sources: Sequence[Source]) -> None:
    """Raises ConfigError if the models do not hold the same tensors: names, shapes, and the values of
    those that are no weights (integers)."""
    first = sources[0]
    for other in sources[1:]:
        missing = sorted(first.tensors.keys() - other.tensors.keys())
        more = sorted(other.tensors.keys() - first.tensors.keys())
        if missing or more:
            name = (missing or more)[0]
            there, absent = (first, other) if missing else (other, first)
            tied = (
                " One ties its output head to its embedding and one does not: untie the one "
                "(`tie_word_embeddings: false`, with the head saved) first."
                if name == _HEAD
                else ""
            )
            raise ConfigError(
                f"the models differ: {len(missing) + len(more)} tensors are in one only, e.g. {name} "
                f"in {there.folder} and not in {absent.folder}; only models of one architecture can "
                f"be merged.{tied}"
            )
        for name, tensor in first.tensors.items():
            theirs = other.tensors[name]
            if theirs.shape != tensor.shape:
                raise ConfigError(
                    f"the models differ: {name} is {list(tensor.shape)} in {first.folder} and "
                    f"{list(theirs.shape)} in {other.folder}; only models of one size (and one "
                    f"vocabulary) can be merged."
                )
            if is_weight(tensor) != is_weight(theirs) or (
                not is_weight(tensor) and not torch.equal(tensor.read(), theirs.read())
            ):
                raise ConfigError(
                    f"the models differ: {name} is no weight ({tensor.dtype} in {first.folder}, "
                    f"{theirs.dtype} in {other.folder}) and not the same in both; it cannot be mixed. "
                    f"If it is a quantised weight, merge the models before they are quantised."
                )


def is_weight(tensor: Stored) -> bool:
    """Whether a tensor is mixed; others, which are integers, are copied."""
    return DTYPES[tensor.dtype].is_floating_point
