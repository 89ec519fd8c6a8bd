"""Refuses a configuration that cannot be meant, before any work, and names what is nearest to a misspelt name."""

from __future__ import annotations

import difflib
import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, PydanticSchemaGenerationError, TypeAdapter, ValidationError

GROUPS = ("data", "model", "forget", "method", "trainer", "logger")
"""The parts of a configuration that are made into objects, in this order."""

PEOPLE = ("forget.ids", "forget.indices")
"""Keys whose values may name people: they stay in the run's own folder."""


class ConfigError(ConfigCompositionException, ValueError):
    """A mistake of the user: Hydra prints its message without a traceback."""


@dataclass(frozen=True)
class Values:
    """The keys of ``conf/config.yaml`` that are not in a group, with their types."""

    seed: int
    preflight: bool | Literal["only"]
    repair: Annotated[float, Field(ge=0)] | None
    reference: bool
    measure_interference: bool
    floor: bool
    attack_models: Annotated[int, Field(ge=0)]
    examples: Annotated[int, Field(ge=0)]
    worst: Annotated[int, Field(ge=0)]
    show_ids: bool
    objective: Literal["estimated_gap", "average_gap"]
    output_dir: str
    cache: str


def check(config: DictConfig) -> None:
    """Compare every key and value with the signature of what it is handed to.

    Args:
        config: As composed.

    Raises:
        ConfigError: With all that is wrong: a name that the called class or function does not take, with the nearest that it does; a value
            of the wrong type; a value that is missing; a ``_target_`` that cannot be imported.
    """
    try:
        content: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    values = {name: value for name, value in content.items() if name not in GROUPS}
    problems = dict(_arguments("", values, Values, also=GROUPS))
    for group in GROUPS:
        problems |= dict(_inside(group, content.get(group)))
    if problems:
        # What is only passed on from another key is wrong there.
        raise ConfigError("\n".join(text for key, text in problems.items() if not _passed_on(config, key)) or "\n".join(problems.values()))


def nearest(error: BaseException | None) -> str | None:
    """What may have been meant, for an error that Hydra raised while composing.

    Returns:
        A question with the nearest option of that group, or the nearest key: beside the one that was given, or anywhere by its last part.
        None for another error, or where nothing is near.
    """
    if isinstance(error, MissingConfigException):
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        return _meant(option, error.options or (), f"{group}=")
    cause = None if error is None else error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not isinstance(cause.parent_node, DictConfig):
        return None
    parent, dot, name = str(cause.full_key).rpartition(".")
    if (beside := _meant(name, map(str, cause.parent_node), f"{parent}{dot}")) is not None:
        return beside
    everything: Any = OmegaConf.to_container(cause.parent_node._get_root(), resolve=False)
    by_last = {key.rpartition(".")[2]: key for key in keys(everything) if not key.startswith("hydra.")}
    match = _match(name, by_last)
    return None if match is None else f"Did you mean {by_last[match]}?"


def public(overrides: Iterable[str]) -> dict[str, str]:
    """What makes a job this job, by key, without the names of people.

    Example:
        >>> public(["seed=1", "+forget.ids=[anna]", "~forget.classes"])
        {'seed': '1', 'forget.classes': ''}
    """
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parts if not is_personal(key, value)}


def is_personal(key: str, value: Any) -> bool:
    """Whether a value says who shall be forgotten, or the label of each of them; that labels are corrected at all is no secret.

    Example:
        >>> is_personal("forget.ids", ["anna"]), is_personal("forget.corrected", [3, 1]), is_personal("forget.corrected", True)
        (True, True, False)
    """
    return key in PEOPLE or (key == "forget.corrected" and str(value).lower() not in ("true", "false", "null", "none"))


def keys(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All keys of nested mappings, with dots.

    Example:
        >>> list(keys({"a": {"b": 1}, "c": 2}))
        ['a', 'a.b', 'c']
    """
    for name, value in content.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from keys(value, f"{prefix}{name}.")


def _inside(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """The problems of a part of the configuration and of all parts inside it, by key."""
    if isinstance(node, list):
        for place, value in enumerate(node):
            yield from _inside(f"{key}.{place}", value)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        target = _located(node["_target_"])
        if target is None:
            yield f"{key}._target_", f"{key}._target_={node['_target_']}: cannot be imported. {_near_target(node['_target_'])}".rstrip()
            return
        yield from _arguments(f"{key}.", {name: value for name, value in node.items() if not name.startswith("_")}, target)
    for name, value in node.items():
        yield from _inside(f"{key}.{name}", value)


def _arguments(prefix: str, values: Mapping[str, Any], target: Callable[..., Any], also: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Compare arguments with what ``target`` takes; ``also`` are names that are good elsewhere."""
    names, any_other = _parameters(target)
    for name, value in values.items():
        if name in names:
            if (expected := _expected(names[name], value)) is not None:
                yield f"{prefix}{name}", f"{prefix}{name}={_shown(value)}: expected {expected}."
        elif not any_other and name not in also:
            hint = _meant(name, [*names, *also], prefix) or f"There are {', '.join(names) or 'none'}."
            taker = f"{target.__name__} takes" if prefix else "there is"
            yield f"{prefix}{name}", f"{prefix}{name}: {taker} no {name!r}. {hint}"


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Types by name, and whether any other name is taken too (or the signature is not known)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}, True
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    names: dict[str, Any] = {}
    any_other = False
    for parameter in parameters:
        hint = _type(parameter.annotation, getattr(function, "__globals__", {}))
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if get_origin(hint) is Unpack:
                names |= get_type_hints(get_args(hint)[0])
            else:
                any_other = True
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            names[parameter.name] = hint
    return names, any_other


def _type(annotation: Any, namespace: dict[str, Any]) -> Any:
    """An annotation as a type; anything where it names what only a type checker imports."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), namespace, include_extras=True)["it"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def _expected(hint: Any, value: Any) -> str | None:
    """What is expected where a plain value cannot be it; None where it can, or where only the call will tell."""
    if hint is Any or _holds_target(value):
        return None
    members = [member for member in _members(hint) if not _only_an_object(member)]
    if not members:
        return f"{_name(hint)}, which needs a _target_"
    adapters = [_adapter(member) for member in members]
    if any(adapter is None or _fits(adapter, value) for adapter in adapters):
        return None
    return " or ".join(map(_name, members))


def _holds_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_target, value.values()))
    return isinstance(value, list) and any(map(_holds_target, value))


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return None


def _only_an_object(member: Any) -> bool:
    """A class such as a network or a tensor: no plain value is one."""
    return inspect.isclass(member) and get_origin(member) is None and _adapter(member) is None


def _fits(adapter: TypeAdapter[Any], value: Any) -> bool:
    """JSON's strict rules are those of a configuration: a list may be a tuple and 1 a float, but "1" is no number."""
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError):
        return False
    return True


def _located(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError):
        return None


def _near_target(path: str) -> str:
    parent, _, name = path.rpartition(".")
    return _meant(name, dir(_located(parent)), f"{parent}.") or ""


def _passed_on(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name)


def _match(name: str, names: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def _meant(name: str, names: Iterable[str], prefix: str = "") -> str | None:
    found = _match(name, names)
    return None if found is None else f"Did you mean {prefix}{found}?"


def _name(hint: Any) -> str:
    """A type as people write it."""
    if hint is type(None):
        return "null"
    if get_origin(hint) is Annotated:
        kind, *limits = get_args(hint)
        return ", ".join([_name(kind), *(f"{limit.ge} or more" for field in limits for limit in field.metadata)])
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return hint.__name__ if inspect.isclass(hint) and get_origin(hint) is None else str(hint).replace("collections.abc.", "")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
