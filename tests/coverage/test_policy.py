from __future__ import annotations

import pytest

from nanospec.coverage.policy import BASELINE, Policy, list_policies, parse_policy, row_name


@pytest.mark.parametrize(
    ("text", "policy", "name"),
    [
        ("in-context", Policy("in-context"), "in-context"),
        ("hybrid:512+prior", Policy("hybrid:512+prior"), "hybrid-512+prior"),
        ("in-context,num_top=3", Policy("in-context", num_top=3), "in-context,num_top=3"),
        (
            "hybrid:8,temperature=0.5,capacity=64",
            Policy("hybrid:8", capacity=64, temperature=0.5),
            "hybrid-8,capacity=64,temperature=0.5",
        ),
        ("static:lists/a,b.txt", Policy("static:lists/a,b.txt"), "static-a,b.txt"),
        (
            "hybrid:512+routed:lists/a.safetensors:64+prior",
            Policy("hybrid:512+routed:lists/a.safetensors:64+prior"),
            "hybrid-512+routed-a.safetensors:64+prior",
        ),
    ],
)
def test_a_policy_is_read_with_its_options(text, policy, name):
    assert parse_policy(text) == policy
    assert policy.name == name


@pytest.mark.parametrize("text", ["full,num_top=0", "full,num_top=1.5", "full,capacity=", "full,num_top=1,num_top=2"])
def test_an_option_must_be_a_positive_number_given_once(text):
    with pytest.raises(ValueError, match=r"must be given once, as a number above 0, got"):
        parse_policy(text)


def test_plain_full_is_the_baseline_and_comes_first():
    policies = list_policies(["in-context", "full", "full,temperature=1", "full,temperature=0.5"])
    assert [row_name(policy) for policy in policies] == ["full", "in-context", "full,temperature=0.5"]
    assert policies[0] == BASELINE == Policy("full", temperature=1.0)


def test_two_policies_of_one_name_are_refused():
    with pytest.raises(ValueError, match="vocab must be given once per name, got 'static:b/list.txt' a second time"):
        list_policies(["static:a/list.txt", "static:b/list.txt"])
