"""The `llm` command: a model of its `extra-openai-models.yaml`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import (
    BASE_URL,
    HELLO,
    HELLO_SAID,
    KEY,
    PERSON,
    PERSON_SCHEMA,
    WEATHER,
    WEATHER_SAID,
    WIRING,
    check,
    main,
    needs_sense,
    person,
    said,
)

FOLDER = Path(tempfile.mkdtemp())
(FOLDER / "extra-openai-models.yaml").write_text(
    json.dumps(
        [
            {
                "model_id": "net",
                "model_name": WIRING,
                "api_base": BASE_URL,
                "api_key_name": "net",
                "supports_tools": True,
                "supports_schema": True,
            }
        ]
    )
)
(FOLDER / "keys.json").write_text(json.dumps({"net": KEY}))
FUNCTIONS = '''
def get_weather(city: str) -> str:
    """The weather in a city, in Celsius."""
    return "21 degrees"

def to_fahrenheit(celsius: int) -> str:
    """Turn degrees Celsius into Fahrenheit."""
    return str(celsius * 9 / 5 + 32)
'''


def llm(*arguments: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "llm"), "-m", "net", *arguments],
        env={**os.environ, "LLM_USER_PATH": str(FOLDER)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@check
def chat() -> None:
    said(llm("--no-stream", "-o", "max_tokens", "60", HELLO), HELLO_SAID)


@check
def streaming() -> None:
    said(llm("-o", "max_tokens", "60", HELLO), HELLO_SAID)


@check
def goes_on() -> None:
    said(llm("-c", "-o", "max_tokens", "60", HELLO), HELLO_SAID)


@check
def tool_loop() -> None:
    needs_sense()
    assert llm("--functions", FUNCTIONS, WEATHER).endswith(WEATHER_SAID)


@check
def structured() -> None:
    found = json.loads(llm("--schema", json.dumps(PERSON_SCHEMA), "-o", "max_tokens", "200", PERSON))
    person(found["name"], found["age"])


main()
