"""`make bench-gpu`: every GPU figure, beside its peers and the GPU's own limits.

limits     what the GPU's memory and tensor cores reach in this run
search     one caption against galleries that stay on the GPU, as segments: searches by wall time, kernels by events
all-pairs  all captions against all images, in the shape of Flickr30K's test set
host       where the host's time goes beside the kernels
shortlist  how many rows are listed and scored again, as segments and as one
backends   encoding and scoring by every backend, beside torch, at the published model's size; encoding also out of the
           GPU's memory and into it
parity     every backend and precision beside the torch model; this section needs the demo's packages

Each candidate runs in a process of its own, one after another, and the results are written after each. What does not
run is listed with the reason. A run ends with its time (--minutes): the largest gallery and the best candidates of
every section come first. Without a GPU nothing runs, except with --interpreted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import click

from ..commands import values
from ..runtime.errors import InputError
from ..runtime.gpu import GpuReport, examine_gpu
from .gpu_candidates import candidates
from .gpu_cases import Cases, CaseShape
from .gpu_images import K, make_case
from .gpu_process import Record
from .gpu_run import CORE, MINUTES, Job, Run
from .measure import PACKAGES, machine
from .nvidia_smi import gpu_state, gpu_uuid
from .search import DIM, REGIONS, WORDS

RESULTS = Path(__file__).parent / "results"
DEMO = Path("out/demo")
SECTIONS = (*CORE, "backends", "parity")
PAIRS = (1000, 5000)  # images and captions of Flickr30K's test set
CERTIFIED = "this, triton int8, certified"
CAPTIONS = 64  # different ones that are searched for
_INTERPRETED = 2  # by the interpreter, which is slow
FIRST = 3  # candidates of each section that come before what is worth less


@click.command()
@click.option(
    "--only", type=values.TEXT, help=f"Sections to run, separated by commas: {', '.join(SECTIONS)}. The default is all."
)
@click.option("--without", type=values.TEXT, help="Sections to leave out, separated by commas.")
@click.option("--images", "sizes", multiple=True, type=click.IntRange(min=K), default=(10_000, 100_000),
    show_default=True, help="Gallery sizes; may be repeated.")  # fmt: skip
@click.option("--pairs", type=(click.IntRange(min=K), click.IntRange(min=1)), default=PAIRS, show_default=True,
    help="Numbers of images and captions whose pairs are all scored.")  # fmt: skip
@click.option("--candidates", "names", type=values.TEXT, multiple=True,
    help="Candidates to run, by a part of their names; may be repeated. The default is all.")  # fmt: skip
@click.option(
    "--seconds", type=values.NUMBER, default=3.0, show_default=True, help="Seconds of timed searches of each candidate."
)
@click.option("--demo", type=values.NEW_FOLDER, default=DEMO, show_default=True,
    help="Folder of the demo, for the section parity; the demo is run where the folder is missing.")  # fmt: skip
@click.option("--out", type=values.NEW_FILE,
    help="File of the results; the default is bench/results/gpu-NAME.json.")  # fmt: skip
@click.option("--cases", type=values.NEW_FOLDER,
    help="Folder that keeps the galleries for other runs; the default removes each after its last use.")  # fmt: skip
@click.option("--minutes", type=values.NumberRange(min=0, min_open=True),
    help=f"Minutes of the run. The default is {MINUTES:.0f} for the sections {CORE[0]} to {CORE[-1]}, and as long as "
    "they take for the others.")  # fmt: skip
@click.option("--interpreted", is_flag=True,
    help="Run without a GPU, kernels in Triton's interpreter: a test of the benchmark, no measurement.")  # fmt: skip
def main(
    only: str | None,
    without: str | None,
    sizes: tuple[int, ...],
    pairs: tuple[int, int],
    names: tuple[str, ...],
    seconds: float,
    demo: Path,
    out: Path | None,
    cases: Path | None,
    minutes: float | None,
    interpreted: bool,
) -> None:
    """Measure this project on this machine's GPU, beside its peers."""
    sections = _sections(only, without)
    gpu = GpuReport() if interpreted else examine_gpu()
    if gpu.problem is not None:
        raise click.ClickException(f"nothing was measured: there is no usable NVIDIA GPU here: {gpu.problem}")
    if out is None:
        out = RESULTS / f"gpu-{gpu.gpus[0].name.lower().replace(' ', '-') if gpu.gpus else 'interpreted'}.json"
    chosen = [name for name in candidates() if not names or any(part in name for part in names)]
    shape = (4, 4, 64) if interpreted else (REGIONS, WORDS, DIM)  # Triton's interpreter is slow
    todo = jobs(sections, chosen, sizes, pairs, shape, seconds, demo, interpreted=interpreted)
    with Cases(cases) as folders:
        try:
            folders.check_room(job.case for job in todo if job.case)
        except InputError as error:
            raise click.ClickException(str(error)) from None
        run = Run(head(gpu), out, None if interpreted else gpu.gpus[0].capability, minutes)
        run.carry_out(todo, folders)
    run.record["state after"] = _state(run.gpu)
    run.write()
    click.echo(f"written: {out}")


def _sections(only: str | None, without: str | None) -> list[str]:
    given = [name.strip() for text in (only, without) if text for name in text.split(",")]
    if unknown := [name for name in given if name not in SECTIONS]:
        raise click.BadParameter(f"a section must be one of {', '.join(SECTIONS)}, got {unknown[0]}")
    wanted = SECTIONS if only is None else [name.strip() for name in only.split(",")]
    left_out = [] if without is None else [name.strip() for name in without.split(",")]
    return [name for name in SECTIONS if name in wanted and name not in left_out]


def jobs(
    sections: Sequence[str],
    chosen: Sequence[str],
    sizes: Sequence[int],
    pairs: tuple[int, int],
    shape: tuple[int, int, int],
    seconds: float,
    demo: Path,
    *,
    interpreted: bool,
) -> list[Job]:
    """Every process of a run, in order of worth.

    The best candidates and the largest gallery of each section of CORE come first, then the rest of CORE, then others.
    """
    found: list[Job] = []
    for section in sections:
        if section not in ("search", "all-pairs", "host", "shortlist"):
            request = {"seconds": seconds, "demo": str(demo), "from_gpu_memory": False}
            if section == "backends":
                found.append(Job(section, "from GPU memory", request | {"from_gpu_memory": True}))
            found.append(Job(section, section, request))
            continue
        for count in [pairs[0]] if section == "all-pairs" else sorted(set(sizes), reverse=True):
            captions = pairs[1] if section == "all-pairs" else _INTERPRETED if interpreted else CAPTIONS
            case = CaseShape(count, captions, *shape)
            largest = section == "all-pairs" or count == max(sizes)
            common = {"seconds": seconds, "captions": min(captions, 20)}
            if section == "host":
                # the interpreter takes 20 times as long for certified searches, and under a profiler a minute each
                candidate, many = ("this, triton float16", 2) if interpreted else (CERTIFIED, 512)
                request = common | {"candidate": candidate, "many": many}
                found.append(Job(section, f"{count} images", request, case, largest))
            elif section == "shortlist":
                for one_part in (False, True):
                    name = f"{count} images as {'one part' if one_part else 'segments'}"
                    found.append(
                        Job(section, name, common | {"candidate": CERTIFIED, "one_part": one_part}, case, largest)
                    )
            else:
                for place, candidate in enumerate(chosen):
                    request = common | {"candidate": candidate, "count": count}
                    first = largest and place < FIRST
                    found.append(Job(section, f"{count} images: {candidate}", request, case, first))
    return sorted(found, key=lambda job: (job.section not in CORE, not job.first))


def keep_cases(cases: Path, images: int) -> None:
    """Make the galleries that `--cases` will find: of one caption among so many images, and of all pairs."""
    folders = Cases(cases)
    shapes = [CaseShape(count, captions, REGIONS, WORDS, DIM) for count, captions in (PAIRS, (images, CAPTIONS))]
    folders.check_room(shapes)
    for shape in shapes:
        if not folders.has(shape):
            folders.folder(shape).mkdir(exist_ok=True)
            make_case(folders.folder(shape), *astuple(shape))


def _state(name: str | None) -> dict[str, str]:
    """Of the GPU of this name; empty where it has none, for nvidia-smi would take another one."""
    return gpu_state(name) if name else {}


def head(gpu: GpuReport) -> Record:
    """Command, commit, date and machine that the figures belong to."""
    packages = (*PACKAGES, "triton", "cuda-python", "cuda-bindings", "late-interaction-kernels", "flash-maxsim")
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = done.stdout.strip()
    except OSError:  # no git on a bare machine
        commit = ""
    return {
        "command": " ".join([Path(sys.executable).name, "-m", "chan_rt.bench.gpu", *sys.argv[1:]]),
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "gpu": asdict(gpu),
        "machine": machine(packages),
        "state before": _state(gpu_uuid()[0]) if gpu.gpus else {},
        "not run": {},
    }


if __name__ == "__main__":
    main()
