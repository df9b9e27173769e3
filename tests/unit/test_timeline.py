"""The picture of a run."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from daemon import timeline


@pytest.mark.parametrize(
    ("tasks", "masks", "switches"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], [0, 2]),
        ([0, 1, 2], [0, None, None], [0]),
        ([0], [None], []),
        (list(range(40)), list(range(40)), list(range(40))),
    ],
    ids=["plain", "some not trained", "none trained", "many"],
)
def test_it_is_a_png_whatever_happened(
    tmp_path: Path, tasks: list[int], masks: list[int | None], switches: list[int]
) -> None:
    path = tmp_path / "timeline.png"
    timeline.draw(path, tasks, masks, switches, "a title")
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1000
    assert np.ptp(picture) > 0.5, "something is drawn"


def test_a_wrong_mask_changes_the_picture(tmp_path: Path) -> None:
    pictures = []
    for masks in ([0, 0, 1, 1], [0, 0, 1, 0]):
        timeline.draw(tmp_path / "one.png", [0, 0, 1, 1], masks, [], "same title")
        pictures.append((tmp_path / "one.png").read_bytes())
    assert pictures[0] != pictures[1]
