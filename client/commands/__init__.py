"""The commands of `idiolect`: one module per group, loaded when one of its commands runs.

Imports: client.owner, client.imports, client.local, client.node, common.data,
common.engine, common.gguf, common.methods, common.protocol.
"""
