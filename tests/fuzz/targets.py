"""What is fuzzed: texts, results, rulesets and kubeconfigs. Only the documented errors may come out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from kproxylat.analysis.comparable import REASONS
from kproxylat.analysis.compare import compare
from kproxylat.cluster.kubeconfig_check import check_credentials, check_file
from kproxylat.errors import KproxylatError, LogError
from kproxylat.lab.ruleset import read_ruleset
from kproxylat.logs.reader import LogReader
from kproxylat.report.export import EXPORTERS
from kproxylat.trace.dump import parse_dump
from kproxylat.trace.percentiles import add_percentiles
from tests.support import TESTS

RESULT = TESTS / "documents/result-1.json"
_DIRECTORY = TemporaryDirectory(prefix="kproxylat-fuzz-")


def _save(data: bytes) -> Path:
    path = Path(_DIRECTORY.name) / "input"
    path.write_bytes(data)
    return path


def fuzz_text(data: bytes) -> None:
    """Read a dump and a log, and write the runs in every form."""
    parse_dump(data.decode(errors="backslashreplace"))
    with suppress(LogError):
        results = [add_percentiles(result, (0, 50, 99, 100)) for result in LogReader("fuzz").read(io.BytesIO(data))]
        for export in EXPORTERS.values():
            "".join(export(results)).encode()


def fuzz_result(data: bytes) -> None:
    """Compare a result, a sweep or a log with itself and with a good one."""
    path = str(_save(data))
    for pair in ((path, path), (path, str(RESULT))):
        with suppress(KproxylatError), redirect_stderr(io.StringIO()):
            compare(*pair, allowed=REASONS)


def fuzz_ruleset(data: bytes) -> None:
    """Read a ruleset, and write the rules that would be loaded."""
    with suppress(KproxylatError):
        ruleset = read_ruleset(_save(data), None, None)
        "".join(ruleset.texts.values()).encode()


def fuzz_kubeconfig(data: bytes) -> None:
    """Check a kubeconfig; no plugin of it runs."""
    path = str(_save(data))
    with suppress(ValueError):
        check_file(path)
    with suppress(KproxylatError, ValueError, RecursionError):
        user = json.loads(data)
        check_credentials(user if isinstance(user, dict) else {}, [path])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "texts": fuzz_text,
    "results": fuzz_result,
    "rulesets": fuzz_ruleset,
    "kubeconfigs": fuzz_kubeconfig,
}
SEEDS = {
    "texts": [*sorted((TESTS / "dumps").glob("*.txt")), *sorted((TESTS / "results").glob("*.log"))],
    "results": [RESULT, *sorted((TESTS / "results").glob("*.log"))],
    "rulesets": [*sorted((TESTS / "rulesets").glob("*.txt")), TESTS / "documents/ruleset-1.json"],
    "kubeconfigs": [TESTS / "fuzz/kubeconfig.yaml"],
}
"""Target -> files to begin with."""
