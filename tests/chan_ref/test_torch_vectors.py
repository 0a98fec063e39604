"""Embeddings in files of torch.save: the same gallery as from numpy's files, and nothing but data."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chan_rt.chan_ref.torch_vectors import open_torch_vectors
from chan_rt.runtime.errors import ChanError
from chan_rt.runtime.gallery import Gallery

from ..run_chan import chan, ok

EMBEDDINGS = torch.randn(4, 6, 8, generator=torch.manual_seed(0))
LENGTHS = [6, 2, 1, 5]
RAGGED = [row[:length] for row, length in zip(EMBEDDINGS, LENGTHS, strict=True)]
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
FORMS: dict[str, tuple[Any, list[str]]] = {
    "a list": (RAGGED, ["x/0", "x/1", "x/2", "x/3"]),
    "a padded list": ([row * mask[:, None] for row, mask in zip(EMBEDDINGS, MASK, strict=True)], []),
    "a padded tensor": (EMBEDDINGS * MASK[..., None], []),
    "bfloat16 with a mask": ({"embeddings": EMBEDDINGS.bfloat16(), "attention_mask": MASK.long()}, []),
    "lengths and ids": ({"embeddings": EMBEDDINGS, "doclens": LENGTHS, "ids": list("abcd")}, list("abcd")),
    "names": (dict(zip("abcd", RAGGED, strict=True)), list("abcd")),
    "parameters": ([torch.nn.Parameter(row.half()) for row in RAGGED], []),
}


def index(folder: Path, *words: str) -> Any:
    arguments = ["index", "--embeddings", str(folder / "x.pt"), "-o", str(folder / "gallery"), *words]
    return chan(*arguments)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_gallery(tmp_path: Path, form: str) -> None:
    saved, ids = FORMS[form]
    torch.save(saved, tmp_path / "x.pt")
    result = index(tmp_path)
    assert result.exit_code == 0, result.output
    with Gallery.open(tmp_path / "gallery") as gallery:
        found = gallery.embeddings([row.id for row in gallery.rows()]).rows()
        assert ids in ([], [row.id for row in gallery.rows()])
    rounded = torch.float16 if form == "parameters" else torch.bfloat16 if "bfloat16" in form else torch.float32
    for row, kept in zip(RAGGED, found, strict=True):
        np.testing.assert_array_equal(row.to(rounded).float().numpy(), kept)
    ok("search", tmp_path / "gallery", "--embeddings", tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([], "must hold a tensor, a list of tensors [L, D], or a dictionary of tensors, got list"),
        ("text", "must hold a tensor, a list of tensors [L, D], or a dictionary of tensors, got str"),
        (EMBEDDINGS[0], "its tensor float32 [6, 8] can be one row of 6 vectors, or 6 rows of one vector: write it as"),
        (EMBEDDINGS[0, 0], "its tensor must be [N, L, D], got float32 [8]"),
        ([EMBEDDINGS], "tensor 0 must be floating-point numbers [L, D], got float32 [4, 6, 8]; join batches with"),
        ([EMBEDDINGS[0], EMBEDDINGS[0].char()], "tensor 1 must be floating-point numbers [L, D], got int8 [6, 8]"),
        ([EMBEDDINGS[0], "text"], "tensor 1 must be a tensor, got str"),
        ([torch.zeros(1).expand(10**9, 2)], "must be a plain tensor, got a view that is larger than its storage"),
        (torch._neg_view(EMBEDDINGS), "a tensor must be what its storage holds, got {'neg': True}: save its resolve"),
        ({"embeddings": EMBEDDINGS, "lengths": [9, 9, 9, 9]}, "lengths must be 4 integers up to 6"),
        ({1: EMBEDDINGS[0], "1": EMBEDDINGS[1]}, "two keys of its dictionary read '1': give each its own text"),
        (torch.nn.Linear(2, 2), "which is not data: refused, nothing was executed"),
    ],
)
def test_what_is_no_file_of_embeddings(tmp_path: Path, saved: Any, message: str) -> None:
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(ChanError) as caught:
        open_torch_vectors(tmp_path / "x.pt")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "x.pt"))


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps([1.0]))
    result = index(tmp_path)
    assert result.exit_code == 1
    assert "is a bare pickle" in result.output


def test_without_torch_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(RAGGED, tmp_path / "x.pt")
    monkeypatch.delitem(sys.modules, "chan_rt.chan_ref.torch_vectors", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = index(tmp_path)
    assert result.exit_code == 1
    assert f"reading {tmp_path / 'x.pt'} needs torch" in result.output
    assert "export" in result.output
