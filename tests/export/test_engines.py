"""Engines are really built with TensorRT-RTX, which needs no GPU; the cache survives rivals, kills and damage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration.plan import to_int8
from chan_rt.calibration.ranges import TensorRange
from chan_rt.export import engine_process
from chan_rt.export.engine_layers import check_precision, from_build_log, from_inspector
from chan_rt.export.engines import BuildOptions, BuiltEngine, build_engine, find_target, plan
from chan_rt.runtime.backends import open_backend, open_graph
from chan_rt.runtime.backends.buckets import shape_of
from chan_rt.runtime.backends.device import CudaDevice
from chan_rt.runtime.backends.engine_staleness import find_engine
from chan_rt.runtime.backends.rtx_gpus import gpus_in_header
from chan_rt.runtime.backends.sidecar import EngineRecord, InputRange
from chan_rt.runtime.backends.table import FLAVORS
from chan_rt.runtime.backends.tensorrt import TensorRTBackend
from chan_rt.runtime.contract import AlignmentConfig, GraphSpec, Manifest, Range, TensorSpec, TokenizerSpec, sha256_file
from chan_rt.runtime.doctor import examine
from chan_rt.runtime.errors import BundleError, EngineError, InputError, quoted
from chan_rt.runtime.gallery.cuda.memory import Arena
from chan_rt.runtime.gpu import Gpu, GpuReport, examine_gpu

from ..run_chan import COMMAND, chan, ok

PRECISIONS = {"fp32": (TensorProto.FLOAT, "float32"), "fp16": (TensorProto.FLOAT16, "float16")}


def encoder(elem: int) -> onnx.ModelProto:
    """regions [B, R, 8] float32 -> a projection [B, R, 4] in `elem`, masked past region_lengths."""
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(helper.tensor_dtype_to_np_dtype(elem))
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array(0, weight.dtype), "nothing"),
    ]
    nodes = [
        helper.make_node("Cast", ["regions"], ["x"], to=elem),
        helper.make_node("MatMul", ["x", "weight"], ["projected"], name="encoder/project"),
        helper.make_node("Shape", ["regions"], ["R"], start=1, end=2),
        helper.make_node("Squeeze", ["R"], ["rows"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["index"]),
        helper.make_node("Cast", ["region_lengths"], ["lengths"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["lengths", "axis"], ["limits"]),
        helper.make_node("Less", ["index", "limits"], ["valid"]),
        helper.make_node("Unsqueeze", ["valid", "last"], ["mask"]),
        helper.make_node("Where", ["mask", "projected", "nothing"], ["region_embeddings"]),
    ]
    inputs = [
        helper.make_tensor_value_info("regions", TensorProto.FLOAT, ["B", "R", 8]),
        helper.make_tensor_value_info("region_lengths", TensorProto.INT32, ["B"]),
    ]
    outputs = [helper.make_tensor_value_info("region_embeddings", elem, ["B", "R", 4])]
    return model(nodes, inputs, outputs, constants)


def alignment(elem: int) -> onnx.ModelProto:
    """Best region per word, summed: two batch symbols in one graph."""
    nodes = [
        helper.make_node("Einsum", ["region_embeddings", "word_embeddings"], ["s"], equation="ird,cwd->icwr"),
        helper.make_node("ReduceMax", ["s", "last"], ["best"], keepdims=0),
        helper.make_node("Cast", ["best"], ["best32"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["best32", "words"], ["scores"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(np.array([3], np.int64), "last"),
        numpy_helper.from_array(np.array([2], np.int64), "words"),
    ]
    inputs = [
        helper.make_tensor_value_info("region_embeddings", elem, ["I", "R", 4]),
        helper.make_tensor_value_info("word_embeddings", elem, ["C", "W", 4]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["I", "C"])]
    return model(nodes, inputs, outputs, constants)


def model(nodes: list, inputs: list, outputs: list, constants: list) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def spec(path: Path, root: Path, dtypes: dict[str, str], ranges: dict[str, Range]) -> GraphSpec:
    def tensors(values) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(v.name, dtypes[v.name], tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim))
            for v in values
        )

    graph = onnx.load(path).graph
    file = path.relative_to(root).as_posix()
    return GraphSpec(file, sha256_file(path), 18, tensors(graph.input), tensors(graph.output), ranges)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with two small graphs in fp32 and fp16."""
    root = tmp_path / "bundle"
    graphs: dict[str, dict[str, GraphSpec]] = {"region_encoder": {}, "hard_alignment": {}}
    for precision, (elem, dtype) in PRECISIONS.items():
        folder = root / "graphs" / precision
        folder.mkdir(parents=True)
        onnx.save(encoder(elem), folder / "region_encoder.onnx")
        onnx.save(alignment(elem), folder / "hard_alignment.onnx")
        own = {"regions": "float32", "region_lengths": "int32", "region_embeddings": dtype}
        ranges = {"B": Range(1, 4, 16), "R": Range(1, 6, 10)}
        graphs["region_encoder"][precision] = spec(folder / "region_encoder.onnx", root, own, ranges)
        own = {"region_embeddings": dtype, "word_embeddings": dtype, "scores": "float32"}
        ranges = {"I": Range(1, 8, 32), "R": Range(1, 6, 10), "C": Range(1, 4, 8), "W": Range(1, 5, 9)}
        graphs["hard_alignment"][precision] = spec(folder / "hard_alignment.onnx", root, own, ranges)
    manifest = Manifest({"region_dim": 8, "embed_dim": 4}, AlignmentConfig(), graphs, TokenizerSpec("scan", {}))
    (root / "manifest.json").write_text(manifest.to_json())
    return root


@pytest.fixture
def build(bundle: Path) -> Callable[..., BuiltEngine]:
    """Build the fp16 region encoder of the bundle."""
    return lambda **more: build_engine(bundle, "region_encoder", "fp16", find_target("tensorrt_rtx"), **more)


def test_command_builds_every_graph_and_precision_then_finds_them_cached(bundle: Path) -> None:
    first = chan("build", bundle, "--json")
    assert first.exit_code == 0, first.output
    rows = json.loads(first.stdout)
    assert [row["cached"] for row in rows] == [False] * 4
    before = {row["path"]: Path(row["path"]).read_bytes() for row in rows}
    for graph in ("region_encoder", "hard_alignment"):
        for precision in PRECISIONS:
            path = find_engine(bundle, graph, precision, "tensorrt_rtx")
            record = EngineRecord.from_file(path.with_suffix(".json"))
            assert record.layers["source"] == "build log"
            assert bool(record.layers["by_precision"].get("Half")) == (precision == "fp16")
            if graph == "region_encoder":  # the alignment's product is so small that it became element-wise work
                assert set(record.layers["matrix"]) == {"Half" if precision == "fp16" else "Float"}
            assert record.memory["weight_bytes"] > 0 or graph == "hard_alignment"
            assert len(record.memory["activation_bytes"]) == len(record.profiles)
            assert record.gpus == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
            assert record.options["tf32"] is False
    assert "header" not in first.stderr
    second = ok("build", bundle)
    assert second.count("cached") == 4
    assert f"{bundle}: next, `chan bench {bundle} --backend tensorrt_rtx` on the GPU" in second
    assert {path: Path(path).read_bytes() for path in before} == before
    assert not list((bundle / "engines").glob(".*build*"))


def test_building_needs_no_torch() -> None:
    code = "import sys, chan_rt.export.engines, chan_rt.export.engine_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_default_profiles_have_each_batch_axis_at_one_and_the_whole_range(bundle: Path) -> None:
    chosen = {graph: profiles for graph, precision, profiles in plan(bundle, precisions=["fp32"])}
    assert [profile["regions"].max for profile in chosen["region_encoder"]] == [(1, 10, 8), (16, 10, 8)]
    shapes = [(p["region_embeddings"].max[0], p["word_embeddings"].max[0]) for p in chosen["hard_alignment"]]
    assert shapes == [(1, 8), (32, 1), (32, 8)]


def test_own_profiles_go_to_the_graphs_that_have_their_symbols(bundle: Path) -> None:
    chosen = plan(bundle, precisions=["fp16"], profiles=["C=1,I=2:4:8", "I=32"])
    profiles = {graph: own for graph, _, own in chosen}
    assert profiles["hard_alignment"][0]["word_embeddings"] == InputRange((1, 1, 4), (1, 5, 4), (1, 9, 4))
    assert profiles["hard_alignment"][1]["region_embeddings"] == InputRange((32, 1, 4), (32, 6, 4), (32, 10, 4))
    assert len(profiles["region_encoder"]) == 2


@pytest.mark.parametrize(
    ("profiles", "message"),
    [(["B=1:2"], "must read"), (["B=4:2:8"], "min <= opt"), (["B=1:4:64"], "1..16"), (["Z=1"], "fits no graph")],
)
def test_bad_profiles_are_refused(bundle: Path, profiles: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(bundle, profiles=profiles)


def test_an_int8_engine_multiplies_in_int8(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    graphs = {name: dict(by_precision) for name, by_precision in manifest.graphs.items()}
    path = bundle / "graphs/int8/region_encoder.onnx"
    path.parent.mkdir()
    ranges = {"x": TensorRange(-3.0, 3.0, -3.0, 3.0, 100, 0.0)}
    onnx.save(to_int8(encoder(TensorProto.FLOAT), ranges, "tensorrt", ()), path)
    file = path.relative_to(bundle).as_posix()
    graphs["region_encoder"]["int8"] = replace(graphs["region_encoder"]["fp32"], file=file, sha256=sha256_file(path))
    (bundle / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    built = build_engine(bundle, "region_encoder", "int8", find_target("tensorrt_rtx"))
    assert set(built.record.layers["matrix"]) == {"Int8"}


def test_int8_builds_what_a_matcher_would_run(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    graphs = {name: dict(by_precision) for name, by_precision in manifest.graphs.items()}
    graphs["region_encoder"]["int8"] = graphs["region_encoder"]["fp32"]
    changed = replace(manifest, graphs=graphs)
    (bundle / "manifest.json").write_text(changed.to_json())
    chosen = {graph: precision for graph, precision, _ in plan(bundle, precisions=["int8"])}
    assert chosen == {graph: changed.resolve(graph, "int8") for graph in graphs}
    assert chosen["region_encoder"] == "int8"


def test_unknown_graphs_precisions_and_backends_are_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="no graph 'text_encoder'"):
        plan(bundle, graphs=["text_encoder"])
    with pytest.raises(BundleError, match="it has fp16, fp32"):
        plan(bundle, precisions=["int8"])
    with pytest.raises(InputError, match="onnxruntime's own"):
        plan(bundle, precisions=["int8_x86"])
    with pytest.raises(InputError, match="backend must be one of"):
        find_target("onnxruntime")
    with pytest.raises(InputError, match="options of tensorrt"):
        find_target("tensorrt_rtx", BuildOptions(version_compatible=True))


def test_a_flavor_that_cannot_build_here_says_what_is_missing_and_what_would_work(monkeypatch) -> None:
    monkeypatch.setattr("chan_rt.runtime.backends.probe.installed_version", {"tensorrt_rtx": "1.7"}.get)
    missing = r"tensorrt is not installed; pip install 'chan-rt\[tensorrt\]'"
    if not examine_gpu().gpus:
        missing = "no usable GPU: .*; a machine with an NVIDIA GPU"
    with pytest.raises(EngineError, match=f"tensorrt cannot build here: {missing}.*--backend tensorrt_rtx builds here"):
        find_target("tensorrt")


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_bundle_whose_path_is_not_utf_8_is_built(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser itself opens paths in UTF-8 only; what reproduces a failure has the bytes of the path."""
    place = bundle.rename(bundle.with_name("caf\udce9 1"))
    built = build_engine(place, "region_encoder", "fp16", find_target("tensorrt_rtx"))
    assert find_engine(place, "region_encoder", "fp16", "tensorrt_rtx") == built.path
    monkeypatch.setattr(engine_process, "_WORKER", ("-c", "import os; os._exit(3)"))
    with pytest.raises(EngineError, match=r"reproduce with: sh \$'.*/caf\\xe9 1/engines/.*[.]sh'$") as caught:
        build_engine(place, "region_encoder", "fp32", find_target("tensorrt_rtx"))
    (script,) = (place / "engines").glob("*.reproduce.sh")
    assert quoted(script) in str(caught.value)
    assert os.fsencode(place / "graphs/fp32/region_encoder.onnx") in script.read_bytes()


def test_two_builders_at_once_build_once(bundle: Path) -> None:
    command = [*COMMAND, "build", str(bundle), "--json"]
    command += ["--graph", "region_encoder", "--precision", "fp32"]
    rivals = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [json.loads(rival.communicate()[0]) for rival in rivals]
    assert sorted(rows[0]["cached"] for rows in outputs) == [False, True]
    assert outputs[0][0]["path"] == outputs[1][0]["path"]


def test_kill_in_the_middle_leaves_a_usable_cache(bundle: Path, build: Callable[..., BuiltEngine]) -> None:
    program = (
        "import os, signal, sys\n"
        "from chan_rt.export.engines import build_engine, find_target\n"
        "die = lambda phase: os.kill(os.getpid(), signal.SIGKILL)\n"
        "build_engine(sys.argv[1], 'region_encoder', 'fp16', find_target('tensorrt_rtx'), progress=die)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(bundle)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(EngineError, match="no usable"):
        find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx")
    assert list((bundle / "engines").glob(".*build*"))  # what the dead builder left
    built = build()
    assert not built.cached
    assert find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx") == built.path
    assert not list((bundle / "engines").glob(".*build*"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(truncate, "truncated"), (corrupt, "corrupt"), (Path.unlink, "missing"), (garble, "cannot be understood")],
)
def test_damaged_engines_are_refused_and_built_again(
    bundle: Path, build: Callable[..., BuiltEngine], damage: Callable[[Path], None], reason: str
) -> None:
    good = build().path
    bytes_ = good.read_bytes()
    damage(good)
    with pytest.raises(EngineError, match=reason):
        find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx")
    again = build()
    assert not again.cached
    assert reason in (again.replaced or "")
    assert find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx").read_bytes() == bytes_


def test_of_engines_for_several_gpus_the_one_for_this_gpu_is_found(
    bundle: Path, build: Callable[..., BuiltEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build()
    record = EngineRecord.from_file(built.path.with_suffix(".json"))
    for number, gpu in enumerate(("sm_80", "sm_90")):
        made = replace(record, key=str(number) * 64, flavor="tensorrt", gpus=(gpu,))
        path = built.path.with_name(f"{made.stem}.engine")
        shutil.copy(built.path, path)
        path.with_suffix(".json").write_text(made.to_json())
    monkeypatch.setattr("chan_rt.runtime.backends.engine_staleness.installed_version", lambda flavor: record.version)

    def on(capability: tuple[int, int]) -> str:
        gpus = (Gpu("a GPU", capability, 1 << 30),)
        monkeypatch.setattr("chan_rt.runtime.backends.engine_staleness.examine_gpu", lambda: GpuReport(gpus))
        return EngineRecord.from_file(
            find_engine(bundle, "region_encoder", "fp16", "tensorrt").with_suffix(".json")
        ).gpus

    assert [on((8, 0)), on((9, 0))] == [("sm_80",), ("sm_90",)]
    with pytest.raises(EngineError, match=r"built for sm_90, this GPU is sm_89.*built for sm_80, this GPU is sm_89"):
        on((8, 9))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "1.0.0.1"}, "foreign: built by"),
        ({"os": "plan9-vax"}, "foreign: built on"),
        ({"onnx_sha256": "0"}, "stale"),
    ],
)
def test_foreign_and_stale_engines_are_refused_with_the_reason(
    bundle: Path, build: Callable[..., BuiltEngine], change: dict[str, str], reason: str
) -> None:
    built = build()
    sidecar = built.path.with_suffix(".json")
    sidecar.write_text(replace(built.record, **change).to_json())
    with pytest.raises(EngineError, match=rf"{reason}.*chan build .* --backend tensorrt_rtx --precision fp16"):
        find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx")
    again = build()
    assert not again.cached
    assert again.replaced is not None


@pytest.mark.parametrize("listed", [(80,), (86,), (89,), (120,), (121,), (80, 89), (80, 86, 89, 120, 121)])
def test_an_engines_header_names_the_gpus_it_was_built_for(listed: tuple[int, ...]) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network()
    given = network.add_input("x", trt.float32, (4, 8))
    added = network.add_elementwise(given, given, trt.ElementWiseOperation.SUM)
    network.mark_output(added.get_output(0))
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(listed)
    for index, number in enumerate(listed):
        assert config.set_compute_capability(trt.ComputeCapability(number), index)
    engine = bytes(builder.build_serialized_network(network, config))
    assert gpus_in_header(engine, trt) == tuple(f"sm_{number}" for number in listed)
    assert gpus_in_header(b"another" + engine, trt) is None


def test_an_fp32_engine_has_tf32_off(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TF32 on the engine differs, whatever the caller's environment says."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    built = build_engine(bundle, "region_encoder", "fp32", find_target("tensorrt_rtx"))
    sizes = [{n: {"min": s.min, "opt": s.opt, "max": s.max} for n, s in p.items()} for p in built.record.profiles]
    request = {"flavor": "tensorrt_rtx", "onnx": str(bundle / "graphs/fp32/region_encoder.onnx"), "profiles": sizes}
    script = bundle / "again.sh"
    text = engine_process.reproduce(request | {"options": built.record.options, "gpus": built.record.gpus})
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    del environment["NVIDIA_TF32_OVERRIDE"]

    def engine_by(text: str) -> bytes:
        script.write_text(text)
        subprocess.run(["sh", script], check=True, env=environment, cwd=bundle, capture_output=True)
        return (bundle / "engine").read_bytes()

    assert engine_by(text) == built.path.read_bytes()
    assert engine_by(text.replace("clear_flag", "set_flag")) != built.path.read_bytes()


def worker(change: str) -> tuple[str, str]:
    """The worker in its process, with a change of its module `w` made first."""
    start = "import sys\nfrom pathlib import Path\nfrom chan_rt.export import engine_worker as w\n"
    return "-c", f"{start}{change}\nw.main(Path(sys.argv[1]))"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "real = w._choose_gpus\nw._choose_gpus = lambda trt, settings, gpus: real(trt, settings, gpus[:2])",
            r"the engine was to run on sm_80, sm_86, sm_89, sm_120, sm_121, its header says sm_80, sm_86; reproduce",
        ),
        (
            "import tensorrt_rtx\ntensorrt_rtx.IBuilderConfig.clear_flag = lambda settings, flag: None",
            r"the builder did not turn TF32 off; reproduce",
        ),
    ],
)
def test_the_worker_refuses_an_engine_for_other_gpus_and_one_with_tf32(
    bundle: Path, build: Callable[..., BuiltEngine], monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    monkeypatch.setattr(engine_process, "_WORKER", worker(change))
    with pytest.raises(EngineError, match=message):
        build()
    assert not list((bundle / "engines").glob("*.engine"))
    monkeypatch.setattr(engine_process, "_WORKER", worker("pass"))
    build()


def test_a_header_of_an_unknown_form_is_warned_of(
    build: Callable[..., BuiltEngine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    change = "from chan_rt.runtime.backends import rtx_gpus\nrtx_gpus._MAGIC = b'next'"
    monkeypatch.setattr(engine_process, "_WORKER", worker(change))
    assert build().path.is_file()
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("the tensorrt_rtx engine of region_encoder at fp16: its header has a form that is not known")
    assert said.endswith("so nobody checked that it runs on sm_80, sm_86, sm_89, sm_120, sm_121")


def test_whatever_changes_an_engine_changes_its_key(bundle: Path, build: Callable[..., BuiltEngine]) -> None:
    target = find_target("tensorrt_rtx")
    first = build().record.key
    (_, _, profiles), *_ = plan(bundle, ["region_encoder"], ["fp16"], ["B=2"])
    other = build(profiles=profiles)
    assert other.record.key != first
    newest = find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx")
    assert newest == other.path
    time.sleep(0.01)
    assert build().cached  # asking for the first again makes it the newest
    assert find_engine(bundle, "region_encoder", "fp16", "tensorrt_rtx").name.endswith(f"{first[:16]}.engine")
    assert build_engine(bundle, "region_encoder", "fp16", replace(target, gpus=("sm_86",))).record.key != first


def test_engine_is_the_same_bytes_when_built_again(build: Callable[..., BuiltEngine]) -> None:
    first = build()
    data = first.path.read_bytes()
    first.path.unlink()
    assert build().path.read_bytes() == data


def test_a_graph_that_does_not_build_leaves_a_polygraphy_command_that_fails_too(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    path = bundle / "graphs/fp32/region_encoder.onnx"
    broken = onnx.load(path)
    broken.graph.node[1].op_type, broken.graph.node[1].domain = "NoSuchOperator", "nowhere"
    broken.opset_import.append(helper.make_opsetid("nowhere", 1))
    onnx.save(broken, path)
    graphs = {name: dict(by_precision) for name, by_precision in manifest.graphs.items()}
    graphs["region_encoder"]["fp32"] = replace(graphs["region_encoder"]["fp32"], sha256=sha256_file(path))
    (bundle / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    result = chan("build", bundle, "--graph", "region_encoder", "--precision", "fp32")
    assert result.exit_code == 1
    assert "NoSuchOperator" in result.output
    script = Path(result.output.strip().rpartition("sh ")[2])
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    rerun = subprocess.run(
        ["sh", script], check=False, env=environment, cwd=bundle.parent, capture_output=True, text=True
    )
    assert rerun.returncode != 0
    assert "NoSuchOperator" in rerun.stdout + rerun.stderr


def test_the_reproducing_command_builds_what_is_sound(bundle: Path, build: Callable[..., BuiltEngine]) -> None:
    built = build()
    request = {
        "flavor": "tensorrt_rtx",
        "onnx": str(bundle / "graphs/fp16/region_encoder.onnx"),
        "profiles": [
            {n: {"min": s.min, "opt": s.opt, "max": s.max} for n, s in p.items()} for p in built.record.profiles
        ],
        "options": built.record.options,
        "gpus": built.record.gpus,
    }
    script = bundle / "again.sh"
    script.write_text(engine_process.reproduce(request))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # what onnxruntime_cuda sets in its process would enter the engine's bytes
    environment = os.environ | {"NVIDIA_TF32_OVERRIDE": "0", "PATH": path}
    subprocess.run(["sh", script], check=True, env=environment, cwd=bundle, capture_output=True)
    assert (bundle / "engine").read_bytes() == built.path.read_bytes()


def test_graphs_that_differ_from_the_manifest_are_refused(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    path = bundle / "graphs/fp16/region_encoder.onnx"
    onnx.save(encoder(TensorProto.FLOAT), path)  # fp32 where the manifest promises fp16
    graphs = {name: dict(by_precision) for name, by_precision in manifest.graphs.items()}
    changed = replace(graphs["region_encoder"]["fp16"], sha256=sha256_file(path))
    graphs["region_encoder"]["fp16"] = changed
    (bundle / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    with pytest.raises(EngineError, match="its outputs are"):
        build_engine(bundle, "region_encoder", "fp16", find_target("tensorrt_rtx"))
    outputs = (replace(changed.outputs[0], dtype="float32"),)
    graphs["region_encoder"]["fp16"] = replace(changed, outputs=outputs)
    (bundle / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    with pytest.raises(EngineError, match="no Half tensor"):
        build_engine(bundle, "region_encoder", "fp16", find_target("tensorrt_rtx"))
    assert not list((bundle / "engines").glob("*.engine"))


def test_weights_in_other_files_are_refused(bundle: Path) -> None:
    path = bundle / "graphs/fp32/region_encoder.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, size_threshold=0, location="weights")
    manifest = Manifest.load(bundle)
    graphs = {name: dict(by_precision) for name, by_precision in manifest.graphs.items()}
    graphs["region_encoder"]["fp32"] = replace(graphs["region_encoder"]["fp32"], sha256=sha256_file(path))
    (bundle / "manifest.json").write_text(replace(manifest, graphs=graphs).to_json())
    uses: list[Callable[[], object]] = [
        lambda: build_engine(bundle, "region_encoder", "fp32", find_target("tensorrt_rtx")),
        lambda: open_graph("onnxruntime", bundle, Manifest.load(bundle), "region_encoder", "fp32"),
    ]
    for use in uses:
        with pytest.raises(BundleError, match=r"keeps the tensor .* in another file"):
            use()


INSPECTED = {
    "Layers": [
        {"Name": "a", "LayerType": "gemm", "Inputs": [{"Datatype": "Half"}], "Outputs": [{"Datatype": "Float"}]},
        {"Name": "b", "LayerType": "kgen", "Inputs": [{"Format/Datatype": "Row major linear FP32"}], "Outputs": []},
        {"Name": "c", "LayerType": "gemm", "Inputs": [{"Datatype": "Int8"}, {"Datatype": "Float"}], "Outputs": []},
        {"Name": "d", "LayerType": "shape_call", "Inputs": [], "Outputs": []},
    ]
}


def test_precision_is_read_from_both_inspector_formats() -> None:
    layers = from_inspector(INSPECTED)
    assert layers["by_precision"] == {"Half": 1, "Float": 1, "Int8": 1, "other": 1}
    assert layers["matrix"] == {"Half": 1, "Int8": 1}
    with pytest.raises(EngineError, match="without detailed profiling"):
        from_inspector({"Layers": ["only a name"]})
    with pytest.raises(EngineError, match="does not list"):
        from_build_log("nothing of use")


@pytest.mark.parametrize(
    ("precision", "counts", "matrix", "network", "message"),
    [
        ("fp32", {"Float": 3, "Half": 1}, {"Float": 1}, {"FLOAT": 3}, "lower precision"),
        ("fp16", {"Float": 3}, {"Float": 1}, {"HALF": 3}, "builder chose otherwise"),
        ("fp16", {"Float": 3, "Half": 2}, {"Float": 1}, {"HALF": 3}, "builder chose otherwise"),
        ("int8", {"Half": 3}, {"Half": 1}, {"HALF": 3}, "no Int8 tensor"),
    ],
)
def test_an_engine_without_its_precision_is_an_error(
    precision: str, counts: dict, matrix: dict, network: dict, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        check_precision(precision, {"by_precision": counts, "matrix": matrix}, network, "the engine")


def test_inspect_shows_bundles_engines_and_onnx_files(
    bundle: Path, build: Callable[..., BuiltEngine], tmp_path: Path
) -> None:
    engine = build().path

    def shown(path: Path, *more: str) -> str:
        return ok("inspect", path, *more)

    assert "region_embeddings float16[B, R, 4]" in shown(bundle)
    assert max(map(len, shown(bundle).splitlines())) <= 100
    assert "{" not in shown(bundle)
    assert json.loads(shown(bundle, "--json"))["engines"][0]["problem"] is None
    text = shown(engine)
    assert "Half 4, Float 2, other 2" in text or "Float 2, Half 4, other 2" in text
    assert "from the build log" in text
    assert "profile 1, scratch up to" in text
    assert "[1, 1, 8] | [4, 6, 8] | [16, 10, 8]" in text
    assert len(json.loads(shown(engine, "--json"))["layers"]["each"]) == 8
    onnx_file = bundle / "graphs/fp16/region_encoder.onnx"
    found = json.loads(shown(onnx_file, "--json"))
    assert found["weight_bytes"]["float16"] == 2 * (8 * 4 + 1)
    assert {"type": "MatMul", "precision": "float16", "count": 1} in found["nodes_by_type"]
    assert "regions float[B, R, 8]" in shown(onnx_file)
    truncate(engine)
    assert "truncated" in shown(bundle)
    garble(engine)
    assert "cannot be understood" in shown(bundle)
    with pytest.raises(EngineError, match="no usable tensorrt_rtx engine of region_encoder at fp32; run"):
        find_engine(bundle, "region_encoder", "fp32", "tensorrt_rtx")  # its neighbor's damage is not its own
    onnx_file.write_bytes(b"\xff" * 10)
    assert "altered" in shown(bundle)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for path, message in [
        (onnx_file, "not a readable ONNX file"),
        (empty, "not a readable ONNX file: it holds no graph"),
        (tmp_path, "path must be a checkpoint's or bundle's folder"),
    ]:
        result = chan("inspect", path)
        assert result.exit_code == 1
        assert message in result.output


def flavors_that_run_here() -> list[str]:
    return [report.name for report in examine().backends if report.name in FLAVORS and report.runs]


@pytest.mark.gpu
@pytest.mark.skipif(not flavors_that_run_here(), reason="no NVIDIA GPU with tensorrt or tensorrt_rtx")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("graph", ["region_encoder", "hard_alignment"])
def test_engines_agree_with_onnxruntime_on_the_gpu(bundle: Path, graph: str, precision: str) -> None:
    manifest = Manifest.load(bundle)
    spec = manifest.graph(graph, precision)
    rng = np.random.default_rng(0)
    for flavor in flavors_that_run_here():
        build_engine(bundle, graph, precision, find_target(flavor))
        engine = open_graph(flavor, bundle, manifest, graph, precision)
        reference = open_backend("onnxruntime", bundle / spec.file, spec)
        with engine, reference:
            for turn in range(12):  # the same sizes three times: plain, recorded, replayed
                sizes = {
                    symbol: (limits.min, limits.opt, limits.max)[turn % 3] for symbol, limits in spec.ranges.items()
                }
                feeds = {t.name: (rng.standard_normal(shape_of(t, sizes)) + 1).astype(t.dtype) for t in spec.inputs}
                expected = reference.run(feeds)
                tolerance = 1e-4 if precision == "fp32" else 2e-2
                for name, array in engine.run(feeds).items():
                    np.testing.assert_allclose(array, expected[name], rtol=tolerance, atol=tolerance)
            allocations = engine.allocations
            engine.run(feeds)
            assert engine.allocations == allocations
            sizes = {
                symbol: limits.max * 2 + 1 if symbol in "BI" else limits.opt for symbol, limits in spec.ranges.items()
            }
            feeds = {t.name: np.ones(shape_of(t, sizes), t.dtype) for t in spec.inputs}
            (output,) = spec.outputs
            assert engine.run(feeds)[output.name].shape == shape_of(output, sizes)
            for path in (bundle / "engines").glob("*.engine"):
                corrupt(path)
            with pytest.raises(EngineError, match="corrupt"):
                find_engine(bundle, graph, precision, flavor)


@pytest.mark.gpu
@pytest.mark.skipif(not flavors_that_run_here(), reason="no NVIDIA GPU with tensorrt or tensorrt_rtx")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensors_on_the_gpu_are_neither_copied_nor_changed(bundle: Path, precision: str) -> None:
    """`run_on_device` gives what `run` gives, into the caller's memory or its own; what it gives can be fed again."""
    spec = Manifest.load(bundle).graph("region_encoder", precision)
    rng = np.random.default_rng(0)
    device = CudaDevice()
    arena = Arena(device)
    for flavor in flavors_that_run_here():
        built = build_engine(bundle, "region_encoder", precision, find_target(flavor))
        with TensorRTBackend(flavor, built.path, spec) as backend:
            feeds = {"regions": rng.standard_normal((4, 6, 8)).astype(np.float32), "region_lengths": np.arange(1, 5)}
            feeds["region_lengths"] = feeds["region_lengths"].astype(np.int32)
            on_device = {}
            for name, array in feeds.items():
                address, on_device[name] = device.export(array.shape, array.dtype)
                arena.write(address, array)
            expected = backend.run(feeds)["region_embeddings"]
            address, mine = device.export(expected.shape, expected.dtype)
            for out in ({}, {"region_embeddings": mine}):
                found = backend.run_on_device(on_device, out)["region_embeddings"]
                at, shape, dtype = device.view(found, arena.stream)
                assert (shape, dtype) == (expected.shape, expected.dtype)
                values = arena.fetch("found", at, expected.size, dtype)
                arena.wait()
                np.testing.assert_array_equal(values.reshape(shape), expected)
            assert at == address, "the caller's own memory was filled"
            if flavor == "tensorrt":
                for _ in range(3):
                    np.testing.assert_array_equal(backend.run(feeds)["region_embeddings"], expected)
                assert backend.graphs >= 1, "sizes that come again are replayed"
    arena.close()
