"""Federated on-device personalisation of language models."""
