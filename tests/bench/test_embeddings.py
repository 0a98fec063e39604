"""The comparison of late interaction libraries counts what it says, on small data."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from chan_rt.bench import embeddings
from chan_rt.bench.docstrings import docstrings

RNG = np.random.default_rng(5)
DOCUMENTS = [RNG.standard_normal((length, 8)).astype(np.float32) for length in RNG.integers(1, 6, 40)]
QUERIES = [RNG.standard_normal((3, 8)).astype(np.float32) for _ in range(6)]


def test_of_equal_scores_any_is_right() -> None:
    scores = np.array([5.0] * 8 + [4.0, 3.0, 3.0, 2.0])
    assert embeddings.right([*range(9), 9], scores) == 10
    assert embeddings.right([*range(9), 10], scores) == 10
    assert embeddings.right([*range(9), 11], scores) == 9
    assert embeddings.right([0] * 10, scores) == 1


def test_scores_are_maxsim_in_float64() -> None:
    expected = [(QUERIES[0].astype("f8") @ row.astype("f8").T).max(1).sum() for row in DOCUMENTS]
    np.testing.assert_allclose(embeddings.true_scores(DOCUMENTS, QUERIES[0]), expected, rtol=1e-14)


def test_a_record_has_every_candidate_and_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worst(documents: embeddings.Rows, folder: Path, fit: embeddings.Rows) -> embeddings.Index:
        return embeddings.Index(lambda query: np.argsort(embeddings.true_scores(documents, query))[:10].tolist(), 7)

    monkeypatch.setitem(embeddings.PEERS, "colbandit", ("numpy", worst))
    monkeypatch.setitem(embeddings.PEERS, "lancedb, flat", ("no_such_library", worst))
    for name, rows in (("documents", DOCUMENTS), ("queries", QUERIES)):
        np.savez(tmp_path / name, embeddings=np.concatenate(rows), lengths=[len(row) for row in rows])
    names = ("chan, exact and certified", "torch float32, packed", "colbandit", "lancedb, flat")
    arguments = [str(tmp_path / "documents.npz"), str(tmp_path / "queries.npz"), "-o", str(tmp_path / "record.json")]
    result = CliRunner().invoke(embeddings.main, [*arguments, *(word for name in names for word in ("--peer", name))])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["documents"] == {"rows": 40, "vectors": sum(map(len, DOCUMENTS)), "dim": 8, "queries": 4}
    found = record["measured"]
    for name in names[:2]:
        assert (found[name]["recall"], found[name]["wrong"]) == (1, 0)
    assert (found["colbandit"]["recall"], found["colbandit"]["wrong"], found["colbandit"]["bytes"]) == (0, 4, 7)
    assert record["not_measured"] == {"lancedb, flat": "ModuleNotFoundError: No module named 'no_such_library'"}


def test_docstrings_are_summaries_with_their_bodies(tmp_path: Path) -> None:
    body = "one two three four five six seven eight nine ten\n    eleven twelve"
    (tmp_path / "a.py").write_text(f'def f():\n    """Do it.\n\n    {body}\n    """\n\ndef g():\n    """Short."""\n')
    (tmp_path / "b.py").write_text("not python (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text((tmp_path / "a.py").read_text())
    assert list(docstrings(tmp_path)) == [("Do it.", " ".join(body.split()))]
