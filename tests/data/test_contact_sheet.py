"""The contact sheet: a readable picture, and a clear word about a wrong suffix."""

from pathlib import Path

import cv2
import pytest

from tasktok_edge.data.contact_sheet import CAPTION_PX, CELL_PX, COLUMNS, contact_sheet
from tasktok_edge.errors import UsageError


def test_the_sheet_is_a_whole_number_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    contact_sheet(path, index=1)
    sheet = cv2.imread(str(path))
    assert sheet is not None
    assert sheet.shape[1] == COLUMNS * CELL_PX
    assert sheet.shape[0] % (CELL_PX + CAPTION_PX) == 0


def test_a_suffix_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        contact_sheet(tmp_path / "sheet.txt")
