"""How many CPUs this process may really use: what containers and schedulers leave of the machine's."""

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def count_usable_cpus(*, cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Return the CPUs that this process may use, by its affinity and the quotas of its control groups; at least 1.

    Args:
        cgroups: Where the control groups are mounted.
        own_cgroup: The file that names this process's.
    """
    is_told = hasattr(os, "sched_getaffinity")  # Not on macOS.
    num_cpus = len(os.sched_getaffinity(0)) if is_told else os.cpu_count() or 1
    return max(1, min([num_cpus, *(int(quota) for quota in _find_quotas(cgroups, own_cgroup))]))


def _find_quotas(cgroups: Path, own_cgroup: Path) -> list[float]:
    """Return the quotas in CPUs of this process's control group and of those above it."""
    own = next((line[3:] for line in _read(own_cgroup).splitlines() if line.startswith("0::")), "/")
    group = cgroups / own.strip().lstrip("/")
    # In a container the own group may be named from outside, where nothing is mounted: the root's quota is its own.
    groups = {one for one in (group, *group.parents) if one.is_relative_to(cgroups)} | {cgroups}
    texts = [_read(one / "cpu.max") for one in groups]
    # The first version of control groups has the same in two files.
    texts += [f"{_read(one / 'cpu.cfs_quota_us')} {_read(one / 'cpu.cfs_period_us')}" for one in (cgroups / "cpu",)]
    return [quota for text in texts if (quota := _read_quota(text)) is not None]


def _read_quota(text: str) -> float | None:
    """Return the CPUs in ``200000 100000``; ``None`` for ``max 100000``, ``-1 100000`` and what is neither."""
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
