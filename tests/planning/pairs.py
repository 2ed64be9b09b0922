"""Sizes and devices to plan with, and strategies that draw them."""

from __future__ import annotations

from hypothesis import strategies as st

from nanospec.planning.device import Device, from_rates
from nanospec.planning.devices import CPU, H200
from nanospec.planning.model_sizes import DraftSizes, ModelSizes, Product
from nanospec.planning.step_cost import Pair, Setting
from nanospec.tree_shape import TreeShape

UNIT = from_rates("unit", "a byte, an operation and a call per second", 1.0, 1e30, 0.0, exchange_s=0.0)
TREE = TreeShape(5, 8, 32)


def model(num_ids: int = 1000, hidden: int = 64, layers: int = 2) -> ModelSizes:
    products = (Product(3 * hidden, hidden, layers), Product(hidden, hidden, layers))
    return ModelSizes(hidden, layers, hidden, 2 * hidden, 20 * hidden * layers, num_ids, products)


def draft(num_ids: int = 1000, hidden: int = 64) -> DraftSizes:
    return DraftSizes("EAGLE-1/2", model(num_ids, hidden, 1))


def pair(device: Device = CPU, num_ids: int = 1000, **setting) -> Pair:
    return Pair(device, model(num_ids), draft(num_ids), Setting(setting.pop("tree", TREE), **setting))


@st.composite
def pairs(draw) -> Pair:
    """Any device, sizes and setting that are allowed; on one device."""
    hidden, num_ids = draw(st.sampled_from((64, 1024, 4096))), draw(st.integers(100, 2_000_000))
    tree = TreeShape(draw(st.integers(2, 8)), draw(st.integers(1, 10)), 2)
    tree = tree._replace(num_nodes=draw(st.integers(2, min(60, 1 + tree.num_candidates))))
    setting = Setting(
        tree, draw(st.integers(1, 20_000)), draw(st.integers(1, 16)), 1, draw(st.floats(1, tree.depth + 1))
    )
    device = draw(st.sampled_from((CPU, H200)))
    return Pair(device, model(num_ids, hidden, draw(st.integers(1, 8))), draft(num_ids, hidden), setting)
