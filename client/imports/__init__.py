"""Files that people have, read as pairs of the history: one module per kind of file.

Imports: client.owner, common.data.
"""
