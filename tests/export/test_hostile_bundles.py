"""Manifests and sidecars that others wrote: a ChanError says what is wrong, or the bundle is read; nothing else.

`hostile` makes the kinds of damage: every leaf replaced by values of other types and sizes, every key dropped, doubled
or renamed, every container swapped, and random edits of the text.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chan_rt.export.bundle import export_bundle
from chan_rt.export.engines import plan
from chan_rt.export.inspection import inspect_bundle
from chan_rt.export.parity.run import plan_stages
from chan_rt.export.place import is_bundle
from chan_rt.runtime.backends import find_engine
from chan_rt.runtime.backends.sidecar import EngineRecord, InputRange, host_os, read_sidecars
from chan_rt.runtime.contract import MANIFEST, Manifest
from chan_rt.runtime.errors import ChanError
from chan_rt.runtime.matcher import Matcher

from ..run_chan import chan, ok

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**12, 10**400, "", "x", "\x00", "\x1b[31m", "../../etc/passwd", "a" * 10**5, "\u202e",
    [], [[]], {}, {"a": 1}, [None] * 3, "1", -(10**12), 1e308, "/etc/hostname", "graphs/", ".", "C", "NaN",
    2**24, 2**31,
)  # fmt: skip
TEXTS = (
    "", "{", "[" * 10**5, '{"a":' * 10**5, "null", "[]", '"x"', "1" * 10**5, '{"schema": 1}', '{"schema": 1e400}',
    '{"schema": NaN}', '{"schema": "\\ud800"}', "\ufeff{}", '{"schema": 1, "schema": 1}', "\x00",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., None]) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    save_model(root / "checkpoint")
    export_bundle(root / "checkpoint", root / "bundle", ["fp32"])
    manifest = json.loads((root / "bundle" / MANIFEST).read_text())
    manifest["preprocess"] = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "grid": 2}
    manifest["parity"] = {"onnxruntime/fp32": {"passed": True, "images": 4, "captions": 20, "graphs": {"a": "b"}}}
    (root / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    (root / "bundle/engines").mkdir()
    return root / "bundle"


@pytest.fixture(scope="module")
def sidecar(bundle: Path) -> dict[str, Any]:
    shapes = InputRange((1, 1, 8), (2, 4, 8), (4, 8, 8))
    record = EngineRecord(
        key="k" * 64,
        graph="region_encoder",
        precision="fp32",
        flavor="tensorrt_rtx",
        version="1.7.1",
        gpus=("sm_80",),
        os=host_os(),
        onnx_sha256=Manifest.load(bundle).graph("region_encoder", "fp32").sha256,
        engine_sha256="0" * 64,
        engine_bytes=0,
        profiles=({"regions": shapes, "region_lengths": InputRange((1,), (2,), (4,))},),
        options={"version_compatible": False},
        layers={
            "source": "build log",
            "by_precision": {"Half": 1},
            "matrix": {"Half": 1},
            "each": [{"name": "a", "type": "gemm", "precision": "Half"}],
        },
        memory={"weight_bytes": 1, "activation_bytes": [1]},
        build_seconds=0.5,
    )
    raw: dict[str, Any] = json.loads(record.to_json())
    return raw


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value of a document lies."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*path, key))


def changed(document: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> str:
    copy = json.loads(json.dumps(document))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return json.dumps(copy)


def every_damage(document: dict[str, Any]) -> Iterator[str]:
    """Each place of a document with each of VALUES, dropped, and beside a stranger."""
    yield from TEXTS
    for path in paths_of(document):
        for value in VALUES:
            yield changed(document, path, lambda parent, key, value=value: parent.__setitem__(key, value))
        yield changed(document, path, lambda parent, key: parent.pop(key))
        yield changed(document, path, add_stranger)


def add_stranger(parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent["\x1b]"] = 1
    else:
        parent.append(1)


def random_damage(document: dict[str, Any], seed: int) -> str:
    """Some damage of both kinds: values at random places, and edits of the text."""
    rng = random.Random(seed)
    found = json.loads(json.dumps(document))
    for _ in range(rng.randint(0, 3)):
        *above, key = rng.choice(list(paths_of(found)) or [()])
        parent = found
        for step in above:
            parent = parent[step]
        parent[key] = json.loads(json.dumps(rng.choice(VALUES)))
    text = json.dumps(found)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        at, until = rng.randrange(len(text) + 1), rng.randint(0, 4)
        text = text[:at] + rng.choice(('"', "[", "{", "}", ",", "\\", "1", "e", "-", "\x00", "")) + text[at + until :]
    return text


def use_manifest(bundle: Path, text: str, everywhere: bool) -> bool:
    """Whether a bundle with this manifest is still accepted; everything that reads one is tried."""
    (bundle / MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")
    is_bundle(bundle)
    try:
        manifest = Manifest.load(bundle)
    except ChanError:
        return False
    assert Manifest.from_json(manifest.to_json()) == manifest
    uses: list[Callable[[], object]] = [
        lambda: inspect_bundle(bundle),
        lambda: plan(bundle),
        lambda: plan_stages(bundle, manifest, read_sidecars(bundle), (), ()),
        lambda: find_engine(bundle, "region_encoder", "fp32", "tensorrt_rtx"),
        lambda: manifest.embed_dim + manifest.region_dim,
        lambda: manifest.max_words,
    ]
    if everywhere:
        uses.append(lambda: Matcher.open(bundle, backend="onnxruntime").close())
    for use in uses:
        try:
            use()
        except ChanError:
            continue
    return True


def use_sidecar(bundle: Path, text: str) -> bool:
    """Whether a sidecar is still accepted; everything that reads one is tried."""
    path = bundle / "engines/region_encoder.fp32.tensorrt_rtx.kkkkkkkkkkkkkkkk.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    found = read_sidecars(bundle)
    assert len(found.engines) + len(found.unreadable) == 1
    inspect_bundle(bundle)
    try:
        find_engine(bundle, "region_encoder", "fp32", "tensorrt_rtx")
    except ChanError:
        return bool(found.engines)
    raise AssertionError("there is no engine file")


@pytest.fixture
def manifest(bundle: Path) -> Iterator[dict[str, Any]]:
    content = (bundle / MANIFEST).read_text()
    yield json.loads(content)
    (bundle / MANIFEST).write_text(content)


def sweep_manifests(bundle: Path, manifest: dict[str, Any], step: int) -> None:
    damages = list(dict.fromkeys(every_damage(manifest)))
    assert len(damages) > 3000
    tried = damages[::step]
    accepted = sum(use_manifest(bundle, text, turn % 40 == 0) for turn, text in enumerate(tried))
    assert 0 < accepted < len(tried) / 4, "most of it is refused, what changes no meaning is not"


def sweep_sidecars(bundle: Path, sidecar: dict[str, Any], step: int) -> None:
    damages = list(dict.fromkeys(every_damage(sidecar)))
    assert len(damages) > 1000
    tried = damages[::step]
    assert 0 < sum(use_sidecar(bundle, text) for text in tried) < len(tried) / 2


def test_inspect_says_one_thing_of_each_damaged_file(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundle, damaged)
    for name in ("tokenizer/vocab.json", "graphs/fp32/text_encoder.onnx"):
        (damaged / name).unlink()
    with (damaged / "graphs/fp32/hard_alignment.onnx").open("ab") as file:
        file.write(b"x")
    shown = ok("inspect", damaged)
    words = " ".join(shown.split())
    for name in ("tokenizer/vocab.json", "graphs/fp32/text_encoder.onnx"):
        assert words.count(f"unusable {damaged / name} is missing: the bundle is incomplete, export it again") == 1
    assert words.count("was altered: its sha256 must be") == 1
    assert f"unusable {damaged / 'graphs/fp32/hard_alignment.onnx'} was altered" in words
    assert words.count("unusable") == 3
    found = json.loads(chan("inspect", damaged, "--json").stdout)
    assert {graph["graph"]: (graph["sound"], graph["bytes"] is None) for graph in found["graphs"]} == {
        "alignment_map": (True, False),
        "hard_alignment": (False, False),
        "region_encoder": (True, False),
        "text_encoder": (False, True),
    }


def test_fields_of_a_manifest_survive_other_values(bundle: Path, manifest: dict[str, Any]) -> None:
    sweep_manifests(bundle, manifest, step=11)


def test_fields_of_a_sidecar_survive_other_values(bundle: Path, sidecar: dict[str, Any]) -> None:
    sweep_sidecars(bundle, sidecar, step=5)


@pytest.mark.nightly
def test_every_field_survives_every_value(bundle: Path, manifest: dict[str, Any], sidecar: dict[str, Any]) -> None:
    sweep_manifests(bundle, manifest, step=1)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    sweep_sidecars(bundle, sidecar, step=1)


@pytest.mark.parametrize("seed", range(20))
def test_random_damage(bundle: Path, manifest: dict[str, Any], sidecar: dict[str, Any], seed: int) -> None:
    use_manifest(bundle, random_damage(manifest, seed), everywhere=True)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    use_sidecar(bundle, random_damage(sidecar, seed))


@pytest.mark.nightly
@pytest.mark.parametrize("start", range(0, 100_000, 10_000))
def test_a_hundred_thousand_manifests_and_sidecars(
    bundle: Path, manifest: dict[str, Any], sidecar: dict[str, Any], start: int
) -> None:
    for seed in range(start, start + 10_000):
        use_manifest(bundle, random_damage(manifest, seed), everywhere=seed % 50 == 0)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    for seed in range(start, start + 10_000):
        use_sidecar(bundle, random_damage(sidecar, seed))
