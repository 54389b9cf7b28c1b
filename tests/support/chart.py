"""Render the Helm chart, in a process of its own: Helm is a library in Go, which changes the whole process.

As a program, it reads a list of values as JSON, and prints what became of each.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from support.fronts import DEPLOY, lack

CHART: Final = DEPLOY / "helm" / "brewos-relay"
KUBERNETES: Final = ("1.25", "1.30", "1.37")
"""The versions whose schemas the result must follow."""


@dataclass(frozen=True)
class Rendered:
    """The chart with some values: its documents by kind and name, or why it has none."""

    documents: dict[tuple[str, str], dict[str, Any]]
    notes: str
    problem: str
    findings: list[str]
    """Of `helm lint --strict`, and where a document does not follow the schemas of Kubernetes."""


def render(*values: dict[str, Any]) -> list[Rendered]:
    """Render the chart with each of these values; without the packages, the test is skipped or fails."""
    for package in ("helm_python", "kubernetes_validate"):
        if find_spec(package) is None:
            lack(f"the package {package} is missing")
    ran = subprocess.run(
        [sys.executable, "-m", "support.chart"],
        cwd=DEPLOY.parent / "tests",
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [
        Rendered(
            {(each["kind"], each["metadata"]["name"]): each for each in one["documents"]},
            one["notes"],
            one["problem"],
            one["findings"],
        )
        for one in json.loads(ran.stdout)
    ]


def _main() -> None:
    import helm_python
    import kubernetes_validate
    import yaml

    results = []
    with helm_python.Chart.load(str(CHART)) as chart:
        for values in json.load(sys.stdin):
            result: dict[str, Any] = {"documents": [], "notes": "", "problem": "", "findings": []}
            results.append(result)
            try:
                files = chart.render(values, name="cafe", namespace="coffee")
            except helm_python.HelmError as problem:
                result["problem"] = str(problem)
                continue
            linted = helm_python.lint(str(CHART), values, strict=True)
            result["findings"] += [*linted["errors"]]
            result["findings"] += [each["error"] for each in linted["messages"] if each["severity"] > 1]
            for name, text in files.items():
                if name.endswith("NOTES.txt"):
                    result["notes"] = text
                    continue
                for document in filter(None, yaml.safe_load_all(text)):
                    result["documents"].append(document)
                    for version in KUBERNETES:
                        try:
                            kubernetes_validate.validate(document, version, strict=True)
                        except kubernetes_validate.ValidationError as problem:
                            result["findings"].append(f"{name}, Kubernetes {version}: {problem.message}")
    print(json.dumps(results))


if __name__ == "__main__":
    _main()
