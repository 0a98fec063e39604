"""`chan explain`: which part of a picture each word of a caption chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..runtime.explanation import Explanation


@click.command("explain", short_help="Show which part of a picture each word of a caption chose.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("caption")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Draw it to this .png or .jpg file.")
@click.option("--backend", default="auto", show_default=True, help="auto, or a name that `chan doctor` lists.")
@click.option("--precision", default="fp32", show_default=True, help="Of the bundle's graphs.")
@click.option("--json", "as_json", is_flag=True, help="Print the words as JSON.")
def command(
    bundle: Path, image: Path, caption: str, out: Path | None, backend: str, precision: str, as_json: bool
) -> None:
    """Score IMAGE with CAPTION and show each word's region, their similarity and its share of the score."""
    from ..runtime.errors import InputError
    from ..runtime.matcher import Matcher

    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise InputError(f"out must end in .png or .jpg, got {out}")
    with Matcher.open(bundle, backend, precision) as matcher:
        explanation = matcher.explain(matcher.encode_pictures([image]), caption)
    if out is not None:
        _draw(image, caption, explanation, out)
    if as_json:
        click.echo(json.dumps({"image": str(image), "caption": caption, **explanation.to_dict()}, ensure_ascii=False))
        return
    click.echo(f"score {explanation.score:.4f}")
    width = max(len(match.word) for match in explanation.words)
    click.echo(f"{'word':<{width}}  region  similarity  share")
    for match in explanation.words:
        place = str(match.region)
        if explanation.grid is not None:
            place = "{},{}".format(*divmod(match.region, explanation.grid))
        click.echo(f"{match.word:<{width}}  {place:>6}  {match.similarity:>10.4f}  {match.share:>5.1%}")
    if out is not None:
        click.echo(f"drawn to {out}")


def _draw(image: Path, caption: str, explanation: Explanation, out: Path) -> None:
    from ..runtime.files import atomic_file
    from ..runtime.pictures.draw import draw_explanation

    sheet = draw_explanation(image, caption, explanation)
    with atomic_file(out) as beside:
        sheet.save(beside)
