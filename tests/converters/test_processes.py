"""Logs of the services that `cellai up` starts."""

from pathlib import Path

import pytest

from converters import processes
from converters.processes import Children


def test_large_log_is_put_aside_when_its_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MAX_LOG_BYTES", 1000)
    children = Children(tmp_path)
    log = children.log("service")
    kept = log.with_name("service.log.1")
    for size, stays in ((1000, True), (1001, False), (2000, False)):
        log.write_bytes(b"x" * size)
        children.start("service", ["true"], {})
        children.stop()
        assert log.stat().st_size == (size if stays else 0)
        assert log.stat().st_mode & 0o777 == 0o600
        assert stays or kept.stat().st_size == size
    assert sorted(path.name for path in log.parent.iterdir()) == ["service.log", "service.log.1"]
