"""Plug-ins by name: `module:attr`, `file.py:attr`, or a short name.

A short name is an alias by convention, never by registration: `grpo` as an algorithm is the one
algorithm class defined in `algos/grpo.py`. So a new plug-in is one new file and a YAML line.
Nothing here imports `envs` or `algos`; they are imported by name when a configuration asks.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlft.errors import ConfigError, PluginError, UserError, did_you_mean

_HOMES = {
    "algo": "algos",
    "env": "envs",
    "engine": "rlft.sampling.engines",
    "network": "rlft.policy.networks",
    "loss": "rlft.losses",
    "correction": "rlft.losses",
    "advantage": "rlft.credit",
    "stabiliser": "rlft.credit.shaping",
    "cluster": "rlft.credit.clusters",
    "preference": "rlft.losses.preference",
    "reward": "rlft.rewards.builtin",
    "transport": "rlft.weights.transports",
    "check": "rlft.paths.checks",
    "key": "rlft.paths.keys",
    "distance": "rlft.paths.distances",
    "diversity": "rlft.diversity",
    "retention": "rlft.retention",
    "probe": "rlft.probes",
    "merge": "rlft.merging.methods",
    "trainable": "rlft.learning.trainable",
    "optimizer": "rlft.learning.optimizers",
}
"""Where short names of each kind live. Packages of one class a file, or modules of attributes."""

_CALLED_WITH: dict[str, tuple[Callable[[Any], bool], str]] = {
    "loss": (inspect.isclass, "out"),
    "correction": (inspect.isclass, "sample_logp"),
    "preference": (inspect.isfunction, "ref_chosen_P"),
    "diversity": (inspect.isfunction, "since_vine"),
}
"""Kinds that share a home with others: classes or functions, told apart by a parameter of their call."""

_ONE_CLASS_A_FILE = {
    "algo": ("collect", "learn"),
    "env": ("train", "held_out"),
    "merge": ("mixed",),
    "trainable": ("prepared", "kept"),
    "optimizer": ("made",),
}
"""Kinds whose short name is a file name, and the methods that its one public class must have."""


def resolve(kind: str, name: str) -> Any:
    """Returns the object that `name` stands for.

    Raises PluginError: unknown short name (with the nearest), module or file that cannot be
    imported (with its traceback), missing attribute (with the nearest).
    """
    if ":" in name:
        target, attr = name.rsplit(":", 1)
        module = _load_file(kind, target) if target.endswith(".py") else _load_module(kind, target)
        return _attribute(kind, module, attr, name)
    known = short_names(kind)
    name = next((n for n in known if _plain(n) == _plain(name)), name)
    if name not in known:
        raise PluginError(
            f"unknown {kind} {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}; "
            f"or name your own as module:attr or path/file.py:attr."
        )
    if kind in _ONE_CLASS_A_FILE:
        return _the_one_class(kind, _load_module(kind, f"{_HOMES[kind]}.{name}"))
    found = getattr(_load_module(kind, _HOMES[kind]), name)
    return resolve(kind, found) if isinstance(found, str) else found


def _plain(name: str) -> str:
    """`token_truncate` and `gspo` name the classes TokenTruncate and GSPO."""
    return name.replace("_", "").casefold()


def short_names(kind: str) -> list[str]:
    """The short names of `kind`, sorted."""
    if kind in _ONE_CLASS_A_FILE:
        home = _load_module(kind, _HOMES[kind])
        return sorted(m.name for m in pkgutil.iter_modules(home.__path__))
    module = _load_module(kind, _HOMES[kind])
    return sorted(n for n, v in vars(module).items() if _is_plugin(kind, n, v, module))


def build(kind: str, spec: str | Mapping[str, Any], **extra: Any) -> Any:
    """Returns the plug-in of `spec` made with its keys: `name` alone, or `{name: ..., key: value}`.

    A class is instantiated (dataclass fields are validated and converted by pydantic); a function
    with keys becomes a `functools.partial`. Raises PluginError, or ConfigError naming a wrong key.
    """
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in spec:
        raise ConfigError(f"{kind}: needs a `name`, got keys {sorted(spec)}")
    name = str(spec.pop("name"))
    return construct(resolve(kind, name), {**spec, **extra}, f"{kind} {name}")


def construct(factory: Callable[..., Any], keys: Mapping[str, Any], what: str) -> Any:
    """Calls or binds `factory` with `keys`, after checking them; `what` names it in errors."""
    if not callable(factory):
        raise PluginError(f"{what}: expected a class or function, got {factory!r:.80}")
    if inspect.isclass(factory) and dataclasses.is_dataclass(factory):
        known = [f.name for f in dataclasses.fields(factory) if f.init]
        _check_keys(keys, known, what)
        try:
            return _adapter(factory).validate_python(dict(keys))
        except ValidationError as error:
            raise ConfigError(f"{what}: {explain(error)}") from None
    parameters = inspect.signature(factory).parameters
    if keys and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # What has no default is what the caller fills in (a reward's completion and task).
        own = [n for n, p in parameters.items() if p.default is not p.empty]
        _check_keys(keys, list(parameters) if inspect.isclass(factory) else own, what)
    if inspect.isclass(factory):
        try:
            return factory(**keys)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{what}: {error}") from error
    return functools.partial(factory, **keys) if keys else factory


def explain(error: ValidationError) -> str:
    """One line a fault of a pydantic error: dotted key, what was expected, what was got."""
    return "; ".join(fault_line(fault) for fault in error.errors())


def fault_line(fault: Mapping[str, Any]) -> str:
    """One fault of a pydantic error: dotted key, what was expected, what was got."""
    key = ".".join(str(part) for part in fault["loc"])
    got = fault.get("input")
    text = f"{fault['msg']} (got {type(got).__name__} {str(got)[:80]!r})"
    if fault["type"] == "missing":
        text = fault["msg"]
    if fault["type"] == "value_error":  # raised by our or a plug-in's own check, which says it all
        text = str(fault["ctx"]["error"])
    return f"{key}: {text}" if key else text


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    # Unknown keys were refused before; here pydantic converts and checks the values.
    return TypeAdapter(cls)


def _check_keys(keys: Mapping[str, Any], known: list[str], what: str) -> None:
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"{what}: unknown key {key!r}.{did_you_mean(key, known)} "
                f"Its keys are: {', '.join(known) or 'none'}."
            )


def _is_plugin(kind: str, name: str, value: Any, module: ModuleType) -> bool:
    """Whether an attribute of a kind's home is a plug-in, and not something that serves them."""
    if name.startswith("_") or name not in getattr(module, "__all__", vars(module)):
        return False
    if kind in _CALLED_WITH:
        fits, parameter = _CALLED_WITH[kind]
        called = value.__call__ if inspect.isclass(value) else value
        return fits(value) and parameter in inspect.signature(called).parameters
    return inspect.isfunction(value) or inspect.isclass(value) or isinstance(value, str)


def _attribute(kind: str, module: ModuleType, attr: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, attr.split("."), module)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise PluginError(
            f"{kind} {name!r}: {module.__name__} has no {attr!r}.{did_you_mean(attr, public)}"
        ) from None


def _the_one_class(kind: str, module: ModuleType) -> type:
    methods = _ONE_CLASS_A_FILE[kind]
    found = [
        v
        for n, v in vars(module).items()
        if inspect.isclass(v)
        and v.__module__ == module.__name__
        and not n.startswith("_")
        and all(callable(getattr(v, m, None)) for m in methods)
    ]
    if len(found) != 1:
        raise PluginError(
            f"{kind} file {module.__name__}: expected one public class with methods "
            f"{' and '.join(methods)}, found {[c.__name__ for c in found]}; "
            f"name the one you mean as {module.__name__}:ClassName."
        )
    return found[0]


def _load_module(kind: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise PluginError(
                f"{kind}: no module named {name!r} on the Python path. Run from the folder that "
                f"holds it, or name the file itself: path/to/file.py:attr."
            ) from None
        raise PluginError(_import_failure(kind, name)) from error
    except Exception as error:
        raise PluginError(_import_failure(kind, name)) from error


def _load_file(kind: str, name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise PluginError(f"{kind}: no file {name!r} (looked for {path}).")
    # A stable module name, so that what is defined there can be pickled between processes; with the
    # whole path in it, because two plug-ins may both be called reward.py.
    place = hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()
    module_name = f"rlft_plugin_{path.stem}_{place}"
    loaded = sys.modules.get(module_name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise PluginError(_import_failure(kind, name)) from error
    return module


def _import_failure(kind: str, name: str) -> str:
    return f"{kind} {name!r} failed to import:\n{traceback.format_exc()}"


def summary(kind: str, name: str) -> str:
    """The first line of a plug-in's documentation: of its file, if the file is the plug-in."""
    found = resolve(kind, name)
    module = sys.modules[found.__module__]
    doc = (module.__doc__ if kind in _ONE_CLASS_A_FILE else None) or inspect.getdoc(found) or ""
    return doc.strip().split("\n")[0]
