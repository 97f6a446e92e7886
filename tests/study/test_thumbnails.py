"""Pictures for figures come back from the store as they went in, in 8 bits."""

from __future__ import annotations

import numpy as np

from segproof.study.thumbnails import pack_picture, unpack_picture


def test_pictures_come_back() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((3, 8, 9), dtype=np.float32)
    truth = generator.random((8, 9)) > 0.5
    heat = generator.random((8, 9), dtype=np.float32)
    data = pack_picture(image, truth, ~truth, {("grad_cam", "decoder:1"): heat})
    back = unpack_picture("tile", data)
    np.testing.assert_allclose(back["image"], image, atol=0.5 / 255)
    np.testing.assert_array_equal(back["truth"], truth)
    np.testing.assert_array_equal(back["prediction"], ~truth)
    np.testing.assert_allclose(back["heatmaps"]["grad_cam", "decoder:1"], heat, atol=0.5 / 255)
