"""The GPU scan is really compiled, for several architectures and without a GPU; its code is checked before use."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chan_rt.commands import values as choices
from chan_rt.export import kernels
from chan_rt.export.kernels import build_kernels
from chan_rt.runtime.errors import BackendError, EngineError, InputError, MissingExtra
from chan_rt.runtime.gallery.cuda.kernels import FORMS, GPUS, PICKS, POOLINGS, PRECISIONS, KernelRecord, find_kernels
from chan_rt.runtime.gpu import examine_gpu

from ..run_chan import chan

pytest.importorskip("triton", reason="triton is not installed: pip install 'chan-rt[triton]'")
ROOT = Path(__file__).parents[2]


def find(folder: Path, capability: tuple[int, int], precision: str = "int8") -> tuple[KernelRecord, dict[str, bytes]]:
    return find_kernels(folder, precision, 128, "LSE", capability)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gpu", ["sm_80", "sm_90"])
def test_code_for_the_architecture_is_made_without_a_gpu(tmp_path: Path, gpu: str, precision: str) -> None:
    record, cached = build_kernels(tmp_path, 100, "LSE", precision, gpu)
    assert not cached
    found, code = find(tmp_path, divmod(int(gpu[3:]), 10), precision)
    assert found == record
    names = {"scan_16", "scan_64", "pairs_16", "pairs_32", "pairs_64", "best_rows", "kth_best", "shortlist"}
    decides = {f"decide_{form}" for form in FORMS} if precision == "int8" else set()
    reaches = {f"{name}_{picks}" for name in ("reach", "select") for picks in PICKS} if precision == "int8" else set()
    of_queries = {"quantize", "terms"} if precision == "int8" else {"quantize"}
    assert code.keys() == names | decides | reaches | of_queries
    for name, function in record.functions.items():
        assert code[name][:4] == b"\x7fELF"
        assert int.from_bytes(code[name][18:20], "little") == 190, "the machine an ELF file is for: NVIDIA CUDA"
        assert function.symbol.encode() in code[name]
        assert function.threads == (512 if name in ("reach_256", "select_256") else 128)
        assert function.shared <= 160 << 10, "what an Ampere block may have"
        assert function.hidden == 2, "Triton 3.9's pointers to scratch memory, unused here"
    assert record.functions["scan_16"].symbol == "scan"
    assert build_kernels(tmp_path, 100, "LSE", precision, gpu) == (record, True)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_compiles(tmp_path: Path, pooling: str) -> None:
    record, _ = build_kernels(tmp_path, 1024, pooling, "int8", "sm_90")
    assert record.width == 1024
    assert {"bound_16", "bound_64", "scan_listed_16", "scan_listed_64", "project", "weigh"} < set(record.functions)


def test_int8_products_are_integers_on_the_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exactness rests on, read from the code: int32 sums of int8, no fused multiply-add, float64 afterwards."""
    import triton

    made = []
    real = triton.compile
    monkeypatch.setattr(triton, "compile", lambda *args, **more: made.append(real(*args, **more)) or made[-1])
    kernels._compile("scan_16", kernels._jobs("int8", 1024, "LSE")["scan_16"], "sm_90", "x.cubin")
    ptx = made[0].asm["ptx"]
    assert re.search(r"wgmma\.mma_async\.sync\.aligned\.m64n32k32\.s32\.s8\.s8", ptx)
    assert "fma.rn.f32" not in ptx
    assert "ex2.approx" not in ptx
    assert "fma.rn.f64" in ptx, "libdevice's exponential"


def test_decisions_are_sums_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact products added one by one, read from the code: tensor cores multiply integers only."""
    import triton

    made = []
    real = triton.compile
    monkeypatch.setattr(triton, "compile", lambda *args, **more: made.append(real(*args, **more)) or made[-1])
    for form in FORMS:
        name = f"decide_{form}"
        kernels._compile(name, kernels._jobs("int8", 1024, "LSE")[name], "sm_90", "x.cubin")
        ptx = made[-1].asm["ptx"]
        assert "fma.rn.f64" in ptx
        assert "add.f64" in ptx or "add.rn.f64" in ptx
        assert set(re.findall(r"mma_async[.\w]*", ptx)) == {"mma_async.sync.aligned.m64n16k32.s32.s8.s8"}
        assert not re.search(r"\bmma\.sync|\.approx|fma\.rn\.f32|st\.local", ptx)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_of_arguments_are_in_the_order_of_the_arguments(precision: str) -> None:
    """By this order kernels are interpreted, and pointers that are aligned are told to the compiler."""
    for name, job in kernels._jobs(precision, 1024, "LSE").items():
        assert {*job.types, *job.constants} == set(job.function.arg_names), name
        assert list(job.types) == job.function.arg_names[: len(job.types)], name


def test_older_ampere_code_serves_its_generation_and_nothing_else(tmp_path: Path) -> None:
    record, _ = build_kernels(tmp_path, 128, "LSE", "int8", "sm_80")
    for capability in ((8, 0), (8, 6), (8, 9)):
        assert find(tmp_path, capability)[0] == record
    for capability in ((8, 7), (9, 0), (12, 0)):
        with pytest.raises(BackendError, match=r"it is for sm_80, this GPU is sm_.*; run: chan gallery kernel .*--gpu"):
            find(tmp_path, capability)
    assert record.misfit("int8", 128, "LSE", (8, 0)) is None
    assert "the gallery is int8 x 64 x LSE" in (record.misfit("int8", 64, "LSE", (8, 0)) or "")
    assert replace(record, gpu="sm_90").misfit("int8", 128, "LSE", (9, 0)) is None
    assert "sm_90" in (replace(record, gpu="sm_90").misfit("int8", 128, "LSE", (10, 0)) or "")


@pytest.mark.parametrize("number", [75, 80, 86, 87, 88, 89, 90, 100, 101, 103, 110, 120, 121, 130])
def test_what_is_advised_to_compile_is_accepted(tmp_path: Path, number: int) -> None:
    (tmp_path / "kernels").mkdir()
    with pytest.raises(BackendError, match="no usable int8 kernels") as caught:
        find(tmp_path, divmod(number, 10))
    advised = re.search("--gpu (sm_[0-9]+)", str(caught.value))
    assert (advised is not None) == (f"sm_{number}" in GPUS)
    if advised is not None:
        assert advised[1] in choices.GPU.choices
    else:
        assert "search with device='cpu'" in str(caught.value)


def test_kernels_compile_for_orin_and_gb10() -> None:
    for gpu in ("sm_87", "sm_121"):
        function, code = kernels._compile("shortlist", kernels._jobs("int8", 64, "Max")["shortlist"], gpu, "x.cubin")
        assert function.sha256 == hashlib.sha256(code).hexdigest()


@pytest.mark.nightly
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles_for_every_gpu_and_fits_its_shared_memory(gpu: str, precision: str) -> None:
    """A block of Ada's and of the small Ampere and Blackwell chips may have 99 KiB, of the others 163 KiB or more."""
    most = (99 if gpu in ("sm_86", "sm_89", "sm_120", "sm_121") else 163) << 10
    for name, job in kernels._jobs(precision, 1024, "LSE").items():
        function, _ = kernels._compile(name, job, gpu, "x.cubin")
        assert function.shared <= most, name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sidecar, code: code.write_bytes(code.read_bytes()[:-1] + b"?"), "is corrupt: its sha256"),
        (lambda sidecar, code: code.unlink(), "No such file"),
        (lambda sidecar, code: sidecar.write_text("{"), "cannot be understood"),
        (lambda sidecar, code: sidecar.write_text(sidecar.read_text().replace("sm_90", "sm_80")), "was altered"),
        (lambda sidecar, code: sidecar.write_text(sidecar.read_text().replace('schema": 8', 'schema": 9')), "version"),
        (lambda sidecar, code: sidecar.write_bytes(b"\xff"), "decode"),
    ],
)
def test_damaged_kernels_are_refused_and_made_again(tmp_path: Path, damage: Callable, message: str) -> None:
    record, _ = build_kernels(tmp_path, 128, "LSE", "int8", "sm_90")
    folder = tmp_path / "kernels"
    damage(folder / f"{record.stem}.json", folder / record.functions["scan_16"].file)
    with pytest.raises(BackendError, match=message):
        find(tmp_path, (9, 0))
    assert build_kernels(tmp_path, 128, "LSE", "int8", "sm_90") == (record, False)
    assert find(tmp_path, (9, 0))[0] == record


def test_what_cannot_be_compiled_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in [
        ((64, "Softmax", "int8", "sm_90"), "pooling must be one of LSE, Max, Mean, Sum .* got Softmax"),
        ((64, "LSE", "fp8", "sm_90"), "precision must be one of int8, float16"),
        ((64, "LSE", "int8", "sm_70"), "gpu must be one of sm_80.* got sm_70"),
    ]:
        with pytest.raises(InputError, match=message):
            build_kernels(tmp_path, *arguments)
    import triton

    def refuse(*args: object, **more: object) -> None:
        raise RuntimeError("out of registers")

    monkeypatch.setattr(triton, "compile", refuse)
    with pytest.raises(EngineError, match=r"scan_16 does not compile for sm_90 with triton .*out of registers"):
        build_kernels(tmp_path, 64, "LSE", "int8", "sm_90")
    with pytest.raises(BackendError, match="no usable int8 kernels"):
        find(tmp_path, (9, 0))


@pytest.mark.parametrize("version", ["3.6.0", "3.7.0", "3.7.0+git88b227e2"])
def test_a_triton_that_leaves_out_fences_is_refused(
    tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.metadata, "version", lambda name: version)
    with pytest.raises(EngineError, match=r"triton 3\..* leaves out fences .* of sm_90 .*'triton>=3\.7\.1'"):
        build_kernels(tmp_path, 64, "LSE", "int8", "sm_90")
    assert not [*tmp_path.iterdir()]
    build_kernels(tmp_path, 64, "LSE", "int8", "sm_80")
    monkeypatch.undo()
    record, _ = build_kernels(tmp_path, 64, "LSE", "int8", "sm_90")
    assert record.misfit("int8", 64, "LSE", (9, 0)) is None
    assert "leaves out fences" in (replace(record, compiler=version).misfit("int8", 64, "LSE", (9, 0)) or "")


def test_without_triton_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise kernels.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kernels.metadata, "version", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'chan-rt\[triton\]'"):
        build_kernels(tmp_path, 64, "LSE", "int8", "sm_90")


def test_command(tmp_path: Path) -> None:
    from chan_rt.runtime.contract import AlignmentConfig
    from chan_rt.runtime.gallery import GallerySettings, GalleryWriter

    def run(folder: Path, *arguments: str):
        return chan("gallery", "kernel", folder, *arguments)

    GalleryWriter.create(tmp_path / "g", GallerySettings("images", 24, AlignmentConfig(), model="m")).close()
    result = run(tmp_path / "g", "--gpu", "sm_80", "--gpu", "sm_90")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("compiled by triton") == 2
    assert run(tmp_path / "g", "--gpu", "sm_80").stdout.rstrip().endswith("already there")
    if not examine_gpu().gpus:
        result = run(tmp_path / "g")
        assert result.exit_code == 1
        assert f"gpu must be one of {', '.join(GPUS)}: this machine has none to go by" in result.output
    GalleryWriter.create(tmp_path / "soft", GallerySettings("images", 24, AlignmentConfig("VSA"), model="m")).close()
    assert "device='cpu'" in run(tmp_path / "soft", "--gpu", "sm_80").output


def run_with(kernels: str, file: str, *arguments: str) -> None:
    """The gallery's tests of a file once more, with these kernels in place of numpy's."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *arguments,
               f"tests/runtime/gallery/test_{file}.py"]  # fmt: skip
    environment = os.environ | {"CHAN_TEST_KERNELS": kernels, "OMP_NUM_THREADS": "1"}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("gpu", "file", "chosen"),
    [
        (
            "sm_90",
            "resident",
            "(real and not Mean) or (rankings_are and ties and (words0 or words6)) or listed or float16_ranks",
        ),
        ("sm_90", "resident_levels", "((bounds_are_above or weighed) and 150) or (rankings and ties and Max)"),
        ("sm_90", "decide", "(true_row and 7-None) or true_scores or through_changes"),
        ("sm_80", "gpu_queries", "cpu"),
        ("sm_80", "self_test", "any_temperature and 150-1.0"),
        ("sm_120", "self_test", "any_temperature and 150-1.0"),
    ],
)
def test_compiled_kernels_rank_as_the_cpu_does(gpu: str, file: str, chosen: str) -> None:
    """On the machine of tests/ptx."""
    run_with(gpu, file, "-k", chosen)


@pytest.mark.nightly
@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_120", "sm_121"])
@pytest.mark.parametrize("file", ["gpu_queries", "self_test", "decide", "resident_levels", "resident"])
def test_kernels_of_every_architecture_rank_as_the_cpu_does(gpu: str, file: str) -> None:
    """On the machine of tests/ptx, which does not have the tensor cores of the others."""
    run_with(gpu, file)


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
@pytest.mark.parametrize(
    "name", ["gpu_queries", "self_test", "decide", "resident_levels", "resident", "overlap", "upload"]
)
def test_on_a_gpu_kernels_rank_as_the_cpu_does(name: str) -> None:
    """All of the gallery's tests once more, with the compiled kernels on this machine's GPU."""
    run_with("cuda", name)
