"""Noise and coins, what each outflow is protected by, scrubbing of text.

Imports: common.data.
"""
