"""Comparison of a rerun with its manifest: are the tables the same, bit for bit?"""

from typing import Any

from analysis.plan import Plan
from analysis.results import checksums, rerun


def compare(plan: Plan, record: dict[str, Any]) -> list[str]:
    """Print and return lines that name the tables and other data that differ from the manifest's.

    plan: one that reruns a manifest; ValueError otherwise.
    record: the manifest of the rerun, complete.
    """
    if plan.again is None or plan.again_from is None:
        raise ValueError("plan: expected one that reruns a manifest, found none to rerun")
    then = plan.again.get("tables", {})
    if not then:
        lines = ["the manifest has no tables to compare with: its run was interrupted before any"]
        print("\n".join(["", *lines]))
        return lines
    lines = checksums.compare(
        then, plan.again_from / "tables", plan.out / "tables", record["tables"]
    )
    if "other_data" in plan.again:
        lines += rerun.differences(plan.again["other_data"], record["other_data"], "other data")
    same = sum(record["tables"].get(name) == digest for name, digest in then.items())
    print("\n".join(["", f"{same} of {len(then)} tables are the same, bit for bit", *lines]))
    return lines
