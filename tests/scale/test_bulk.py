"""Encoding on a cluster: the same gallery whatever the number of actors, whatever is killed, and by whom."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from chan_rt.bench.bulk import measure
from chan_rt.runtime import Gallery
from chan_rt.runtime.errors import BackendError, GalleryError
from chan_rt.runtime.gallery.sharded.manifest import shard_name
from chan_rt.runtime.gallery.sharded.staged import staged_rows
from chan_rt.runtime.indexing.data_sources import open_source
from chan_rt.runtime.indexing.index import COMMIT_ROWS
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.session import gallery_settings
from chan_rt.scale.bulk import _Target
from chan_rt.scale.bulk_worker import Encoder, Job, Work, check_node, fill_shard
from chan_rt.scale.cluster import cluster, fill

from ..run_chan import chan, ok
from .served import until

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

COUNT, ROWS = 700, 300  # pictures, and rows of a shard: 300, 300 and 100
QUERIES = ["two red apples on a table", "a dog"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / f"{i:04}.png")
    (folder / "0299.png").write_bytes(b"no picture")
    return folder


def printed(*words: object) -> Any:
    return json.loads(ok(*words))


def refused(*words: object) -> str:
    result = chan(*words)
    assert result.exit_code != 0
    return " ".join(result.output.split())


def bytes_of(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "writer.lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_cluster: Cluster, bundle: Path, photos: Path) -> Path:
    """What one actor makes undisturbed."""
    out = tmp_path_factory.mktemp("one") / "gallery"
    result = printed(
        "index", bundle, photos, "-o", out, "--ray", ray_cluster.address, "--actors", 1, "--shard-rows", ROWS, "--json"
    )
    assert result["encoded"] == COUNT - 1
    assert len(result["skipped"]) == 1
    return out


def test_two_actors_make_the_same_bytes(
    whole: Path, tmp_path: Path, ray_cluster: Cluster, bundle: Path, photos: Path
) -> None:
    out = tmp_path / "gallery"
    printed("index", bundle, photos, "-o", out, "--ray", ray_cluster.address, "--shard-rows", ROWS, "--json")
    assert bytes_of(out) == bytes_of(whole)


def test_the_answers_are_those_of_an_index_on_one_machine(
    whole: Path, tmp_path: Path, bundle: Path, photos: Path
) -> None:
    printed("index", bundle, photos, "-o", tmp_path / "plain", "--json")
    with Gallery.open(tmp_path / "plain") as plain, Gallery.open(whole) as shards:
        assert [(row.id, row.metadata) for row in shards.rows()] == [(row.id, row.metadata) for row in plain.rows()]
        ids = [row.id for row in plain.rows()]
        assert np.array_equal(shards.embeddings(ids).vectors, plain.embeddings(ids).vectors)
        assert list(shards.info()["shards"].values()) == [ROWS - 1, ROWS, COUNT - 2 * ROWS]
        assert shards.info()["prepared"] is not None
    found = [printed("search", gallery, QUERIES[0], "--json") for gallery in (tmp_path / "plain", whole)]
    assert found[0]["hits"] == found[1]["hits"]
    assert found[1]["certified"] is True


def test_a_second_run_encodes_nothing_and_a_change_only_what_changed(
    tmp_path: Path, ray_cluster: Cluster, bundle: Path, photos: Path
) -> None:
    source, out = tmp_path / "photos", tmp_path / "gallery"
    source.mkdir()
    for path in sorted(photos.iterdir())[:40]:
        (source / path.name).write_bytes(path.read_bytes())
    command = ["index", bundle, source, "-o", out, "--ray", ray_cluster.address, "--shard-rows", 25, "--json"]
    assert printed(*command)["added"] == 40
    before = bytes_of(out)
    again = printed(*command)
    assert (again["encoded"], again["encoded_earlier"], again["already_there"]) == (0, 0, 40)
    assert bytes_of(out) == before
    (source / "0003.png").write_bytes((photos / "0500.png").read_bytes())
    (source / "0999.png").write_bytes((photos / "0501.png").read_bytes())
    (source / "0007.png").rename(source / "moved.png")
    (source / "0008.png").unlink()
    changed = printed(*command, "--prune")
    names = ("encoded", "added", "refreshed", "moved", "removed", "already_there")
    assert {name: changed[name] for name in names} == {
        "encoded": 2,
        "added": 1,
        "refreshed": 1,
        "moved": 1,
        "removed": 1,
        "already_there": 37,
    }
    printed("index", bundle, source, "-o", tmp_path / "plain", "--json")
    with Gallery.open(tmp_path / "plain") as plain, Gallery.open(out) as shards:
        assert {row.id for row in shards.rows()} == {row.id for row in plain.rows()}
        ids = [row.id for row in plain.rows()]
        assert np.array_equal(shards.embeddings(ids).vectors, plain.embeddings(ids).vectors)
        assert [row.id for row in shards.rows()][-2:] == ["photos/0003.png", "photos/0999.png"]


DRIVER = """
import json, os, sys, time
from pathlib import Path
from chan_rt.runtime.contract import Preprocess
from chan_rt.runtime.regions import Regions
from chan_rt.runtime.session import gallery_settings
from chan_rt.runtime.indexing.data_sources import open_source
from chan_rt.scale.bulk import Encoding, index_on_cluster

class Slow:
    preprocess = Preprocess(24, (0.5,) * 3, (0.25,) * 3, 2)
    def __init__(self, seconds, most, pids):
        self.seconds, self.left = seconds, most
        with open(pids, "a") as file:
            file.write(f"{os.getpid()} {os.getppid()}\\n")
    def regions(self, pixels):
        self.left -= len(pixels)
        time.sleep(self.seconds if self.left >= 0 else 3600)
        features = pixels.reshape(len(pixels), 12, -1)[:, :, :4].transpose(0, 2, 1).copy()
        return Regions.of_outputs({"regions": features}, self.preprocess, len(pixels))

bundle, photos, out, address, seconds, most, rows = sys.argv[1:]
pids = Path(out).with_name("pids")
encoding = Encoding(address, shard_rows=int(rows), backbone=lambda: Slow(float(seconds), int(most), pids))
result = index_on_cluster(bundle, open_source([photos]), out, gallery_settings(bundle), encoding)
print(json.dumps({"added": result.rows.added, "earlier": result.earlier}))
"""


@pytest.fixture(scope="module")
def drive(
    tmp_path_factory: pytest.TempPathFactory, ray_cluster: Cluster, bundle: Path, photos: Path
) -> Callable[..., subprocess.Popen[str]]:
    """(OUT, seconds, most) -> a process that indexes the photos; its actors sleep after each few of them, for an hour
    after `most`, and OUT/../pids has the ids of their processes and of their nodes'."""
    script = tmp_path_factory.mktemp("driver") / "driver.py"
    script.write_text(DRIVER)

    def start(out: Path, seconds: float = 0, most: int = COUNT) -> subprocess.Popen[str]:
        command = [sys.executable, script, bundle, photos, out, ray_cluster.address, seconds, most, ROWS]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])  # Ray prints of nodes that it lost


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, drive: Callable[..., Any]) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "gallery"
    assert finish(drive(out)) == {"added": COUNT - 1, "earlier": 0}
    return bytes_of(out)


def half_done(out: Path) -> int:
    """Rows of the shards that are being filled, once there are some."""
    return sum(staged_rows(out / shard_name(number)) for number in (1, 2, 3))


def test_a_run_that_is_interrupted_and_killed_goes_on_with_the_same_bytes(
    tmp_path: Path, drive: Callable[..., Any], undisturbed: dict[str, str]
) -> None:
    out = tmp_path / "gallery"
    first, rest = COMMIT_ROWS, ROWS - COMMIT_ROWS
    for stop, most in ((signal.SIGINT, first), (signal.SIGKILL, rest)):
        before = half_done(out)
        with drive(out, most=most) as process:
            until(lambda before=before: half_done(out) > before)
            process.send_signal(stop)
            process.communicate(timeout=60)
            assert process.returncode != 0
        with pytest.raises(GalleryError):
            Gallery.open(out)
        with pytest.raises(GalleryError):
            Gallery.open(out / shard_name(1))
    there = half_done(out)
    assert COMMIT_ROWS < there < COUNT
    assert finish(drive(out)) == {"added": COUNT - 1, "earlier": there}
    assert bytes_of(out) == undisturbed


def test_a_killed_actor_and_a_lost_node_cost_their_batches(
    tmp_path: Path, ray_cluster: Cluster, drive: Callable[..., Any], undisturbed: dict[str, str]
) -> None:
    out, pids = tmp_path / "gallery", tmp_path / "pids"
    node = ray_cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    raylet = str(node.all_processes["raylet"][0].process.pid)

    def actors() -> list[list[str]]:
        return [line.split() for line in pids.read_text().splitlines()] if pids.exists() else []

    with drive(out, 0.02) as process:
        lost = until(lambda: [pid for pid, parent in actors() if parent == raylet])
        killed = until(lambda: [pid for pid, parent in actors() if parent != raylet])[0]
        until(lambda: half_done(out))
        os.kill(int(killed), signal.SIGKILL)
        ray_cluster.remove_node(node, allow_graceful=False)
        assert finish(process)["added"] == COUNT - 1
    assert len(lost) == 1
    assert len(actors()) > 3, "nobody took the place of the actor that was killed"
    assert bytes_of(out) == undisturbed


def test_what_travels_does_not_grow_with_the_vectors(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """An actor returns a shard's name, counts and header; its pictures and vectors are read and written by itself."""
    cloudpickle = pytest.importorskip("ray", reason="Ray is not installed").cloudpickle
    source = open_source([photos])
    out = tmp_path / "out"
    settings = gallery_settings(bundle)
    job = Job(out, "run", version("chan-rt"), bundle, "onnxruntime", "fp32", None, settings, 1000)
    out.mkdir()
    (out / ".run").write_text("run")
    sizes = {}
    for number, count in enumerate((4, 64), 1):
        part = replace(source.only(range(count)), origins=())
        work = cloudpickle.dumps(Work(out / shard_name(number), f"{number:032}", part))
        answer = Encoder(job)({"work": np.array([work], object)})["done"][0]
        filled = pickle.loads(answer)
        assert (filled.entry.rows, filled.encoded) == (count, count)
        sizes[count] = len(answer)
    assert abs(sizes[64] - sizes[4]) < 16


def test_rows_of_another_folder_are_never_taken_for_those_of_an_interrupted_run(bundle: Path, tmp_path: Path) -> None:
    settings, out = gallery_settings(bundle), tmp_path / "out"
    job = Job(out, "run", version("chan-rt"), bundle, "onnxruntime", "fp32", None, settings, 0)
    colors: dict[str, Any] = {"one": 10, "other": 200}
    encoded = []
    for name in ("one", "one", "other"):
        picture = tmp_path / name / "photos" / "a.bmp"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), colors[name], np.uint8)).save(picture)
        os.utime(picture, (0, 0))
        source = open_source([picture.parent])
        with _Target(out, settings) as target, Matcher.open(bundle) as matcher:
            plan = target.plan(source)
            (work,) = target.cut(source, plan, plan.added, 10)
            encoded.append(fill_shard(matcher, job, work).encoded)
    assert encoded == [1, 0, 1]


def test_a_run_that_only_removes_rows_may_skip_others(
    tmp_path: Path, ray_cluster: Cluster, bundle: Path, photos: Path
) -> None:
    source, out = tmp_path / "photos", tmp_path / "gallery"
    source.mkdir()
    (source / "a.png").write_bytes((photos / "0000.png").read_bytes())
    command = ["index", bundle, source, "-o", out, "--ray", ray_cluster.address, "--prune", "--json"]
    printed(*command)
    (source / "a.png").rename(source / "b.png")
    (source / "b.png").write_bytes(b"no picture")
    result = printed(*command)
    assert (result["removed"], len(result["skipped"])) == (1, 1)


def test_errors_name_what_is_wrong(
    tmp_path: Path, ray_cluster: Cluster, bundle: Path, photos: Path, make_small_model: Callable[..., Any], whole: Path
) -> None:
    command = ["index", bundle, photos, "--ray", ray_cluster.address, "-o"]
    plain = tmp_path / "plain"
    few = tmp_path / "few"
    few.mkdir()
    (few / "a.png").write_bytes((photos / "0000.png").read_bytes())
    printed("index", bundle, few, "-o", plain, "--json")
    assert f"chan gallery split {plain} -o NEW" in refused(*command, plain)
    assert "there is no Ray cluster at 127.0.0.1:1:" in refused(
        "index", bundle, photos, "-o", tmp_path / "new", "--ray", "127.0.0.1:1"
    )
    other = make_small_model(pictures=True, pooling="Sum").bundle
    assert "was made with another model" in refused("index", other, photos, "-o", whole, "--ray", ray_cluster.address)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "already exists and is not empty" in refused(*command, tmp_path / "mine")
    assert "actors must be at most 2" in refused(*command, tmp_path / "new", "--actors", 3)
    assert "--actors has no effect without --ray" in refused(
        "index", bundle, photos, "-o", tmp_path / "new", "--actors", 3
    )
    result = refused(*command, tmp_path / "new", "--max-bad", 0)
    assert "max_bad: at most 0 items may be unreadable" in result
    assert "0299.png" in result


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "0.0.1"}, "and 0.0.1 is needed"),
        ({"out": Path("/nowhere/gallery")}, "cannot be written there (No such file or directory)"),
        ({"run": "another"}, "is filled by another run, or is not the same folder there"),
        ({"bundle": Path("/nowhere/bundle")}, "the bundle /nowhere/bundle is not there"),
        ({}, None),
    ],
)
def test_a_node_that_cannot_take_part(change: dict[str, Any], reason: str | None, tmp_path: Path, bundle: Path) -> None:
    (tmp_path / ".run").write_text("run")
    settings = gallery_settings(bundle)
    job = Job(tmp_path, "run", version("chan-rt"), bundle, "auto", "fp32", None, settings, 0)
    found = check_node(replace(job, **change))
    assert found is None if reason is None else reason in str(found)
    assert [path.name for path in tmp_path.iterdir()] == [".run"]


LOST = {"NodeID": "a" * 56, "NodeManagerAddress": "192.0.2.99", "Alive": True, "Resources": {"CPU": 4.0}}


@pytest.fixture
def add_lost_node(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster lists a node that is gone, as Ray does for half a minute."""
    import ray

    nodes = ray.nodes
    monkeypatch.setattr(ray, "nodes", lambda: [LOST, *nodes()])


@pytest.mark.usefixtures("add_lost_node")
def test_a_run_goes_on_without_a_node_that_was_just_lost(
    tmp_path: Path, ray_cluster: Cluster, bundle: Path, photos: Path
) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    (source / "a.png").write_bytes((photos / "0000.png").read_bytes())
    command = ["index", bundle, source, "-o", tmp_path / "gallery", "--ray", ray_cluster.address]
    told = refused(*command, "--actors", 3)
    assert "Warning: the node 192.0.2.99 is lost, and the run goes on without it" in told
    assert "actors must be at most 2, the CPUs of the cluster, got 3" in told
    assert printed(*command, "--actors", 2, "--json")["added"] == 1


@pytest.mark.usefixtures("add_lost_node")
def test_a_node_that_is_there_and_fails_is_named_and_no_node_left_is_an_error(
    tmp_path: Path, ray_cluster: Cluster, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    job = Job(tmp_path, "run", version("chan-rt"), bundle, "onnxruntime", "fp32", None, gallery_settings(bundle), 0)
    with cluster(ray_cluster.address):
        with pytest.raises(GalleryError, match=r"the node [\d.]+ cannot take part: it has chan-rt \S+, and 0\.0\.1 is"):
            list(fill(replace(job, version="0.0.1"), []))
        monkeypatch.setattr(ray, "nodes", lambda: [LOST])
        with pytest.raises(BackendError, match="no free CPU"):
            list(fill(job, []))


def test_scale_does_not_need_ray() -> None:
    code = (
        "import sys, chan_rt.scale, chan_rt.scale.bulk, chan_rt.runtime.indexing.index; sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_ray_the_extra_is_named(
    tmp_path: Path, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "chan-rt[ray]" in refused("index", bundle, photos, "-o", tmp_path / "new", "--ray")


def test_the_cluster_takes_no_port_and_no_folder_of_another(ray_cluster: Cluster) -> None:
    assert ray_cluster.head_node.dashboard_agent_listen_port not in (52365, -1)  # -1: it got none
    assert Path(ray_cluster.head_node.get_temp_dir_path()).parent != Path(tempfile.gettempdir())


def test_the_benchmark_compares_galleries_of_the_same_rows(ray_cluster: Cluster, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(f"a dog {i}" for i in range(60)))
    source = open_source([tmp_path / "captions.txt"], captions=True)
    found = measure(bundle, source, actors=(2,), shard_rows=30, runs=1, address=ray_cluster.address)
    assert list(found["ways"]) == ["one process, one thread", "one process, all threads", "2 actors"]
    assert all(way["rows_per_second"] * way["seconds"] == pytest.approx(60) for way in found["ways"].values())


@pytest.mark.parametrize("captions", [False, True])
def test_a_data_folder_in_hdf5(
    captions: bool, tmp_path: Path, ray_cluster: Cluster, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its regions or its captions, given by a path that means something else on a node."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    monkeypatch.chdir(tmp_path)
    Path("data/precomp").mkdir(parents=True)
    with h5py.File("data/precomp/test_ims.h5", "w") as file:
        file["features"] = np.random.default_rng(0).random((30, 2, 12), np.float32)
    Path("data/precomp/test_caps.txt").write_text("".join(f"a dog {i}\n" for i in range(30)))
    flags = ["--captions"] * captions
    printed("index", bundle, "data", "-o", "plain", *flags, "--json")
    command = ["index", bundle, "data", "-o", "shards", *flags, "--ray", ray_cluster.address, "--shard-rows", 20]
    assert printed(*command, "--json")["encoded"] == 30
    assert printed(*command, "--json")["encoded"] == 0
    with Gallery.open("plain") as plain, Gallery.open("shards") as shards:
        rows = [(row.id, row.metadata) for row in plain.rows()]
        assert [(row.id, row.metadata) for row in shards.rows()] == rows
        ids = [id for id, _ in rows]
        assert np.array_equal(shards.embeddings(ids).vectors, plain.embeddings(ids).vectors)
