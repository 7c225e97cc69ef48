"""What a study's cells say: verdicts on claims, tables, plots, pages. From files alone.

Imports: server.study, server.run.
"""
