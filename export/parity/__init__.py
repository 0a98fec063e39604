"""The parity check: a bundle against the torch model it was made of, over real data.

`run` plans the stages and gives the verdict, `stages` has the checks of one stage, `runners` those who compute,
`measures` what is measured, `tolerances` what is allowed; `table`, `page` and `plots` show a report.
"""

from .report import Check, Measured, Report, Stage
from .run import check_parity, record_verdict
from .runners import TorchRunner
from .table import table

__all__ = ["Check", "Measured", "Report", "Stage", "TorchRunner", "check_parity", "record_verdict", "table"]
