"""Stage `validate`: let nothing bad into training, and pay only for what is new."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tasks import files, params, program
from tasks.vision.errors import RefitError
from tasks.vision.memory import return_freed_memory


def main() -> None:
    """Check `data/raw`; write the report, and the manifest if the data is fit to be trained on."""
    # Every worker process imports this module: what only the stage itself needs, it imports here.
    import pyarrow as pa

    from tasks.gate import history, judge, layout, page, report, store

    # What a hundred thousand pictures need for a moment is not to be kept.
    return_freed_memory()
    pa.set_memory_pool(pa.system_memory_pool())
    settings = params.load()
    rules = settings.validate_
    last = history.last_accepted(files.MANIFEST)
    aside = layout.Aside()
    pictures = layout.find(files.RAW, aside)
    scan = store.scan(files.RAW, pictures, rules.max_pixels, rules.decode_timeout)
    aside.bad |= scan.bad
    if not len(scan.table):
        why = report.listed(aside.bad)
        raise RefitError("\n".join([f"{files.RAW} holds no picture that decodes", *why]))
    files.REPORTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=files.REPORTS) as temporary:
        folder = Path(temporary) / files.VALIDATION.name
        judgement = judge.judge(scan.table, aside, settings, last, folder / "data_docs")
        report.write(folder, judgement, aside, rules.on_bad_file == "quarantine")
        shutil.rmtree(files.VALIDATION, ignore_errors=True)
        folder.rename(files.VALIDATION)
    report.refuse(judgement.findings)
    files.write_json(files.CLASSES, judgement.classes)
    history.write_manifest(judgement.manifest, files.MANIFEST)
    work = scan.work
    print(
        f"{page.verdict(judgement.findings)}: {len(judgement.manifest):,} pictures of "
        f"{len(judgement.classes)} classes, {len(aside.bad):,} bad files left out; {work.hashed:,} "
        f"of {work.pictures:,} files were read, {work.decoded:,} decoded, the others were known"
    )


if __name__ == "__main__":
    program.run(main)
