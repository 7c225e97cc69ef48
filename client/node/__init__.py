"""A device, or a simulated user, as a node that answers a server's requests.

Imports: client.owner, common.methods, common.engine, common.unlabeled, common.data,
common.privacy, common.secure, common.protocol.
"""
