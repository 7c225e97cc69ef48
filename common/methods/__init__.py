"""Methods: one user's own adapter, prompts with own items, and their evaluation.

Imports: common.engine, common.unlabeled, common.data, common.privacy.
"""
