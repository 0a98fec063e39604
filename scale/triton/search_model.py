"""The model `chan_search`, as Triton's Python backend runs it: in a process of its own, one for each instance.

https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb  # in the process that Triton starts, only

from ...runtime.counts import counted
from ...runtime.cpus import usable_cpus
from ...runtime.errors import ChanError, InputError, MissingExtra, shortened
from ...runtime.gallery import Gallery
from ...runtime.session import open_matcher
from .configs import LIMITS, SEARCH_INPUTS
from .search import Limits, Request, Searcher


class TritonPythonModel:
    """Opens a gallery with the matcher of its bundle, and answers the requests that Triton has put together."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open what the configuration names; Triton has the model ready only then, and reports why not."""
        config = json.loads(args["model_config"])
        values = {name: value["string_value"] for name, value in config["parameters"].items()}
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        instances = sum(_instances(group) for group in config.get("instance_group", [])) or 1
        threads = max(1, usable_cpus() // instances)
        limits = Limits(*(int(values[name]) for name in LIMITS))
        self._opened = ExitStack()
        try:
            gallery = self._opened.enter_context(Gallery.open(_local(values["gallery"]), threads=threads))
            device = _device(args.get("model_instance_kind"), args.get("model_instance_device_id"))
            matcher = self._opened.enter_context(open_matcher(gallery, bundle, values["backend"], threads, device))
        except (ChanError, OSError) as error:
            self._opened.close()
            raise pb.TritonModelException(str(error)) from error
        self._place = str(gallery.path)
        self._searcher = Searcher(gallery, matcher, limits)
        rows, scan = len(gallery), gallery.scan
        pb.Logger.log_info(
            f"chan_search: {counted(rows, 'row')} of {self._place}, {matcher.backend}, {scan}, "
            f"{counted(threads, 'thread')}"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, each with its outputs or its error."""
        read = [self._read(request) for request in requests]
        self._searcher.run([one for one in read if one.error is None])
        return [self._respond(request, one) for request, one in zip(requests, read, strict=True)]

    def finalize(self) -> None:
        """Close what is open."""
        self._opened.close()

    # -- pieces

    def _read(self, request: Any) -> Request:
        try:
            found = {name: pb.get_input_tensor_by_name(request, name) for name, _, _ in SEARCH_INPUTS}
            tensors = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
            return self._searcher.read(tensors, request.parameters())
        except Exception as error:
            return Request(error=error)

    def _respond(self, request: Any, done: Request) -> Any:
        try:
            if done.error is not None:
                raise done.error
            outputs = self._searcher.write(done, request.requested_output_names())
            return pb.InferenceResponse([pb.Tensor(name, array) for name, array in outputs.items()])
        except Exception as error:
            return pb.InferenceResponse(error=self._error(error))

    def _error(self, error: Exception) -> Any:
        """What a client learns: what is wrong with its request, or that the model failed and its log has the reason."""
        if isinstance(error, InputError):
            return pb.TritonError(shortened(str(error)), pb.TritonError.INVALID_ARG)
        pb.Logger.log_error("".join(traceback.format_exception(error)))
        if isinstance(error, MissingExtra):
            return pb.TritonError(str(error), pb.TritonError.UNSUPPORTED)
        if isinstance(error, ChanError):
            return pb.TritonError(shortened(str(error).replace(self._place, "the gallery")), pb.TritonError.INTERNAL)
        return pb.TritonError("the model failed; the server's log has the reason", pb.TritonError.INTERNAL)


def _instances(group: Mapping[str, Any]) -> int:
    """How many instances a group of the configuration has: as many on each of its GPUs, where it names some."""
    return max(1, int(group.get("count", 1))) * max(1, len(group.get("gpus", [])))


def _device(kind: str | None, number: str | None) -> str:
    """The GPU of an instance's matcher: the one that Triton gives an instance of KIND_GPU, and else the first one."""
    return f"cuda:{int(number or 0)}" if kind == "GPU" else "cuda"


def _local(place: str) -> Path:
    """The folder of a gallery; of one in object storage, that of a copy in the cache."""
    if "://" not in place:
        return Path(place)
    from ..cache import cached_gallery

    return cached_gallery(place)
