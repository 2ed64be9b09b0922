"""The plugin's entry point against a stand-in for vLLM: versions, the switch, and what it registers."""

from __future__ import annotations

import logging
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from nanospec.integrations.vllm import UnsupportedVllmError, register
from nanospec.integrations.vllm.architectures import ARCHITECTURES
from nanospec.integrations.vllm.versions import RANGE, check_version


class Registry:
    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def register_model(self, name: str, where: str) -> None:
        self.models[name] = where


@pytest.fixture
def install_vllm(monkeypatch):
    for name in ("VOCAB", "CAPACITY", "NUM_TOP", "PROMPT_POSITIONS", "FREQUENT_IDS", "OFF"):
        monkeypatch.delenv(f"NANOSPEC_{name}", raising=False)

    def install(version: object) -> Registry:
        module = ModuleType("vllm")
        vars(module).update(vars(SimpleNamespace(__version__=version, ModelRegistry=Registry())))
        monkeypatch.setitem(sys.modules, "vllm", module)
        return module.ModelRegistry

    return install


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1", "0.32.0rc1", "0.32.1.dev3+g1234", "0.33.0+cpu"])
def test_known_versions_pass(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0", "0.4.0"])
def test_other_versions_are_named_with_the_range(version):
    with pytest.raises(UnsupportedVllmError, match=f"must be >=0.32,<0.34 for nanospec's plugin, got {version}: "):
        check_version(version)


@pytest.mark.parametrize("version", [None, "dev", ""])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(UnsupportedVllmError, match="must be a release >=0.32,<0.34"):
        check_version(version)


def test_every_architecture_is_registered_by_name_any_number_of_times(install_vllm):
    registry = install_vllm("0.32.0")
    register()
    once = dict(registry.models)
    register()
    assert registry.models == once
    assert set(once) == set(ARCHITECTURES)
    assert once["LlamaForCausalLMEagle3"] == "nanospec.integrations.vllm.models:InContextEagle3LlamaForCausalLM"


def test_switched_off_nothing_is_registered(install_vllm, monkeypatch):
    registry = install_vllm("0.20.0")
    monkeypatch.setenv("NANOSPEC_OFF", "1")
    register()
    assert not registry.models


def test_an_unknown_version_leaves_vllm_as_it_is_with_a_warning(install_vllm, caplog):
    registry = install_vllm("0.40.0")
    with caplog.at_level(logging.WARNING, "vllm.nanospec"):
        register()
    assert not registry.models
    assert "must be >=0.32,<0.34" in caplog.text


def test_an_unknown_version_is_an_error_where_the_plugin_was_asked_for(install_vllm, monkeypatch):
    install_vllm("0.40.0")
    monkeypatch.setenv("NANOSPEC_VOCAB", "in-context")
    with pytest.raises(UnsupportedVllmError, match="got 0.40.0"):
        register()


def test_a_wrong_setting_stops_the_launch(install_vllm, monkeypatch):
    install_vllm("0.32.0")
    monkeypatch.setenv("NANOSPEC_CAPACITY", "-1")
    with pytest.raises(ValueError, match="NANOSPEC_CAPACITY must be an integer of at least 1, got -1"):
        register()


def test_the_package_names_its_entry_point():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["nanospec"].partition(":")
    assert getattr(import_module(module), function) is register
    assert project["optional-dependencies"]["vllm"] == [f"vllm{RANGE}"]
