"""Write docs/findings.md and the pages behind it again: ``python benchmarks/findings.py``.

Numbers come from the result files in ``docs/findings``. Title, question, answer, reading,
the texts of claims and the methods that a plot hides are those that the study files in
``simulations/lamp/experiments`` have now, so a sentence can be corrected without computing
its study again.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from idiolect.server.findings.page import load, store, write_pages
from idiolect.server.study.declaration import Study, read_study

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "findings"
STUDIES = ROOT / "simulations" / "lamp" / "experiments"


def with_texts(found: dict[str, Any], study: Study) -> dict[str, Any]:
    """Return a summary with the sentences of its study file.

    Raises
    ------
    ValueError
        The file has other claims than the summary.
    """
    texts = ("title", "question", "answer", "reading")
    found = found | {name: getattr(study, name) for name in texts}
    if study.audit is None:
        hidden = study.plot.get("hide", [])
        found["plot"] = found["plot"] | ({"hide": hidden} if hidden else {})
        pairs = list(zip(found["claims"], study.claims, strict=True))
        for old, new in pairs:
            if (old["metric"], old["expect"]) != (new.metric, new.expect):
                raise ValueError(f"{study.name}: {new.text!r} is another claim.")
        found["claims"] = [old | {"claim": new.text} for old, new in pairs]
    return found


def main() -> None:
    """Write all files of ``docs/findings``, and the page of answers."""
    with tempfile.TemporaryDirectory() as folder:
        for name, found in load(FOLDER).items():
            summary = Path(folder) / "summary.json"
            study = read_study(STUDIES / f"{name}.toml")
            summary.write_text(json.dumps(with_texts(found, study)))
            store(summary, FOLDER, name)
    write_pages(FOLDER)


if __name__ == "__main__":
    main()
