"""What does not fit is refused before any work, and the message says what would."""

from pathlib import Path

import pytest

from tasktok_edge.errors import UsageError
from tasktok_edge.export import TARGETS
from tasktok_edge.export.limits import FACTOR, check_fits, needed_bytes
from tasktok_edge.memory import GIB, measured

OFFICIAL = 1_655_000_000  # bytes of the 64-token model in fp32


def test_every_target_has_a_figure() -> None:
    assert FACTOR.keys() == TARGETS.keys()


def test_the_official_model_fits_into_24_gb_and_not_into_4(tmp_path: Path) -> None:
    for precision in ("fp32", "fp16"):
        check_fits(list(TARGETS), precision, OFFICIAL, tmp_path, 22 * GIB)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"executorch fp32 about .* would fit: --target openvino --precision fp32") as caught:
        check_fits(["executorch", "openvino"], "fp32", OFFICIAL, tmp_path, 4 * GIB)
    assert "openvino fp32 about" not in str(caught.value) and "executorch --precision" not in str(caught.value)


def test_nothing_fits_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing here"):
        check_fits(["onnx"], "fp16", OFFICIAL, tmp_path, 1 * GIB)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not enough room"):
        check_fits(["openvino"], "fp32", 1 << 55, tmp_path / "not" / "there", 1 << 60)


def test_a_small_model_always_fits() -> None:
    assert all(needed_bytes(t, p, 10_000_000) < 1.2 * GIB for t, factors in FACTOR.items() for p in factors)


def test_the_peak_of_a_block_is_seen() -> None:
    with measured() as before:
        pass
    with measured() as peak:
        held = bytearray(b"x") * (256 << 20)
    assert peak.bytes - before.bytes > 200 << 20 and len(held)
