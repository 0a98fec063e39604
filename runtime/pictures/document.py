"""One HTML file that loads nothing else: the frame, the look and the components that all pages share. Needs jinja2."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ..extras import needs

STYLES = ("page.css", "hits.css")
SCRIPT = "components.js"


def render_document(
    template: str,
    title: str,
    values: Mapping[str, Any],
    *,
    package: str = __package__,
    kind: str = "",
    data: Mapping[str, Any] | None = None,
) -> str:
    """Render a page that extends `page.html`. Its policy lets no other style, script or address be used by it.

    Args:
        template: file name of the template in `package`.
        title: of the document.
        values: what the template shows; all of it is escaped unless the template marks it as safe.
        package: where the template lies; it can extend the templates of this package.
        kind: class of the page's main element.
        data: what the components draw: the names that `data-from` has in the template -> plain data.

    Raises:
        MissingExtra: jinja2 is missing.
    """
    with needs("jinja2", "writing a page"):
        import jinja2

    def load(name: str) -> str | None:
        for place in (package, __package__):
            file = resources.files(place).joinpath(name)
            if file.is_file():
                return file.read_text("utf-8")
        return None

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FunctionLoader(load)
    )
    style = "\n".join(asset(name) for name in STYLES)
    script = asset(SCRIPT) if data else ""
    page = environment.get_template(template).render(
        values,
        title=readable(title),
        kind=kind,
        style=style,
        script=script,
        data={name: embedded_json(value) for name, value in (data or {}).items()},
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
    )
    return readable(page.rstrip() + "\n")


def asset(name: str) -> str:
    """A file of this package's pages: a style or a module."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def readable(text: object) -> str:
    """Text that UTF-8 can hold: what a file name has besides is shown as escapes."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def embedded_json(value: Any) -> str:
    r"""JSON that may stand in a script element: `<`, `>` and `&` are written as `\u003c` and so on."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
