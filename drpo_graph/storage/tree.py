"""Candidates of a run, read from its archive."""

from pydantic import JsonValue

from drpo_graph.errors import DamagedError
from drpo_graph.records import Candidate
from drpo_graph.storage.archive import Archive, StoredCandidate, scores_by_candidate
from drpo_graph.storage.damage import valid


async def load_tree(archive: Archive, *, lost: list[DamagedError] | None = None) -> tuple[Candidate, ...]:
    """Return every candidate of a run in creation order, with its rollouts and, where its level is scored, rewards.

    A candidate's rollouts are those on its level's queries, in their order; a contender's rollouts on held-out queries
    are in the result's validation.

    Args:
        lost: Gets what is damaged, if given, and the tree is what can be read.

    Raises:
        DamagedError: a candidate that was scored is not there, or one has not the form of one.
    """
    levels = await archive.levels(lost=lost)
    scores = scores_by_candidate(levels)
    queries_by_level = {level["level"]: level["query_ids"] for level in levels}
    stored_rollouts: dict[str, dict[str, JsonValue]] = {}
    for key, stored_rollout in sorted((await archive.get_all("rollouts")).items()):
        candidate_id, _, query_id = key.partition("/")
        stored_rollouts.setdefault(candidate_id, {})[query_id] = dict(stored_rollout)
    candidates = []
    found = await archive.get_all("candidates")
    if lost is None and (missing := scores.keys() - found.keys()):
        await archive.candidate(min(missing))
    for candidate_id, stored in found.items():
        reward, path_reward = scores.get(candidate_id, (None, None))
        own = stored_rollouts.get(candidate_id, {})
        try:
            with valid(archive.run_id, f"candidate {candidate_id!r}"):
                # A level that is not scored yet has no record of its queries.
                query_ids = queries_by_level.get(creation_order(candidate_id)[0], list(own))
                fields = {
                    **stored,
                    "rollouts": [own[query_id] for query_id in query_ids if query_id in own],
                    "reward": reward,
                    "path_reward": path_reward,
                }
                candidates.append(Candidate.model_validate(fields))
        except DamagedError as error:
            if lost is None:
                raise
            lost.append(error)
    return tuple(sorted(candidates, key=lambda one: creation_order(one.id)))


def creation_order(candidate_id: str) -> tuple[int, ...]:
    """Return a key that sorts candidate ids as the search created them."""
    return tuple(int(part) for part in candidate_id.split("."))


async def trace_of(archive: Archive, candidate_id: str) -> list[StoredCandidate]:
    """Return a candidate's ancestors, from the root on, and itself."""
    trace = [await archive.candidate(candidate_id)]
    while (parent_id := trace[0]["parent_id"]) is not None:
        trace.insert(0, await archive.candidate(parent_id))
    return trace
