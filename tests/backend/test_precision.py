"""The number format that a processor multiplies fastest."""

import pytest
import torch

from backend.precision import fastest_precision


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_processor_without_bfloat16_multiplies_float32(
    monkeypatch: pytest.MonkeyPatch, *, avx512: bool, amx: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fastest_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_graphics_card_without_bfloat16_multiplies_float32(
    monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool, expected: torch.dtype
) -> None:
    """Emulated bfloat16 does not count."""

    def is_supported(*, including_emulation: bool) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert fastest_precision(torch.device("cuda")) == expected
