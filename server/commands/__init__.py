"""The commands of `idiolect-server`: one module per group, loaded when one of them runs.

Imports: server.audit, server.deploy, server.findings, server.forecast, server.pairwise,
server.report, server.run, server.simulate, server.study.
"""
