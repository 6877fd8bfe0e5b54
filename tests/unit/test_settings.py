"""Configurations: what is accepted, and that every mistake names file, line and key."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from settings_files import MODEL, problems, write

import gateway
from backends.fake import FakeSettings, Fault
from backends.llama_cpp.settings import LlamaCppSettings
from backends.openai_http.settings import OpenAIHTTPSettings
from gateway.settings import SettingsError, config_dir, load
from gateway.settings.models import AnyModel, FakeFault, FakeModel, LlamaCppModel, OpenAIModel
from gateway.settings.prompts import load_prompts
from gateway.settings.schema_json import json_schema, json_schema_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [" must be a mapping with the key models"]),
        ("- a\n", [" must be a mapping with the key models"]),
        ("models: {}\n", ["1: models: must not be empty"]),
        ("aliases: {}\n", ["1: models: is required"]),
        (MODEL + "modles: {}\n", ["3: modles: unknown key; did you mean 'models'?"]),
        (MODEL + "limits:\n  mesages: 3\n", ["4: limits.mesages: unknown key; did you mean 'messages'?"]),
        (MODEL + "limits:\n  zzz: 3\n", ["4: limits.zzz: unknown key"]),
        (
            "models:\n  a:\n    backend: fake\n    anser: x\n    delay: -1\n",
            [
                "4: models.a.anser: unknown key; did you mean 'answer'?",
                "5: models.a.delay: input should be greater than or equal to 0",
            ],
        ),
        (
            "models:\n  a:\n    answer: x\n",
            ["2: models.a: `backend` is required: one of llama_cpp, openai, vllm, hosted, fake"],
        ),
        (
            "models:\n  a:\n    backend: gpu\n",
            ["2: models.a: backend: 'gpu' is not one of 'llama_cpp', 'openai', 'vllm', 'hosted', 'fake'"],
        ),
        ("models:\n  a b: {backend: fake}\n", ["2: models.a b: a name has letters, digits and . _ - / only"]),
        ("models:\n  a: 5\n", ["2: models.a: must be a mapping"]),
        ("models:\n  a:\n    backend: openai\n", ["2: models.a.base_url: is required"]),
        (MODEL + "limits: {messages: '3'}\n", ["3: limits.messages: must be a whole number"]),
        (MODEL + "limits: {messages: 3.5}\n", ["3: limits.messages: must be a whole number"]),
        (MODEL + "limits: {messages: true}\n", ["3: limits.messages: must be a whole number"]),
        (MODEL + "server: {log: {prompts: 1}}\n", ["3: server.log.prompts: must be true or false"]),
        (MODEL + "server:\n  log:\n    prompts: yes\n", ["5: server.log.prompts: must be true or false"]),
        (MODEL + "server: {cors: all}\n", ["3: server.cors: must be a list"]),
        (MODEL + "server:\n  cors:\n  - '*'\n  - nowhere\n", ["6: server.cors[1]: string should match pattern"]),
        (MODEL + "server: {keepalive_seconds: 16}\n", ["3: server.keepalive_seconds: input should be less than"]),
        (MODEL + "keys: [short]\n", ["3: keys[0]: must have at least 8 characters, not 5"]),
        (
            "models:\n  a: {backend: openai, base_url: nowhere}\n",
            ["2: models.a.base_url: must be an address that begins with http:// or https://"],
        ),
        (
            "models:\n  a: {backend: vllm, urls: []}\n",
            ["2: models.a.urls: must not be empty"],
        ),
        (
            "models:\n  a:\n    backend: vllm\n    urls:\n    - http://h/v1\n    - http://h/v1\n",
            ["4: models.a.urls: names a server twice"],
        ),
        (
            "models:\n  a:\n    backend: fake\n    faults:\n    - {on: start}\n    - error: Nope\n",
            ["6: models.a.faults[1].error: must be one of BackendError, BackendUnavailable, "],
        ),
        (MODEL + "shared_limits: {url: 'ftp://a'}\n", ["3: shared_limits.url: must begin with redis://"]),
        (MODEL + "limits: {max_tokens: 10}\n", ["3: limits.answer_max_tokens: is larger than limits.max_tokens"]),
        (
            MODEL + "routes:\n  r:\n    arms: {x: {model: a, ramp: [{at: '9999-12-31T23:59-14:00', weight: 1}]}}\n",
            ["5: routes.r.arms.x.ramp[0].at: must be in the years 1 to 9999 of UTC"],
        ),
        ("models:\n  a: {backend: llama_cpp}\n", ["2: models.a: name the weights by exactly one of"]),
        (
            "models:\n  a:\n    backend: llama_cpp\n    weights: smoll\n",
            ["4: models.a.weights: no weights of that name; there are smollm2-135m-instruct, "],
        ),
        ("models:\n  a:\n    backend: llama_cpp\n    path: no.gguf\n", ["4: models.a.path: no such file: "]),
        (MODEL + "prompts: {default: x.yaml}\n", ["3: prompts.default: is the name of a built-in prompt set"]),
        (MODEL + "prompts: {mine: x.yaml}\n", ["3: prompts.mine: no such file: "]),
        (MODEL + "aliases:\n  a: {expression: a}\n", ["4: aliases.a.expression: column 1: this is a model's name"]),
        (MODEL + "aliases:\n  b:\n    expression: a>c\n", ["5: aliases.b.expression: column 3: found 'c'"]),
        (MODEL + "aliases:\n  b:\n    expression: pi:a>a\n", ["5: aliases.b.expression: column 1: this is si"]),
        (MODEL + "aliases:\n  b: {expression: b}\n", ["4: aliases.b.expression: column 1: 'b' stands for itself"]),
        (
            MODEL + "aliases:\n  b:\n    expression: a\n    fuser: mean\n    prompts: none\n",
            ["6: aliases.b.fuser: no fuser of the name", "7: aliases.b.prompts: no prompt set of that name"],
        ),
        # The file itself
        ("models: {a: }}\n", ["1: not valid YAML: "]),
        ("models:\n\ta: b\n", ["2: not valid YAML: "]),
        ("a: 1\n---\nb: 2\n", ["2: not valid YAML: "]),
        (MODEL + "# \x07\n", [" not valid YAML: the character U+0007 is not allowed"]),
        ("models: " + "[" * 3000, [" nests too deeply"]),
        (MODEL + "models: {}\n", ["3: models: written twice (first on line 1)"]),
        ("models:\n  a: {backend: fake, delay: 1, delay: 2}\n", ["2: models.a.delay: written twice (first on line 2)"]),
        ("models:\n  5: {backend: fake}\n", ["2: models: keys must be strings: put 5 in quotes"]),
        ("models:\n  [a]: {backend: fake}\n", ["2: models: keys must be strings: put this key in quotes"]),
        ("x: &x {backend: fake}\nmodels:\n  a:\n    <<: *x\n", ["4: models.a: merge keys (<<) are not supported"]),
        ("models: &m\n  a: *m\n", ["1: models.a: an anchor must not contain itself"]),
        ("models:\n  a: !!python/object:os.system {}\n", ["2: models.a: not a value this file may hold"]),
        (
            "models:\n  a: {backend: fake, answer: !!binary aGk=}\n",
            ["2: models.a.answer: not a value this file may hold"],
        ),
        ("models:\n  a: {backend: !env fake}\n", ["2: models.a.backend: not a value this file may hold: !env"]),
    ],
)
def test_mistakes_name_line_and_key(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.removeprefix(f"{tmp_path / 'c.yaml'}:").startswith(beginning), line


@pytest.mark.parametrize(
    "address",
    [
        "http://user:hunter2@host/v1",
        "http://host/v1?key=hunter2",
        "http://host/v1#hunter2",
        "http:///hunter2",
        "http://host:hunter2/v1",
        "http://host:99999/hunter2",
        "http://[::1/hunter2",
    ],
)
def test_an_address_that_no_backend_takes_is_a_mistake_of_the_file(tmp_path: Path, address: str) -> None:
    """It may hold a secret, which stays out of the message."""
    (found,) = problems(tmp_path, f"models:\n  a:\n    backend: openai\n    base_url: {address}\n")
    assert found.startswith("4: models.a.base_url: must ") and "hunter2" not in found
    (found,) = problems(tmp_path, f"models:\n  a:\n    backend: vllm\n    urls: [http://h/v1, '{address}']\n")
    assert found.startswith("4: models.a.urls[1]: must ") and "hunter2" not in found
    with pytest.raises(ValueError, match="base_url must"):
        OpenAIHTTPSettings(base_url=address)


def test_unreadable_files_are_problems_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.yaml: can't be read: No such file"):
        load(tmp_path / "no.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"models: \xff")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load(tmp_path / "latin.yaml")


def test_plain_words_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    """`on`, `no`, 12:30, 2024-01-01 and 0x10 are text; numbers, true and null are what they look like."""
    text = "models:\n  on: {backend: fake, answer: no, faults: [{on: token, seconds: 1e-1, times: null}]}\n"
    text += "  b: {backend: fake, answer: 12:30, reasoning_text: 2024-01-01, delay: 1.5, sessions: false}\n"
    models = load(write(tmp_path, text)).settings.models
    on, b = models["on"], models["b"]
    assert isinstance(on, FakeModel)
    assert isinstance(b, FakeModel)
    assert (on.answer, b.answer, b.reasoning_text) == ("no", "12:30", "2024-01-01")
    assert (on.faults[0].seconds, on.faults[0].times, b.delay, b.sessions) == (0.1, None, 1.5, False)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NAME}", "value"),
        ("a ${NAME} b ${NAME}", "a value b value"),
        ("${GONE:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${EMPTY}", ""),
        ("${NAME:-other}", "value"),
        ("${GONE:-}", ""),
        ("$${NAME}", "${NAME}"),
        ("$NAME {NAME}", "$NAME {NAME}"),
        ("${TRICKY}", "${NAME}"),
    ],
)
def test_variables(tmp_path: Path, written: str, value: str) -> None:
    """Put in once: what a variable holds is not looked through again."""
    environ = {"NAME": "value", "EMPTY": "", "TRICKY": "${NAME}"}
    loaded = load(write(tmp_path, f"models:\n  a: {{backend: fake, answer: '{written}'}}\n"), environ)
    model = loaded.settings.models["a"]
    assert isinstance(model, FakeModel)
    assert model.answer == value


def test_unset_variables_are_named(tmp_path: Path) -> None:
    """All of them, with file, line and key; not those in comments, keys or numbers."""
    text = "models: # ${COMMENT}\n  a:\n    backend: fake\n    answer: ${ONE} and ${TWO}\n    delay: ${THREE}\nkeys:\n- ${bad name}\n"
    assert problems(tmp_path, text) == [
        "4: models.a.answer: environment variable ONE is not set",
        "4: models.a.answer: environment variable TWO is not set",
        "5: models.a.delay: environment variable THREE is not set",
        "7: keys[0]: '${bad name}' is not ${NAME} or ${NAME:-default}",
    ]
    assert problems(
        tmp_path, text.replace("- ${bad name}", "[]").replace("keys:\n", "keys: "), ONE="1", TWO="2", THREE="3"
    ) == ["5: models.a.delay: must be a number"]


HALF = "holds half a character (a lone surrogate), which can't be written as UTF-8"


def test_half_characters_are_refused(tmp_path: Path) -> None:
    """YAML can write what UTF-8 can't. It would come up in every answer that repeats it."""
    text = 'models:\n  a: {backend: fake, description: "\\ud800"}\n  "b\\udc00": {backend: fake}\n'
    assert problems(tmp_path, text) == [
        f"2: models.a.description: {HALF}",
        f"3: models: the key 'b\\udc00' {HALF}",
    ]
    text = "models:\n  a: {backend: fake, answer: '${ANSWER}'}\n"
    assert problems(tmp_path, text, ANSWER="not \udcff UTF-8") == [f"2: models.a.answer: {HALF}"]
    whole = load(write(tmp_path, 'models:\n  a: {backend: fake, description: "\\U0001F389"}\n'), {})
    assert whole.settings.models["a"].description == "\N{PARTY POPPER}"


def test_prompts_hold_whole_characters(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text('single:\n  solver:\n    en: "\\udfff"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="half a character"):
        load_prompts(load(write(tmp_path, MODEL + "prompts: {mine: p.yaml}\n"), {}))


@pytest.mark.parametrize("name", ["demo.yaml", "example.yaml"])
def test_shipped_configurations_are_valid(name: str) -> None:
    """By the loader and by the JSON schema, without any variable set."""
    loaded = load(config_dir() / name, {})
    load_prompts(loaded)
    jsonschema.validate(loaded.source.value, json_schema(), jsonschema.Draft202012Validator)


def test_the_example_holds_every_key() -> None:
    """A new setting must be documented there (commented out where it has no default worth writing)."""
    text = (config_dir() / "example.yaml").read_text(encoding="utf-8")

    def keys(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = set(node.get("properties", {}))
            return own.union(*(keys(value) for value in node.values()))
        return set().union(*(keys(item) for item in node)) if isinstance(node, list) else set()

    # What a fault and a rule can say stands with the fake itself.
    missing = {key for key in keys(json_schema()) if f"{key}:" not in text} - set(FakeFault.model_fields)
    assert not missing


def test_the_json_schema_is_fresh() -> None:
    """If this fails: `python -m gateway.settings`."""
    assert (config_dir() / "schema.json").read_text(encoding="utf-8") == json_schema_text()


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (MODEL, True),
        (MODEL + "modles: {}\n", False),
        (MODEL + "limits: {messages: '3'}\n", False),
        ("models: {a: {backend: gpu}}\n", False),
        ("models: {a b: {backend: fake}}\n", False),
        (MODEL + "server: {keepalive_seconds: 16}\n", False),
    ],
)
def test_the_json_schema_says_what_the_loader_says(tmp_path: Path, text: str, valid: bool) -> None:
    import yaml

    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(yaml.safe_load(text)) == valid
    if valid:
        load(write(tmp_path, text))
    else:
        problems(tmp_path, text)


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def test_every_setting_of_a_backend_can_be_written() -> None:
    """A field added to a backend must be added here, or left out on purpose."""
    common = {"backend", *AnyModel.model_fields}
    assert set(LlamaCppModel.model_fields) - common == names(LlamaCppSettings) | {"weights"}
    assert set(OpenAIModel.model_fields) - common == names(OpenAIHTTPSettings)
    left_out = {"reasoning", "finish_reason", "usage", "words"}  # of use to tests only; `reasoning` is the marks here
    assert set(FakeModel.model_fields) - common == names(FakeSettings) - left_out | {"reasoning_text"}
    assert set(FakeFault.model_fields) == names(Fault)


@pytest.mark.parametrize(
    ("model", "settings"),
    [(LlamaCppModel, LlamaCppSettings), (OpenAIModel, OpenAIHTTPSettings), (FakeModel, FakeSettings)],
)
def test_defaults_are_the_backends_own(model: type[AnyModel], settings: type) -> None:
    """One truth: what the schema shows as default is what the backend does by default."""
    for field in fields(settings):
        shown = model.model_fields.get(field.name)
        if shown is None or shown.is_required() or field.name in ("path", "reasoning"):
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        found = shown.get_default(call_default_factory=True)
        assert (tuple(found) if isinstance(found, list) else found) == default, field.name


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("default:\n  solver: 'Solve: {question}'\n", encoding="utf-8")
    loaded = load(write(tmp_path, MODEL + "prompts: {mine: p.yaml}\naliases: {x: {expression: a, prompts: mine}}\n"))
    sets = load_prompts(loaded)
    assert set(sets) == {"default", "paper", "mine"}
    assert sets["mine"].template("single", "solver", "en") == "Solve: {question}"


def test_a_faulty_prompt_file_names_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("default:\n  solver:\n    en: 'Solve ${x} {quest}'\n", encoding="utf-8")
    loaded = load(write(tmp_path, MODEL + "prompts: {mine: p.yaml}\n"))
    with pytest.raises(SettingsError, match=r"p\.yaml:3: default\.solver\.en: .*quest"):
        load_prompts(loaded)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(gateway.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"].get("version", gateway.__version__) == gateway.__version__


def test_the_schema_is_json() -> None:
    assert json.loads(json_schema_text())["title"]
