"""What a server's entrance tells a device that it turns away: words that both sides know.

Only a caller that has signed with the key it names gets one of these; everybody else is
told `STRANGER`, whatever the reason.
"""

STRANGER = "no signature of a device"
UNREGISTERED = "this device is not registered"
REVOKED = "this device was revoked"
CLOCK = (
    "the time of the call is not now"  # beside it, the header `date` has the server's
)
# Beside a refusal of a registered device: which idiolect the server runs.
VERSION = "idiolect-version"
OTHER_DEVICE = "the call names another device"
