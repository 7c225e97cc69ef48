"""Methods: training of own adapters, prompts with own items, and their evaluation.

Imports: common.engine, common.unlabeled, common.data.
"""
