"""What the GPU benchmark compares with finds what it should find, on the CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.bench import gpu_candidates, gpu_worker
from chan_rt.bench.gpu_candidates import Where
from chan_rt.bench.gpu_images import Case

ON_CPU = Where(None)


@pytest.mark.parametrize("how", ["float32", "float16", "int8", "peer"])
def test_torch_and_peers_by_words_as_queries_find_the_certified_top(
    case: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers' interface is played by what it is defined as: for each query the sum of its words' maxima."""
    import torch

    def peer(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        assert queries.shape[1:] == (1, 64)
        return torch.einsum("qwd,nrd->qnwr", queries, documents).amax(dim=3).sum(dim=2)

    monkeypatch.setitem(gpu_candidates._PEERS, "flash", lambda: peer)
    made = Case.load(case)
    options = {"precision": "float32", "peer": "flash"} if how == "peer" else {"precision": how}
    with gpu_candidates._torch(made.images, ON_CPU, **options) as candidate:
        assert gpu_worker.agreement(candidate, made) > (0.9 if how == "int8" else 0.99)


def test_a_peer_in_its_native_form_ranks_by_the_sum_of_maxima(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[tuple[int, ...]] = []

    def peer(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(queries.shape))
        return torch.einsum("qwd,nrd->qnwr", queries, documents).amax(dim=3).sum(dim=2)

    monkeypatch.setitem(gpu_candidates._PEERS, "flash", lambda: peer)
    made = Case.load(case)
    with gpu_candidates._torch(made.images, ON_CPU, precision="float32", peer="flash", native=True) as find:
        found = find(made.captions)
    assert asked == [(6, 4, 64)], "whole captions"
    regions = np.concatenate([made.images.fine(part) for part in made.images.parts]).reshape(30, 4, 64)
    for caption, rows in zip(made.captions, found, strict=True):
        scores = np.einsum("wd,nrd->nwr", caption, regions.astype(np.float32)).max(axis=2).sum(axis=1)
        assert sorted(rows) == sorted(np.argsort(-scores)[:10])


def test_compiled_at_max_autotune_pytorch_finds_the_certified_top(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph is taken and run as it is: compiling it needs a GPU, or minutes."""
    import torch

    compiled, modes = torch.compile, []

    def compile_eagerly(function: Callable, mode: str) -> Callable:
        modes.append(mode)
        return compiled(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    made = Case.load(case)
    with gpu_candidates._torch(made.images, ON_CPU, precision="float32", compiled=True) as find:
        assert gpu_worker.agreement(find, made) > 0.99
    assert modes == ["max-autotune-no-cudagraphs"]
