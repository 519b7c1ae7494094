"""Texts and figures as a page shows them."""

import re
from html import escape

# Controls, halves of surrogate pairs (bytes of a name that are not UTF-8), and what turns round
# the text that follows. Tabs and line ends stay.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Any text as HTML, also within quotes; what cannot be shown stands as Python writes it."""
    return escape(_UNSHOWABLE.sub(lambda found: ascii(found[0])[1:-1], text))


def format_number(value: float) -> str:
    """At most four figures, without trailing zeros."""
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:.0f}"


def format_count(count: int) -> str:
    """With commas between thousands."""
    return f"{count:,}"


def format_seconds(seconds: float) -> str:
    """A duration with its two largest units."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
