"""The configuration's JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

from rlft import registry
from rlft.config import Config


def schema() -> dict[str, Any]:
    """JSON Schema of the whole configuration, the keys of the built-in algorithms and environments
    included; point a YAML editor at it."""
    from pydantic import TypeAdapter

    whole = Config.model_json_schema(by_alias=True)
    for kind in ("algo", "env"):
        variants: list[dict[str, Any]] = [{"type": "string"}]
        for name in registry.short_names(kind):
            keys = TypeAdapter(registry.resolve(kind, name)).json_schema()
            whole["$defs"].update(keys.pop("$defs", {}))
            keys["properties"] = {"name": {"const": name}, **keys.get("properties", {})}
            keys["required"] = ["name", *keys.get("required", [])]
            variants.append({**keys, "additionalProperties": False})
        other = {"name": {"type": "string", "pattern": ":"}}
        variants.append({"type": "object", "properties": other, "required": ["name"]})
        whole["properties"][kind] = {"anyOf": variants}
    whole["properties"]["extends"] = {
        "type": "string",
        "description": "a base, relative to this file",
    }
    whole["required"] = []  # a file that extends another may leave anything to it
    return whole
