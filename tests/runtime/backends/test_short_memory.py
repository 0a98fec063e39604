"""The words by which a lack of memory is recognized are those that real libraries use. That needs no GPU."""

import json
import subprocess
import sys

import pytest

from chan_rt.runtime.backends import device
from chan_rt.runtime.backends.onnxruntime_gpu import is_short_of_memory
from chan_rt.runtime.errors import BackendError, GpuMemoryError

# The CPU's arena is the GPU's: it is asked for 2^47 bytes, then for 4 MiB where 1 MiB is allowed, then for less than 0.
_ASK = """
import json
import numpy as np
import onnx
import onnxruntime as ort

size, filled = (onnx.helper.make_tensor_value_info(*of) for of in (("s", 7, [1]), ("y", 1, [None])))
node = onnx.helper.make_node("ConstantOfShape", ["s"], ["y"])
opset = onnx.helper.make_opsetid("", 17)
model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [size], [filled]), opset_imports=[opset])
model.ir_version = 8

def failure(count, options=None):
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        session.run(None, {"s": np.array([count])})
    except Exception as error:
        return str(error)

found = [failure(1 << 45)]
info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(info, ort.OrtArenaCfg({"max_mem": 1 << 20}))
options = ort.SessionOptions()
options.add_session_config_entry("session.use_env_allocators", "1")
print(json.dumps([*found, failure(1 << 20, options), failure(-1)]))
"""


def test_onnxruntimes_arena_says_what_is_looked_for() -> None:
    pytest.importorskip("onnx")
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True)
    failed, limited, other = json.loads(done.stdout)
    assert "AllocateRawInternal" in failed
    assert "AllocateRawInternal" in limited
    assert [is_short_of_memory(RuntimeError(text)) for text in (failed, limited, other)] == [True, True, False]


def test_cuda_says_what_is_looked_for() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    driver = pytest.importorskip("cuda.bindings.driver")
    error = runtime.cudaError_t
    texts = [runtime.cudaGetErrorString(each)[1].decode() for each in (error.cudaErrorMemoryAllocation, error(700))]
    short, other = (f"CUDA failure {code}: {text} ; GPU=0" for code, text in zip((2, 700), texts, strict=True))
    assert is_short_of_memory(RuntimeError(short))
    assert not is_short_of_memory(RuntimeError(other))
    for status in (error.cudaErrorMemoryAllocation, driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY):
        assert isinstance(device._error("", status.name), GpuMemoryError)
    assert type(device._error("", error.cudaErrorIllegalAddress.name)) is BackendError


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cublasCreate(&cublas_handle_);",
            True,
        ),
        ("CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=h", True),
        ("CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ; GPU=0 ; hostname=h", False),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h", False),
    ],
)
def test_names_of_cublas_and_cudnn_are_told_apart(text: str, short: bool) -> None:
    """As cuda_call.cc puts them, with the names of cuDNN 9."""
    assert is_short_of_memory(RuntimeError(text)) is short
