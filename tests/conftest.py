"""One real vLLM for all tests that need it: with several workers they run in the same one."""
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("engine"): item.add_marker(pytest.mark.xdist_group("engine"))
