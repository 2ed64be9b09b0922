"""Environment and config of the vLLM plugin: what is said wrongly is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanospec.integrations.vllm.settings import VllmSettings, read_settings


def test_nothing_said_is_in_context_and_on():
    settings = read_settings({})
    assert settings == VllmSettings()
    assert settings.is_on
    assert not settings.is_asked_for


def test_the_environment_is_read():
    environment = {
        "NANOSPEC_VOCAB": "hybrid:1024", "NANOSPEC_CAPACITY": "2048", "NANOSPEC_NUM_TOP": "3",
        "NANOSPEC_PROMPT_POSITIONS": "0", "NANOSPEC_FREQUENT_IDS": "list.pt",
    }  # fmt: skip
    expected = VllmSettings("hybrid:1024", 2048, 3, 0, Path("list.pt"), is_asked_for=True)
    assert read_settings(environment) == expected


@pytest.mark.parametrize("vocab", ["hybrid:8", "hybrid:list.pt"])
def test_beside_frequent_ids_fewer_suggestions_are_asked_for_unless_said(vocab):
    settings = read_settings({"NANOSPEC_VOCAB": vocab})
    assert (settings.num_top, settings.prompt_positions) == (16, 0)
    settings = read_settings({"NANOSPEC_VOCAB": vocab, "NANOSPEC_NUM_TOP": "5"}, {"nanospec": {"prompt_positions": 7}})
    assert (settings.num_top, settings.prompt_positions) == (5, 7)


def test_config_overrides_the_environment_key_by_key():
    config = {"nanospec": {"vocab": "in-context", "capacity": 512}, "of another plugin": 1}
    settings = read_settings({"NANOSPEC_VOCAB": "off", "NANOSPEC_NUM_TOP": "4"}, config)
    assert settings == VllmSettings("in-context", 512, 4, is_asked_for=True)


@pytest.mark.parametrize(
    ("environment", "config", "is_on"),
    [
        ({"NANOSPEC_OFF": "1"}, {}, False),
        ({"NANOSPEC_OFF": "0"}, {}, True),
        ({"NANOSPEC_OFF": ""}, {}, True),
        ({"NANOSPEC_VOCAB": "off"}, {}, False),
        ({"NANOSPEC_VOCAB": "full"}, {}, False),
        ({"NANOSPEC_VOCAB": "hybrid:64", "NANOSPEC_OFF": "yes"}, {}, False),
        ({"NANOSPEC_OFF": "1"}, {"nanospec": {"off": False}}, True),
    ],
)
def test_the_switch(environment, config, is_on):
    assert read_settings(environment, config).is_on is is_on


@pytest.mark.parametrize(
    ("environment", "config", "error", "message"),
    [
        ({"NANOSPEC_VOCAB": "hybrid"}, {}, ValueError, "NANOSPEC_VOCAB must be 'in-context', .*got 'hybrid'"),
        ({"NANOSPEC_VOCAB": "hybrid:0"}, {}, ValueError, "NANOSPEC_VOCAB must be .*got 'hybrid:0'"),
        ({"NANOSPEC_VOCAB": "hybrid:-3"}, {}, ValueError, "NANOSPEC_VOCAB must be .*got 'hybrid:-3'"),
        ({"NANOSPEC_VOCAB": "routed:x"}, {}, ValueError, "NANOSPEC_VOCAB must be .*got 'routed:x'"),
        (
            {"NANOSPEC_CAPACITY": "many"},
            {},
            ValueError,
            "NANOSPEC_CAPACITY must be an integer of at least 1, got 'many'",
        ),
        ({"NANOSPEC_CAPACITY": "0"}, {}, ValueError, "NANOSPEC_CAPACITY must be an integer of at least 1, got 0"),
        ({"NANOSPEC_NUM_TOP": "65"}, {}, ValueError, "NANOSPEC_NUM_TOP must be an integer from 0 to 64, got 65"),
        (
            {"NANOSPEC_PROMPT_POSITIONS": "-1"},
            {},
            ValueError,
            "NANOSPEC_PROMPT_POSITIONS must be an integer of at least 0, got -1",
        ),
        ({"NANOSPEC_OFF": "perhaps"}, {}, ValueError, "NANOSPEC_OFF must be one of 1, true, .*got 'perhaps'"),
        ({}, {"nanospec": {"vocabulary": "x"}}, ValueError, "must be one of vocab, capacity, .*got 'vocabulary'"),
        ({}, {"nanospec": {"capacity": 1.5}}, TypeError, r"additional_config\['nanospec'\]\['capacity'\] .*got float"),
        ({}, {"nanospec": {"capacity": True}}, TypeError, "must be an integer of at least 1, got bool"),
        ({}, {"nanospec": {"vocab": 3}}, TypeError, "must be 'in-context', .*got int"),
        ({}, {"nanospec": {"frequent_ids": 3}}, TypeError, "must be the path of a list of ids, got 3"),
        ({}, {"nanospec": "hybrid:8"}, TypeError, r"additional_config\['nanospec'\] must be a dictionary, got str"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environment, config, error, message):
    with pytest.raises(error, match=message):
        read_settings(environment, config)


def test_a_config_object_of_another_platform_is_left_alone():
    assert read_settings({}, object()) == VllmSettings()
