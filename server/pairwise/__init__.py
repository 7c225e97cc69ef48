"""Outputs of a simulation, compared in pairs by a language model behind an address.

Imports: server.findings, server.run, common.data.
"""
