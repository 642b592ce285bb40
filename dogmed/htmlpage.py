"""What our pages have around them: they fit a phone and ask for nothing from outside."""

from __future__ import annotations

from html import escape


def document(title: str, style: str, body: str, *, schemes: str = "light dark") -> str:
    """Put a page together.

    Args:
        title: text.
        style: the stylesheet.
        body: HTML.
        schemes: those of ``prefers-color-scheme`` that the stylesheet has colours for.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="{schemes}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""
