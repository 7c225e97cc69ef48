"""A page as one HTML file: the template, its policy, and nothing from outside."""

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from ...common.protocol.messages import package_version
from .parts import Page
from .pictures import able


def html(page: Page) -> str:
    """Return a page as HTML.

    Everything but the pictures, which `pictures` has escaped, is escaped by the template.
    The page's own policy allows its one style sheet, by hash, and no script, picture,
    font or address.
    """
    style = _text("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    footer = (
        f"Written by idiolect {package_version()} from the files of the run or study."
    )
    if not able():
        footer += " It has no pictures, since matplotlib was not installed."
    return _template().render(
        page=page, style=_Plain(style), policy=policy, footer=footer
    )


class _Plain(str):
    """Text of our own that is written as it is: a style sheet has no entities."""

    def __html__(self) -> str:
        return str(self)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    return (files(__package__ or "") / name).read_text(encoding="utf-8").strip()
