"""What the owner does on a device: vault, history, consent, training, text.

Imports: common.methods, common.engine, common.unlabeled, common.data, common.privacy,
common.gguf.
"""
