"""`make bench-gpu`: every GPU figure in one run, beside its peers and the GPU's own limits.

1. limits: what the GPU's memory and tensor cores reach in this run;
2. parity of every backend and precision with the torch model, engines built for this GPU first;
3. encoding and scoring by every backend, beside torch eager and torch.compile, at the published model's size;
4. one caption against galleries that stay on the GPU: encoding and search, search, and kernels alone, beside the limit;
5. all pairs in the shape of Flickr30K's test set.

What cannot run is named with the reason. Without a GPU nothing runs.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click
import numpy as np

from ..export.engines import build_engine, find_target, plan
from ..runtime.backends import BACKENDS
from ..runtime.backends.sidecar import ENGINES
from ..runtime.backends.table import FLAVORS
from ..runtime.contract import AlignmentConfig, Manifest
from ..runtime.doctor import examine
from ..runtime.errors import ChanError
from ..runtime.gallery.estimate import CpuEstimator
from ..runtime.gallery.kernels.choose import open_kernel
from ..runtime.gallery.kernels.pool import Pool
from ..runtime.gallery.proof.gallery_rows import GalleryRows
from ..runtime.gallery.proof.rows import ArrayPart, array_part
from ..runtime.gallery.rank import Ranker
from ..runtime.gpu import GpuReport, examine_gpu
from .cuda import TimedDevice, gpu_state, tensor_core_rates
from .gpu_candidates import Floats, K, ResidentImages, Search, candidates
from .latency import PACKAGES
from .measure import Latency, machine, take_turns
from .search import DIM, REGIONS, WORDS, Concepts

RESULTS = Path(__file__).parent / "results"
DEMO = Path("out/demo")
CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"  # what the demo's bundle is made of
_PIECE = 1000  # images made at a time
_AGREE = 20  # captions by which candidates are held against the certified ranking

Record = dict[str, Any]
T = TypeVar("T")


@click.command()
@click.option("--images", "sizes", multiple=True, type=click.IntRange(min=K), default=(1000, 10_000, 100_000),
    show_default=True, help="Gallery sizes.")  # fmt: skip
@click.option("--pairs", type=(click.IntRange(min=K), click.IntRange(min=1)), default=(1000, 5000), show_default=True,
    help="Numbers of images and captions whose pairs are all scored.")  # fmt: skip
@click.option("--demo", type=click.Path(file_okay=False, path_type=Path), default=DEMO, show_default=True,
    help="Folder of the demo, for its bundle and data; the demo is run where it is missing.")  # fmt: skip
@click.option(
    "--seconds", default=20.0, show_default=True, help="Seconds for each comparison, all candidates together."
)
@click.option("--name", help="Name in bench/results/gpu-NAME.json; the default is the GPU's name.")
def main(sizes: tuple[int, ...], pairs: tuple[int, int], demo: Path, seconds: float, name: str | None) -> None:
    """Measure everything on this machine's GPU."""
    gpu = examine_gpu()
    if gpu.problem is not None:
        raise click.ClickException(f"nothing was measured: there is no usable NVIDIA GPU here: {gpu.problem}")
    report = head(gpu)
    out = RESULTS / f"gpu-{name or gpu.gpus[0].name.lower().replace(' ', '-')}.json"
    device = TimedDevice()
    with ExitStack() as stack:
        model = Path(stack.enter_context(TemporaryDirectory(prefix="chan-bench-gpu-")))
        encoders: dict[str, Callable[[], object]] = {}
        sections: dict[str, Callable[[], object]] = {
            "limits": lambda: limits(device),
            "parity": lambda: parity(demo),
            "backends": lambda: backends(model, seconds),
            "encoders": lambda: encoders.update(open_encoders(stack, model, report["not run"])),
            **{
                f"{size} images": partial(gallery, size, report, device, gpu, encoders, seconds)
                for size in sorted(sizes)
            },
            "all pairs": lambda: all_pairs(*pairs, report, device, gpu),
        }
        for section, measure in sections.items():
            click.echo(f"\n== {section}")
            report[section] = attempt(section, measure, report["not run"])
            out.write_text(json.dumps(report, indent=2, sort_keys=True, default=asdict) + "\n", encoding="utf-8")
    report["state after"] = gpu_state()
    out.write_text(json.dumps(report, indent=2, sort_keys=True, default=asdict) + "\n", encoding="utf-8")
    for what, reason in report["not run"].items():
        click.echo(f"not run: {what}: {reason}")
    click.echo(f"written: {out}")


def head(gpu: GpuReport) -> Record:
    """Command, commit, date and machine that the figures belong to."""
    packages = (*PACKAGES, "triton", "cuda-python", "cuda-bindings", "late-interaction-kernels", "flash-maxsim")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "command": " ".join([Path(sys.executable).name, "-m", "chan_rt.bench.gpu", *sys.argv[1:]]),
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "gpu": asdict(gpu),
        "machine": machine(packages),
        "state before": gpu_state(),
        "not run": {},
    }


def attempt(what: str, work: Callable[[], T], not_run: dict[str, str]) -> T | None:
    """Return what `work` returns; where it fails, note the reason under its name and return None."""
    try:
        return work()
    except Exception as error:  # peers and libraries fail in their own ways, and one must not end the others' run
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        not_run[what] = lines[0]
        click.echo(f"not run: {what}: {lines[0]}")
        return None


def limits(device: TimedDevice) -> dict[str, Any]:
    """Bytes per second of memory and operations per second of the tensor cores."""
    found: dict[str, Any] = {"copy_bytes_a_second": device.copy_bandwidth()}
    click.echo(f"memory, copying: {found['copy_bytes_a_second'] / 1e12:.2f} TB/s read and written")
    missing: dict[str, str] = {}
    rates = attempt("tensor cores (torch)", tensor_core_rates, missing)
    found |= {"tensor_cores": rates, "not run": missing}
    if isinstance(rates, dict):
        click.echo(", ".join(f"{name} products: {rate / 1e12:.0f} T/s" for name, rate in rates.items()))
    return found


def parity(demo: Path) -> dict[str, Any]:
    """The verdict on every backend and precision of the demo's bundle, with engines built for this GPU.

    int8 is calibrated on 64 of the pictures it is checked on: its verdict is on the arithmetic, not on unseen data.
    """
    from ..calibration.calibrate import calibrate
    from ..calibration.feeds import Samples
    from ..export.int8 import add_int8
    from ..export.parity import check_parity, table
    from ..runtime.data.images import open_sample
    from ..runtime.text import load_tokenizer

    if not (demo / "bundle").is_dir():
        subprocess.run([sys.executable, "-m", "chan_rt.demo", str(demo)], check=True, stdout=subprocess.DEVNULL)
    cannot = {report.name: report.problem for report in examine().backends if not report.runs}
    with TemporaryDirectory(prefix="chan-bench-gpu-") as scratch:
        bundle = Path(scratch, "bundle")
        shutil.copytree(demo / "bundle", bundle, ignore=shutil.ignore_patterns(ENGINES))
        few = open_sample(demo / "data", "test", 64)
        tokens = load_tokenizer(bundle, Manifest.load(bundle).tokenizer).encode(few.captions)
        calibrate(bundle, Samples(few.regions, few.num_images, tokens), "minmax")
        add_int8(bundle, lambda precisions: [], ("int8",))
        reasons = build_engines(bundle)
        running = [name for name in BACKENDS if name not in cannot and name not in reasons]
        report = check_parity(bundle, CHECKPOINT, open_sample(demo / "data", "test", 500), running)
    click.echo("\n".join(table(report)))
    for name, reason in cannot.items():
        click.echo(f"not run: {name}: {reason}")
    return {"report": json.loads(report.to_json()), "engines not built": reasons, "not run": cannot}


def build_engines(bundle: Path) -> dict[str, str]:
    """Every graph and precision with each TensorRT flavor; why the others are not built."""
    reasons: dict[str, str] = {}
    for flavor in FLAVORS:
        try:
            target = find_target(flavor)
            for graph, precision, profiles in plan(bundle):
                build_engine(bundle, graph, precision, target, profiles)
        except ChanError as error:
            reasons[flavor] = str(error)
            click.echo(f"not built: {flavor}: {error}")
    return reasons


def backends(model: Path, seconds: float) -> dict[str, Any]:
    """`chan bench` on a model of the published size, made in the folder: every backend and precision, beside torch."""
    from .int8 import MODELS, make_bundle
    from .latency import Setting, run

    _, bundle = make_bundle(MODELS["gru"], model, np.random.default_rng(0))
    reasons = build_engines(bundle)
    precisions = tuple(dict.fromkeys(name for held in Manifest.load(bundle).graphs.values() for name in held))
    report = run(bundle, tuple(BACKENDS), precisions, model / "checkpoint", Setting(seconds=seconds)).to_dict()
    for operation, latencies in report["latencies"].items():
        click.echo(operation)
        show({name: Latency(**item) for name, item in latencies.items()})
    for name, reason in report["skipped"].items():
        click.echo(f"not run: {name}: {reason}")
    return report | {"engines not built": reasons}


def open_encoders(stack: ExitStack, model: Path, not_run: dict[str, str]) -> dict[str, Callable[[], object]]:
    """What encodes a caption before a search: torch on the GPU for torch's candidates, a Matcher for the others."""
    from ..chan_ref.checkpoint import load
    from ..runtime.matcher import Matcher
    from ..runtime.text import load_tokenizer
    from .latency import TorchCandidate

    bundle, caption = model / "bundle", [" ".join(["a"] * (WORDS - 2))]
    manifest = Manifest.load(bundle)

    def torch_encoder() -> Callable[[], object]:
        network = load(model / "checkpoint").model.eval().to("cuda")
        encoder = TorchCandidate(network, load_tokenizer(bundle, manifest.tokenizer), False, "cuda")
        return lambda: encoder.encode_texts(caption)

    def matcher_encoder() -> Callable[[], object]:
        matcher = stack.enter_context(Matcher.open(bundle, "auto", "fp16"))
        click.echo(f"captions are encoded by {matcher.backend} at fp16")
        return lambda: matcher.encode_texts(caption)

    openers = {"torch": torch_encoder, "this": matcher_encoder}
    found = {name: attempt(f"encoder: {name}", opener, not_run) for name, opener in openers.items()}
    return {name: encode for name, encode in found.items() if encode is not None}


def gallery(
    count: int,
    report: Record,
    device: TimedDevice,
    gpu: GpuReport,
    encoders: Mapping[str, Callable[[], object]],
    seconds: float,
) -> dict[str, Any]:
    """One caption against images that stay on the GPU: whole query by wall time, kernels by CUDA events.

    A whole query encodes a caption, then searches with one made like the images: the model's weights are random, and of
    its own embeddings more or fewer rows might have to be rescored than of a trained model's.
    """
    source = Concepts(0)
    captions = split(source, _AGREE)
    images = make_images(source, count)
    truth = certified(images, captions)
    found: dict[str, Any] = {"bytes": {"int8": images.part.stored.nbytes, "float16": images.fine.nbytes}}
    with ExitStack() as stack:
        opened = open_all(stack, f"{count} images", images, device, gpu, report["not run"])
        found["agreement at 10"] = {name: agreement(one, captions, truth) for name, one in opened.items()}
        calls = {name: lambda one=one: one(captions[:1]) for name, one in opened.items()}
        latencies = take_turns(calls, seconds)
        found["search_ms"] = latencies
        queries = {
            name: lambda name=name, search=search: (encoders[encoder_of(name)](), search())
            for name, search in calls.items()
            if encoder_of(name) in encoders
        }
        found["whole_query_ms"] = take_turns(queries, seconds) if queries else {}
        found["kernels_ms"] = {name: kernel_times(one, captions, device) for name, one in opened.items()}
    bandwidth = (report["limits"] or {}).get("copy_bytes_a_second")
    if bandwidth is not None:
        bound = {precision: size / bandwidth * 1e3 for precision, size in found["bytes"].items()}
        found["memory_limit_ms"] = bound
        scans = {name: times for name, times in found["kernels_ms"].items() if times}
        found["times the limit"] = {
            name: {"search": latencies[name].p50 / bound[precision_of(name)]}
            | ({"scan": scans[name]["scan"] / bound[precision_of(name)]} if name in scans else {})
            for name in latencies
            if precision_of(name) in bound
        }
        click.echo(f"reading the vectors once: int8 {bound['int8']:.3f} ms, float16 {bound['float16']:.3f} ms")
    click.echo("search")
    show(latencies, found)
    click.echo("whole query, the caption's encoding included")
    show(found["whole_query_ms"])
    return found


def all_pairs(num_images: int, num_captions: int, report: Record, device: TimedDevice, gpu: GpuReport) -> Record:
    """Seconds for the top 10 of every caption among all images, and the share of the tensor cores' rate."""
    source = Concepts(0)
    images, captions = make_images(source, num_images), split(source, num_captions)
    operations = 2 * num_images * REGIONS * num_captions * WORDS * DIM
    rates = (report["limits"] or {}).get("tensor_cores") or {}
    truth = certified(images, captions[:_AGREE])
    found: Record = {
        "images": num_images,
        "captions": num_captions,
        "operations": operations,
        "seconds": {},
        "share": {},
    }
    with ExitStack() as stack:
        opened = open_all(stack, "all pairs", images, device, gpu, report["not run"])
        for name, one in opened.items():
            times = []
            for _ in range(4):  # the first warms up
                before = time.perf_counter()
                one(captions)
                times.append(time.perf_counter() - before)
            found["seconds"][name] = float(np.median(times[1:]))
            rate = rates.get(precision_of(name))
            if rate is not None:
                found["share"][name] = operations / found["seconds"][name] / rate
            share = f"{found['share'][name]:7.1%} of the tensor cores" if name in found["share"] else ""
            click.echo(f"{found['seconds'][name]:9.3f} s  {share}  {name}")
        found["agreement at 10"] = {name: agreement(one, captions[:_AGREE], truth) for name, one in opened.items()}
    return found


# -- pieces


def make_images(source: Concepts, count: int) -> ResidentImages:
    """Images [count, REGIONS, DIM] quantized with a float16 copy, in pieces on all threads."""

    def piece(number: int) -> ArrayPart:
        own = copy.copy(source)
        own._rng = np.random.default_rng([7, number])
        rows = min(_PIECE, count - number * _PIECE)
        vectors = own.images(rows).vectors.reshape(-1, DIM)
        return array_part(vectors, np.arange(rows + 1, dtype=np.int64) * REGIONS, "float16")

    with ThreadPoolExecutor() as pool:
        parts = list(pool.map(piece, range(-(-count // _PIECE))))

    def joined(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    part = replace(
        parts[0],
        starts=np.arange(count + 1, dtype=np.int64) * REGIONS,
        scale=joined("scale"),
        error=joined("error"),
        norm=joined("norm"),
        blocks=joined("blocks"),
        stored=joined("stored"),
        exact=joined("exact"),
    )
    return ResidentImages(part, REGIONS)


def split(source: Concepts, count: int) -> list[Floats]:
    """Captions of WORDS words."""
    return list(source.captions(np.full(count, WORDS, np.int32)).vectors)


def certified(images: ResidentImages, captions: Sequence[Floats]) -> list[np.ndarray]:
    """The CPU's certified rows."""
    pool = Pool()
    try:
        kernel, rows = open_kernel(), GalleryRows([images.part], "images", AlignmentConfig())
        ranker = Ranker(rows, CpuEstimator(rows, kernel, pool), kernel, pool)
        return [ranking.rows for ranking in ranker.exact(captions, K, np.ones(images.count, bool))]
    finally:
        pool.close()


def open_all(
    stack: ExitStack, where: str, images: ResidentImages, device: TimedDevice, gpu: GpuReport, not_run: dict[str, str]
) -> dict[str, Search]:
    """Every candidate that opens and answers one caption; the others are noted with the reason."""
    caption = [np.ones((WORDS, images.dim), np.float32) / np.float32(np.sqrt(images.dim))]
    opened = {}
    for name, opener in candidates().items():

        def tried(opener: Any = opener) -> Search:
            with ExitStack() as own:
                search: Search = own.enter_context(opener(images, device, gpu.gpus[0].capability))
                search(caption)
                stack.push(own.pop_all())
                return search

        search = attempt(f"{where}: {name}", tried, not_run)
        if search is not None:
            opened[name] = search
    if not opened:
        raise RuntimeError("no candidate runs")
    return opened


def agreement(search: Search, captions: Sequence[Floats], truth: Sequence[np.ndarray]) -> float:
    """The share of the certified top 10 that the candidate finds, on average."""
    found = search(captions)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]))


def kernel_times(search: Search, captions: Sequence[Floats], device: TimedDevice) -> dict[str, float]:
    """Median milliseconds of each kernel of a query; empty for what does not launch through this device."""
    device.milliseconds()
    per_kernel: dict[Any, list[float]] = {}
    for caption in captions:
        search([caption])
        for number, (_, spent) in enumerate(device.milliseconds()):
            per_kernel.setdefault(("scan", "best_rows", "shortlist")[number], []).append(spent)
    return {name: float(np.median(times)) for name, times in per_kernel.items()}


def precision_of(name: str) -> str:
    """int8 or float16; float32 for what has neither limit."""
    return next((precision for precision in ("int8", "float16") if precision in name), "float32")


def encoder_of(name: str) -> str:
    """Which encoder a candidate's whole query begins with: torch's for those that score in torch."""
    return "this" if "this" in name or "tensorrt" in name else "torch"


def show(latencies: Mapping[str, Latency], found: Mapping[str, Any] | None = None) -> None:
    """A table of latencies; with what a search was found to be: times the limit, and the share of the true top 10."""
    limit, agreements = ({}, {}) if found is None else (found.get("times the limit", {}), found["agreement at 10"])
    more = "" if found is None else f" {'x limit':>8} {'kernel':>8} {'top 10':>7}"
    click.echo(f"  {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9}{more}")
    for name, item in latencies.items():
        cells = f"{item.p50:9.3f} {item.p90:9.3f} {item.p99:9.3f}"
        if found is not None:
            times = [f"{limit[name][key]:.2f}" if key in limit.get(name, {}) else "" for key in ("search", "scan")]
            cells += f" {times[0]:>8} {times[1]:>8} {agreements[name]:>7.3f}"
        click.echo(f"  {cells}  {name}")


if __name__ == "__main__":
    main()
