"""What deploy/ and its page say is what the code accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import load

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KEY", "made-up-for-the-test")
    monkeypatch.setenv("GATEWAY_KEY", "made-up-for-the-test")


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return found


def test_the_gateways_configuration_is_valid_and_names_the_engines_of_the_compose_file() -> None:
    settings = load(COMPOSE / "gateway.yaml").settings
    engines = {name: service for name, service in services().items() if name != "gateway"}
    assert set(settings.models) == set(engines)
    for name, model in settings.models.items():
        assert f"--model={model.model}" in engines[name]["command"]  # type: ignore[union-attr]
        assert [f"http://{name}:8000/v1"] == list(model.urls)  # type: ignore[union-attr]
    assert settings.keys, "the gateway listens beyond its container, so it must ask for keys"


def test_every_engine_has_a_gpu_of_its_own_and_no_port() -> None:
    gpus = []
    for name, service in services().items():
        if name == "gateway":
            assert all(port.startswith("127.0.0.1:") for port in service["ports"])
            continue
        assert "ports" not in service
        [device] = service["deploy"]["resources"]["reservations"]["devices"]
        gpus += device["device_ids"]
    assert sorted(gpus) == ["0", "1", "2"]


def commands() -> list[tuple[str, str]]:
    """(where, text) of everything that starts vLLM."""
    texts = [("docs/deploy.md", (ROOT / "docs" / "deploy.md").read_text())]
    texts += [(name, " ".join(s["command"])) for name, s in services().items() if name != "gateway"]
    return texts


@pytest.mark.parametrize(("where", "text"), commands())
def test_flags_name_what_the_extension_has(where: str, text: str) -> None:
    """The classes are looked for in the source: importing them needs vLLM."""
    named = re.findall(r"--(?:logits-processors|scheduler-cls)[ =]([\w.:]+)", text)
    assert named, where
    for path in named:
        module, _, name = path.replace(":", ".").rpartition(".")
        source = ROOT / "backends" / "vllm_plugin" / Path(*module.split(".")).with_suffix(".py")
        assert re.search(rf"^class {name}\b", source.read_text(), re.MULTILINE), path


def test_the_images_copy_what_is_there_and_start_what_the_package_installs() -> None:
    for file in (ROOT / "deploy" / "docker").iterdir():
        for line in file.read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                *sources, _ = line.split()[1:]
                assert all((ROOT / source).exists() for source in sources), (file.name, line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert 'ENTRYPOINT ["modelnet"]' in (ROOT / "deploy" / "docker" / "gateway.Dockerfile").read_text()
    assert "modelnet" in project["scripts"]
    plugin = tomllib.loads((ROOT / "backends" / "vllm_plugin" / "pyproject.toml").read_text())["project"]
    assert "modelnet" in plugin["entry-points"]["vllm.endpoint_plugins"]
    assert "VLLM_PLUGINS=modelnet" in (ROOT / "deploy" / "docker" / "vllm.Dockerfile").read_text()


def test_the_image_of_vllm_is_the_version_that_the_extension_is_tested_with() -> None:
    [tested] = re.findall(r"^VLLM_VERSION := (\S+)", (ROOT / "vllm.mk").read_text(), re.MULTILINE)
    assert f":v{tested}" in (ROOT / "deploy" / "docker" / "vllm.Dockerfile").read_text()


def test_the_pages_configuration_is_valid(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    (tmp_path / "gateway.yaml").write_text(block)
    assert set(load(tmp_path / "gateway.yaml").settings.models) == {"qwen", "yi"}
