"""The order of the modules: what takes long begins early, so that no process is left with it.

pytest-xdist hands a process its next module while it still has one or two tests to do. What takes
the longest of all is a few tests of hostile files, so the module that it gets meanwhile is a short
one.
"""

import pytest

ORDER = (
    "test_hostile_hdf5",
    "test_label_studio_faults",
    "test_kill",
    "test_tokens",
    "test_kill_label_studio",
    "test_storage",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only where the long tests are run by themselves, as `make test-faults` does."""
    if config.getoption("markexpr") == "faults":
        ranks = {name: rank for rank, name in enumerate(ORDER)}
        items.sort(key=lambda item: ranks.get(item.path.stem, len(ORDER)))
