"""How long a job will take on this machine, and how much memory, before it begins.

Imports: server.run, common.methods, common.engine, common.unlabeled, common.data.
"""
