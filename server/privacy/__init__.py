"""The accountant, the ledger of releases, and the privacy card.

Imports: common.privacy.
"""
