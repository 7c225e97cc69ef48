"""The unlabeled set: votes, offers and samples, one user's draw, and the overlap alpha.

Imports: common.engine, common.data, common.privacy.
"""
