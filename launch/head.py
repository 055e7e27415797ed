"""The head of a Ray cluster as its dashboard shows it: is it up, does it want a token, which Ray is it.

Asked over plain HTTP before Ray is imported: Ray reads its environment once, and a token that turns
out to be wanted must be in it by then.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError, ResourceError

PATIENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Head:
    """address: of the dashboard, with scheme; is_here: its session lies in this file system."""

    address: str
    ray_version: str
    is_here: bool


def reach(address: str) -> Head:
    """Asks the dashboard at `address` who it is, and sets RAY_AUTH_MODE if it wants a token.

    Raises ConfigError for an address of another kind; ResourceError when nothing answers, when it is
    no Ray dashboard, and when it refuses our token or we have none.
    """
    address = _http(address)
    version = _asked(f"{address}/api/version", None)
    token = None
    if version in (401, 403):
        token = _token(address)
        os.environ["RAY_AUTH_MODE"] = "token"
        version = _asked(f"{address}/api/version", token)
    if version in (401, 403):
        raise ResourceError(
            f"the cluster at {address} refuses the token in {_source()[0]}. Copy the head's: "
            f"`ray get-auth-token` prints it there; put it into ~/.ray/auth_token, or name its file "
            f"in RAY_AUTH_TOKEN_PATH."
        )
    if not isinstance(version, dict) or "ray_version" not in version:
        raise ResourceError(
            f"{address} answers, but not as a Ray dashboard does ({version!r:.80}). Expected the "
            f"address of the dashboard, by default port 8265 of the head node."
        )
    return Head(address, version["ray_version"], _is_here(address, token))


def same_ray(head: Head, ours: str) -> None:
    """Raises ResourceError when the cluster runs another version of Ray than this environment."""
    if head.ray_version != ours:
        raise ResourceError(
            f"the cluster at {head.address} runs Ray {head.ray_version}, this environment has Ray "
            f"{ours}. Install the same lock on both (locks/cpu.txt or locks/gpu.txt, with "
            f"locks/install.sh) and start the cluster from it."
        )


def _http(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in ("http", "https"):
        raise ConfigError(
            f"--address {address}: expected the dashboard's address, http://HEAD:8265, not that of "
            f"Ray Client or of the cluster itself"
        )
    return (address if separator else f"http://{address}").rstrip("/")


def _asked(url: str, token: str | None) -> Any:
    """The JSON of an answer; the status of a refusal; the text of an answer that is no JSON."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            text = answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:  # refused, no such host, too late, no such port
        reason = getattr(error, "reason", error)
        raise ResourceError(
            f"no Ray cluster answers at {url.split('/api')[0]} ({reason}). Is it up (`ray start "
            f"--head`), and is this the address of its dashboard, by default http://HEAD:8265? It "
            f"listens on the head's loopback unless started with --dashboard-host=0.0.0.0; from "
            f"elsewhere: ssh -L 8265:127.0.0.1:8265 HEAD"
        ) from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def _token(address: str) -> str:
    source, token = _source()
    if token is None:
        raise ResourceError(
            f"the cluster at {address} wants a token, and there is none here (looked at "
            f"RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and {source}). `ray get-auth-token` prints it on "
            f"the head; put it into that file."
        )
    return token


def _source() -> tuple[str, str | None]:
    """Where Ray looks for the token, in its order, and what is there."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", given.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return str(path), path.read_text().strip() or None
    except OSError:
        return str(path), None


def _is_here(address: str, token: str | None) -> bool:
    """Whether the head's own socket is in this file system: an address alone does not tell, since a
    forwarded port is a loopback address too."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        nodes = _asked(f"{address}/nodes?view=summary", token)
        for node in nodes.get("data", {}).get("summary", []) if isinstance(nodes, dict) else []:
            raylet = node.get("raylet", {})
            if raylet.get("isHeadNode") and raylet.get("sessionDir"):
                return Path(raylet["sessionDir"], "sockets", "raylet").is_socket()
        time.sleep(0.5)  # a head that has just started lists its nodes a little later
    return False
