"""TensorFloat-32 kept out of fp32 graphs: it keeps 10 bits of a float32's 23, and this project's bounds are 1e-5.

Engines are built without it (export/engine_worker.py). onnxruntime's CUDA provider has an option, which does not reach
its recurrent layers: cuDNN chooses their arithmetic. NVIDIA's plugin has none. For these two there is NVIDIA's
environment variable, which cuBLAS, cuDNN and TensorRT-RTX read once, when the process first uses them.

https://docs.nvidia.com/deeplearning/cudnn/latest/ (NVIDIA_TF32_OVERRIDE)
"""

from __future__ import annotations

import logging
import os

_log = logging.getLogger(__name__)
VARIABLE = "NVIDIA_TF32_OVERRIDE"


def forbid_tf32() -> None:
    """Turn TF32 off for NVIDIA's libraries in this process; a value that is already set stays, with a warning."""
    if os.environ.setdefault(VARIABLE, "0") != "0":
        _log.warning("%s=%s lets fp32 graphs compute in TF32: unset it, or set it to 0", VARIABLE, os.environ[VARIABLE])
