"""A small gallery of the GPU benchmark."""

from pathlib import Path

import pytest

from chan_rt.bench.gpu_images import make_case


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of 4 regions of 64-d, 6 captions of 4 words."""
    folder = tmp_path_factory.mktemp("case")
    make_case(folder, 30, 6, 4, 4, 64)
    return folder
