"""The engine: backbone, adapters, scores, objectives, training.

Imports: common.data, common.gguf.
"""
