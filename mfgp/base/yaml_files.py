"""YAML files of settings: read, overridden key by key, and their mistakes told by file and line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mfgp.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """safe_load that refuses repeated keys, and reads 1e-3 as a number (YAML 1.1 asks for 1.0e-3)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a file, with or without a byte order mark. Raises ConfigError, with the line of a mistake."""
    try:
        data = _parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; looked in {path.resolve().parent}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a YAML text file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}; correct that line.") from None
    if data is None:
        raise ConfigError(f"{path} is empty; it needs at least one `key: value` line.")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: a {type(data).__name__} where `key: value` lines were expected.")
    return data


def override_key(data: dict[str, Any], text: str) -> None:
    """Set one dotted key in place. Raises ConfigError for text that is not key=value, or a path through a value."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {text!r}: expected key=value with a dotted key, such as model.zeta=3.")
    try:
        parsed = _parse(value)
    except yaml.YAMLError:
        raise ConfigError(f"override {text!r}: {value!r} is not a YAML value.") from None
    node: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            index: Any = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            where = ".".join(parts[:depth])
            raise ConfigError(f"override {text!r}: {where} has no {part!r}; it is {str(node)[:60]!r}.")
        if last:
            node[index] = parsed
        elif isinstance(node, dict) and node.get(index) is None:
            node[index] = {}
        node = node[index]


def in_file(path: Path, lines: Sequence[str]) -> ConfigError:
    """One error that names the file before its mistakes, a line each."""
    if len(lines) == 1:
        return ConfigError(f"{path}: {lines[0].rstrip('.')}.")
    return ConfigError(f"{path}: {len(lines)} problems:" + "".join(f"\n  {line}" for line in lines))
