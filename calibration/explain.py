"""What is wrong with a config, in lines for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from askance.errors import did_you_mean, telling, unknown_choice


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing wrong, in one line: the key, what is wrong with it, and the nearest known key if misspelt."""
    return _line(telling(error.errors()), model)


def explain_all(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """All that is wrong, a line each as in `explain`, in the order of the keys.

    A misspelt key is not missing as well, and a list whose rows are wrong is not too short as well.
    """
    errors = error.errors()
    unknown = [one["loc"] for one in errors if one["type"] == "extra_forbidden"]

    def follows(one: Mapping[str, Any]) -> bool:
        where = one["loc"]
        if one["type"] == "missing":
            return any(_may_be_meant(where, other) for other in unknown)
        return one["type"] == "too_short" and any(
            len(other["loc"]) > len(where) and other["loc"][: len(where)] == where for other in errors
        )

    return [_line(one, model) for one in errors if not follows(one)]


def _may_be_meant(missing: tuple[int | str, ...], unknown: tuple[int | str, ...]) -> bool:
    """Whether an unknown key stands where the missing one should, spelt nearly so."""
    near = difflib.get_close_matches(str(unknown[-1]), [str(missing[-1])], n=1)
    return missing[:-1] == unknown[:-1] and bool(near)


def _line(one: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in one line."""
    path, models = _followed(model, one["loc"])
    key = ".".join(path)
    if one["type"] == "extra_forbidden":
        return f"unknown key {key!r}: {_hint(path[-1], models, model)}"
    if one["type"] == "missing":
        return f"the key {key!r} is missing"
    if one["type"] == "union_tag_invalid":
        known = one["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.kind: unknown {one['ctx']['tag']!r}: {did_you_mean(one['ctx']['tag'], known)}"
    if one["type"] == "union_tag_not_found":
        return f"the key {key + '.kind'!r} is missing"
    if (unknown := unknown_choice(one)) is not None:
        return f"{key}: {unknown}"
    message = one["msg"].removeprefix("Value error, ")
    # what a validator of ours says of a list names the place; the whole list would bury it
    told = isinstance(one["input"], dict) or (isinstance(one["input"], list) and one["type"] == "value_error")
    return (f"{key}: {message}" if key else message) + ("" if told else f", got {one['input']!r}")


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
