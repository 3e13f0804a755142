"""From a data file to the stream of groups on Ray Data: rows, token ids, the plan of the stream, blocks.

It may import `models`, `config` and what these may import, but neither `sync` nor `verify`.
"""
