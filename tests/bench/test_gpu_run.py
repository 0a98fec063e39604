"""A run of the GPU benchmark: jobs in order of worth, one folder of galleries, its time, and what processes took."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from chan_rt.bench import gpu as bench
from chan_rt.bench import gpu_cases, gpu_images, gpu_process, gpu_run
from chan_rt.bench.gpu_cases import Cases, CaseShape
from chan_rt.bench.gpu_images import DONE, Case, case_bytes, make_case
from chan_rt.bench.gpu_process import HostMemory, ask_worker
from chan_rt.bench.gpu_run import CORE, Job, Run
from chan_rt.runtime.errors import InputError

SHAPE = (4, 4, 64)
SMALL, LARGE = CaseShape(20, 4, *SHAPE), CaseShape(30, 4, *SHAPE)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run({"not run": {}}, tmp_path / "gpu.json", None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Section and gallery of every process that a run asks for; each is answered, a gallery by its last file."""
    given: list[tuple[str, str]] = []

    def ask(request: dict[str, Any], seconds: float, interpreted: bool) -> tuple[dict[str, Any], str]:
        folder = Path(request["case"])
        given.append((request["section"], folder.name))
        if request["section"] == "cases":
            (folder / DONE).touch()
        assert (folder / DONE).exists()
        return {"listed": [], "rescored": []}, ""

    monkeypatch.setattr(gpu_run, "ask_worker", ask)
    return given


def _as_child(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this code stand for the worker; its folder is sys.argv[1]."""
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", code, command[-1]], **options)

    monkeypatch.setattr(gpu_process.subprocess, "Popen", popen)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "the process ended with status -6"),
        ("raise SystemExit('a warning\\nRuntimeError: an illegal access')", "RuntimeError: an illegal access"),
        ("import time; time.sleep(60)", "it took longer than 1 s"),
    ],
)
def test_what_a_process_could_not_do_is_noted_and_the_record_is_written(
    code: str, reason: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_child(code, monkeypatch)
    monkeypatch.setattr(gpu_run, "_MOST", 1 if "sleep" in code else 60)
    run.measure("search", "it", {})
    assert json.loads((tmp_path / "gpu.json").read_text())["not run"] == {"search: it": reason}


def test_a_process_that_the_end_of_the_run_stops_is_out_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_child("import time; time.sleep(60)", monkeypatch)
    monkeypatch.setattr(gpu_run, "_LEAST", 0)
    run = Run({"not run": {}}, tmp_path / "gpu.json", None, minutes=0.5 / 60)
    run.measure("search", "it", {})
    assert run.record["not run"] == {"search: it": "time is up"}


def test_the_host_memory_of_a_process_is_in_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """import json, pathlib, sys, time
held = bytearray(300 << 20)
held[::4096] = b"x" * len(held[::4096])
time.sleep(0.5)
pathlib.Path(sys.argv[1], "report.json").write_text("{}")"""
    _as_child(code, monkeypatch)
    found, reason = ask_worker({"section": "search"}, 60, False)
    assert found is not None, reason
    spent = found["process"]
    assert 0.5 < spent["seconds"] < 60
    assert 300 << 20 < spent["own_bytes"] <= spent["resident_bytes"] < 1 << 30


def test_pages_of_mapped_files_are_not_a_process_s_own(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  9000 kB\nRssAnon:\t 100 kB\nRssFile:\t8000 kB\nRssShmem:\t 20 kB\n")
    assert gpu_process.memory_of(status) == {"resident_bytes": 9000 * 1024, "own_bytes": 120 * 1024}
    assert gpu_process.memory_of(tmp_path / "none") == {}
    with HostMemory(2**22 + 1) as memory:
        pass
    assert memory.most == {}


def _jobs(sections: tuple[str, ...] = bench.SECTIONS, interpreted: bool = False) -> list[Job]:
    chosen = list(bench.candidates())
    return bench.jobs(
        sections, chosen, [10, 20], (12, 3), SHAPE, 0.0, Path("demo"), interpreted=interpreted
    )  # fmt: skip


def test_the_largest_gallery_and_the_best_candidates_of_every_section_come_first() -> None:
    found = _jobs()
    first = [(job.section, job.name) for job in found if job.first and job.section in CORE]
    best = list(bench.candidates())[: bench.FIRST]
    assert best == [bench.CERTIFIED, "torch eager float16", "torch int8"]
    assert first == [(job.section, job.name) for job in found[: len(first)]]
    assert first == [
        ("limits", "limits"),
        *(("search", f"20 images: {name}") for name in best),
        *(("all-pairs", f"12 images: {name}") for name in best),
        ("host", "20 images"),
        ("shortlist", "20 images as segments"),
        ("shortlist", "20 images as one part"),
    ]
    assert [(job.section, job.name) for job in found[-3:]] == [
        ("backends", "from GPU memory"), ("backends", "backends"), ("parity", "parity"),
    ]  # fmt: skip
    searches = {job.name for job in found if job.section == "search"}
    assert searches == {f"{count} images: {name}" for count in (10, 20) for name in bench.candidates()}


def test_encoders_are_shown_beside_torch() -> None:
    times = {"encode 64 images": {"one fp16": 6.123, "two": 0.9}, "encode 1 images": {}}
    shown = gpu_run._brief({"times as fast as torch eager": times})
    assert shown.startswith("as fast as torch eager: encode 64 images: one fp16 6.12 times, two 0.90 times; ")
    assert shown.endswith("encode 1 images: nothing else ran")


def test_each_gallery_is_made_once_and_removed_after_its_last_use(
    run: Run, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[str, int]] = []
    with Cases(None) as cases:
        drop = cases.drop
        monkeypatch.setattr(cases, "drop", lambda shape: (dropped.append((shape.name, len(asked))), drop(shape)))
        todo = [Job("search", "a", {}, LARGE), Job("search", "b", {}, SMALL), Job("host", "c", {}, LARGE)]
        run.carry_out(todo, cases)
        root = cases.folder(SMALL).parent
        assert not cases.has(LARGE)
        assert not list(root.iterdir())
    assert not root.exists()
    sections = [("cases", LARGE), ("search", LARGE), ("cases", SMALL), ("search", SMALL), ("host", LARGE)]
    assert asked == [(section, shape.name) for section, shape in sections]
    assert dropped == [(SMALL.name, 4), (LARGE.name, 5)]


def test_galleries_that_are_kept_serve_the_next_run(run: Run, asked: list[tuple[str, str]], tmp_path: Path) -> None:
    for _ in range(2):
        with Cases(tmp_path / "kept") as cases:
            run.carry_out([Job("search", "a", {}, SMALL)], cases)
    assert [section for section, _ in asked] == ["cases", "search", "search"]


def test_a_gallery_that_cannot_be_made_is_tried_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fail(request: dict[str, Any], *_: object) -> tuple[None, str]:
        tried.append(request["section"])
        return None, "full"

    monkeypatch.setattr(gpu_run, "ask_worker", fail)
    with Cases(None) as cases:
        run.carry_out([Job("search", "a", {}, SMALL), Job("host", "b", {}, SMALL)], cases)
    assert tried == ["cases"]
    assert run.record["not run"] == {
        f"cases: {SMALL.name}": "full",
        "search: a": "its images: full",
        "host: b": "its images: full",
    }


def test_what_no_time_is_left_for_is_noted(tmp_path: Path, asked: list[tuple[str, str]]) -> None:
    out = tmp_path / "gpu.json"
    given = ["--interpreted", "--minutes", "0.01", "--images", "20", "--only", "search,parity", "--out", str(out)]
    result = CliRunner().invoke(bench.main, given)
    assert result.exit_code == 0, result.output
    refused = json.loads(out.read_text())["not run"]
    assert set(refused.values()) == {"time is up"}
    assert refused.keys() >= {f"search: 20 images: {bench.CERTIFIED}", "parity: parity"}
    assert not asked


def test_the_time_of_the_core_sections_does_not_end_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = gpu_run.time.monotonic()
    monkeypatch.setattr(gpu_run.time, "monotonic", lambda: now + 60 * gpu_run.MINUTES + 1)
    assert all(run.left(section) < 0 for section in (*CORE, "cases"))
    assert run.left("backends") == run.left("parity") == float("inf")


def test_a_folder_without_room_is_refused_before_anything_runs(
    tmp_path: Path, asked: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = SimpleNamespace(free=SMALL.bytes + 100)
    monkeypatch.setattr(gpu_cases.shutil, "disk_usage", lambda folder: room)
    given = ["--interpreted", "--only", "search", "--images", "20", "--cases", str(tmp_path / "kept")]
    given += ["--out", str(tmp_path / "gpu.json")]
    refused = CliRunner().invoke(bench.main, [*given, "--images", "100000"])
    assert refused.exit_code == 1
    assert "Error: the galleries take " in refused.output
    assert "name a folder on a larger disk with --cases, or fewer --images" in refused.output.replace("\n", " ")
    assert not asked
    assert CliRunner().invoke(bench.main, given).exit_code == 0
    assert asked
    room.free = 0
    assert CliRunner().invoke(bench.main, given).exit_code == 0, "what is there needs no more room"
    with pytest.raises(InputError, match="has room for 0"):
        Cases(tmp_path / "kept").check_room([LARGE])


@pytest.mark.parametrize(("regions", "dim"), [(4, 64), (3, 192), (36, 1024)])
def test_the_room_that_a_gallery_takes_is_known_beforehand(tmp_path: Path, regions: int, dim: int) -> None:
    make_case(tmp_path, 300, 5, regions, 4, dim)
    taken = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert abs(case_bytes(300, 5, regions, 4, dim) - taken) < 2 << 20


def test_making_a_gallery_takes_no_more_memory_on_more_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def pool(threads: int) -> ThreadPoolExecutor:
        used.append(threads)
        return ThreadPoolExecutor(threads)

    monkeypatch.setattr(gpu_images, "ThreadPoolExecutor", pool)
    monkeypatch.setattr(gpu_images, "_PIECE", 7)
    found = []
    for cores in (1, 192):
        monkeypatch.setattr(gpu_images, "usable_cpus", lambda cores=cores: cores)
        (tmp_path / str(cores)).mkdir()
        make_case(tmp_path / str(cores), 30, 4, *SHAPE)
        found.append(Case.load(tmp_path / str(cores), one_part=True))
    assert used == [1, 16]
    np.testing.assert_array_equal(found[0].images.parts[0].stored, found[1].images.parts[0].stored)
    np.testing.assert_array_equal(found[0].truth, found[1].truth)


def test_cases_that_are_kept_are_those_that_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(folder: Path, *arguments: object) -> None:
        made.append(folder.name)
        (folder / DONE).touch()

    monkeypatch.setattr(bench, "make_case", make)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 50))
    bench.keep_cases(tmp_path, 50)
    bench.keep_cases(tmp_path, 50)
    shape = (bench.REGIONS, bench.WORDS, bench.DIM)
    found = bench.jobs(CORE, ["x"], [50], bench.PAIRS, shape, 0.0, Path("demo"), interpreted=False)
    assert {job.case.name for job in found if job.case} == set(made)
    assert len(made) == 2


def test_sections_that_need_no_gallery_have_none() -> None:
    assert {job.section for job in _jobs() if job.case is None} == {"limits", "backends", "parity"}
    with pytest.raises(click.BadParameter, match="a section must be one of limits, search, all-pairs"):
        bench._sections("serch", None)
