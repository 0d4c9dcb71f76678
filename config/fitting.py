"""Whether values fit a JSON Schema. Pure, and bounded: patterns match in linear time, and nothing is fetched."""

from functools import lru_cache
from typing import Any

import jsonschema_rs

from core.encoding import decode
from core.operations import MAX_PROBLEMS

Problem = dict[str, str]


def problems_of(schema: str, value: str, pointer: str, *, hidden: bool = False) -> list[Problem]:
    """The places of a value that do not fit, each below `pointer`, as far as they are not too many to name.

    Parameters: schema and value are JSON text; `hidden`: nothing of the value is told.
    """
    found: list[Problem] = []
    for error in compiled(schema).iter_errors(decode(value)):
        detail = f"does not fit `{error.kind.name}`" if hidden else error.message[:300]
        found.append(named(f"{pointer}{pointer_of(error.instance_path)}", error.kind.name, detail))
        if len(found) == MAX_PROBLEMS:
            break
    return found


def fits(schema: str, value: str) -> bool:
    return bool(compiled(schema).is_valid(decode(value)))


def faults_of(schema: str, pointer: str) -> list[Problem]:
    """What is wrong with a schema itself."""
    meta = jsonschema_rs.Draft202012Validator({"$ref": "https://json-schema.org/draft/2020-12/schema"})
    errors = list(meta.iter_errors(decode(schema))) if "$schema" not in decode(schema) else []
    found = [named(f"{pointer}{pointer_of(e.instance_path)}", e.kind.name, e.message[:300]) for e in errors]
    if found:
        return found
    try:
        compiled(schema)
    except jsonschema_rs.ValidationError as error:
        return [named(f"{pointer}{pointer_of(error.instance_path)}", "schema", error.message[:300])]
    return []


@lru_cache(maxsize=256)
def compiled(schema: str) -> Any:
    """Raises: jsonschema_rs.ValidationError, of what is no schema."""
    return jsonschema_rs.validator_for(
        decode(schema), validate_formats=True, pattern_options=jsonschema_rs.RegexOptions(), retriever=refuse
    )


def refuse(address: str) -> Any:
    raise ValueError("a schema refers to nothing but itself")


def pointer_of(path: list[Any]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def named(pointer: str, code: str, detail: str) -> Problem:
    return {"pointer": pointer, "code": code, "detail": detail}
