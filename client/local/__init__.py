"""The personal model for other programs of this machine, over HTTP on 127.0.0.1.

Imports: client.owner, common.engine.
"""
