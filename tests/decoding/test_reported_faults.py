"""Faults that others reported: this product reads those files right, and the document names each."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reported_faults import COLOUR, REPORTS, Report, colour_off, read_by_product, verdict
from tests.recordings.files import picture
from tests.recordings.kinds import KINDS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "recordings.md"
OWN = [report for report in REPORTS if report.make not in KINDS.values()]  # the kinds are read by their own test


@pytest.mark.parametrize("report", OWN, ids=[report.thread for report in OWN])
def test_a_file_as_reported_is_read_right(report: Report, tmp_path: Path) -> None:
    recording = report.make(tmp_path / "recording")
    assert verdict(read_by_product(recording.path, report.by), recording, report.by, report.tell).startswith("right")


@pytest.mark.parametrize("fault", ["range", "matrix"])
def test_colours_of_another_range_or_matrix_are_told_from_right_ones(fault: str) -> None:
    rgb = picture(0).astype(np.float64)
    luma = rgb @ [0.2126, 0.7152, 0.0722]
    blue, red = (rgb[..., 2] - luma) / 1.8556, (rgb[..., 0] - luma) / 1.5748
    if fault == "range":  # full taken for limited
        luma, blue, red = (luma - 16) * 255 / 219, blue * 255 / 224, red * 255 / 224
        of_red, of_green, of_blue = 1.5748 * red, -0.1873 * blue - 0.4681 * red, 1.8556 * blue
    else:  # BT.709 taken for BT.601
        of_red, of_green, of_blue = 1.402 * red, -0.3441 * blue - 0.7141 * red, 1.772 * blue
    wrong = np.stack([luma + of_red, luma + of_green, luma + of_blue], axis=-1)
    assert colour_off(np.clip(wrong, 0, 255).astype(np.uint8), 0) > COLOUR
    assert colour_off(picture(0), 0) == 0


def test_the_document_names_every_report_with_its_address() -> None:
    links = re.findall(r"^\| \[(\S+)\]\(https://github\.com/(\S+?)/(?:issues|pull)/(\d+)\)", DOCUMENT.read_text(), re.MULTILINE)
    assert [name for name, *_ in links] == [f"{repository}#{number}" for _, repository, number in links]
    assert [name for name, *_ in links] == [report.thread for report in REPORTS]
