"""A server of real devices: keys, entrance, nodes, runs.

Imports: server.simulate, server.run, common.data, common.protocol,
common.secure.
"""
