"""A judge with its server: a vLLM server on loopback, started for this run and ended with it.

The server is a child of the reward's own process, whose keeper ends all that descends from it however
the run ends. It has that actor's GPUs.
"""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError, PluginError
from rlft.rewards.judge import Judge

_LOOK_S = 0.5
_TAIL = 2_000


class ServedJudge(Judge):
    """`Judge`, of a model that is served by this run. path: folder or hub name; server_args: further
    arguments of vLLM's server (`--max-model-len`, `4096`); all others are those of `Judge`, but for its
    `url` and `model`.

    Starting takes as long as vLLM takes to load the model: `deadlines.start` has to allow for it. A
    server that ends takes its reward process with it; both are started again, and what they were asked
    is asked again.
    """

    own_actor = True

    def __init__(self, path: str, server_args: Sequence[str] = (), **judge: Any) -> None:
        folder = Path(path).expanduser()
        model = str(folder.resolve()) if folder.is_dir() else path
        if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
            raise ConfigError(f"path is {path}, and there is no such folder")
        try:
            super().__init__(url="http://127.0.0.1", model=model, **judge)
        except TypeError as error:
            raise ConfigError(f"served_judge: {str(error).partition('() ')[2]}") from None
        self._args = [str(a) for a in server_args]
        self._server: subprocess.Popen[bytes] | None = None

    def load(self) -> None:
        """Starts the server and waits until it answers. Raises PluginError with the end of its log."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        log = Path(tempfile.mkdtemp(prefix="judge-")) / "log"
        with log.open("wb") as out:
            self._server = subprocess.Popen(
                self.command(port), stdout=out, stderr=subprocess.STDOUT, env=_environment()
            )
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            if self._server.poll() is not None:
                said = log.read_text(errors="replace")[-_TAIL:]
                raise PluginError(
                    f"vLLM's server for the judge {self.model} ended with code "
                    f"{self._server.returncode} before it answered; its log ends with:\n{said}"
                )
            time.sleep(_LOOK_S)

    def command(self, port: int) -> list[str]:
        """What is started. The module, because the CPU wheel's `vllm serve` fails for want of its own
        package's version."""
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model),
            *("--host", "127.0.0.1", "--port", str(port)),
            *(() if _has_gpu() else ("--enforce-eager",)),
            *self._args,
        ]

    def memory(self, longest: int) -> dict[str, float]:
        """Bytes that the server holds: weights in 16 bits, and on a CPU vLLM's cache."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.model))
        weights = 2.0 * sum(p.numel() for p in model.parameters())
        return {"judge": weights, "judge's cache": float(_CPU_CACHE_GIB * 2**30)}

    async def ask(self, prompt: str) -> str:
        """See `Judge.ask`."""
        if self._server is not None and self._server.poll() is not None:
            print(f"the judge's server ended with code {self._server.returncode}", flush=True)
            os._exit(1)
        return await super().ask(prompt)


_CPU_CACHE_GIB = 1


def _has_gpu() -> bool:
    return bool(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _environment() -> dict[str, str]:
    # A reward process has an empty home; vLLM keeps there what it found out about model classes.
    whole = {**os.environ, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    if _has_gpu():
        return whole
    # As our own engine on a CPU: without the first the first request waits for a C++ compiler.
    quick = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": str(_CPU_CACHE_GIB)}
    quick["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # threads are planned by whoever starts us
    return {**whole, **quick}


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
