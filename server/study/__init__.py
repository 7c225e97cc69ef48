"""Declared experiments over many cells, without messages.

Imports: server.run, server.privacy, common.methods, common.engine, common.unlabeled,
common.data, common.privacy, common.protocol.
"""
