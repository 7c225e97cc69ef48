"""A run with simulated nodes, in processes of its own on this machine.

Imports: server.forecast, server.run, server.privacy, common.engine, common.data.
"""
