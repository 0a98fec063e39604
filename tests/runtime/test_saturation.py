"""int8 on an x86 without VNNI is exact or refused, never wrong: run on the Haswell that qemu emulates.

qemu-user is in Debian's and Ubuntu's package qemu-user; `.ci/run` installs it.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from chan_rt.calibration.calibrate import calibrate
from chan_rt.calibration.feeds import Samples
from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.export.int8 import add_int8
from chan_rt.runtime import onnx_session
from chan_rt.runtime.contract import Manifest, sha256_file, write_manifest
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.onnx_session import open_session
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

QEMU = shutil.which("qemu-x86_64")
HASWELL = (QEMU or "", "-cpu", "Haswell-noTSX")
under_qemu = pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64", reason="qemu-x86_64 is missing: apt-get install qemu-user"
)
WORDS = [f"w{index}" for index in range(30)]
NUMPY = {TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}
FORMS = ("constant", "input", "pair", "body", "around", "activations", "no zero", "pair, no zero")
REFUSED = ("input", "around", "no zero", "pair, no zero")
RUN = """
import json, sys
import numpy as np
from chan_rt.runtime.matcher import Matcher
folder, captions, rows = sys.argv[1], json.loads(sys.argv[2]), np.load(sys.argv[3])
for precision in ("fp32", "int8", "int8_x86"):
    try:
        with Matcher.open(folder, backend="onnxruntime", precision=precision, threads=1) as matcher:
            images, texts = matcher.encode_images(rows), matcher.encode_texts(captions)
            np.savez(f"{sys.argv[4]}.{precision}.npz", images=images.vectors, texts=texts.vectors)
    except Exception as error:
        print(precision, type(error).__name__, error)
"""


def _product(form: str, left: int, right: int) -> onnx.ModelProto:
    """y [1, 16] = x [1, 64] times 64 x 16 of the largest int8 or uint8; `form` says where the weight is."""
    weight = np.full((64, 16), np.iinfo(NUMPY[right]).max, NUMPY[right])
    kind, shape = TensorProto.FLOAT, [1, 64]
    inputs = [helper.make_tensor_value_info("x", kind, shape)]
    zero = {kind: NUMPY[kind](0) for kind in NUMPY}
    constants = {"w": weight, "s": np.float32(1), "zx": zero[left]}
    constants |= {"sw": np.ones(16, np.float32), "zw": np.zeros(16, NUMPY[right])}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    if form == "pair, no zero":
        del nodes[2].input[2], constants["zw"]
    if form in ("constant", "input", "no zero"):
        constants["z"] = zero[right]
        operands = ["xq", "w"] if form == "no zero" else ["xq", "w", "zx", "z"]
        nodes[1:] = [
            helper.make_node("MatMulInteger", operands, ["n"]),
            helper.make_node("Cast", ["n"], ["y"], to=1),
        ]
    if form == "input":
        inputs.append(helper.make_tensor_value_info("w", right, [64, 16]))
        del constants["w"]
    if form == "activations":  # both operands are computed
        inputs.append(helper.make_tensor_value_info("v", kind, [64, 16]))
        nodes[2:3] = [
            helper.make_node("QuantizeLinear", ["v", "s", "zv"], ["vq"]),
            helper.make_node("DequantizeLinear", ["vq", "s", "zv"], ["wd"]),
        ]
        constants["zv"] = zero[right]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    output = helper.make_tensor_value_info("y", kind, [1, 16])
    if form in ("body", "around"):  # of a Scan: the weight inside it, or in the graph around it
        state = [helper.make_tensor_value_info(name, kind, [1]) for name in ("before", "after")]
        nodes.append(helper.make_node("Identity", ["before"], ["after"]))
        inside, outside = (initializers, []) if form == "body" else ([], initializers)
        body = helper.make_graph(nodes, "body", [state[0], inputs[0]], [state[1], output], inside)
        nodes = [helper.make_node("Scan", ["first", "xs"], ["last", "ys"], body=body, num_scan_inputs=1)]
        inputs = [helper.make_tensor_value_info("xs", kind, [1, *shape])]
        output = helper.make_tensor_value_info("ys", kind, [1, 1, 16])
        initializers = [*outside, numpy_helper.from_array(np.zeros(1, np.float32), "first")]
    graph = helper.make_graph(nodes, "graph", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _is_exact(serialized: bytes, left: int, right: int) -> bool:
    top, weight = (float(np.iinfo(NUMPY[kind]).max) for kind in (left, right))
    session = open_session(serialized, threads=1)
    feeds = {item.name: np.full(item.shape, top, np.float32) for item in session.get_inputs()}
    if "w" in feeds:
        feeds["w"] = np.full((64, 16), weight, NUMPY[right])
    if "v" in feeds:
        feeds["v"] = np.full((64, 16), weight, np.float32)
    return bool((session.run(None, feeds)[0] == top * weight * 64).all())


CASES = [
    (form, left, right)
    for form in FORMS
    for left, right in ((TensorProto.UINT8, TensorProto.INT8), (TensorProto.INT8, TensorProto.INT8))
]


@pytest.mark.parametrize(("form", "left", "right"), CASES)
def test_products_are_exact_or_refused_on_this_machine(form: str, left: int, right: int) -> None:
    serialized = _product(form, left, right).SerializeToString()
    with_option, without = onnx_session.products_are_exact(onnx_session.import_onnxruntime("this test"))
    if without or (with_option and form not in REFUSED):
        assert _is_exact(serialized, left, right)
    else:
        with pytest.raises(BackendError, match="saturate on this CPU"):
            open_session(serialized, threads=1)


@under_qemu
def test_products_are_exact_or_refused_without_vnni(tmp_path: Path) -> None:
    for index, (form, left, right) in enumerate(CASES):
        (tmp_path / f"{index}.onnx").write_bytes(_product(form, left, right).SerializeToString())
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from chan_rt.runtime.onnx_session import open_session\n"
        "for name, top, other, kind in eval(sys.argv[3]):\n"
        "    try:\n"
        "        session = open_session((Path(sys.argv[2]) / name).read_bytes(), threads=1)\n"
        "    except Exception as error:\n"
        "        print('refused' if 'saturate on this CPU' in str(error) else type(error).__name__)\n"
        "        continue\n"
        "    feeds = {item.name: np.full(item.shape, top, np.float32) for item in session.get_inputs()}\n"
        "    feeds |= {n: np.full((64, 16), other, kind if n == 'w' else np.float32) for n in feeds if n in 'wv'}\n"
        "    print('exact' if (session.run(None, feeds)[0] == top * other * 64).all() else 'wrong')\n"
    )
    top = {TensorProto.UINT8: 255.0, TensorProto.INT8: 127.0}
    cases = [(f"{i}.onnx", top[left], top[right], NUMPY[right].__name__) for i, (_, left, right) in enumerate(CASES)]
    command = [*HASWELL, sys.executable, "-c", code, str(tmp_path), str(tmp_path), repr(cases)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    found = dict(zip(CASES, result.stdout.split("\n"), strict=False))
    assert len(found) == len(CASES)
    if found["constant", TensorProto.INT8, TensorProto.INT8] == "NotImplemented":  # onnxruntime 1.22
        del found["constant", TensorProto.INT8, TensorProto.INT8]
    assert found == {case: "refused" if case[0] in REFUSED else "exact" for case in found}


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.abs(np.random.default_rng(3).standard_normal((24, 9, 256))).astype(np.float32)


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(24)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray, captions: list[str]) -> Path:
    """A bundle with both int8 artifacts, whose weights and activations reach the largest int8 values."""
    root = tmp_path_factory.mktemp("saturation")
    vocabulary = build_scan_vocabulary(WORDS, 1)
    tokenizer = ScanTokenizer(vocabulary["word2idx"])
    torch.manual_seed(1)
    model = ChanModel(ModelConfig(256, 128, vocab_size=tokenizer.vocab_size, word_dim=32)).eval()
    checkpoint.save(root / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    export_bundle(root / "checkpoint", root / "bundle", ["fp32"])
    images = CaptionedImages.from_arrays(rows, captions, np.arange(len(rows)))
    calibrate(root / "bundle", Samples(images.regions, len(rows), tokenizer.encode(captions)), "minmax", threads=1)
    add_int8(root / "bundle", lambda precisions: [], force=True)
    return root / "bundle"


@pytest.fixture
def run(rows: np.ndarray, captions: list[str], tmp_path: Path) -> Callable[..., tuple[dict, str]]:
    """Encode rows and captions in a process of its own; the embeddings by precision, and what was printed."""
    np.save(tmp_path / "rows.npy", rows)

    def encode(folder: Path, *emulator: str) -> tuple[dict[str, dict[str, np.ndarray]], str]:
        out = tmp_path / f"out{len(emulator)}"
        arguments = [str(folder), json.dumps(captions), str(tmp_path / "rows.npy"), str(out)]
        command = [*emulator, sys.executable, "-c", RUN, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-2000:]
        files = {path.suffixes[-2][1:]: path for path in tmp_path.glob(f"{out.name}.*.npz")}
        return {precision: dict(np.load(path)) for precision, path in files.items()}, result.stdout

    return encode


def _worst(found: dict[str, dict[str, np.ndarray]], precision: str) -> float:
    """Least cosine of an embedding against fp32's, padding left out."""
    least = 1.0
    for name, vectors in found[precision].items():
        cosines = (vectors * found["fp32"][name]).sum(-1)
        least = min(least, float(cosines[np.linalg.norm(found["fp32"][name], axis=-1) > 0.5].min()))
    return least


@under_qemu
def test_int8_is_as_good_without_vnni_as_with_it(bundle: Path, run: Callable[..., tuple[dict, str]]) -> None:
    here, without = run(bundle)[0], run(bundle, *HASWELL)[0]
    assert here.keys() == without.keys() == {"fp32", "int8", "int8_x86"}
    for precision in ("int8", "int8_x86"):
        assert _worst(here, precision) > 0.999
        assert _worst(without, precision) == pytest.approx(_worst(here, precision), abs=1e-4)


@under_qemu
def test_a_bundle_whose_recurrent_weights_lie_around_the_scan_is_refused_without_vnni(
    bundle: Path, run: Callable[..., tuple[dict, str]], tmp_path: Path
) -> None:
    """As bundles were exported before these weights moved into the body: right only where there is VNNI."""
    older = shutil.copytree(bundle, tmp_path / "older")
    manifest = Manifest.load(older)
    spec = manifest.graph("text_encoder", "int8_x86")
    model = onnx.load(older / spec.file)
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.name == "body"]
    assert len(bodies) == 2
    for body in bodies:
        model.graph.initializer.extend(body.initializer)
        del body.initializer[:]
    onnx.save(model, older / spec.file)
    changed = replace(spec, sha256=sha256_file(older / spec.file))
    graphs = {name: dict(specs) for name, specs in manifest.graphs.items()}
    graphs["text_encoder"]["int8_x86"] = changed
    write_manifest(older, replace(manifest, graphs=graphs))
    found, printed = run(older, *HASWELL)
    assert found.keys() == {"fp32", "int8"}
    assert "int8_x86 BackendError" in printed
    assert "saturate on this CPU, which is an x86 without VNNI" in printed
    assert "use precision fp32, or export the int8 graphs again" in printed


def test_a_processor_that_saturates_refuses_only_what_its_option_does_not_reach(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same decision without an emulator, from what the known products gave."""
    forms = {form: _product(form, TensorProto.UINT8, TensorProto.INT8).SerializeToString() for form in FORMS}
    monkeypatch.setattr(onnx_session, "products_are_exact", lambda ort: (True, False))
    for form in REFUSED:
        with pytest.raises(BackendError, match=r"MatMulInteger n\)|DequantizeLinear wd\)"):
            open_session(forms[form], threads=1)
    with caplog.at_level("INFO", logger="chan_rt"):
        open_session(forms["body"], threads=1)
    assert "slower ones are used" in caplog.text
    monkeypatch.setattr(onnx_session, "products_are_exact", lambda ort: (False, False))
    for form in FORMS:
        with pytest.raises(BackendError, match="saturate on this CPU"):
            open_session(forms[form], threads=1)


def test_slower_products_are_asked_for_only_where_products_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    form = _product("body", TensorProto.UINT8, TensorProto.INT8).SerializeToString()

    def option(without: bool) -> str:
        monkeypatch.setattr(onnx_session, "products_are_exact", lambda ort: (True, without))
        options = open_session(form, threads=1).get_session_options()
        return options.get_session_config_entry("session.x64quantprecision")

    assert option(without=False) == "1"
    with pytest.raises(RuntimeError, match=r"does not have configuration with key: session\.x64quantprecision"):
        option(without=True)
