"""Runs a command in this process, and takes the page that it writes apart."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from click.testing import CliRunner
from matplotlib.image import imread

from bigbatch.experiments.commands.main import cli

VOID = {"meta", "img", "link", "br", "hr", "input"}


def done(arguments: list[object]) -> str:
    """What a command prints that must go well."""
    result = CliRunner().invoke(cli, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@dataclass
class Page(HTMLParser):
    """What a page is made of."""

    links: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    cells: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""
    tags: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._row: list[str] = []

    @classmethod
    def read(cls, path: Path) -> "Page":
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        assert not page._open, f"never closed: {page._open}"
        return page

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.links += [value for name, value in attrs if name == "style"]
        if tag not in VOID:
            self._open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "tr":
            self._row = []
        if tag in ("th", "td"):
            self._row.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "tr":
            self.cells.setdefault(self._row[0].strip(), []).append(self._row[1:])

    def handle_data(self, data):
        if "style" in self._open:
            self.links.append(data)
        elif self._open:
            self.text += data
            if self._open[-1] in ("th", "td"):
                self._row[-1] += data


def check_alone(page: Page) -> None:
    """Nothing in it comes from elsewhere, and every image is a PNG with words for it."""
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    for link in page.links:
        assert link.startswith(("data:image/png;base64,", "#")) or not any(
            word in link for word in ("://", "url(", "@import", "//")
        ), link[:200]
    assert page.images
    for image in page.images:
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        pixels = imread(BytesIO(base64.b64decode(content, validate=True)), format="png")
        assert pixels.shape[:2] == (int(image["height"]), int(image["width"]))
        assert len(image["alt"]) > 20
