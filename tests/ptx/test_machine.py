"""The machine that runs PTX in the tests of kernels: it computes, and it finds what a GPU's results need not show."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.gallery.cuda.kernels import Function, KernelRecord
from chan_rt.runtime.gallery.cuda.scan import KernelScan
from chan_rt.runtime.gallery.cuda.self_test import check_kernels

from .machine import PtxFault, PtxKernel, assembled, ptx_kernels
from .program import UnknownPtx, parse

DIM, WIDTH = 150, 192


def run(body: str, *arrays: np.ndarray, threads: int = 64, blocks: int = 1, allocated: Any = None) -> None:
    """Run a kernel whose parameters are the addresses of arrays: %rd0, %rd1, ... hold these, and %r0 the thread."""
    loads = "".join(f"ld.param.b64 %rd{i}, [k_param_{i}];\n" for i in range(len(arrays)))
    ptx = f".visible .entry k()\n{{\n.reg .b32 %r<20>;\n{loads}mov.u32 %r0, %tid.x;\n{body}\nret;\n}}\n"
    given = [(array.ctypes.data, array.nbytes) for array in arrays]
    PtxKernel("k", ptx, threads, 1024).launch(blocks, [address for address, _ in given], allocated or given)


def array(*shape: int, dtype: Any = np.int32) -> np.ndarray:
    """Zeros, aligned as a GPU's memory is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 256, np.uint8)
    return memory[-memory.ctypes.data % 256 :][:size].view(dtype).reshape(shape)


STORE = """
    mad.wide.s32 %rd9, %r0, 4, %rd0;
    st.global.b32 [%rd9], %r1;
"""


def test_threads_and_blocks_are_numbered() -> None:
    out = array(3, 64)
    run(
        """
        mov.u32 %r2, %ctaid.x;
        mad.lo.s32 %r3, %r2, 64, %r0;
        mad.wide.s32 %rd9, %r3, 4, %rd0;
        mov.u32 %r4, %nctaid.x;
        mad.lo.s32 %r1, %r3, 10, %r4;
        st.global.b32 [%rd9], %r1;
        """,
        out,
        blocks=3,
    )
    assert out.reshape(-1).tolist() == [10 * i + 3 for i in range(192)]


def test_lanes_that_part_meet_again() -> None:
    """Each thread turns as often as its number says; the loop's end stands before its body, as compilers write it."""
    out = array(64)
    run(
        f"""
        mov.b32 %r1, 0;
        mov.b32 %r2, 0;
        bra.uni $head;
        $latch:
        add.s32 %r1, %r1, 2;
        add.s32 %r2, %r2, 1;
        $head:
        setp.lt.s32 %p1, %r2, %r0;
        @%p1 bra $latch;
        shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
        add.s32 %r1, %r1, %r3;
        {STORE}
        """,
        out,
    )
    assert out.tolist() == [2 * (i + (i ^ 1)) for i in range(64)]


@pytest.mark.parametrize(
    ("statement", "given", "expected"),
    [
        ("mul.hi.s32 {}, {}, {};", (-2, 1 << 30), -1),
        ("shr.s32 {}, {}, {};", (-8, 40), -1),
        ("shl.b32 {}, {}, {};", (1, 32), 0),
        ("bfe.s32 {}, {}, {}, 4;", (0xF00, 8), -1),
        ("prmt.b32 {}, {}, {}, 0x7701U;", (0x11223344, 0x55667788), 0x55554433),
        ("min.s32 {}, {}, {};", (-1, 1), -1),
        ("div.s32 {}, {}, {};", (-7, 2), -3),
        ("popc.b32 {}, {}; // {}", (0xFF, 0), 8),
    ],
)
def test_instructions_of_whole_numbers(statement: str, given: tuple[int, int], expected: int) -> None:
    out = array(64)
    run(f"mov.b32 %r2, {given[0]}; mov.b32 %r3, {given[1]};\n{statement.format('%r1', '%r2', '%r3')}\n{STORE}", out)
    assert set(out.tolist()) == {expected}


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("eq", 0), ("equ", 1), ("ne", 0), ("neu", 1), ("lt", 0), ("geu", 1), ("nan", 1), ("num", 0)],
)
def test_comparisons_with_no_number(comparison: str, expected: int) -> None:
    out = array(64)
    nan = "0d7FF8000000000000"
    run(f"setp.{comparison}.f64 %p1, 0d3FF0000000000000, {nan};\nselp.b32 %r1, 1, 0, %p1;\n{STORE}", out)
    assert set(out.tolist()) == {expected}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd0+256], %r0;", r"0x\w+, 4 bytes, outside of what is allocated"),
        ("ld.global.v2.b32 {%r1, %r2}, [%rd0+-8];", "outside of what is allocated"),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd0+8];", "global memory at .* not aligned to 16"),
        ("st.shared.b32 [%r0], %r0;", "shared memory at 0x.*1, not aligned to 4"),
        ("shl.b32 %r1, %r0, 6;\nst.shared.b32 [%r1], %r0;", "beyond its end"),
        ("shl.b32 %r1, %r0, 2;\nst.shared.b32 [%r1], %r0;\nld.shared.b32 %r2, [0];", "no barrier is between"),
        ("ld.shared.b32 %r2, [0];\nsetp.lt.s32 %p1, %r0, 32;\n@%p1 st.shared.b32 [0], %r0;", "no barrier is between"),
        ("st.shared.b32 [0], %r0;", "two warps use it"),
        ("setp.lt.s32 %p1, %r0, 5;\n@%p1 bra $on;\nbar.sync 0;\n$on:", "lanes 0xffffffe0 where 0xffffffff belong"),
        ("setp.lt.s32 %p1, %r0, 5;\n@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", "lanes 0x1f where"),
        ("setp.lt.s32 %p1, %r0, 32;\n@%p1 bra $on;\nbar.sync 0;\n$on:", "some warps ended, and others wait"),
    ],
)
def test_faults_are_found(body: str, message: str) -> None:
    with pytest.raises(PtxFault, match=rf"k, block 0, line \d+ of its PTX: .*{message}"):
        run(body, array(64))


COPY = """
    setp.lt.s32 %p1, %r0, 8;
    shl.b32 %r2, %r0, 4;
    mad.wide.s32 %rd8, %r0, 16, %rd1;
    @%p1 cp.async.cg.shared.global [%r2 + 0], [%rd8 + 0], 0x10;
    cp.async.commit_group;
"""
READ = "and.b32 %r3, %r0, 31;\nshl.b32 %r3, %r3, 2;\nld.shared.b32 %r1, [%r3];\n"
WAIT, BARRIER = "cp.async.wait_group 0;\n", "bar.sync 0;\n"


def test_copies_are_there_once_they_were_waited_for() -> None:
    out, source = array(64), array(32)
    source[:] = np.arange(32) + 100
    run(COPY + WAIT + BARRIER + READ + STORE, out, source)
    assert out.tolist() == [*range(100, 132), *range(100, 132)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (COPY + BARRIER + READ, "is read before its copy was waited for"),
        (COPY + WAIT + READ, "(no barrier is between|before its copy was waited for)"),
        (COPY + "@%p1 st.shared.b32 [0], %r0;", "is written before a copy or a product was waited for"),
        (READ + COPY + WAIT, "two warps use it"),
    ],
)
def test_copies_that_nobody_waited_for_are_found(body: str, message: str) -> None:
    with pytest.raises(PtxFault, match=message):
        run(body, array(64), array(32))


@pytest.mark.parametrize("statement", ["ex2.approx.f32 %r1, %r2;", "add.s32 %r1, %r2;", "ld.local.b32 %r1, [%r2];"])
def test_what_the_machine_does_not_have_is_refused(statement: str) -> None:
    with pytest.raises(UnknownPtx):
        parse(f".visible .entry k()\n{{\n{statement}\n}}\n")


def check(gpu: str, name: str, change: Callable[[str], str]) -> None:
    """Ask kernels about what is known, one of which has other PTX."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'chan-rt[triton]'")
    real = assembled("int8", WIDTH, "LSE", gpu, name)
    assert change(real.ptx) != real.ptx
    changed = PtxKernel(name, change(real.ptx), real.threads, real.shared)
    known = ptx_kernels("int8", WIDTH, "LSE", gpu, {name: changed})
    functions = {each: Function("", "", each, 128, 0, 0) for each in known}
    record = KernelRecord("int8", WIDTH, "LSE", gpu, "", "", functions)
    scan = KernelScan(record, dict.fromkeys(known, b""), FakeDevice(known), DIM, AlignmentConfig())
    check_kernels(scan, DIM, AlignmentConfig(), "fixed16")


def without(pattern: str) -> Callable[[str], str]:
    """PTX without the instructions that match."""
    return lambda ptx: re.sub(rf"^\s*{pattern}[^\n]*;$", "", ptx, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("gpu", "name", "change", "message"),
    [
        ("sm_80", "scan_16", without(r"bar\.sync"), "shared memory"),
        ("sm_80", "pairs_16", without(r"cp\.async\.wait_group"), "before its copy was waited for"),
        ("sm_80", "decide_fixed16", without(r"bar\.sync"), "(no barrier|outside)"),
        ("sm_90", "scan_16", without(r"fence\.proxy"), "no fence follows"),
        ("sm_90", "pairs_16", without(r"wgmma\.wait_group"), "(was waited for|wrong numbers)"),
        ("sm_90", "scan_64", without(r"bar\.sync"), "shared memory"),
        ("sm_80", "reach_64", lambda ptx: ptx.replace("max.f64", "min.f64"), "wrong numbers"),
    ],
)
def test_changes_of_real_kernels_are_found(gpu: str, name: str, change: Callable[[str], str], message: str) -> None:
    with pytest.raises((PtxFault, BackendError), match=message):
        check(gpu, name, change)
