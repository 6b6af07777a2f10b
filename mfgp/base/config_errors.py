"""pydantic's validation errors as lines that a user can act on: dotted path, what is wrong, the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mfgp.errors import ConfigError

_HINT = "did you mean "


class Section(BaseModel):
    """A frozen part of the configuration; built with wrong values it raises ConfigError, one line for each mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError("\n".join(describe(error, type(self)))) from None


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each mistake: 'descriptor.rcut: unknown key; did you mean descriptor.r_cut? Known here: ...'."""
    lines: list[str] = []
    for detail in error.errors():
        loc = detail["loc"]
        path = ".".join(map(str, loc))
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # a section inside, described already
            lines.extend(f"{path}.{line.replace(_HINT, f'{_HINT}{path}.')}" for line in str(cause).splitlines())
        elif isinstance(cause, ValueError):
            lines.extend(f"{path}: {line}" if path else line for line in str(cause).splitlines())
        elif detail["type"] == "extra_forbidden":
            lines.append(f"{path}: {_unknown(loc, model)}")
        elif detail["type"] == "missing":
            lines.append(f"{path}: missing; give it a value")
        elif detail["type"] in ("tuple_type", "list_type"):
            lines.append(f"{path}: should be a list, {_as_list(detail['input'])}, found {_short(detail['input'])}")
        elif detail["type"] == "invalid_key":
            lines.append(f"{path}: no name of a setting; a decimal comma? Numbers have a point: 5.0")
        elif detail["type"] == "string_type":
            lines.append(f"{path}: should be text, found {_short(detail['input'])}; in YAML, put it in quotes")
        elif detail["type"] == "too_short":
            lines.append(f"{path}: empty; give at least {detail['ctx']['min_length']}")
        elif detail["type"] in ("model_type", "dict_type", "model_attributes_type"):
            lines.append(f"{path}: should be a section with keys of its own, found {_short(detail['input'])}")
        else:
            message = detail["msg"].removeprefix("Input should be ")
            lines.append(f"{path}: should be {message}, found {_short(detail['input'])}")
    return lines


def _unknown(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    key, prefix = str(loc[-1]), "".join(f"{part}." for part in loc[:-1])
    section = _section_at(model, loc[:-1])
    known = list(section.model_fields) if section is not None else []
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(key, known, n=1)]
    elsewhere = [path for path in _paths(model) if path.split(".")[-1] == key]
    hint = f"; {_HINT}{(near or elsewhere)[0]}?" if near or elsewhere else "."
    return f"unknown key{hint} Known here: {', '.join(known)}"


def _section_at(model: type[BaseModel] | None, loc: Sequence[int | str]) -> type[BaseModel] | None:
    """The section that a location lies in: positions in lists are passed over."""
    for part in loc:
        if model is None or isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = None if field is None else next(_models_in(field.annotation), None)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every key below `model`."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in _models_in(field.annotation):
            yield from _paths(section, f"{prefix}{name}.")


def _as_list(value: Any) -> str:
    return "an entry a line that begins with '- '" if isinstance(value, dict) else f"such as [{value}]"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
