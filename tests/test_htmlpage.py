"""What pages have around them: a title is text, whatever is in it, and there is one head for all."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from dogmed.htmlpage import document


def test_a_title_is_text_and_the_body_is_html() -> None:
    found: list[tuple[str, str]] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append((self.get_starttag_text() or "", data.strip()))

    Reader().feed(document("a <b> & c", "p { color: red }", "<p>text</p>", schemes="light"))
    said = [pair for pair in found if pair[1]]
    assert said == [
        ("<title>", "a <b> & c"), ("<style>", "p { color: red }"), ("<p>", "text"),
    ]  # fmt: skip


def test_the_pages_of_analyses_and_report_have_one_head() -> None:
    root = Path(__file__).resolve().parents[1]
    rooms = [root / "dogmed", root / "finetune" / "report"]
    files = [f for room in rooms for kind in ("*.py", "*.html") for f in room.rglob(kind)]
    heads = {f.resolve() for f in files if "<!doctype" in f.read_text().lower()}
    assert heads - set((root / "finetune" / "tune").glob("*")) == {root / "dogmed" / "htmlpage.py"}
