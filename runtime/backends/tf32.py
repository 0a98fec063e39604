"""TensorFloat-32 kept out of fp32 graphs: it keeps 10 bits of a float32's 23, and this project's bounds are 1e-5.

Engines are built without it (export/engine_worker.py). onnxruntime's CUDA provider has an option, which does not reach
its recurrent layers: cuDNN chooses their arithmetic. NVIDIA's plugin has none. For these two there is NVIDIA's
environment variable, which cuBLAS, cuDNN and TensorRT-RTX read once, when the process first uses them.

https://docs.nvidia.com/deeplearning/cudnn/latest/ (NVIDIA_TF32_OVERRIDE)
"""

from __future__ import annotations

import logging
import os
import sys

_log = logging.getLogger(__name__)
VARIABLE = "NVIDIA_TF32_OVERRIDE"


def forbid_tf32() -> None:
    """Turn TF32 off for NVIDIA's libraries in this process.

    It warns where that is not so: a value that is already set stays, and comes too late where torch has used CUDA.
    """
    if VARIABLE not in os.environ and _torch_used_cuda():
        _log.warning(
            "torch has used CUDA in this process before %s=0 was set, which NVIDIA's libraries read only once, so fp32 "
            "graphs may compute in TF32: set it before the process starts, or open the graphs before torch uses CUDA",
            VARIABLE,
        )
    if os.environ.setdefault(VARIABLE, "0") != "0":
        _log.warning("%s=%s lets fp32 graphs compute in TF32: unset it, or set it to 0", VARIABLE, os.environ[VARIABLE])


def _torch_used_cuda() -> bool:
    """Whether torch, where the caller has imported it, holds a CUDA context."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    initialized = getattr(cuda, "is_initialized", None)  # None while torch is being imported
    return initialized is not None and bool(initialized())
