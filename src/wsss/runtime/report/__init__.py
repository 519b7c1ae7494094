"""What all report pages share: the page around them, its style, charts, texts."""
