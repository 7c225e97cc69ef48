"""The owner's page: their device in a browser of this machine, on 127.0.0.1.

Imports: client.commands, client.imports, client.local, client.node, client.owner,
common.data, common.engine.
"""
