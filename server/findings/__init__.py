"""What a study's cells say: verdicts, tables, plots, pages. From files alone.

Imports: server.study, server.run.
"""
