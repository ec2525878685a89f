"""CPUs are counted as this process may use them: by affinity, and by the quotas of control groups."""

import os
from pathlib import Path

import pytest

from drpo_graph.models.cpus import count_usable_cpus


def write_quota(folder: Path, text: str, *, name: str = "cpu.max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{text}\n", encoding="ascii")


def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, affinity: int = 16, own: str = "0::/\n") -> int:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    (tmp_path / "own").write_text(own, encoding="ascii")
    return count_usable_cpus(cgroups=tmp_path / "groups", own_cgroup=tmp_path / "own")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 16),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("6400000 100000", 16),
        ("", 16),
        ("odd", 16),
        ("0 0", 16),
    ],
)
def test_quota_bounds_the_affinity(quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_quota(tmp_path / "groups", quota)
    assert count(tmp_path, monkeypatch) == expected


def test_affinity_alone_counts_where_there_are_no_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count(tmp_path, monkeypatch, affinity=3) == 3
    assert count(tmp_path, monkeypatch, own="") == 16


def test_smallest_quota_on_the_way_to_the_own_group_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, own = tmp_path / "groups", "12:cpu:/old\n0::/jobs/mine\n"
    write_quota(groups / "jobs" / "mine", "800000 100000")
    assert count(tmp_path, monkeypatch, own=own) == 8
    write_quota(groups / "jobs", "200000 100000")
    write_quota(groups / "jobs" / "other", "100000 100000")
    assert count(tmp_path, monkeypatch, own=own) == 2
    # As a container sees it: named from outside, mounted at the root.
    write_quota(groups, "100000 100000")
    assert count(tmp_path, monkeypatch, own="0::/docker/4f2a\n") == 1


def test_first_version_of_control_groups_is_read_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("cpu.cfs_quota_us", "300000"), ("cpu.cfs_period_us", "100000")):
        write_quota(tmp_path / "groups" / "cpu", text, name=name)
    assert count(tmp_path, monkeypatch) == 3
    write_quota(tmp_path / "groups" / "cpu", "-1", name="cpu.cfs_quota_us")
    assert count(tmp_path, monkeypatch) == 16
