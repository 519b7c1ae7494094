"""Draws docs/figures/demo.png from a demo: `python docs/build_figure.py demo_out`."""

import sys
from pathlib import Path

from wsss import read_image, read_image_set
from wsss.runtime.io.files import atomic_write_bytes
from wsss.runtime.io.image_io import read_label_map
from wsss.runtime.io.score_maps import load_score_maps
from wsss.runtime.report.pictures import contact_sheet, draw_heat, draw_labels, encode_png

IMAGES = 3


def main(demo: Path) -> None:
    run, images = demo / "run", read_image_set(demo / "data").select("train")
    rows = []
    # The images with most objects show best what the walk adds.
    for sample in sorted(images.samples, key=lambda s: -len(s.labels or ()))[:IMAGES]:
        image = read_image(sample.image_path)
        cam = load_score_maps(run / "cam" / "scores" / f"{sample.name}.npz")
        label_map = read_label_map(run / "labels" / f"{sample.name}.png")
        rows.append(
            (
                image,
                draw_heat(image, cam.scores),
                draw_labels(image, label_map),
                draw_labels(image, sample.load_mask()),
            )
        )
    target = Path(__file__).parent / "figures" / "demo.png"
    atomic_write_bytes(target, encode_png(contact_sheet(rows, tile=(160, 192))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
