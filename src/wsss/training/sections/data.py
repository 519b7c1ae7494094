"""Which images a run learns from and is measured on."""

from .base import Section


class DataSection(Section):
    """Which lists of the image set are used."""

    train_split: str = "train"
    """List that every stage learns from and that gets pseudo labels."""
    val_split: str = "val"
    """List that measures the classifier and the segmenter; never learnt from."""
    figures_split: str = "train"
    """List on which CAMs, seeds and pseudo labels are measured, where it has masks; the training
    list where the image set has no such list."""
