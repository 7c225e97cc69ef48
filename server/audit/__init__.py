"""Attacks on what a run releases, and what they find.

Imports: server.study, server.run, server.privacy, common.engine,
common.unlabeled, common.data, common.privacy, common.protocol, common.secure.
"""
