"""`wsss.label_images`: bulk labelling from Python, by the path of a model."""

import pytest

import wsss
from wsss.errors import ArtifactError, ConfigError
from wsss.runtime.io.image_io import read_label_map


def test_label_images_takes_the_path_of_a_run(finished_run, tiny_images, tmp_path):
    image = tiny_images.samples[0].image_path
    summary = wsss.label_images(image, finished_run, tmp_path / "out", mode="cam", device="cpu")
    assert (summary.images, summary.labelled, summary.failed) == (1, 1, 0)
    (mask,) = (tmp_path / "out" / "masks").rglob("*.png")
    assert read_label_map(mask).shape == wsss.read_image(image).shape[:2]
    again = wsss.label_images(
        [image], str(finished_run), str(tmp_path / "out"), mode="cam", device="cpu"
    )
    assert (again.labelled, again.kept) == (0, 1)


def test_label_images_refuses_in_the_words_of_python(finished_run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="neither a bundle nor a run"):
        wsss.label_images("a", tmp_path, out)
    with pytest.raises(
        ConfigError, match=r"a run is computed by torch: .* for `backend` onnxruntime"
    ):
        wsss.label_images("a", finished_run, out, backend="onnxruntime")
    with pytest.raises(ConfigError, match="`min_confidence` is 2"):
        wsss.label_images("a", finished_run, out, min_confidence=2)
    with pytest.raises(ConfigError, match="`mode` segmenter takes no image-level labels"):
        wsss.label_images("a", finished_run, out, mode="segmenter", labels_path="labels.csv")
    assert not out.exists()
