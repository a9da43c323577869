"""The order of the modules: what takes long begins early, so that no process is left with it.

What is longest comes first, but for the hostile files, which need no Label Studio: the process that
begins with them leaves the others room for theirs to start.
"""

import pytest

ORDER = (
    "test_learning",
    "test_launcher",
    "test_hostile_hdf5",
    "test_up_troubles",
    "test_versions",
    "test_postgresql",
    "test_export_roundtrip",
    "test_import",
    "test_recovery",
    "test_stored_secrets",
    "test_queue",
)
ORDER_OF_LONG_TESTS = (
    "test_hostile_hdf5",
    "test_label_studio_faults",
    "test_kill",
    "test_tokens",
    "test_storage",
    "test_kill_label_studio",
    "test_backup",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those of the order first, the others as they were."""
    order = ORDER_OF_LONG_TESTS if config.getoption("markexpr") == "faults" else ORDER
    ranks = {name: rank for rank, name in enumerate(order)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(order)))
