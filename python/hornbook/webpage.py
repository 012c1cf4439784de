"""The frame of every page that is made here: one file without scripts or outside references.

page("Quality filter", "<h1>...</h1>")
"""

from html import escape
from importlib.resources import files

_CSS = files("hornbook").joinpath("webpage.css").read_text(encoding="utf-8")


def page(title: str, body: str, css: str = "") -> str:
    """A page.

    Args:
        title: As text.
        body: As HTML.
        css: Rules beside those that all pages share.
    """
    return (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}{css}</style>\n"
        f"<main>\n{body}\n</main>\n</html>\n"
    )
