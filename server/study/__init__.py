"""Declared experiments over many cells, which are runs without messages.

Imports: server.forecast, server.run, server.simulate, server.privacy, common.engine,
common.unlabeled, common.data, common.protocol.
"""
