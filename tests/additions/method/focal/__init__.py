"""CAMs of a classifier that learns by the focal loss (Lin and others, ICCV 2017)."""
