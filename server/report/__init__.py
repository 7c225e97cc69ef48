"""One HTML file about a run or a study, made from its files alone.

Imports: server.findings, server.run, server.privacy, common.protocol.
"""
