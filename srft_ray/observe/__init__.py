"""What a run records and shows: journal, metrics, ledger, loggers, progress, report.

It may import `config`, `plugins` and `errors`; `commands`, `run` and `train` use it.
"""
