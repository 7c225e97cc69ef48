"""What an adapter may reveal: said wherever one leaves idiolect, or writes for others."""

REVEALS = (
    "An adapter can reveal texts that it was trained on (docs/extraction.md): give it "
    "only to people who may read them. It was trained without noise, so the differential "
    "privacy of a federated run does not cover it."
)
