"""Workers of Ray as forks of one process that has imported the large libraries: they start in tenths of a
second, and share its memory."""
