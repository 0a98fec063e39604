"""What a parity check found, as plain data: a Report has Stages, a Stage has Checks, a Check has what was measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ...runtime.evaluation.metrics import Metrics

SCHEMA = 1
_FEW = 100  # images: of fewer, one is more than 1 %
_SHARES = {"top1_i2t", "top1_t2i", "overlap10_i2t", "overlap10_t2i", "recall_change", "rsum_change"}


@dataclass(frozen=True)
class Measured:
    """What one check measured, before it is compared with tolerances.

    Attributes:
        measures: by the names of `MEASURES`.
        errors: (|error|, share of the elements down to the edge before), for the histogram.
        recalls: end to end only; None without finite scores.
        scores: pairs of the reference's and the candidate's scores [n, 2], for the plot.
    """

    measures: Mapping[str, float]
    errors: tuple[tuple[float, float], ...] = ()
    recalls: Metrics | None = None
    scores: np.ndarray | None = None


@dataclass(frozen=True)
class Check:
    """One part of a stage against the reference.

    Attributes:
        part: a name of `run`'s table.
        found: what was measured; None where the run broke off.
        tolerances: the bounds that apply.
        misses: in words; empty where the check passed.
    """

    part: str
    found: Measured | None
    tolerances: Mapping[str, float]
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One backend at one precision.

    Attributes:
        backend, precision: what ran.
        status: `not run` is an engine that was built but cannot run on this machine.
        reason: why it was not run; empty otherwise.
        checks: in the order of the data.
        seconds: wall time.
    """

    backend: str
    precision: str
    status: Literal["passed", "missed", "not run"]
    reason: str = ""
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """`backend/precision`, the key of the verdict in the manifest."""
        return f"{self.backend}/{self.precision}"

    @property
    def recalls(self) -> Metrics | None:
        """End to end; None where the stage has no finite scores."""
        return next((check.found.recalls for check in self.checks if check.found and check.found.recalls), None)

    def misses(self) -> list[str]:
        """Every miss with the part it belongs to, in the order of the data: the first names the culprit."""
        return [f"{check.part}: {miss}" for check in self.checks for miss in check.misses]


@dataclass(frozen=True)
class Report:
    """What a parity check found.

    Attributes:
        bundle: its folder.
        checkpoint: path and sha256 of the reference's weights.
        sample: data, split, images, captions.
        notes: what was not checked, and why.
        reference: the torch model's recalls over the sample.
        stages: as they were run.
        constant: the note that the region features are the same everywhere; empty where they differ.
    """

    bundle: str
    checkpoint: Mapping[str, str]
    sample: Mapping[str, str | int]
    reference: Metrics
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()
    constant: str = ""

    @property
    def passed(self) -> bool:
        """Whether every stage that could run passed; `check_parity` sees to it that at least one could."""
        return all(stage.status in ("passed", "not run") for stage in self.stages)

    def misses(self) -> list[str]:
        """Why `passed` is False: each miss with stage and part, in the order of the data."""
        return [f"{stage.name} {miss}" for stage in self.stages for miss in stage.misses()]

    def few_images(self) -> str:
        """What to say where a share was missed on so few images that chance may have done it; otherwise empty."""
        images = int(self.sample["images"])
        broken = {miss.split()[0] for stage in self.stages for check in stage.checks for miss in check.misses}
        if images >= _FEW or not broken & _SHARES or self.constant:
            return ""
        return f"One image is {100 / images:.3g} % of these {images}, so chance may miss a share; compare more images"

    def sha256(self) -> str:
        """Hex sha256 of what was found, without times and without where the bundle, checkpoint and data lie.

        So equal findings on equal files have one hash, however long they took and wherever they were made.
        """
        record = self._record()
        del record["bundle"]
        record["checkpoint"].pop("path", None)
        record["sample"].pop("data", None)
        for stage in record["stages"]:
            del stage["seconds"]
        return hashlib.sha256(_canonical(record).encode()).hexdigest()

    def to_json(self) -> str:
        """The report without the plots' points; sorted keys, a figure that is no number as null, a final newline.

        `sha256` is that of the method, by which a verdict in a manifest names its report.
        """
        return _canonical({**self._record(), "sha256": self.sha256()})

    def _record(self) -> dict[str, Any]:
        stages = []
        for stage in self.stages:
            checks = [
                {
                    "part": check.part,
                    "measures": {} if check.found is None else _finite(check.found.measures),
                    "tolerances": dict(check.tolerances),
                    "misses": list(check.misses),
                }
                for check in stage.checks
            ]
            recalls = None if stage.recalls is None else _recalls(stage.recalls)
            own = {"name": stage.name, "status": stage.status, "reason": stage.reason, "seconds": stage.seconds}
            stages.append({**own, "checks": checks, "recalls": recalls})
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "bundle": self.bundle,
            "checkpoint": dict(self.checkpoint),
            "sample": dict(self.sample),
            "reference": _recalls(self.reference),
            "stages": stages,
            "notes": list(self.notes),
        }


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _recalls(metrics: Metrics) -> dict[str, Any]:
    return {**asdict(metrics), "rsum": metrics.rsum}


def _finite(measures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in measures.items()}
