"""Users and their texts: personas, LaMP files, metrics, dates, repaired text.

Imports: none of the rooms.
"""
