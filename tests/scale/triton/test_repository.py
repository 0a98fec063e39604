"""`chan triton` writes a model repository, whole or not at all; `chan_search` answers apart from any server."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import io
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import Embeddings, Gallery, GalleryWriter, Manifest, Matcher, gallery_settings
from chan_rt.runtime.backends.sidecar import EngineRecord, InputRange, host_os
from chan_rt.runtime.contract import sha256_file
from chan_rt.runtime.errors import BundleError, EngineError, GalleryCorrupt, GalleryError, InputError
from chan_rt.scale import push_gallery
from chan_rt.scale.triton import Served, check_repository, write_repository
from chan_rt.scale.triton.configs import SEARCH_OUTPUTS, batch_symbol
from chan_rt.scale.triton.onnx_tensors import read_tensors
from chan_rt.scale.triton.pbtxt import Symbol, mapping, to_text
from chan_rt.scale.triton.search import Limits, Searcher

from ...run_chan import chan

GRAPHS = ["alignment_map", "backbone", "hard_alignment", "region_encoder", "text_encoder"]


@pytest.fixture(scope="module")
def gallery(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("triton") / "gallery"
    vectors = np.random.default_rng(0).standard_normal((50, 4, 16)).astype(np.float32)
    with GalleryWriter.create(path, gallery_settings(bundle)) as writer:
        rows = Embeddings(vectors, np.full(50, 4, np.int32))
        writer.add([f"row {row}" for row in range(50)], rows, [{"n": row, "path": "/private"} for row in range(50)])
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_message_as_text() -> None:
    message = {
        "name": 'a "quoted" \\ name\n\u00e9',
        "flag": True,
        "kind": Symbol("KIND_CPU"),
        "dims": [-1, 16],
        "empty": {},
        "part": [{"x": 1}, {"x": 2}],
        "parameters": mapping({"k": {"string_value": "v"}}),
    }
    assert to_text(message) == (
        'name: "a \\042quoted\\042 \\134 name\\012\\303\\251"\nflag: true\nkind: KIND_CPU\ndims: [-1, 16]\nempty {}\n'
        'part {\n  x: 1\n}\npart {\n  x: 2\n}\nparameters {\n  key: "k"\n  value {\n    string_value: "v"\n  }\n}\n'
    )


def test_the_graphs_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "out", served=Served(instances=2, queue=9))
    assert [model.name for model in written] == [f"chan_{graph}" for graph in GRAPHS]
    assert {model.backend for model in written} == {"onnxruntime"}
    assert [model.batch for model in written] == [0, 32, 0, 256, 256]  # the largest B of the manifest
    manifest = Manifest.load(bundle)
    for graph in GRAPHS:
        folder = tmp_path / "out" / f"chan_{graph}"
        spec = manifest.graph(graph, "fp32")
        assert sha256_file(folder / "1" / "model.onnx") == spec.sha256
        assert read_tensors(folder / "1" / "model.onnx") == (list(spec.inputs), list(spec.outputs))
        text = (folder / "config.pbtxt").read_text()
        assert "count: 2\n" in text
        assert ("max_queue_size: 9\n" in text) == (batch_symbol(spec) is not None)
    lengths = tmp_path / "out" / "chan_text_encoder" / "warmup" / "tuned-token_lengths"
    assert np.frombuffer(lengths.read_bytes(), np.int32).tolist() == [
        manifest.graph("text_encoder", "fp32").ranges["W"].opt
    ]


def test_the_search_of_a_gallery(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", gallery=gallery, gallery_place="/galleries/here")
    folder = tmp_path / "out" / "chan_search"
    text = (folder / "config.pbtxt").read_text()
    assert '"/galleries/here"' in text
    assert (
        folder / "warmup" / "caption"
    ).read_bytes() == b"\x01\x00\x00\x00a"  # text as Triton reads it: its length first
    assert str(gallery) not in text
    with Matcher.open(folder / "1" / "bundle") as copied, Matcher.open(bundle) as own:  # it needs nothing else
        assert np.array_equal(copied.encode_texts(["red"]).vectors, own.encode_texts(["red"]).vectors)
    write_repository(bundle, tmp_path / "default", gallery=gallery)
    assert str(gallery) in (tmp_path / "default" / "chan_search" / "config.pbtxt").read_text()


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_repository(bundle, tmp_path / name, gallery=gallery)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_only_a_repository_is_replaced(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_repository(bundle, out)  # an empty folder is taken
    before = files(out)
    with pytest.raises(InputError, match="already exists: choose another folder, or replace it and all changes"):
        write_repository(bundle, out)
    (out / "chan_search").mkdir()
    write_repository(bundle, out, force=True)
    assert files(out) == before
    assert not (out / "chan_search").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo.png").write_bytes(b"")
    with pytest.raises(InputError, match="exists and is not a repository of chan triton"):
        write_repository(bundle, other, force=True)
    assert [path.name for path in other.iterdir()] == ["photo.png"]


def test_what_fails_leaves_nothing(
    bundle: Path, gallery: Path, tmp_path: Path, make_small_model: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    other = make_small_model("THA").bundle
    failures: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (BundleError, "is not a bundle", lambda: write_repository(gallery, out)),
        (BundleError, "at precision 'fp16'", lambda: write_repository(bundle, out, precision="fp16")),
        (InputError, "backend must be one of", lambda: write_repository(bundle, out, backend="openvino")),
        (InputError, "instances must be positive, got 0", lambda: write_repository(bundle, out, served=Served(0))),
        (InputError, "instances must be at most", lambda: write_repository(bundle, out, served=Served(2**31))),
        (InputError, "queue must be at most", lambda: write_repository(bundle, out, served=Served(1, 2**32))),
        (
            InputError,
            r"must be UTF-8 text, .* got '/g\\udcff': .* --gallery-place",
            lambda: write_repository(bundle, out, gallery=gallery, gallery_place="/g\udcff"),
        ),
        (GalleryError, "is not a gallery", lambda: write_repository(bundle, out, gallery=tmp_path)),
        (GalleryError, "was made with another model", lambda: write_repository(other, out, gallery=gallery)),
        (EngineError, "no TensorRT engine of .* chan build", lambda: write_repository(bundle, out, backend="tensorrt")),
    ]
    for kind, message, write in failures:
        with pytest.raises(kind, match=message):
            write()
        assert list(tmp_path.iterdir()) == []


# -- TensorRT: engines cannot be built here, so files of the same form stand for them


def make_engines(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    (bundle / "engines").mkdir(exist_ok=True)
    for graph, forms in manifest.graphs.items():
        spec = forms["fp32"]
        data = f"engine of {graph}".encode()

        def profile(share: int, spec: Any = spec) -> dict[str, InputRange]:
            def shape(tensor: Any, bound: str) -> tuple[int, ...]:
                sizes = {symbol: getattr(sizes, bound) for symbol, sizes in spec.ranges.items()}
                head = tensor.shape[0]
                return tuple(
                    max(1, sizes[axis] // (share if axis == head else 1)) if isinstance(axis, str) else axis
                    for axis in tensor.shape
                )

            return {
                one.name: InputRange(*(shape(one, bound) for bound in ("min", "opt", "max"))) for one in spec.inputs
            }

        record = EngineRecord(
            key="k" * 64, graph=graph, precision="fp32", flavor="tensorrt", version="10.9.0", gpus=("sm_90",),
            os=host_os(), onnx_sha256=spec.sha256, engine_sha256="", engine_bytes=len(data),
            profiles=(profile(4), profile(2)), options={},
            layers={"source": "build log", "by_precision": {}, "matrix": {}, "each": []}, memory={}, build_seconds=0.0,
        )  # fmt: skip
        path = bundle / "engines" / f"{record.stem}.engine"
        path.write_bytes(data)
        record = dataclasses.replace(record, engine_sha256=sha256_file(path))
        path.with_suffix(".json").write_text(record.to_json())


@pytest.fixture
def with_engines(bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    for name, data in files(bundle).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    make_engines(copy)
    return copy


def test_engines_in_place_of_graphs(with_engines: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_repository(with_engines, out, backend="tensorrt")
    assert {model.backend for model in written} == {"tensorrt"}
    assert (out / "chan_text_encoder" / "1" / "model.plan").read_bytes() == b"engine of text_encoder"
    text = (out / "chan_text_encoder" / "config.pbtxt").read_text()
    assert "max_batch_size: 128\n" in text  # half of the manifest's 256: the largest of a profile
    assert "preferred_batch_size: [8, 16]\n" in text  # what the profiles are tuned for
    assert 'profile: ["0", "1"]\n' in text
    assert '"10.9.0"' in text
    assert '"sm_90"' in text
    if _has_client():
        checks = check_repository(out)
        assert [problem for check in checks for problem in check.problems] == []
        assert all("whether the server's GPU" in check.unchecked[0] for check in checks)


def _has_client() -> bool:
    return importlib.util.find_spec("tritonclient") is not None


def test_a_stale_or_damaged_engine_is_not_taken(with_engines: Path, tmp_path: Path) -> None:
    (engine,) = (with_engines / "engines").glob("text_encoder.*.engine")
    engine.write_bytes(b"engine of text_encodes")
    with pytest.raises(EngineError, match="is corrupt"):
        write_repository(with_engines, tmp_path / "out", backend="tensorrt")
    sidecar = engine.with_suffix(".json")
    sidecar.write_text(
        sidecar.read_text().replace(Manifest.load(with_engines).graph("text_encoder", "fp32").sha256, "0" * 64)
    )
    with pytest.raises(EngineError, match="no TensorRT engine of text_encoder at fp32"):
        write_repository(with_engines, tmp_path / "out", backend="tensorrt")
    assert not (tmp_path / "out").exists()


# -- the command


def run(*arguments: object) -> Any:
    return chan("triton", *arguments)


def test_the_command_writes_and_prints(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    done = run(bundle, "-o", tmp_path / "out", "--gallery", gallery)
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["model", "backend", "batch", "MB"]
    assert [line[0] for line in lines[1:-1]] == sorted([*(f"chan_{graph}" for graph in GRAPHS), "chan_search"])
    again = run(bundle, "-o", tmp_path / "out", "--gallery", gallery, "--force", "--json")
    models = json.loads(again.stdout)["models"]
    assert {model["name"]: model["batch"] for model in models}["chan_search"] == 64


def test_a_gallery_in_object_storage_is_named_by_its_address(
    bundle: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    monkeypatch.setenv("CHAN_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/stored"
    push_gallery(gallery, url)
    done = run(bundle, "-o", tmp_path / "out", "--gallery", url)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "chan_search" / "config.pbtxt").read_text()
    assert f'string_value: "{url}"' in text
    assert str(tmp_path / "cache") not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give BUNDLE and --out OUT, or --validate REPOSITORY"),
        (("BUNDLE",), "give --out OUT, the folder of the new model repository"),
        (("BUNDLE", "--validate", "BUNDLE"), "give BUNDLE or --validate, not both"),
        (("--validate", "BUNDLE", "--force"), "--force has no effect with --validate"),
        (("BUNDLE", "-o", "x", "--gallery-place", "/x"), "--gallery-place has no effect without --gallery"),
    ],
)
def test_options_that_exclude_each_other(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run(*(bundle if one == "BUNDLE" else one for one in arguments))
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.skipif(_has_client(), reason="tritonclient is installed")
def test_validating_names_its_extra(bundle: Path, tmp_path: Path) -> None:
    done = run("--validate", tmp_path)
    assert done.exit_code == 1
    assert "checking a model repository needs tritonclient: pip install 'chan-rt[triton-server]'" in done.output


# -- chan_search, in the place of Triton


@pytest.fixture
def searcher(gallery: Path, bundle: Path) -> Iterator[Searcher]:
    with Gallery.open(gallery) as opened, Matcher.open(bundle) as matcher:
        yield Searcher(opened, matcher, Limits(k=20, characters=30, pixels=100))


def texts(*values: str) -> np.ndarray:
    return np.array([[value.encode()] for value in values], object)


def test_requests_that_want_the_same_share_a_search(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[int] = []
    search = Gallery.search

    def counted(self: Gallery, queries: Embeddings, *args: Any, **how: Any) -> Any:
        searches.append(len(queries))
        return search(self, queries, *args, **how)

    monkeypatch.setattr(Gallery, "search", counted)
    wanted = ["", "", '{"k": 3}', '{"k": 3}', '{"where": "{\\"n\\": 1}"}']
    requests = [searcher.read({"caption": texts("red", "blue")}, parameters) for parameters in wanted]
    vectors = np.ones((1, 2, 16), np.float32)
    requests.append(searcher.read({"embedding": vectors}, ""))
    searcher.run(requests)
    assert sorted(searches) == [2, 4, 5]
    assert [len(one.results) for one in requests] == [2, 2, 2, 2, 2, 1]
    assert [len(one.results[0].hits) for one in requests] == [10, 10, 3, 3, 1, 10]


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_of_requests_is_answered_as_each_alone(gallery: Path, bundle: Path, seed: int) -> None:
    """Random batches of captions, pictures and embeddings, some of them wrong; `write` gives the same bits."""
    rng = np.random.default_rng(seed)
    words = ["red", "strawberry", "green", "apple", "blue", "table", "white", "clouds", "thing"]

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(0, 6)))

    def some() -> dict[str, np.ndarray]:
        count, kind = int(rng.integers(1, 4)), rng.integers(0, 3)
        if kind == 0:
            return {"caption": texts(*(text() for _ in range(count)))}
        if kind == 1:
            return {"picture": np.array([[png(rng)] for _ in range(count)], object)}
        shape = (count, int(rng.integers(1, 4)), int(rng.choice([16, 16, 16, 8])))
        return {"embedding": rng.standard_normal(shape).astype(np.float32)}

    def answer(searcher: Searcher, asked: list[tuple[dict[str, np.ndarray], str]]) -> list[Any]:
        found: list[Any] = []
        for tensors, parameters in asked:
            try:
                found.append(searcher.read(tensors, parameters))
            except InputError as error:
                found.append(str(error))
        sound = [one for one in found if not isinstance(one, str)]
        searcher.run(sound)
        outputs = [name for name, _, _ in SEARCH_OUTPUTS]
        return [
            one if isinstance(one, str) else str(one.error) if one.error else searcher.write(one, outputs)
            for one in found
        ]

    parameters = ["", '{"k": 1}', '{"k": 60}', '{"where": "{\\"n\\": {\\"$lt\\": 7}}"}', '{"where": "{\\"m\\": 1}"}']
    asked = [(some(), str(rng.choice(parameters))) for _ in range(40)]
    with Gallery.open(gallery) as opened, Matcher.open(bundle) as matcher:
        searcher = Searcher(opened, matcher, Limits())
        together = answer(searcher, asked)
        alone = [answer(searcher, [one])[0] for one in asked]
    assert 5 < sum(isinstance(one, str) for one in together) < 35
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, str):
            assert one == other
            continue
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert one[name].tolist() == other[name].tolist(), name


def png(rng: np.random.Generator) -> bytes:
    Image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_one_request_that_fails_does_not_fail_others(searcher: Searcher) -> None:
    narrow = np.ones((1, 2, 8), np.float32)
    requests = [searcher.read({"caption": texts("red")}, ""), searcher.read({"embedding": narrow}, "")]
    searcher.run(requests)
    assert requests[0].error is None
    assert len(requests[0].results) == 1
    assert "D must be this gallery's 16, got 8" in str(requests[1].error)


def test_outputs_are_padded(searcher: Searcher) -> None:
    request = searcher.read({"caption": texts("red", "a red apple")}, '{"k": 2}')
    searcher.run([request])
    found = searcher.write(request, ["words", "regions", "ids"])
    assert found.keys() == {"ids", "regions", "words"}
    assert found["words"].tolist()[0] == [b"<start>", b"red", b"<end>", b"", b""]
    assert found["regions"].shape == (2, 2, 5)
    assert (found["regions"][0, :, 3:] == -1).all()
    assert (found["regions"][0, :, :3] >= 0).all()


class FakeTriton(types.ModuleType):
    """What of Triton's module the model uses."""

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")
        self.logged: list[str] = []
        log = types.SimpleNamespace(log_info=self.logged.append, log_error=self.logged.append)
        self.Logger = log
        self.TritonModelException = type("TritonModelException", (Exception,), {})

    class TritonError:
        INVALID_ARG, INTERNAL, UNSUPPORTED = "invalid", "internal", "unsupported"

        def __init__(self, message: str, code: str) -> None:
            self.message, self.code = message, code

    @staticmethod
    def Tensor(name: str, array: Any) -> tuple[str, Any]:
        return name, array

    @staticmethod
    def InferenceResponse(outputs: Any = (), error: Any = None) -> Any:
        return types.SimpleNamespace(outputs=dict(outputs), error=error)

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        found = request.inputs.get(name)
        return None if found is None else types.SimpleNamespace(as_numpy=lambda: found)


@pytest.fixture
def fake_triton(monkeypatch: pytest.MonkeyPatch) -> FakeTriton:
    fake = FakeTriton()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.delitem(sys.modules, "chan_rt.scale.triton.search_model", raising=False)
    return fake


def asking(parameters: str = "", **inputs: Any) -> Any:
    return types.SimpleNamespace(
        inputs=inputs, parameters=lambda: parameters, requested_output_names=lambda: ["ids", "certified"]
    )


def open_model(
    bundle: Path, gallery: Path, out: Path, groups: tuple[dict, ...] = ({"count": 2},), **instance: str
) -> Any:
    from chan_rt.scale.triton.search_model import TritonPythonModel

    if not out.exists():
        write_repository(bundle, out, gallery=gallery)
    lines = (out / "chan_search" / "config.pbtxt").read_text().split('key: "')[1:]
    values = {line.partition('"')[0]: line.partition('string_value: "')[2].partition('"')[0] for line in lines}
    config = {
        "parameters": {name: {"string_value": value} for name, value in values.items()},
        "instance_group": list(groups),
    }
    model = TritonPythonModel()
    place = str(out / "chan_search")
    given = {"model_config": json.dumps(config), "model_repository": place, "model_version": "1"}
    model.initialize(given | {f"model_instance_{name}": value for name, value in instance.items()})
    return model


@pytest.mark.parametrize(
    ("instance", "device"),
    [
        ({}, "cuda"),
        ({"kind": "CPU", "device_id": "0"}, "cuda"),
        ({"kind": "GPU", "device_id": "0"}, "cuda:0"),
        ({"kind": "GPU", "device_id": "2"}, "cuda:2"),
    ],
)
@pytest.mark.usefixtures("fake_triton")
def test_an_instance_encodes_on_the_gpu_that_triton_gives_it(
    bundle: Path, gallery: Path, tmp_path: Path, instance: dict, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search_model = importlib.import_module("chan_rt.scale.triton.search_model")  # anew, as `fake_triton` left it
    asked: list[Any] = []
    real = search_model.open_matcher
    monkeypatch.setattr(search_model, "usable_cpus", lambda: 24)
    monkeypatch.setattr(search_model, "open_matcher", lambda *given: (asked.append(given[3:]), real(*given[:4]))[1])
    open_model(bundle, gallery, tmp_path / "out", ({"count": 2, "gpus": [0, 2]}, {"count": 4}), **instance).finalize()
    assert asked == [(3, device)], "2 instances on each of 2 GPUs and 4 others share the cores"


@pytest.mark.usefixtures("fake_triton")
def test_an_instance_on_a_gpu_that_is_not_there_says_so(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    from triton_python_backend_utils import TritonModelException

    with pytest.raises(TritonModelException, match="device cuda:77 is not there: CUDA shows"):
        open_model(bundle, gallery, tmp_path / "out", kind="GPU", device_id="77")


def test_the_model_answers_and_names_errors(
    fake_triton: FakeTriton, bundle: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(bundle, gallery, tmp_path / "out")
    assert "50 rows" in fake_triton.logged[0]
    good, bad, none = model.execute([asking(caption=texts("red")), asking(caption=texts("")), asking()])
    assert good.error is None
    assert good.outputs["ids"].shape == (1, 10)
    assert (bad.error.code, bad.error.message) == ("invalid", "captions[0] must hold at least one word, got ''")
    assert none.error.message == "a request must have one of caption, picture, embedding, got none"

    def broken(error: Exception) -> Any:
        def search(*args: Any, **how: Any) -> Any:
            raise error

        monkeypatch.setattr(Gallery, "search", search)
        (answer,) = model.execute([asking(caption=texts("red"))])
        return answer.error

    damaged = broken(GalleryCorrupt(f"{gallery}/segments: altered"))
    assert (damaged.code, damaged.message) == ("internal", "the gallery/segments: altered")
    fault = broken(ValueError("a secret"))
    assert (fault.code, fault.message) == ("internal", "the model failed; the server's log has the reason")
    assert "a secret" in fake_triton.logged[-1]
    long = broken(InputError("x" * 5000))
    assert len(long.message) < 1100
    model.finalize()


def test_a_model_that_cannot_open_says_why(
    fake_triton: FakeTriton, bundle: Path, gallery: Path, tmp_path: Path
) -> None:
    write_repository(bundle, tmp_path / "out", gallery=gallery, gallery_place=str(tmp_path / "gone"))
    with pytest.raises(fake_triton.TritonModelException, match="gone is not a gallery"):  # type: ignore[arg-type]
        open_model(bundle, gallery, tmp_path / "out")


def test_an_error_names_the_row_and_the_limit(searcher: Searcher) -> None:
    with pytest.raises(InputError, match=r"captions\[1\] must have at most 30 characters, got 45"):
        searcher.read({"caption": texts("red", "apple" * 9)}, "")
    with pytest.raises(InputError, match="k must be at most 20, got 21"):
        searcher.read({"caption": texts("red")}, '{"k": 21}')
