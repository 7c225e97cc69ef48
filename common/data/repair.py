"""Text that was once decoded wrongly ("cafÃ©"), put right before anything is removed.

What a wrong decoding leaves are often control characters (U+0080 to U+009F), which
readers remove: after that nothing can be repaired any more.
"""

import re

import ftfy
from ftfy.fixes import fix_c1_controls

# Only the encoding is put right: ftfy has no say in anything else about the text.
_CONFIG = ftfy.TextFixerConfig(
    fix_c1_controls=False, replace_lossy_sequences=False, explain=False
)
# NEL (U+0085) is left out: it ends a line in its own right.
DAMAGED = re.compile("[\x80-\x84\x86-\x9f]")
# One character of UTF-8 became two or more that stand together, or "Ã" and a blank.
# Most text has none, and ftfy takes half a millisecond.
_SUSPECT = re.compile("[^\x00-\x7f]{2}|\xc3 |[\x80-\x9f]")
_NEL = re.compile("(?<![\x80-\xff])\x85")  # not behind what may be the same character's


def repaired(text: str) -> str:
    """Text without the traces of a wrong decoding.

    UTF-8 that was read as Latin-1, Windows-1252 or one of their siblings is decoded again
    (ftfy's heuristic, which changes no text that makes sense as it is); what is left of
    U+0080 to U+009F is what Windows-1252 has there. Five of these characters stand for
    nothing, and stay.
    """
    if not _SUSPECT.search(text):
        return text
    if not DAMAGED.search(text):
        text = _NEL.sub("\n", text)
    found = ftfy.fix_encoding(text, _CONFIG)
    return fix_c1_controls(found) if DAMAGED.search(found) else found
