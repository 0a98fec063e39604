"""The log of a run in its folder: as lines of JSON, as a table, as a picture, and for TensorBoard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..runtime.extras import needs
from ..runtime.files import write_file
from .curve import curve_svg
from .run_folder import check_tensorboard
from .train_config import EpochLog


def columns(log: EpochLog) -> dict[str, Any]:
    """One epoch as the columns of log.csv: recalls as i2t_r1 and so on."""
    row = asdict(log)
    for direction in ("i2t", "t2i"):
        row |= {f"{direction}_{name}": value for name, value in row.pop(direction).items()}
    return row


def write_logs(folder: Path, logs: Sequence[EpochLog]) -> None:
    """Write log.jsonl, log.csv and curve.svg of at least one epoch."""
    write_file(folder / "log.jsonl", "".join(json.dumps(asdict(log)) + "\n" for log in logs))
    rows = [columns(log) for log in logs]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(folder / "log.csv", table.getvalue())
    write_file(folder / "curve.svg", curve_svg(logs))


class TensorBoard:
    """Writes each epoch's loss, learning rate and recalls to RUN/tensorboard.

    Args:
        run: folder of the run.
        epoch: the first epoch that will be written; what an interrupted run wrote from there on is replaced.

    Raises:
        InputError: the folder's path is not UTF-8.
        MissingExtra: tensorboard is not installed.
    """

    def __init__(self, run: Path, epoch: int) -> None:
        check_tensorboard(run)
        with needs("tensorboard", "--tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=epoch)

    def write(self, log: EpochLog) -> None:
        """Write one epoch; it is on disk afterwards."""
        for name, value in columns(log).items():
            if name not in ("epoch", "best", "collapsed"):
                self._writer.add_scalar(name.replace("_", "/", 1) if name[1:3] == "2t" else name, value, log.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
