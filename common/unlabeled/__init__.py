"""The unlabeled set, the overlap alpha, and votes over a bank.

Imports: common.data.
"""
