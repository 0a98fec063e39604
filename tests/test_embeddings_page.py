"""docs/embeddings.md runs as it stands, from top to bottom, in an empty folder."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chan_rt.runtime import Gallery

from .run_chan import chan

PAGE = Path(__file__).parent.parent / "docs" / "embeddings.md"
BLOCKS = re.findall(r"^```(python)?\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
DIM = 128


def vectors(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(len(lengths))
    made = [rng.standard_normal((length, DIM)) for length in lengths]
    return [(row / np.linalg.norm(row, axis=1, keepdims=True)).astype(np.float32) for row in made]


class ColBERT:
    """Stands for PyLate's model: `encode` returns a list of arrays [L, D]."""

    def __init__(self, model_name_or_path: str) -> None:
        self.name = model_name_or_path

    def encode(self, texts: list[str], is_query: bool) -> list[np.ndarray]:
        return vectors(*(32 if is_query else 3 + len(text.split()) for text in texts))


def colpali(attention_mask: torch.Tensor) -> torch.Tensor:
    """Stands for a ColPali model: unit vectors in bfloat16, and zeros where the mask is 0."""
    embeddings = torch.nn.functional.normalize(torch.randn(*attention_mask.shape, DIM, generator=torch.manual_seed(0)))
    return (embeddings * attention_mask[..., None]).bfloat16()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page takes for granted: PyLate, and a ColPali model with pictures."""
    monkeypatch.chdir(tmp_path)
    pylate = ModuleType("pylate")
    pylate.models = SimpleNamespace(ColBERT=ColBERT)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pylate", pylate)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    processor = SimpleNamespace(process_images=lambda pictures: {"attention_mask": mask})
    return {"processor": processor, "pictures": [], "model": colpali}


def test_every_block_runs(names: dict[str, Any]) -> None:
    model, printed = names["model"], {}
    for number, (language, block) in enumerate(BLOCKS):
        if language:
            if "process_images" in block:
                names["model"] = model
            exec(compile(block, f"{PAGE.name} block {number}", "exec"), names)
            continue
        for line in block.splitlines():
            result = chan(*shlex.split(line)[1:])
            assert result.exit_code == 0, (line, result.output)
            printed[line] = result.stdout
    assert "certified" in printed["chan search pages --embeddings questions.npz -k 3"]
    assert "exactly as they were added" in printed["chan gallery export pages -o out.safetensors"]
    with Gallery.open("pages") as pages, Gallery.open("again") as again:
        ids = [row.id for row in pages.rows()]
        assert [row.id for row in again.rows()] == ids
        np.testing.assert_array_equal(pages.embeddings(ids).vectors, again.embeddings(ids).vectors)
    assert (names["done"].added, names["done"].skipped) == (280, ())
    assert names["prepared"] is not None
    with Gallery.open("pages") as pages, Gallery.open("pages-again") as again:
        np.testing.assert_array_equal(pages.embeddings(ids).vectors, again.embeddings(ids).vectors)
        assert again.settings == pages.settings
        assert [row.metadata for row in again.find(["page-3"])] == [{"year": 2003}]
    assert all(result.certified and result.hits for result in names["results"])
    with Gallery.open("colpali") as gallery:
        assert gallery.lengths(["colpali/0", "colpali/1", "colpali/2"]).tolist() == [2, 4, 3]
    with Gallery.open("colbert") as gallery:
        assert gallery.lengths(["dog", "apples"]).tolist() == [6, 6]
