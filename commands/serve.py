"""`chan serve`: answer searches of galleries over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options


@click.command("serve", short_help="Serve galleries over HTTP, with a page to search them.")
@click.argument("galleries", nargs=-1, required=True, metavar="[NAME=]GALLERY...")
@options.moved_bundle_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@options.backend_option
@options.threads_option
def command(galleries: tuple[str, ...], moved: Path | None, **flags: Any) -> None:
    """Serve GALLERIES that `chan index` made, and a page at / to search them.

    A gallery's name in the API is that of its folder, or NAME. docs/serve.md describes the API.
    """
    from ..runtime.extras import needs

    with needs("uvicorn", "chan serve"):
        from ..serve.logs import log_to_stderr
        from ..serve.server import serve
        from ..serve.settings import Settings, named_galleries

    settings = Settings(named_galleries(galleries), moved, **flags)
    log_to_stderr(settings.log)
    serve(settings)
