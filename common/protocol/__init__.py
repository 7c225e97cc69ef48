"""Messages between server and clients: their fields, bounds, signatures, bytes.

Imports: common.unlabeled, common.data, common.privacy,
common.secure.
"""
