"""The JSON schema of a configuration, for editors. `python -m gateway.settings` writes config/schema.json."""

from __future__ import annotations

import json
from typing import Any

from gateway.settings.schema import Settings


def json_schema() -> dict[str, Any]:
    """The schema as a value."""
    schema = Settings.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for value in section.get("properties", {}).values():
            if "patternProperties" in value:  # pydantic leaves it open what happens to names that don't match
                value["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "ModelNet Gateway configuration",
    }


def json_schema_text() -> str:
    """The schema as the file holds it. An editor reads files before variables are put in, so this is about the result."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
