"""Running checks through Great Expectations, with Data Docs that are the same for the same data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.gate.expectations import Check

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation import Expectation

# Data Docs are named by the time of the run; the outputs of a stage carry no time.
NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)
STAMP = "20000101T000000.000000Z"
SITE = "data_docs"
LOGO = "static/images/logo-long.png"


@dataclass(frozen=True)
class Result:
    """What a check gave.

    Attributes:
        check: which one.
        passed: whether all is as expected.
        observed: for a check of the whole table, what was found; else empty.
        offenders: the rows (path, class or column) that are not as expected -> their value.
    """

    check: Check
    passed: bool
    observed: str
    offenders: dict[str, Any]


class Suites:
    """The suites of one data check, one a table, and the Data Docs of them all."""

    def __init__(self, docs: Path) -> None:
        """Begin Data Docs in a folder, which has to be new or empty."""
        import great_expectations as gx

        self.docs = docs
        self.context = gx.get_context(mode="ephemeral")
        self.context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        self.context.delete_data_docs_site("local_site")  # a second one, in a temporary folder
        self.context.add_data_docs_site(
            SITE,
            {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index},
        )

    def run(self, table: str, frame: pd.DataFrame, checks: list[Check]) -> list[Result]:
        """Run those of the checks that are of this table; a row's name is its index."""
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        mine = {check.name: check for check in checks if check.table == table}
        if not mine:
            return []
        suite = gx.ExpectationSuite(
            name=table, expectations=[_expectation(c) for c in mine.values()]
        )
        asset = self.context.data_sources.add_pandas(table).add_dataframe_asset(table)
        validation = self.context.validation_definitions.add(
            gx.ValidationDefinition(
                name=table,
                data=asset.add_batch_definition_whole_dataframe(table),
                suite=self.context.suites.add(suite),
            )
        )
        outcome = validation.run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
            run_id=RunIdentifier(run_name="validate", run_time=NO_TIME),
        )
        self.context.data_sources.delete(table)  # or it keeps the table
        return [_result(mine[_name(result)], result, frame) for result in outcome.results]

    def write_docs(self) -> None:
        """Write Data Docs."""
        self.context.build_data_docs()
        settle(self.docs)


def _name(result: ExpectationValidationResult) -> str:
    config = result.expectation_config
    return str(config.meta["check"]) if config and config.meta else ""


def _expectation(check: Check) -> Expectation:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    severity = FailureSeverity.CRITICAL if check.severity == "error" else FailureSeverity.WARNING
    kind: type[Expectation] = getattr(gxe, check.expectation)
    return kind(
        **check.arguments, severity=severity, notes=check.wanted, meta={"check": check.name}
    )


def _result(check: Check, result: ExpectationValidationResult, frame: pd.DataFrame) -> Result:
    """Translate one of Great Expectations' results.

    Raises:
        RuntimeError: it could not be evaluated, which is a mistake in this program.
    """
    # An error of the expectation is in the dict itself, one of a metric in a dict inside it.
    for info in (result.exception_info, *result.exception_info.values()):
        if isinstance(info, dict) and info.get("raised_exception"):
            raise RuntimeError(f"{check.name}: {info['exception_message']}")
    column = check.arguments.get("column", "")
    rows = result.result.get("unexpected_index_list") or []
    offenders = {row[frame.index.name]: row[column] for row in rows}
    observed = result.result.get("observed_value", "")
    return Result(check, bool(result.success), str(observed), offenders)


def settle(docs: Path) -> None:
    """Take out of Data Docs what differs between two runs on the same data, and a web beacon.

    That is the time at which the data was loaded, the ids of collapsible parts, and the logo: it
    comes from the maker's server, with the time in its address.
    """
    number = count()
    ids: dict[str, str] = {}

    def same_id(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"part-{next(number)}")

    for page in sorted(docs.rglob("*.html")):
        up = "../" * (len(page.relative_to(docs).parts) - 1)
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"https://great-expectations-web-assets[^\"]*", up + LOGO, text)
        text = re.sub(r"(?<=>)\d{8}T\d{6}\.\d{6}Z(?=<)", STAMP, text)
        text = re.sub(
            r"(?<=collapse-body-)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", same_id, text
        )
        page.write_text(text, encoding="utf-8")
