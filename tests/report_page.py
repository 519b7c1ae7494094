"""What every report page must be, whatever it shows."""

import base64
from html.parser import HTMLParser

from wsss.runtime.io.image_io import decode_image


class Page(HTMLParser):
    """Tags with their attributes, and the texts between them; checks that tags close."""

    VOID = ("meta", "img", "br", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(text: str) -> Page:
    """Parse a page and check what holds for every report."""
    assert "http://" not in text
    assert "https://" not in text
    page = Page(text)
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a", "b>"}
    for _, attributes in page.tags:
        assert not {"href", "srcset", "onload", "onerror"} & attributes.keys()
    for image in page.attributes("img"):
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        decoded = decode_image(base64.b64decode(source.split(",", 1)[1]), "embedded")
        assert [str(side) for side in decoded.shape[:2]] == [image["height"], image["width"]]
    assert "url(" not in text.split("</style>")[0].split("<style>")[1]
    return page
