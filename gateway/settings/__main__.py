"""`python -m gateway.settings`: write config/schema.json anew, after a change of `gateway.settings.schema` or `models`."""

from gateway.settings.paths import config_dir
from gateway.settings.schema_json import json_schema_text

(config_dir() / "schema.json").write_text(json_schema_text(), encoding="utf-8")
