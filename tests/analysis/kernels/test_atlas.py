"""Pictures of kernels: colours, places, and the page in a browser."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from dogmed.analysis.kernels.atlas import (
    CELLS,
    NEGATIVE,
    POSITIVE,
    Group,
    data_uri,
    draw_layer,
    mosaic,
    tint,
)
from dogmed.plots import save_figure


def test_a_kernel_has_the_colours_of_its_own_symmetric_scale() -> None:
    kernel = np.array([[-2.0, 0.0], [1.0, 4.0]])
    found = tint(kernel)
    assert found[1, 1].tolist() == [*POSITIVE, 255] and found[0, 1, 3] == 0
    assert found[0, 0].tolist() == [*NEGATIVE, 128] and found[1, 0].tolist() == [*POSITIVE, 64]
    assert np.array_equal(tint(1e-9 * kernel), found)
    assert not tint(np.zeros((3, 3)))[..., 3].any()


def test_a_pixel_of_the_embedded_picture_is_a_cell() -> None:
    kernel = np.random.default_rng(0).normal(size=(7, 7))
    data = base64.b64decode(data_uri(kernel).partition("base64,")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), tint(kernel))


def test_a_mosaic_has_every_kernel_at_its_place() -> None:
    kernels = np.zeros((5, 3, 3))
    kernels[4, 1, 1] = 1
    image = mosaic(kernels, 2)
    side, gap = 3 * CELLS, CELLS // 2
    assert image.shape == (3 * (side + gap) + gap, 2 * (side + gap) + gap, 3)
    ys, xs = np.nonzero((image == POSITIVE).all(-1))
    assert (ys.min(), ys.max()) == (
        gap + 2 * (side + gap) + CELLS,
        gap + 2 * (side + gap) + 2 * CELLS - 1,
    )
    assert (xs.min(), xs.max()) == (gap + CELLS, gap + 2 * CELLS - 1)


def test_a_layer_is_written_as_png_and_svg_with_the_same_bytes_again(tmp_path: Path) -> None:
    kernels = np.random.default_rng(0).normal(size=(9, 5, 5))
    groups = [Group("one", np.arange(6)), Group("two", np.arange(6, 9))]
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        figure = draw_layer(
            "title", [("before", -kernels), ("after", kernels)], groups, np.arange(9) == 7
        )
        written.append(save_figure(figure, tmp_path / name / "layer"))
    assert [path.name for path in written[0]] == ["layer.png", "layer.svg"]
    assert [p.read_bytes() for p in written[0]] == [p.read_bytes() for p in written[1]]
    assert Image.open(written[0][0]).width > 500
