"""A server of real devices: keys, entrance, nodes, runs.

Imports: server.simulate, server.run, server.privacy, common.data, common.engine,
common.protocol, common.secure.
"""
