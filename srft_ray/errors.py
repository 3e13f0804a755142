"""Errors that are the user's to correct."""


class UserError(Exception):
    """Bad config or bad data: one clear sentence (what, where, what to do); the CLI exits with 2."""
