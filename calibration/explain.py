"""What is wrong with a config, in one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from askance.errors import did_you_mean, telling, unknown_choice


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: the key, what is wrong with it, and the nearest known key if misspelt."""
    first = telling(error.errors())
    path, models = _followed(model, first["loc"])
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {_hint(path[-1], models, model)}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    if first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.kind: unknown {first['ctx']['tag']!r}: {did_you_mean(first['ctx']['tag'], known)}"
    if first["type"] == "union_tag_not_found":
        return f"the key {key + '.kind'!r} is missing"
    if (unknown := unknown_choice(first)) is not None:
        return f"{key}: {unknown}"
    message = first["msg"].removeprefix("Value error, ")
    # what a validator of ours says of a list names the place; the whole list would bury it
    told = isinstance(first["input"], dict) or (isinstance(first["input"], list) and first["type"] == "value_error")
    return f"{key}: {message}" + ("" if told else f", got {first['input']!r}")


def _hint(name: str, models: list[type[BaseModel]], root: type[BaseModel]) -> str:
    """Where an unknown key may belong: one here that is spelt nearly so, else one of its name elsewhere."""
    hint = did_you_mean(name, [known for m in models for known in m.model_fields])
    elsewhere = sorted({path for path in _paths(root) if path.rpartition(".")[2] == name})
    if elsewhere and not hint.startswith("did you mean"):
        named = [repr(path) if "." in path else f"{path!r} at the top level" for path in elsewhere]
        return f"did you mean {' or '.join(named)}? {hint}"
    return hint


def _paths(model: type[BaseModel]) -> Iterator[str]:
    """Every key of a model and of the models within it, with dots."""
    for name, field in model.model_fields.items():
        yield name
        for inner in _models_in(field.annotation):
            yield from (f"{name}.{path}" for path in _paths(inner))


def _followed(model: type[BaseModel], where: tuple[int | str, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """The key that an error's location names, and the models that its last part is looked for in."""
    models, path = [model], list[str]()
    for i, part in enumerate(where):
        tagged = [m for m in models if "kind" in m.model_fields and part in get_args(m.model_fields["kind"].annotation)]
        if tagged:  # pydantic names the kind of a table among others; the file has no such key
            models = tagged
            continue
        path.append(str(part))
        if isinstance(part, str) and i < len(where) - 1:
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return path, models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]
