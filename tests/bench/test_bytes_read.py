from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from chan_rt.bench.bytes_read import main, points


def test_sizes_of_both_kinds_of_record_are_points() -> None:
    one = {"1000 images": {"rows": 1000, "share_of_int8": 0.5}, "bulk": []}
    grown = {"growth": [{"rows": 20, "share_of_int8": 0.9}, {"rows": 10, "share_of_int8": 1}]}
    assert points(one) == [(1000, 0.5)]
    assert points(grown) == [(10, 1.0), (20, 0.9)]


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"1000 images": {"rows": 1000, "share_of_int8": 0.5}}), encoding="utf-8")
    out = tmp_path / "figure.png"
    result = CliRunner().invoke(main, [str(record), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")
