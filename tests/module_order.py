"""The order of the modules: what takes long begins early, so that no process is left with it.

What is longest comes first, but for the hostile files, which need no Label Studio: the process that
begins with them leaves the others room for theirs to start.
"""

import pytest

ORDER = (
    "test_hostile_hdf5",
    "test_label_studio_faults",
    "test_kill",
    "test_tokens",
    "test_storage",
    "test_kill_label_studio",
    "test_backup",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only where the long tests are run by themselves, as `make test-faults` does."""
    if config.getoption("markexpr") == "faults":
        ranks = {name: rank for rank, name in enumerate(ORDER)}
        items.sort(key=lambda item: ranks.get(item.path.stem, len(ORDER)))
