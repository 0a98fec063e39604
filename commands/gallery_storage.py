"""`chan gallery push` and `pull`: copy a gallery to object storage and back."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import echo, print_json, print_result, progress_bar, visible


@click.command("push", short_help="Copy a gallery to object storage.")
@options.gallery_argument
@click.argument("url", type=values.TEXT)
@click.option("--prune", is_flag=True, help="Remove what is stored of earlier commits.")
@options.json_option
def push(gallery: Path, url: str, prune: bool, as_json: bool) -> None:
    """Copy the newest commit of GALLERY to object storage at URL: s3://, gs://, az:// or file://.

    Only what is not there yet is sent, so the same command continues after an interruption and updates what is there.
    Whoever opens URL finds the commit before until all of the new one is there.
    """
    from ..scale import push_gallery

    with progress_bar("push", 0) as progress:
        done = push_gallery(gallery, url, prune=prune, progress=progress)
    if as_json:
        print_json({"url": url, **asdict(done)})
        return
    removed = f", {counted(done.removed, 'old piece')} removed" if prune else ""
    echo(
        f"{visible(url)}: {counted(done.rows, 'row')}, {done.bytes / 1e6:.1f} MB, {done.sent / 1e6:.1f} MB of it "
        f"new{removed}"
    )


@click.command("pull")
@click.argument("url", type=values.TEXT)
@options.out_option(values.NEW_FOLDER, "Folder of the new gallery.")
@options.json_option
def pull(url: str, out: Path, as_json: bool) -> None:
    """Copy the gallery at URL to the new folder OUT. Every byte is checked. The same command continues after an
    interruption.
    """
    from ..scale import pull_gallery

    with progress_bar("pull", 0) as progress:
        head = pull_gallery(url, out, progress=progress)
    text = f"{visible(out)}: {counted(head.rows, 'row')}, {head.size / 1e6:.1f} MB"
    print_result(out, as_json, text, url=url, rows=head.rows, bytes=head.size)
