"""One run: its phases, the exchange with nodes, the checkpoint, the results.

Imports: server.privacy, common.methods, common.engine, common.unlabeled, common.data,
common.privacy, common.secure, common.protocol.
"""
