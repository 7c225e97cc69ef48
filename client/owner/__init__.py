"""What the owner does on a device: vault, history, consent, training, text.

Imports: common.methods, common.engine, common.data, common.privacy.
"""
